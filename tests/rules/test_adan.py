"""Adan against its paper's loop, what it reduces to, and where optax differs from the paper."""

import math

import pytest
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


def paper_adan(gs, betas, eps=1e-8, weight=None):
    """Xie et al., Algorithm 1, in the paper's β (ours from 1), with the corrections for the bias of its program.

    `weight` is the factor (1 − β₂) of the differences.
    """
    b1, b2, b3 = (1 - b for b in betas)
    weight = 1 - b2 if weight is None else weight
    m = v = n = 0.0
    before, found = gs[0], []
    for t, g in enumerate(gs, 1):
        m = (1 - b1) * m + b1 * g
        v = (1 - b2) * v + b2 * (g - before)
        n = (1 - b3) * n + b3 * (g + weight * (g - before)) ** 2
        before = g
        m_hat, v_hat, n_hat = (x / (1 - (1 - b) ** t) for x, b in ((m, b1), (v, b2), (n, b3)))
        found.append((m_hat + weight * v_hat) / (math.sqrt(n_hat) + eps))
    return found


@pytest.mark.parametrize("betas", [(0.98, 0.92, 0.99), (0.9, 0.5, 0.9), (0.0, 0.3, 0.5)])
def test_scale_by_adan_is_the_papers_loop(betas):
    rows = awkward_gradients()
    expected = transposed(paper_adan(gs, betas) for gs in columns(rows))
    # Where differences of huge gradients cancel, their rounding stays: 1e8 times 1e-16 in numbers of size 1.
    assert_same_trajectory(updates_of(fo.scale_by_adan(betas), rows), expected, FLOAT64)


def test_adan_is_the_papers_step_with_decay():
    rows = awkward_gradients()
    expected = []
    for p, gs in zip(START, columns(rows), strict=True):
        path = []
        for u in paper_adan(gs, (0.98, 0.92, 0.99)):
            p = (1 - 0.01 * 0.1) * p - 0.01 * u
            path.append(p)
        expected.append(path)
    assert_same_trajectory(params_of(fo.adan(lr=0.01, weight_decay=0.1), rows), transposed(expected), FLOAT64)


def test_with_the_differences_left_out_adan_is_adam():
    rows = awkward_gradients()
    ours = updates_of(fo.scale_by_adan(betas=(0.9, 0.0, 0.999)), rows)
    assert_same_trajectory(ours, updates_of(fo.scale_by_adam((0.9, 0.999)), rows), FLOAT64)


def test_optax_weighs_the_differences_otherwise():
    """What the docstring says of optax: should this fail, optax has changed."""
    rows = awkward_gradients()
    theirs = optax_updates_of(lambda optax: optax.scale_by_adan(), rows)
    loop = transposed(paper_adan(gs, (0.98, 0.92, 0.99), weight=0.08) for gs in columns(rows))
    assert_same_trajectory(theirs, loop, FLOAT64)
