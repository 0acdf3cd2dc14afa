"""Routing: which parameter a branch gets, under which hyper-parameters, and what stays where it was."""

import copy
import io

import pytest
import torch
from torch import nn

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter

PARAMS = {"stem": {"w": torch.ones(2, 2)}, "head": [torch.ones(3), torch.ones(())]}
GRADS = {"stem": {"w": torch.full((2, 2), 2.0)}, "head": [torch.full((3,), 4.0), torch.tensor(8.0)]}


def updates_of(tx, hparams=None):
    return tx.update(GRADS, tx.init_state(PARAMS), PARAMS, hparams)[0]


@pytest.mark.parametrize(
    "labels",
    [
        fo.by_name({r"^stem\.": "a", r".*": "b"}),
        fo.by_ndim({2: "a"}, otherwise="b"),
        lambda name, leaf: "a" if leaf.numel() == 4 else "b",
        {"stem": {"w": "a"}, "head": ["b", "b"]},
        {"stem.w": "a", "head.0": "b", "head.1": "b"},
    ],
    ids=["by_name", "by_ndim", "function", "tree", "flat names"],
)
def test_five_ways_to_label(labels):
    found = updates_of(fo.partition({"a": fo.scale(10.0), "b": fo.scale(-1.0)}, labels), {"a.factor": 10.0, "b.factor": -1.0})
    assert torch.equal(found["stem"]["w"], 10 * GRADS["stem"]["w"])
    assert [u.tolist() for u in found["head"]] == [[-4.0] * 3, -8.0]


@pytest.mark.parametrize("order", [("shampoo", "adamw"), ("adamw", "shampoo"), ("ademamix", "rmsprop")])
def test_a_default_of_one_branch_may_be_outside_the_range_of_another(order):
    """Shampoo's betas[1] is 1, where Adam's averages would stand still; a value for both must suit both."""
    first, second = (getattr(fo, name)() for name in order)
    found = updates_of(fo.partition({"a": first, "b": second}, fo.by_ndim({2: "a"}, otherwise="b")))
    alone, _ = first.update(GRADS["stem"], first.init_state(PARAMS["stem"]), PARAMS["stem"])
    assert torch.equal(found["stem"]["w"], alone["w"])


def test_branches_with_different_defaults_keep_their_own():
    tx = fo.partition({"a": fo.scale(10.0), "b": fo.scale(-1.0)}, fo.by_ndim({2: "a"}, otherwise="b"))
    assert "factor" not in tx.hparams
    assert updates_of(tx)["stem"]["w"][0, 0] == 20.0 and updates_of(tx)["head"][1] == -8.0
    both = updates_of(tx, {"factor": 3.0})
    assert both["stem"]["w"][0, 0] == 6.0 and both["head"][1] == 24.0
    one = updates_of(tx, {"factor": 3.0, "b.factor": 5.0})
    assert one["stem"]["w"][0, 0] == 6.0 and one["head"][1] == 40.0


def test_the_first_pattern_wins():
    assert fo.by_name({"w": "first", "stem": "second"})("stem.w", torch.zeros(())) == "first"


def test_a_norm_spans_the_tree_outside_and_its_part_inside():
    labels = fo.by_ndim({2: "a"}, otherwise="b")
    clip = fo.clip_by_global_norm(1.0)
    outside = updates_of(fo.chain(clip, fo.partition({"a": fo.chain(), "b": fo.chain()}, labels)))
    inside = updates_of(fo.partition({"a": clip, "b": fo.chain()}, labels))
    norm_of_a, norm_of_all = 4.0, (16.0 + 48.0 + 64.0) ** 0.5
    torch.testing.assert_close(outside["stem"]["w"], GRADS["stem"]["w"] / norm_of_all)
    torch.testing.assert_close(inside["stem"]["w"], GRADS["stem"]["w"] / norm_of_a)
    assert torch.equal(inside["head"][0], GRADS["head"][0])


def test_a_frozen_leaf_holds_no_state():
    tx = fo.partition({"train": fo.adamw(), "frozen": fo.freeze()}, fo.by_name({"stem": "frozen", ".*": "train"}))
    state = tx.init_state(PARAMS)
    assert state["frozen"] == {}
    assert set(fo.state_get(state, "exp_avg")) == {"head.0", "head.1"}
    assert updates_of(tx)["stem"]["w"].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_label_without_a_branch_is_an_error():
    with pytest.raises(ValueError, match=r"'head.0' got the label 'c': expected one of 'a', 'b'"):
        updates_of(fo.partition({"a": fo.sgd(), "b": fo.sgd()}, fo.by_ndim({2: "a", 0: "b"}, otherwise="c")))
    with pytest.raises(ValueError, match=r"'head.0' got no label.*last pattern that catches the rest"):
        updates_of(fo.partition({"a": fo.sgd()}, fo.by_name({"stem": "a"})))


def test_a_label_that_no_parameter_has_is_an_error():
    tx = fo.partition({"a": fo.sgd(), "b": fo.sgd()}, fo.by_name({"stm": "a", ".*": "b"}))
    with pytest.raises(ValueError, match=r"no parameter is labelled 'a'; there are: 'head.0', 'head.1', 'stem.w'"):
        tx.init_state(PARAMS)


@pytest.mark.parametrize("mask", [True, {"stm": True}], ids=["a bare bool", "a misspelt name"])
def test_a_mask_that_names_no_parameter_is_an_error(mask):
    with pytest.raises(ValueError, match=r"the mask names no parameter: it has .*; there are: 'head.0', 'head.1', 'stem.w'"):
        fo.masked(fo.sgd(), mask).init_state(PARAMS)


def test_a_mask_may_name_parameters_that_its_branch_does_not_see():
    inner = fo.masked(fo.scale(2.0), {"stem": {"w": True}, "head": [True, True]})
    tx = fo.partition({"a": inner, "b": fo.freeze()}, fo.by_ndim({2: "a"}, otherwise="b"))
    assert torch.equal(updates_of(tx)["stem"]["w"], 2 * GRADS["stem"]["w"])


def test_a_label_by_shape_of_what_has_no_gradient_needs_the_parameters():
    tx = fo.partition({"a": fo.scale(2.0), "b": fo.freeze()}, fo.by_ndim({2: "a"}, otherwise="b"))
    grads, state = {**GRADS, "stem": {"w": None}}, tx.init_state(PARAMS)
    with pytest.raises(ValueError, match=r"the label of 'stem.w' depends on more than its name.*update\(grads, state, params\)"):
        tx.update(grads, state)
    assert tx.update(grads, state, PARAMS)[0]["stem"]["w"] is None


@pytest.mark.parametrize("labels", [fo.by_ndim({2: "a", 1: "b"}), fo.by_name({"stem": "a", "tail": "b"})])
def test_what_is_no_parameter_needs_no_label(labels):
    tx = fo.partition({"a": fo.scale(2.0), "b": fo.freeze()}, labels)
    params, grads = ({**tree, "head": None, "tail": torch.ones(3)} for tree in (PARAMS, GRADS))
    updates, _ = tx.update(grads, tx.init_state(params), params)
    assert torch.equal(updates["stem"]["w"], 2 * GRADS["stem"]["w"]) and updates["head"] is None


@pytest.mark.parametrize("key", ["2", 2.0, -1])
def test_a_number_of_dimensions_is_a_whole_number(key):
    with pytest.raises((TypeError, ValueError), match=r"a number of dimensions in labels = .*expected .*at least 0"):
        fo.by_ndim({key: "a"}, otherwise="b")


def test_the_label_of_the_rest_may_find_nothing():
    tx = fo.partition({"a": fo.scale(2.0), "rest": fo.freeze()}, fo.by_name({"stem|head": "a", ".*": "rest"}))
    assert torch.equal(updates_of(tx)["head"][0], 2 * GRADS["head"][0])


def test_the_state_of_another_partition_is_an_error():
    tx = fo.partition({"a": fo.sgd(), "b": fo.sgd()}, fo.by_ndim({2: "a"}, otherwise="b"))
    with pytest.raises(ValueError, match=r"\['a', 'b'\], but got \['masked', 'rest'\]"):
        tx.update(GRADS, fo.masked(fo.sgd(), lambda name, leaf: True).init_state(PARAMS), PARAMS)


def test_by_module_counts_tied_weights_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.norm = nn.LayerNorm(4)
            self.out = nn.Linear(4, 5, bias=False)
            self.out.weight = self.embed.weight

    labels = fo.by_module(Tied(), {nn.Embedding: "embed", nn.Linear: "matrix"}, otherwise="rest")
    assert labels == {"embed.weight": "embed", "norm.weight": "rest", "norm.bias": "rest"}


def test_each_branch_has_its_value_per_leaf():
    tx = fo.partition({"a": fo.sgd(), "b": fo.sgd()}, fo.by_ndim({2: "a"}, otherwise="b"))
    rates = fo.PerLeaf({"stem": {"w": 1.0}, "head": [0.5, 0.25]})
    found = updates_of(tx, {"lr": rates})
    assert found["stem"]["w"][0, 0] == -2.0 and found["head"][0][0] == -2.0 and found["head"][1] == -2.0


def test_a_partition_is_optaxs():
    import jax
    import optax

    generator = torch.Generator().manual_seed(0)
    draws = [{n: torch.randn(2, generator=generator).double() for n in ("w", "b", "f")} for _ in range(12)]
    tx = fo.chain(
        fo.clip_by_global_norm(1.0),
        fo.partition(
            {"decay": fo.adamw(lr=0.1, weight_decay=0.1), "plain": fo.adam(lr=0.01), "frozen": fo.freeze()},
            {"w": "decay", "b": "plain", "f": "frozen"},
        ),
    )
    with jax.enable_x64(True):
        theirs = optax.chain(
            # optax divides by the norm, torch's rule by the norm + 1e-6.
            optax.clip_by_global_norm(1.0),
            optax.partition(
                {"decay": optax.adamw(0.1, weight_decay=0.1), "plain": optax.adam(0.01), "frozen": optax.set_to_zero()},
                {"w": "decay", "b": "plain", "f": "frozen"},
            ),
        )
        p = {name: jax.numpy.array(x.tolist()) for name, x in draws[0].items()}
        state = theirs.init(p)
        for draw in draws[1:]:
            u, state = theirs.update({name: jax.numpy.array(x.tolist()) for name, x in draw.items()}, state, p)
            p = optax.apply_updates(p, u)
        expected = {name: x.tolist() for name, x in p.items()}
    params, ours = draws[0], tx.init_state(draws[0])
    for draw in draws[1:]:
        updates, ours = tx.update(draw, ours, params)
        params = fo.apply_updates(params, updates)
    for name, x in expected.items():
        torch.testing.assert_close(params[name], torch.tensor(x, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    assert torch.equal(params["f"], draws[0]["f"])


def model_and_adapter(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    tx = fo.chain(
        fo.clip_by_global_norm(1.0),
        fo.partition(
            {"matrix": fo.adamw(weight_decay=0.1), "vector": fo.sgd(momentum=0.9), "frozen": fo.freeze()},
            fo.by_name({r"^1\.bias": "frozen", r"weight$": "matrix", r".*": "vector"}),
        ),
    )
    return model, tx, OptimizerAdapter(model.named_parameters(), tx, lr=0.1)


def backward(model, t):
    for i, p in enumerate(model.parameters()):
        p.grad = torch.sin(p.detach() * (i + 1) + t)


def test_behind_the_adapter_each_parameter_holds_its_branchs_slots():
    model, _, optimizer = model_and_adapter()
    backward(model, 0)
    optimizer.step()
    slots = {name: set(optimizer.state[p]) for name, p in model.named_parameters()}
    assert slots["0.weight"] == slots["1.weight"] == {"step", "exp_avg", "exp_avg_sq"}
    assert "momentum_buffer" in slots["0.bias"] and "exp_avg" not in slots["0.bias"]
    assert slots["1.bias"] == set()


def test_behind_the_adapter_a_partition_is_the_pure_one_with_a_scheduler_and_a_checkpoint():
    model, tx, optimizer = model_and_adapter()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    state, lr = tx.init_state(params), 0.1
    for t in range(6):
        backward(model, t)
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        scheduler.step()
        updates, state = tx.update(grads, state, params, {"lr": lr})
        params, lr = fo.apply_updates(params, updates), lr * 0.5
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), params[name], rtol=1e-14, atol=1e-14)
        if t == 2:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            saved_lr, weights = scheduler.state_dict(), copy.deepcopy(model.state_dict())
            model, tx, optimizer = model_and_adapter(seed=1)
            model.load_state_dict(weights)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            scheduler.load_state_dict(saved_lr)
            optimizer.param_groups[0]["lr"] = lr


def test_behind_the_adapter_a_branch_can_be_given_its_own_rate():
    model, tx, _ = model_and_adapter()
    optimizer = OptimizerAdapter(model.named_parameters(), tx, **{"lr": 0.1, "vector.lr": 0.0})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    backward(model, 0)
    optimizer.step()
    assert torch.equal(model[0].bias, before["0.bias"]) and not torch.equal(model[0].weight, before["0.weight"])


def test_a_parameter_that_comes_late_finds_its_branch():
    model, _, optimizer = model_and_adapter()
    backward(model, 0)
    model[1].weight.grad = None
    optimizer.step()
    assert not optimizer.state[model[1].weight]
    backward(model, 1)
    optimizer.step()
    assert optimizer.state[model[1].weight]["step"] == 1 and optimizer.state[model[0].weight]["step"] == 2


def test_a_whole_branch_that_comes_late():
    model, _, optimizer = model_and_adapter()
    backward(model, 0)
    for p in (model[0].weight, model[1].weight):
        p.grad = None
    optimizer.step()
    backward(model, 1)
    optimizer.step()
    assert optimizer.state[model[1].weight]["step"] == 1
    assert "momentum_buffer" in optimizer.state[model[0].bias]
