"""Every law on every transform of the table, and a table that has every transform.

`make test` has a law of as many transforms as have every wrapper, and every rule with each choice of its options. Two laws take
most of the time: derivatives are taken of as many as have every rule and every wrapper; the tracer's graph with one elementwise
rule of each kind, since by other laws no formula reads a value. `make test-all` has each law of all.
"""

import inspect

import pytest
from cases import CASES, TABLE, params_for
from covering import covering, mostly_full, parts_of, structures_of, written_in

import functional_optim as fo
from functional_optim import testing
from functional_optim.testing import LAWS, Trial, check_law, default_params

# What is exported and is no transform.
OTHERS = {
    "Blockwise",
    "Stochastic",
    "Hparam",
    "PerLeaf",
    "apply_updates",
    "by_module",
    "by_name",
    "by_ndim",
    "by_role",
    "constant",
    "cosine",
    "cosine_restarts",
    "eval_params",
    "explain",
    "find",
    "from_config",
    "to_config",
    "evaluated",
    "exponential",
    "gauss_newton_bartlett",
    "hparams_at",
    "inverse_sqrt",
    "join",
    "least_squares",
    "linear",
    "log_values",
    "minimize",
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

TRIALS = {case: Trial(tx, params_for(case) or default_params()) for case, tx in TABLE.items()}

# Nine tenths of the time that all laws take.
SLOW = {testing.one_graph_serves_all_steps: mostly_full(TABLE, structures_of), testing.derivatives_are_right: mostly_full(TABLE)}
OTHERWISE = mostly_full(TABLE, written_in)


def every_pair():
    for case, trial in TRIALS.items():
        for law in LAWS:
            yield pytest.param(trial, law, id=f"{case}-{law.__name__}", marks=SLOW.get(law, OTHERWISE)[case])


@pytest.mark.parametrize("trial, law", list(every_pair()))
def test_law(trial, law):
    check_law(law, trial)


def test_what_takes_long_is_tested_on_everything_that_transforms_are_made_of():
    every = set().union(*map(parts_of, TABLE.values()))
    assert set().union(*(parts_of(TABLE[case]) for case in covering(TABLE))) == every
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
