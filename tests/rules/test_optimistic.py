"""The optimistic gradient in plain floats, on the game that it was made for, and around Adam."""

import pytest
import torch
from trajectories import (
    FLOAT64,
    START,
    assert_same_trajectory,
    awkward_gradients,
    columns,
    paper_adam,
    params_of,
    transposed,
    updates_of,
)

import functional_optim as fo


def paper_optimistic(gs, alpha=1.0, beta=1.0):
    """Mokhtari et al., the generalised form; the first gradient counts as its own predecessor."""
    before, found = gs[0], []
    for g in gs:
        found.append((alpha + beta) * g - beta * before)
        before = g
    return found


@pytest.mark.parametrize("alpha, beta", [(1.0, 1.0), (0.7, 0.4), (0.5, -0.2)])
def test_scale_by_optimistic_gradient_is_the_papers_loop(alpha, beta):
    rows = awkward_gradients()
    expected = transposed(paper_optimistic(gs, alpha, beta) for gs in columns(rows))
    assert_same_trajectory(updates_of(fo.scale_by_optimistic_gradient(alpha, beta), rows), expected, FLOAT64)


def test_without_optimism_it_scales():
    rows = awkward_gradients()
    assert torch.equal(updates_of(fo.scale_by_optimistic_gradient(0.5, 0.0), rows), updates_of(fo.scale(0.5), rows))


def test_optimistic_adam_corrects_adams_updates():
    rows = awkward_gradients()
    expected = []
    for p, gs in zip(START, columns(rows), strict=True):
        path = []
        for u in paper_optimistic(paper_adam(gs)):
            p = p - 0.1 * u
            path.append(p)
        expected.append(path)
    assert_same_trajectory(params_of(fo.optimistic_adam(lr=0.1), rows), transposed(expected), FLOAT64)


def played(tx, steps=500):
    """The distance from the saddle point of x·y, where one player descends and the other ascends."""
    players = torch.tensor([1.0, 1.0], dtype=torch.float64)
    state = tx.init_state(players)
    for _ in range(steps):
        x, y = players
        updates, state = tx.update(torch.stack([y, -x]), state, players)
        players = fo.apply_updates(players, updates)
    return players.norm().item()


def test_in_a_two_player_game_it_converges_where_descent_spirals_out():
    # Descent multiplies the distance by √(1 + η²) a step. Optimistic steps have the characteristic roots
    # λ² − (1 − 2iη) λ − iη = 0 and their conjugates; of the larger, |λ| = 0.99491 at η = 0.1.
    start, lr = 2**0.5, 0.1
    assert played(fo.sgd(lr)) == pytest.approx(start * (1 + lr * lr) ** 250, rel=1e-10)
    slowest = max(abs(((1 - 2j * lr) + sign * ((1 - 2j * lr) ** 2 + 4j * lr) ** 0.5) / 2) for sign in (1, -1))
    assert slowest < 0.995
    found = played(fo.optimistic_gradient_descent(lr), 1000) / played(fo.optimistic_gradient_descent(lr), 500)
    assert found == pytest.approx(slowest**500, rel=1e-6)  # the other root has died out
