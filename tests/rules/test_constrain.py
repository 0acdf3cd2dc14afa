"""Guards: NaN gradients and negative parameters."""

import math

import torch
from trajectories import START, awkward_gradients, columns, params_of, transposed

import functional_optim as fo


def test_keep_params_nonnegative_in_plain_floats():
    rows = awkward_gradients()
    expected = []
    for p, gs in zip(START, columns(rows), strict=True):
        path = []
        for g in gs:
            p = p + (-p if p - 0.1 * g < 0 else -0.1 * g)
            path.append(p)
        expected.append(path)
    found = params_of(fo.chain(fo.scale_by_learning_rate(0.1), fo.keep_params_nonnegative()), rows)
    assert found.tolist() == [list(row) for row in transposed(expected)]
    assert (found >= 0).all() and (found == 0).any() and (found > 0).any()


def test_positive_parameters_stay_so_in_low_precision_too():
    p = torch.tensor([1e-3, 1.0, 3e4], dtype=torch.float16)
    u = torch.tensor([-1.0, -1.0, -6e4], dtype=torch.float16)
    updates, _ = fo.keep_params_nonnegative().update(u, {}, p)
    assert torch.equal(fo.apply_updates(p, updates), torch.zeros(3, dtype=torch.float16))


def test_zero_nans_touches_nothing_else():
    g = {"a": torch.tensor([1.0, math.nan, -math.inf]), "b": torch.tensor(math.nan), "none": None}
    u, state = fo.zero_nans().update(g, {})
    assert state == {} and u["none"] is None
    assert u["a"].tolist() == [1.0, 0.0, -math.inf] and u["b"].item() == 0
    z, _ = fo.zero_nans().update(torch.tensor([complex(math.nan, 2.0)]), {})
    assert z.tolist() == [2j]


def test_a_nan_passes_no_derivative():
    g = torch.tensor([1.0, math.nan], dtype=torch.float64)
    slope = torch.func.grad(lambda g: fo.zero_nans().update(g, {})[0].square().sum())(g)
    assert slope.tolist() == [2.0, 0.0]


def test_freeze_is_zero_for_nan_too():
    g = torch.tensor([1.0, math.nan, math.inf])
    assert torch.equal(fo.freeze().update(g, {})[0], torch.zeros(3))
    assert fo.identity().update(g, {})[0].isnan().tolist() == [False, True, False]
