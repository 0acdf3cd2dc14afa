"""The moving average of updates in plain floats, and what it is to a sum with momentum."""

import pytest
import torch
from trajectories import FLOAT64, assert_same_trajectory, awkward_gradients, columns, transposed, updates_of

import functional_optim as fo


def average(gs, beta, debias):
    m, found = 0.0, []
    for t, g in enumerate(gs, 1):
        m = beta * m + (1 - beta) * g
        found.append(m / (1 - beta**t) if debias else m)
    return found


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("debias", [True, False])
def test_ema_in_plain_floats(decay, debias):
    rows = awkward_gradients()
    expected = transposed(average(gs, decay, debias) for gs in columns(rows))
    assert_same_trajectory(updates_of(fo.ema(decay, debias=debias), rows), expected, FLOAT64)


def test_the_corrected_average_of_a_constant_is_that_constant():
    found = updates_of(fo.ema(0.99), [[3.0]] * 50)
    torch.testing.assert_close(found, torch.full((50, 1), 3.0, dtype=torch.float64), rtol=1e-13, atol=0)  # 50 roundings


def test_trace_is_the_sum_of_which_ema_is_the_average():
    rows = awkward_gradients()
    assert_same_trajectory(updates_of(fo.ema(0.9, debias=False), rows), 0.1 * updates_of(fo.trace(0.9), rows), FLOAT64)


def test_only_the_correction_counts_steps():
    p = torch.zeros(2)
    assert set(fo.ema().init_state(p)) == {"step", "exp_avg"}
    assert set(fo.ema(debias=False).init_state(p)) == {"exp_avg"}
