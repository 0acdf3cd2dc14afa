"""Hyper-parameters: completed from defaults, validated, one per leaf, renamed; as numbers and as tensors."""

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trajectories import assert_same_trajectory, awkward_gradients, params_of

import functional_optim as fo
from functional_optim.hparams import one_or_each, require_count, spread
from functional_optim.intervals import contains
from functional_optim.trees import flatten

# The same arithmetic, by tensors instead of Python numbers: at most another rounding a step, in float64.
FLOAT64 = 1e-12


def test_hparams_are_the_defaults_in_the_order_of_the_links():
    tx = fo.chain(fo.clip_by_global_norm(0.5), fo.adamw(lr=0.1))
    assert tx.hparams == {"max_norm": 0.5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "lr": 0.1}
    assert list(tx.hparams) == ["max_norm", "betas", "eps", "weight_decay", "lr"]


def test_writing_to_hparams_changes_nothing():
    tx = fo.sgd(lr=0.1)
    tx.hparams["lr"] = 5.0
    assert tx.hparams == {"lr": 0.1}
    u, _ = tx.update(torch.ones(1), tx.init_state(torch.ones(1)))
    assert u.item() == pytest.approx(-0.1)  # float32's 0.1


def test_a_partial_mapping_is_completed_from_the_defaults():
    rows = awkward_gradients(10)
    partial = params_of(fo.adamw(lr=0.1), rows, hparams={"weight_decay": 0.5})
    assert torch.equal(partial, params_of(fo.adamw(lr=0.1, weight_decay=0.5), rows))
    assert torch.equal(params_of(fo.adamw(lr=0.1), rows, hparams={}), params_of(fo.adamw(lr=0.1), rows))


def test_the_mapping_passed_in_is_not_written_to():
    given = {"lr": 0.1}
    tx = fo.adamw()
    tx.update(torch.ones(1), tx.init_state(torch.ones(1), given), torch.ones(1), given)
    assert given == {"lr": 0.1}


@pytest.mark.parametrize("make", [fo.sgd, fo.adam, fo.adamw])
def test_numbers_and_tensors_give_the_same(make):
    rows = awkward_gradients(15)
    numbers = {"lr": 0.1} if make is fo.sgd else {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}
    tensors = {
        name: tuple(torch.tensor(x, dtype=torch.float64) for x in value)
        if isinstance(value, tuple)
        else torch.tensor(value, dtype=torch.float64)
        for name, value in numbers.items()
    }
    assert_same_trajectory(params_of(make(), rows, hparams=tensors), params_of(make(), rows, hparams=numbers), FLOAT64)
    # A pair as a list, or as one tensor of two entries.
    if "betas" in numbers:
        as_list = {**numbers, "betas": [0.8, 0.95]}
        as_tensor = {**numbers, "betas": torch.tensor([0.8, 0.95], dtype=torch.float64)}
        assert torch.equal(params_of(make(), rows, hparams=as_list), params_of(make(), rows, hparams=numbers))
        assert_same_trajectory(params_of(make(), rows, hparams=as_tensor), params_of(make(), rows, hparams=numbers), FLOAT64)


def test_integers_are_numbers():
    u, _ = fo.sgd().update(torch.ones(1), fo.sgd().init_state(torch.ones(1)), None, {"lr": 1})
    assert u.item() == -1


@pytest.mark.parametrize(
    "interval, inside, outside",
    [
        ("[0, 1)", [0, 0.0, -0.0, 0.5, math.nextafter(1, 0)], [1, 1.0, -1e-300, 2, math.inf, -math.inf, math.nan]),
        ("[0, inf)", [0, 1e308], [math.inf, -1e-300, math.nan]),
        ("(0, inf]", [5e-324, math.inf], [0, 0.0, -1, math.nan]),
        ("(-inf, inf)", [0, -1e308, 1e308], [math.inf, -math.inf, math.nan]),
    ],
)
def test_intervals(interval, inside, outside):
    assert all(contains(interval, x) for x in inside)
    assert not any(contains(interval, x) for x in outside)


@settings(max_examples=100, deadline=None)
@given(st.floats(), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_an_interval_is_its_two_comparisons(x, low, high):
    assert contains(f"[{low}, {high})", x) == (low <= x < high)
    assert contains(f"({low}, {high}]", x) == (low < x <= high)


# One value per leaf.

PARAMS = {"w": [torch.tensor([1.0, -2.0]).double(), torch.tensor(0.5).double()], "b": torch.tensor([3.0]).double()}
LRS = {"w": [0.1, 0.2], "b": 0.0}
BETAS = {"w": [(0.9, 0.99), (0.5, 0.6)], "b": [0.0, 0.9]}
DECAYS = {"w": [0.3, torch.tensor(0.1).double()], "b": 0.0}


def gradients(steps=12):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        yield {
            "w": [torch.randn(2, generator=generator).double(), torch.randn((), generator=generator).double()],
            "b": torch.randn(1, generator=generator).double(),
        }


def walk(tx, params, sequence, hparams):
    state = tx.init_state(params, hparams)
    for grads in sequence:
        u, state = tx.update(grads, state, params, hparams)
        params = fo.apply_updates(params, u)
    return params


@pytest.mark.parametrize("amsgrad", [False, True])
def test_one_value_per_leaf_equals_separate_runs(amsgrad):
    tx = fo.adamw(amsgrad=amsgrad)
    hparams = {"lr": fo.PerLeaf(LRS), "betas": fo.PerLeaf(BETAS), "weight_decay": fo.PerLeaf(DECAYS), "eps": 1e-6}
    together = walk(tx, PARAMS, gradients(), hparams)
    picks = {"w0": lambda t: t["w"][0], "w1": lambda t: t["w"][1], "b": lambda t: t["b"]}
    for pick in picks.values():
        own = {"lr": pick(LRS), "betas": pick(BETAS), "weight_decay": pick(DECAYS), "eps": 1e-6}
        alone = walk(tx, pick(PARAMS), [pick(g) for g in gradients()], own)
        assert torch.equal(pick(together), alone)


def test_one_value_per_leaf_leaves_the_norm_global():
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.sgd())
    grads = {"a": torch.tensor([3.0]).double(), "b": torch.tensor([4.0]).double()}
    u, _ = tx.update(grads, tx.init_state(grads), None, {"lr": fo.PerLeaf({"a": 1.0, "b": 10.0})})
    # 3 and 4 over the common norm 5, with the 1e-6 of torch in the denominator.
    assert u["a"].item() == pytest.approx(-0.6, rel=1e-6) and u["b"].item() == pytest.approx(-8.0, rel=1e-6)


def test_one_bound_per_leaf_on_the_global_norm():
    # Each leaf is scaled by its own bound over the one norm.
    grads = {"a": torch.tensor([3.0]).double(), "b": torch.tensor([4.0]).double()}
    u, _ = fo.clip_by_global_norm().update(grads, {}, None, {"max_norm": fo.PerLeaf({"a": 1.0, "b": 100.0})})
    assert u["a"].item() == pytest.approx(0.6, rel=1e-6) and u["b"].item() == 4.0


def test_values_per_leaf_may_be_differentiated():
    tx = fo.sgd()
    g = {"a": torch.tensor([3.0, 4.0]).double(), "b": torch.tensor([5.0]).double()}

    def total(lrs):
        u, _ = tx.update(g, tx.init_state(g), None, {"lr": fo.PerLeaf(lrs)})
        return u["a"].sum() + u["b"].sum()

    slopes = torch.func.grad(total)({"a": torch.tensor(0.1).double(), "b": torch.tensor(0.2).double()})
    assert slopes["a"].item() == -7 and slopes["b"].item() == -5


def test_spread_shares_one_mapping_between_equal_leaves():
    spec = flatten({"a": 0, "b": 0, "c": 0})[1]
    found = spread({"lr": fo.PerLeaf({"a": 1.0, "b": 2.0, "c": 1.0}), "eps": 0.5}, 7, spec)
    assert found[0] is found[2]
    assert [own.number for own in found] == [0, 1, 0]
    assert [own.hp for own in found] == [{"lr": 1.0, "eps": 0.5}, {"lr": 2.0, "eps": 0.5}, {"lr": 1.0, "eps": 0.5}]
    assert [own.t for own in found] == [7, 7, 7]


def test_one_or_each():
    assert one_or_each({"a": 0.1, "b": 0.1}) == 0.1
    assert one_or_each({"a": (0.9, 0.99), "b": [0.9, 0.99]}) == (0.9, 0.99)
    assert one_or_each({"a": 0.1, "b": 0.2}) == fo.PerLeaf({"a": 0.1, "b": 0.2})
    shared, other = torch.tensor(0.1), torch.tensor(0.1)
    assert one_or_each({"a": shared, "b": shared}) is shared
    assert isinstance(one_or_each({"a": shared, "b": other}), fo.PerLeaf)  # tensors are not read


# Renaming.


def test_rename_hparams_is_the_same_transform_under_other_names():
    rows = awkward_gradients(10)
    renamed = fo.rename_hparams(fo.adamw(), eps="adam_eps", lr="rate")
    assert renamed.hparams == {"betas": (0.9, 0.999), "adam_eps": 1e-8, "weight_decay": 0.01, "rate": 1e-3}
    found = params_of(renamed, rows, hparams={"rate": 0.1, "adam_eps": 1e-3})
    assert torch.equal(found, params_of(fo.adamw(), rows, hparams={"lr": 0.1, "eps": 1e-3}))
    assert params_of(renamed, rows).equal(params_of(fo.adamw(), rows))


def test_names_may_be_exchanged():
    @fo.elementwise(hparams={"a": 1.0, "b": 10.0})
    def plus(hp):
        return lambda g, p: g * hp["a"] + hp["b"]

    tx = fo.rename_hparams(plus(), a="b", b="a")
    assert tx.hparams == {"b": 1.0, "a": 10.0}
    assert tx.update(torch.ones(1), {}, None, {"a": 5.0})[0].item() == 1 * 1.0 + 5.0


def test_renaming_lets_clashing_defaults_live_in_one_chain():
    tx = fo.chain(fo.trace(0.9), fo.rename_hparams(fo.trace(0.5), momentum="second_momentum"))
    assert tx.hparams == {"momentum": 0.9, "dampening": 0.0, "second_momentum": 0.5}
    rows = [[1.0], [0.0], [0.0]]
    state = tx.init_state(torch.zeros(1).double())
    found = []
    for row in rows:
        u, state = tx.update(torch.tensor(row).double(), state)
        found.append(u.item())
    # The impulse response of two filters in a row: 1, 0.9 + 0.5, 0.81 + 0.45 + 0.25.
    assert found == pytest.approx([1.0, 1.4, 1.51], rel=1e-14)


def test_renaming_keeps_the_range_and_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"rate = -1 is outside \[0, inf\)"):
        fo.rename_hparams(fo.sgd(), lr="rate").init_state(torch.ones(1), {"rate": -1})
    with pytest.raises(ValueError, match=r"has no hyper-parameter 'lr'; it accepts: 'rate'"):
        fo.rename_hparams(fo.sgd(), lr="rate").init_state(torch.ones(1), {"lr": 0.1})
    with pytest.raises(ValueError, match=r"sgd has no hyper-parameter 'lrr'; it accepts: 'lr'. Did you mean 'lr'\?"):
        fo.rename_hparams(fo.sgd(), lrr="rate")
    with pytest.raises(ValueError, match=r"renaming .* gives two hyper-parameters of sgd the same name"):
        fo.rename_hparams(fo.sgd(momentum=0.9), momentum="lr")


def test_renaming_a_constructor_says_to_call_it():
    with pytest.raises(TypeError, match=r"not a Transform.*call it"):
        fo.rename_hparams(fo.scale_by_adam, eps="adam_eps")


# The value itself.


def scheduled(step):
    return 1 / (1 + step)


TRANSFORMS = [
    fo.sgd(0.3, 0.9, nesterov=True),
    fo.adamw(0.3, amsgrad=True),
    fo.adam(0.3, state_dtype=torch.float64),
    fo.chain(fo.clip_by_global_norm(0.5), fo.rename_hparams(fo.adamw(0.3), lr="rate"), name="mine"),
    fo.chain(fo.scale_by_schedule(scheduled), fo.sgd(0.3)),
    fo.chain(),
]


@pytest.mark.parametrize("tx", TRANSFORMS, ids=lambda tx: tx.name)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda tx: pickle.loads(pickle.dumps(tx))], ids=["deep", "copy", "pickle"]
)
def test_a_copy_does_the_same(tx, copied):
    again = copied(tx)
    rows = awkward_gradients(8)
    assert again.hparams == tx.hparams and again.name == tx.name and repr(again) == repr(tx)
    assert torch.equal(params_of(again, rows), params_of(tx, rows))
    # The state of one is the state of the other, also half way.
    g = torch.ones(2).double()
    _, state = tx.update(g, tx.init_state(g), g)
    assert torch.equal(again.update(g, state, g)[0], tx.update(g, state, g)[0])


def test_a_transform_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        fo.sgd().name = "other"
    tx = fo.sgd()
    assert len({tx, tx, fo.sgd()}) == 2  # hashable, by identity


def test_reprs_can_be_read():
    assert repr(fo.scale_by_adam(eps=1e-6)) == "scale_by_adam(betas=(0.9, 0.999), eps=1e-06)"
    assert repr(fo.chain(fo.clip_by_value(2.0), fo.sgd(0.1))) == "chain(clip_by_value(clip_value=2.0), sgd(lr=0.1))"
    assert "adam_eps" in repr(fo.rename_hparams(fo.scale_by_adam(), eps="adam_eps"))


def test_each_entry_of_a_tuple_may_have_a_range_of_its_own():
    etas = fo.Hparam((0.5, 1.2), ("(0, 1)", "(1, inf)"))
    tx = fo.elementwise(hparams={"etas": etas}, name="tx")(lambda hp: lambda g, p: hp["etas"][0] * g)()
    with pytest.raises(ValueError, match=r"etas\[1\] = 0.9 is outside \(1, inf\)"):
        tx.init_state(torch.zeros(1), {"etas": (0.5, 0.9)})
    with pytest.raises(ValueError, match=r"etas\[0\] = 1.5 is outside \(0, 1\)"):
        tx.init_state(torch.zeros(1), {"etas": (1.5, 2.0)})
    other = fo.elementwise(hparams={"etas": fo.Hparam((0.5, 1.2), "[0.1, 5]")}, name="other")(lambda hp: lambda g, p: g)()
    assert fo.chain(tx, other).declared["etas"].range == ("[0.1, 1)", "(1, 5]")


def test_as_many_ranges_as_entries():
    with pytest.raises(ValueError, match="has 2 intervals, the default 0.5 has not"):
        fo.Hparam(0.5, ("[0, 1)", "[0, 1)"))
    with pytest.raises(ValueError, match="is not an interval"):
        fo.Hparam((0.5, 1.0), ("[0, 1)", "1"))


def test_what_both_allow_is_of_whole_numbers_if_one_is():
    whole, any_number = (fo.scale() for _ in range(2))
    ranges = [fo.Hparam(1.0, interval) for interval in ("[0, 9] whole", "(0, 20]")]
    links = [dataclasses.replace(tx, declared={"factor": own}) for tx, own in zip((whole, any_number), ranges, strict=True)]
    assert fo.chain(*links).declared["factor"].range == "(0, 9] whole"


def test_a_count_is_any_whole_number_but_no_bool():
    for three in (3, np.int32(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)):
        count = require_count("every", three, 1)
        assert count == 3 and type(count) is int
    for other in (True, np.True_, torch.tensor(True), 3.0, torch.tensor(3.0), torch.tensor([3]), np.array([3]), "3", None):
        with pytest.raises(TypeError, match="^every = .*: expected a whole number of at least 1"):
            require_count("every", other, 1)
    with pytest.raises(ValueError, match=r"^every = 0: expected a whole number of at least 1\.$"):
        require_count("every", torch.tensor(0), 1)
    with pytest.raises(TypeError, match="expected a whole number"):
        torch.vmap(lambda x: x * require_count("every", x, 1))(torch.arange(2))
