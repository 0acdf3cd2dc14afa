"""Yogi against its paper's loop, and the bound that it was made for."""

import math

import pytest
import torch
from trajectories import FLOAT64, assert_same_trajectory, awkward_gradients, columns, params_of, transposed, updates_of

import functional_optim as fo


def paper_yogi(gs, b1=0.9, b2=0.999, eps=1e-3, start=1e-6):
    """Zaheer et al., Algorithm 2, with the corrections for the bias that optax adds."""
    m = v = start
    found = []
    for t, g in enumerate(gs, 1):
        m = b1 * m + (1 - b1) * g
        v = v - (1 - b2) * (math.copysign(1.0, v - g * g) if v != g * g else 0.0) * g * g
        found.append(m / (1 - b1**t) / (math.sqrt(v / (1 - b2**t)) + eps))
    return found


@pytest.mark.parametrize("options", [((0.9, 0.999), 1e-3, 1e-6), ((0.5, 0.8), 1e-8, 2.0), ((0.0, 0.9), 0.1, 1.0)])
def test_scale_by_yogi_is_the_papers_loop(options):
    rows = awkward_gradients()
    (b1, b2), eps, start = options
    expected = transposed(paper_yogi(gs, b1, b2, eps, start) for gs in columns(rows))
    assert_same_trajectory(updates_of(fo.scale_by_yogi(*options), rows), expected, FLOAT64)


def test_yogi_subtracts_the_learning_rate_times_that():
    rows = awkward_gradients()
    rule, whole = fo.scale_by_yogi(), fo.yogi(lr=0.5)
    path = params_of(whole, rows)
    # One product and one sum a step, whose roundings add up to the size of the parameter.
    torch.testing.assert_close(path[1:] - path[:-1], -0.5 * updates_of(rule, rows)[1:], rtol=1e-12, atol=1e-12)


def test_the_second_moment_moves_by_a_share_of_the_squares_whatever_it_was():
    tx = fo.scale_by_yogi(betas=(0.9, 0.9), initial_accumulator_value=0.3)
    state = tx.init_state(torch.zeros(8, dtype=torch.float64))
    for row in awkward_gradients():
        before, g = state["exp_avg_sq"], torch.tensor(row, dtype=torch.float64)
        _, state = tx.update(g, state)
        error = (state["exp_avg_sq"] - before).abs() - 0.1 * g * g
        # Two roundings in each of two differences.
        assert (error.abs() <= 4 * 1.2e-16 * (before + g * g)).all()
        assert (state["exp_avg_sq"] > 0).all()


def test_both_moments_start_where_they_are_told_and_in_the_parameters_dtype():
    start = torch.tensor(0.25, dtype=torch.float64)
    state = fo.scale_by_yogi().init_state([torch.zeros(2), torch.zeros(())], {"initial_accumulator_value": start})
    for name in ("exp_avg", "exp_avg_sq"):
        assert [x.dtype for x in state[name]] == [torch.float32, torch.float32]
        assert torch.equal(state[name][0], torch.full((2,), 0.25)) and state[name][1] == 0.25


def test_a_hypergradient_reaches_the_start():
    def moved(start):
        tx, hp = fo.scale_by_yogi(), {"initial_accumulator_value": start}
        state = tx.init_state(torch.ones(2, dtype=torch.float64), hp)
        return tx.update(torch.ones(2, dtype=torch.float64), state, None, hp)[0].sum()

    start = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(moved, (start,))
    assert torch.autograd.grad(moved(start), start)[0] != 0
