"""Every law on every transform of the table, and a table that has every transform.

Two laws take most of the time. `make test` has them of as many transforms as it takes to have every rule and every wrapper;
`make test-all` of all.
"""

import inspect

import pytest
from cases import CASES, PARAMS

import functional_optim as fo
from functional_optim import testing
from functional_optim.combinators.chain import Chained
from functional_optim.lifting import Lifted
from functional_optim.testing import LAWS, Trial, check_law, default_params

# What is exported and is no transform.
OTHERS = {
    "Hparam",
    "PerLeaf",
    "apply_updates",
    "by_module",
    "by_name",
    "by_ndim",
    "constant",
    "cosine",
    "cosine_restarts",
    "eval_params",
    "exponential",
    "gauss_newton_bartlett",
    "hparams_at",
    "inverse_sqrt",
    "join",
    "linear",
    "noam",
    "one_cycle",
    "per_example_global_norm_clip",
    "piecewise_constant",
    "piecewise_interpolate",
    "polynomial",
    "state_get",
    "state_set",
    "warmup_cosine",
    "warmup_stable_decay",
}

EVERY_CASE = {
    f"{name}-{i}": Trial(tx, PARAMS.get(name) or default_params()) for name, cases in CASES.items() for i, tx in enumerate(cases)
}

# Nine tenths of the time that all laws take.
SLOW = {testing.one_graph_serves_all_steps, testing.derivatives_are_right}


def parts_of(tx):
    """What a transform is made of: the rules, with the choices made for them, and what is around them."""
    form = tx.form
    if isinstance(form, Lifted):
        return {(form.name, form.state_dtype, *sorted((name, str(choice)) for name, choice in form.options.items()))}
    own = {type(form).__name__ if isinstance(form, Chained) or tx.recipe is None else tx.recipe.constructor.__name__}
    return own.union(*map(parts_of, form.parts.values()))


def covering():
    """Cases that have every part of all cases: of each further one, those that are larger hold all parts already."""
    seen, chosen = set(), set()
    for case in sorted(EVERY_CASE, key=lambda case: -len(parts_of(EVERY_CASE[case].transform))):
        parts = parts_of(EVERY_CASE[case].transform)
        if parts - seen:
            chosen.add(case)
            seen |= parts
    return chosen


COVERING = covering()


def every_pair():
    for case, trial in EVERY_CASE.items():
        for law in LAWS:
            marks = [pytest.mark.full] if law in SLOW and case not in COVERING else []
            yield pytest.param(trial, law, id=f"{case}-{law.__name__}", marks=marks)


@pytest.mark.parametrize("trial, law", list(every_pair()))
def test_law(trial, law):
    check_law(law, trial)


def test_the_slow_laws_are_tested_on_everything_that_transforms_are_made_of():
    every = set().union(*(parts_of(trial.transform) for trial in EVERY_CASE.values()))
    assert set().union(*(parts_of(EVERY_CASE[case].transform) for case in COVERING)) == every
    assert {"apply_if_finite", "skip_large_updates", "cautious", "with_gradient_signs", "partition", "Chained"} < every


def test_every_exported_transform_is_in_the_table():
    assert sorted(CASES) == sorted(set(fo.__all__) - OTHERS)
    assert all(CASES.values()), "a transform without a case"


def test_every_law_is_in_the_list():
    laws = [
        f for _, f in inspect.getmembers(fo.testing, inspect.isfunction) if list(inspect.signature(f).parameters) == ["trial"]
    ]
    private = {f for f in laws if f.__name__.startswith("_")}
    assert set(laws) - private == set(LAWS)
