"""Lion against its paper's loop, against optax, and what it reduces to."""

import math

import pytest
import torch
from trajectories import (
    FLOAT64,
    START,
    assert_same_trajectory,
    awkward_gradients,
    columns,
    optax_updates_of,
    params_of,
    transposed,
    updates_of,
)

import functional_optim as fo


def paper_lion(gs, b1, b2):
    """Chen et al., Algorithm 2, for one element; the sign of 0 is 0."""
    m, found = 0.0, []
    for g in gs:
        c = b1 * m + (1 - b1) * g
        m = b2 * m + (1 - b2) * g
        found.append(math.copysign(1.0, c) if c else 0.0)
    return found


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.5), (0.0, 0.9)])
def test_scale_by_lion_is_the_papers_loop(betas):
    rows = awkward_gradients()
    expected = transposed(paper_lion(gs, *betas) for gs in columns(rows))
    assert_same_trajectory(updates_of(fo.scale_by_lion(betas), rows), expected, FLOAT64)


def test_scale_by_lion_is_optax():
    rows = awkward_gradients()
    theirs = optax_updates_of(lambda optax: optax.scale_by_lion(b1=0.9, b2=0.99), rows)
    assert_same_trajectory(updates_of(fo.scale_by_lion(), rows), theirs, FLOAT64)


def test_with_equal_betas_lion_is_the_sign_of_the_average():
    rows = awkward_gradients()
    state = 0.0
    for row, update in zip(rows, updates_of(fo.scale_by_lion((0.8, 0.8)), rows), strict=True):
        state = 0.8 * state + 0.2 * torch.tensor(row, dtype=torch.float64)
        assert torch.equal(update, state.sign())


def test_there_is_no_count_and_one_slot():
    state = fo.scale_by_lion().init_state({"w": torch.zeros(3)})
    assert set(state) == {"exp_avg"}


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_lion_is_the_papers_step(weight_decay):
    rows = awkward_gradients()
    expected = []
    for p, gs in zip(START, columns(rows), strict=True):
        path = []
        for u in paper_lion(gs, 0.9, 0.99):
            p = p - 0.1 * (u + weight_decay * p)
            path.append(p)
        expected.append(path)
    assert_same_trajectory(params_of(fo.lion(lr=0.1, weight_decay=weight_decay), rows), transposed(expected), FLOAT64)
