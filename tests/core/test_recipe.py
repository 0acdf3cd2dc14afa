"""How transforms print, pickle and are copied: all of it comes from the constructor and its arguments."""

import copy
import dataclasses
import pickle

import cases
import pytest
import torch
from cases import CASES

import functional_optim as fo
from functional_optim import trees
from functional_optim.trials import Trial, default_params


def half(step):
    return 0.5 / (1 + step)


def is_late(step):
    return step >= 1


def is_matrix(name, leaf):
    return leaf.ndim > 1


WRAPPED = [
    fo.scheduled(fo.adamw(0.1), lr=half, weight_decay=fo.linear(0.1, 0.0, 100)),
    fo.masked(fo.accumulate(fo.trace(), every=2), is_matrix),
    fo.partition({"a": fo.chain(fo.scale(2.0), name="double"), "b": fo.freeze()}, fo.by_ndim({2: "a"}, otherwise="b")),
    fo.conditionally(fo.clip_by_global_norm(), is_late, otherwise=fo.skip_large_updates(fo.sgd(), largest_norm=3.0)),
    fo.set_defaults(fo.rename_hparams(fo.adam(), lr="rate"), rate=0.5),
    fo.apply_if_finite(fo.chain(fo.monitor("grad"), fo.kahan_sum()), max_consecutive_errors=2),
    fo.adamw(amsgrad=True, state_dtype=torch.float64),
]
# But for the transform by hand, and those that hold a function without a name.
TABLE = {f"{name}-{i}": tx for name, row in CASES.items() for i, tx in enumerate(row) if name != "Transform"}
TABLE |= {f"wrapped-{tx.name}": tx for tx in WRAPPED}
NAMED = [pytest.param(tx, id=name) for name, tx in TABLE.items() if "<lambda>" not in repr(tx)]


def two_steps(tx):
    """The leaves of parameters and state after them, or why it does not take ordinary parameters."""
    try:
        return trees.leaves(Trial(tx, default_params()).run(2))
    except (TypeError, ValueError) as refusal:
        return [str(refusal)]


def test_few_of_the_table_have_no_name():
    assert len(NAMED) > len(TABLE) - 8


@pytest.mark.parametrize("tx", NAMED)
def test_what_a_repr_evaluates_to_and_pickles_and_copies_are_the_same_transform(tx):
    names = {
        **vars(fo.solvers),
        **vars(fo),
        **vars(cases),
        "torch": torch,
        "half": half,
        "is_late": is_late,
        "is_matrix": is_matrix,
    }
    expected = two_steps(tx)
    for again in (eval(repr(tx), names), pickle.loads(pickle.dumps(tx)), copy.deepcopy(tx)):
        assert again is not tx
        assert repr(again) == repr(tx) and again.declared == tx.declared and again.name == tx.name
        for x, y in zip(two_steps(again), expected, strict=True):
            assert torch.equal(x, y) if isinstance(y, torch.Tensor) else x == y


@pytest.mark.parametrize("name", [name for name in CASES if hasattr(fo, name) and name not in ("elementwise", "per_tensor")])
def test_every_exported_constructor_says_what_it_made(name):
    for tx in CASES[name]:
        if name not in ("Transform", "whole_tree") and tx.name != "chain":
            assert tx.recipe is not None and repr(tx).startswith(f"{name}("), repr(tx)


def test_a_repr_shows_what_is_inside_and_only_what_matters():
    assert repr(fo.scheduled(fo.sgd(), lr=half)) == "scheduled(sgd(lr=0.001), lr=half)"
    assert repr(WRAPPED[2]) == (
        "partition(branches={'a': chain(scale(factor=2.0), name='double'), 'b': freeze()}, labels=by_ndim({2: 'a'}, 'b'))"
    )
    assert repr(fo.apply_if_finite(fo.trace())) == "apply_if_finite(trace(momentum=0.9, dampening=0.0))"
    assert repr(fo.scale_by_adam(amsgrad=True)) == "scale_by_adam(betas=(0.9, 0.999), eps=1e-08, amsgrad=True)"


def test_what_was_changed_by_hand_is_not_remade_without_the_change():
    tx = dataclasses.replace(fo.chain(fo.scale(2.0)), name="renamed")
    assert tx.recipe is None
    assert copy.deepcopy(tx).name == "renamed" and pickle.loads(pickle.dumps(tx)).name == "renamed"


def test_a_recipe_keeps_its_arguments_to_itself():
    branches = {"a": fo.scale(2.0)}
    tx = fo.partition(branches, fo.by_name({"": "a"}))
    branches["b"] = fo.freeze()
    assert repr(tx) == "partition(branches={'a': scale(factor=2.0)}, labels=by_name({'': 'a'}))"


@pytest.mark.parametrize(
    "name", ["codecs.Blockwise", "transform.Transform", "optimizers.moments.adan", "optimizers.torch_optim.muon"]
)
def test_pickles_find_what_they_name_in_the_module_that_held_it(name):
    module, _, held = name.rpartition(".")
    assert pickle.loads(f"cfunctional_optim.{module}\n{held}\n.".encode()) is getattr(fo, held)
