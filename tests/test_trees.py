"""Trees: every container, `None` leaves, paths as Python source, and the first difference of two trees."""

from collections import OrderedDict, defaultdict, namedtuple
from typing import NamedTuple

import optree
import pytest
import torch

import functional_optim as fo
from functional_optim import trees


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


def test_structures_differ_alike_while_a_graph_is_made(monkeypatch):
    """`torch.compile` can't trace the comparison of two structures in every version; what is compared instead agrees."""
    specs = [trees.flatten(tree)[1] for tree in [*TREES.values(), [ONE], {"a": [ONE]}, {"a": ONE}, OrderedDict(a=TWO, b=ONE)]]
    differ = [[a != b for a in specs] for b in specs]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert [[trees._differ(a, b) for a in specs] for b in specs] == differ
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
