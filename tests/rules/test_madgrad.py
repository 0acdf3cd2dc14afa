"""MADGRAD against its paper's loop and optax."""

import torch
from trajectories import (
    FLOAT64,
    START,
    assert_same_trajectory,
    awkward_gradients,
    columns,
    optax_params_of,
    params_of,
    transposed,
)

import functional_optim as fo

ROWS = awkward_gradients()


def paper_madgrad(x0, gs, lr, momentum, eps, decay=0.0):
    """Defazio & Jelassi, Algorithm 1, with ε where the authors' program has it."""
    s = v = 0.0
    x, found = x0, []
    for k, g in enumerate(gs):
        g = g + decay * x
        weight = (lr + eps) * (k + 1) ** 0.5
        s = s + weight * g
        v = v + weight * g * g
        z = x0 - s / (v ** (1 / 3) + eps)
        x = momentum * x + (1 - momentum) * z
        found.append(x)
    return found


def test_madgrad_is_the_papers_loop():
    for momentum, decay in [(0.9, 0.0), (0.0, 0.0), (0.5, 0.1)]:
        expected = transposed(
            paper_madgrad(x0, gs, 0.1, momentum, 1e-6, decay) for x0, gs in zip(START, columns(ROWS), strict=True)
        )
        assert_same_trajectory(params_of(fo.madgrad(0.1, momentum, weight_decay=decay), ROWS), expected, FLOAT64)


def test_madgrad_is_optax_in_float32():
    # optax takes the root of an int32 count, and with it λ, in float32 even where all else is float64: 6e-8, over 30 steps.
    theirs = optax_params_of(lambda optax: optax.contrib.madgrad(0.1, 0.8, weight_decay=0.1, eps=1e-4), ROWS)
    assert_same_trajectory(params_of(fo.madgrad(0.1, 0.8, 1e-4, weight_decay=0.1), ROWS), theirs, 1e-6)
    theirs = optax_params_of(lambda optax: optax.contrib.madgrad(0.1), ROWS)
    assert_same_trajectory(params_of(fo.chain(fo.scale_by_madgrad(0.1)), ROWS), theirs, 1e-6)


def test_the_first_point_is_kept():
    p = torch.tensor(START, dtype=torch.float64)
    tx = fo.scale_by_madgrad()
    state = tx.init_state(p)
    assert torch.equal(state["x0"], p) and state["x0"] is not p
    update, state = tx.update(torch.ones_like(p), state, p)
    assert torch.equal(state["x0"], p) and not torch.equal(update, torch.zeros_like(p))
