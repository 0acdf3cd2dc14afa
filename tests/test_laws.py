"""Every law on every transform of the table, and a table that has every transform."""

import inspect

import pytest
from cases import CASES, PARAMS

import functional_optim as fo
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

EVERY_CASE = [
    pytest.param(Trial(tx, PARAMS.get(name) or default_params()), id=f"{name}-{i}")
    for name, cases in CASES.items()
    for i, tx in enumerate(cases)
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("trial", EVERY_CASE)
def test_law(trial, law):
    check_law(law, trial)


def test_every_exported_transform_is_in_the_table():
    assert sorted(CASES) == sorted(set(fo.__all__) - OTHERS)
    assert all(CASES.values()), "a transform without a case"


def test_every_law_is_in_the_list():
    laws = [
        f for _, f in inspect.getmembers(fo.testing, inspect.isfunction) if list(inspect.signature(f).parameters) == ["trial"]
    ]
    private = {f for f in laws if f.__name__.startswith("_")}
    assert set(laws) - private == set(LAWS)
