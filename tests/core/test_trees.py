"""Trees: every container, `None` leaves, paths as Python source, and the first difference of two trees."""

import dataclasses
from collections import OrderedDict, defaultdict, namedtuple
from typing import NamedTuple

import optree
import pytest
import torch
from torch.utils import _pytree

import functional_optim as fo
from functional_optim import traced_trees, trees


class Pair(NamedTuple):
    w: object
    b: object


Classic = namedtuple("Classic", ["x"])


@optree.dataclasses.dataclass(namespace="")
class Layer:
    weight: object
    bias: object


ONE, TWO = torch.tensor([1.0, 2.0]), torch.tensor(3.0)
TREES = {
    "tensor": ONE,
    "dict": {"b": ONE, "a": TWO},
    "list": [ONE, TWO],
    "tuple": (ONE, TWO),
    "named tuple": Pair(ONE, TWO),
    "classic named tuple": Classic(ONE),
    "dataclass": Layer(ONE, TWO),
    "ordered dict": OrderedDict(b=ONE, a=TWO),
    "default dict": defaultdict(list, {"b": ONE, "a": TWO}),
    "nested": {"layers": [Layer(ONE, None), Pair(w=(TWO,), b={})], "none": None, "empty": []},
}


@pytest.mark.parametrize("name", TREES)
def test_flatten_and_unflatten_are_inverse(name):
    tree = TREES[name]
    leaves, spec = trees.flatten(tree)
    again = trees.unflatten(spec, leaves)
    assert type(again) is type(tree)
    assert trees.flatten(again)[1] == spec
    assert all(a is b for a, b in zip(trees.leaves(again), leaves, strict=True))


@pytest.mark.parametrize("name", TREES)
def test_a_transform_gives_back_the_same_kind_of_tree(name):
    params = TREES[name]
    tx = fo.chain(fo.clip_by_global_norm(), fo.adamw())
    u, state = tx.update(params, tx.init_state(params), params)
    new = fo.apply_updates(params, u)
    for tree in (u, new, state["adamw"]["scale_by_adam"]["exp_avg"]):
        assert type(tree) is type(params)
        assert trees.flatten(tree)[1] == trees.flatten(params)[1]


@pytest.mark.parametrize("name", [*TREES, "no order", "nothing", "none"])
def test_inside_the_compiler_trees_are_walked_alike(name):
    tree = {**TREES, "no order": {"b": ONE, 2: TWO, 1: None}, "nothing": {}, "none": {"b": None, "a": {"c": None}}}[name]
    leaves, spec = traced_trees.flatten(tree)
    expected, structure = trees.flatten(tree)
    assert all(a is b for a, b in zip(leaves, expected, strict=True)) and spec.num_leaves == len(leaves)
    assert spec.paths() == structure.paths()
    numbered = trees.unflatten(structure, range(len(leaves)))
    again = trees.unflatten(spec, range(len(leaves)))
    assert type(again) is type(numbered) and trees.leaves(again) == trees.leaves(numbered)
    assert not isinstance(tree, dict) or list(again) == list(numbered)
    assert spec == traced_trees.flatten(numbered)[1] != traced_trees.flatten([tree, tree])[1]
    holders = trees.unflatten(structure, [[i] for i in range(len(leaves))])
    assert spec.flatten_up_to(holders) == structure.flatten_up_to(holders)
    if spec.kind:
        with pytest.raises(ValueError, match="Expected"):
            spec.flatten_up_to([1, 2, 3, 4])


def test_one_graph_serves_trees_that_hold_no_tensor_at_some_place():
    """An empty branch, one whose gradients are all missing, empty containers in the tree."""
    matrices = {"a": torch.ones(3, 2), "b": torch.ones(2, 2)}
    mixed = {"a": torch.ones(3, 2), "b": torch.ones(2), "e": {}, "l": [], "t": (), "n": None, "d": {"x": None}}
    named = fo.partition({"x": fo.adam(), "rest": fo.sgd()}, fo.by_name({"a|b": "x", ".*": "rest"}))
    for tx, params, grads in [
        (fo.muon(), matrices, matrices),
        (named, matrices, matrices),
        (fo.muon(), {"a": matrices["a"], "b": ONE}, {"a": None, "b": ONE}),
        (fo.adamw(), mixed, mixed),
    ]:

        def step(params, state, grads, tx=tx):
            updates, state = tx.update(grads, state, params)
            return fo.apply_updates(params, updates), state

        state = tx.init_state(params)
        torch._dynamo.reset()
        found = torch.compile(step, fullgraph=True, backend="eager")(params, state, grads)
        expected = step(params, state, grads)
        assert trees.flatten(found)[1] == trees.flatten(expected)[1]
        for x, y in zip(trees.leaves(found), trees.leaves(expected), strict=True):
            assert x is y is None or torch.allclose(x, y)


class Bag:
    """Registered below with torch's pytrees, without names for what it holds."""

    def __init__(self, *items):
        self.items = items


@dataclasses.dataclass
class Weights:
    a: object
    b: object


_pytree.register_pytree_node(Bag, lambda bag: (list(bag.items), len(bag.items)), lambda items, n: Bag(*items))
_pytree.register_dataclass(Weights)


def test_classes_that_torch_knows_are_trees():
    params = Weights(torch.ones(2), {"x": Bag(torch.ones(3), Weights(torch.ones(()), torch.ones(1)))})

    def loss(p):
        return (p.a**2).sum() + sum((x**3).sum() for x in p.b["x"].items[:1]) + p.b["x"].items[1].a

    def plain(p):
        return loss(Weights(p[0], {"x": Bag(p[1], Weights(p[2], p[3]))}))

    leaves, tx = [torch.ones(2), torch.ones(3), torch.ones(()), torch.ones(1)], fo.adamw(lr=0.1)
    u, state = tx.update(torch.func.grad(loss)(params), tx.init_state(params), params)
    expected, _ = tx.update(torch.func.grad(plain)(leaves), tx.init_state(leaves), leaves)
    new = fo.apply_updates(params, u)
    assert isinstance(new, Weights) and isinstance(new.b["x"], Bag)
    assert all(map(torch.equal, trees.leaves(new), trees.leaves(fo.apply_updates(leaves, expected))))
    assert isinstance(state["scale_by_adam"]["exp_avg"], Weights)
    assert trees.names(params) == ["a", "b.x.0", "b.x.1.a", "b.x.1.b"]
    assert trees.paths(params, "p")[-1].startswith("p.b['x'][") and trees.paths(params, "p")[0] == "p.a"

    trained = fo.meta.unroll(loss, tx, 2)(params)
    again = fo.meta.unroll(loss, tx, 1)(new, state=state)
    by_list = fo.meta.unroll(plain, tx, 2)(leaves)
    for found in (trained, again):
        assert isinstance(found.params, Weights)
        assert all(map(torch.equal, trees.leaves(found.params), trees.leaves(by_list.params)))


@pytest.mark.parametrize(
    "halved",
    [
        lambda p: fo.meta.unroll(lambda p: p.w**2, fo.scale(-0.25), 1)(p, state={}).params.w,
        lambda p: fo.meta.remat(lambda p: type(p)(p.w / 2))(p).w,
        lambda p: p.w / 2 + 0 * fo.meta.zero_order_grad(lambda p: p.w, samples=1, sigma=0.1)(p, generator=torch.Generator()).w,
    ],
)
def test_a_class_is_known_at_first_sight(halved):
    @dataclasses.dataclass
    class Fresh:
        w: object

    _pytree.register_dataclass(Fresh)
    assert halved(Fresh(torch.tensor(1.0))) == 0.5


def test_two_leaves_of_one_name_are_refused_where_names_count():
    tree = {"enc.w": ONE, "enc": {"w": TWO}}
    labels = fo.by_name({".*": "all"})
    for call in (
        lambda: fo.partition({"all": fo.sgd()}, labels).init_state(tree),
        lambda: fo.partition({"all": fo.sgd()}, labels).update(tree, {"all": {}}, tree),
        lambda: fo.masked(fo.sgd(), lambda name, leaf: True).init_state(tree),
        lambda: fo.masked(fo.sgd(), {"enc.w": True, "enc": {"w": False}}),
        lambda: fo.partition({"all": fo.sgd()}, {"enc.w": "all", "enc": {"w": "all"}}).init_state({"enc.w": ONE}),
        lambda: fo.masked(fo.sgd(), lambda name, leaf: True).init_state({1: ONE, "1": TWO}),
    ):
        with pytest.raises(ValueError, match="both called '(enc.w|1)'.*rename one"):
            call()
    u, _ = fo.adamw().update(tree, fo.adamw().init_state(tree), tree)
    assert u["enc.w"].shape == ONE.shape and u["enc"]["w"].shape == TWO.shape


def test_the_order_of_a_dicts_keys_does_not_matter():
    tx = fo.adamw(lr=0.1)
    forward, backward = {"a": ONE, "b": TWO}, {"b": TWO, "a": ONE}
    u, _ = tx.update(backward, tx.init_state(forward), forward)
    v, _ = tx.update(forward, tx.init_state(forward), forward)
    assert torch.equal(u["a"], v["a"]) and torch.equal(u["b"], v["b"])


def test_paths_are_python_source():
    tree = {"layers": [Pair(w=ONE, b=TWO), (TWO,)], "none": None, 3: Layer(ONE, TWO)}
    found = trees.paths(tree, "params")
    assert len(found) == len(trees.leaves(tree)) == 6
    for path, leaf in zip(found, trees.leaves(tree), strict=True):
        assert eval(path, {"params": tree}) is leaf
    assert "params['layers'][0].w" in found
    assert trees.paths(ONE, "grads") == ["grads"]


def test_none_is_a_leaf_and_map_leaves_keeps_it():
    assert trees.leaves({"a": None, "b": 1}) == [None, 1]
    assert trees.map_leaves(lambda a, b: a + b, {"a": None, "b": 1}, {"a": 5, "b": 2}) == {"a": None, "b": 3}


@pytest.mark.parametrize(
    "ours, theirs, message",
    [
        ({"a": 1}, {"a": 1, "b": 2}, r"ours does not have the structure of theirs: theirs\['b'\] has no counterpart in ours"),
        ({"a": 1, "b": 2}, {"a": 1}, r"ours\['b'\] has no counterpart in theirs"),
        ([1, 2], [1], r"ours\[1\] has no counterpart in theirs"),
        ({"x": {"y": [1]}}, {"x": {"y": [1, 2]}}, r"theirs\['x'\]\['y'\]\[1\] has no counterpart in ours"),
        ([1], (1,), r"the same leaves are held by other containers"),
        ({"a": []}, {"a": ()}, r"the same leaves are held by other containers"),
        ({"a": 1}, {"a": {"b": 1}}, r"theirs\['a'\]\['b'\] has no counterpart in ours"),
        (1, {"a": 1}, r"ours is a single leaf"),
    ],
)
def test_the_first_difference(ours, theirs, message):
    with pytest.raises(ValueError, match=message):
        trees.leaves_like(ours, theirs, trees.flatten(theirs)[1], "ours", "theirs")


def test_structures_differ_alike_inside_the_compiler():
    every = [*TREES.values(), [ONE], {"a": [ONE]}, {"a": ONE}, OrderedDict(a=TWO, b=ONE)]
    ours, theirs = ([flatten(tree)[1] for tree in every] for flatten in (traced_trees.flatten, trees.flatten))
    differ = [[a != b for a in theirs] for b in theirs]
    assert [[a != b for a in ours] for b in ours] == differ
    assert {False, True} == {x for row in differ for x in row}


def test_equal_structures_are_no_difference():
    tree = TREES["nested"]
    found = trees.leaves_like(tree, tree, trees.flatten(tree)[1], "a", "b")
    assert all(a is b for a, b in zip(found, trees.leaves(tree), strict=True))


def test_apply_updates_adds_in_the_parameters_dtype():
    params = {"a": torch.tensor([1.0, 2.0], dtype=torch.bfloat16), "b": torch.tensor(5.0), "c": ONE}
    new = fo.apply_updates(params, {"a": torch.tensor([0.5, 0.25]), "b": torch.tensor(-1.0, dtype=torch.float64), "c": None})
    assert torch.equal(new["a"], torch.tensor([1.5, 2.25], dtype=torch.bfloat16))
    assert torch.equal(new["b"], torch.tensor(4.0)) and new["b"].dtype == torch.float32
    assert new["c"] is ONE
    assert params["a"].tolist() == [1, 2] and params["b"].item() == 5


def test_a_missing_gradient_stays_missing_and_its_slots_stay():
    params = {"a": ONE, "b": TWO}
    tx = fo.adamw()
    state = tx.init_state(params)
    _, state = tx.update({"a": ONE, "b": TWO}, state, params)
    u, after = tx.update({"a": ONE, "b": None}, state, params)
    assert u["b"] is None and u["a"] is not None
    for slot in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after["scale_by_adam"][slot]["b"], state["scale_by_adam"][slot]["b"])
        assert not torch.equal(after["scale_by_adam"][slot]["a"], state["scale_by_adam"][slot]["a"])
