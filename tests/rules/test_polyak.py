"""The Polyak step in plain floats, on functions where it is known in closed form, and behind an optimizer."""

import math

import pytest
import torch
from trajectories import FLOAT64, START, assert_same_trajectory, awkward_gradients

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter


def paper_sps(rows, losses, p, max_lr, f_min, eps, positive_part):
    """Loizou et al., the step SPS_max with c = 1, and that of SPS₊."""
    found = []
    for row, f in zip(rows, losses, strict=True):
        square = math.fsum(g * g for g in row) + eps
        gap = max(f - f_min, 0.0) if positive_part else f - f_min
        p = [w - min(gap / square, max_lr) * g for w, g in zip(p, row, strict=True)]
        found.append(p)
    return found


@pytest.mark.parametrize("max_lr, f_min, eps", [(1.0, 0.0, 0.0), (0.2, 4.0, 0.0), (math.inf, -1.0, 2.0)])
@pytest.mark.parametrize("positive_part", [False, True])
def test_polyak_sgd_is_the_papers_loop(max_lr, f_min, eps, positive_part):
    rows = [row[:4] for row in awkward_gradients()]  # one huge gradient would leave nothing of the others' steps
    losses = [6.0 - 0.2 * step for step in range(len(rows))]
    tx, p = fo.polyak_sgd(1.0, max_lr, f_min, eps, positive_part=positive_part), torch.tensor(START[:4], dtype=torch.float64)
    state, found = tx.init_state(p), []
    for row, f in zip(rows, losses, strict=True):
        updates, state = tx.update(torch.tensor(row, dtype=torch.float64), state, p, value=f)
        p = fo.apply_updates(p, updates)
        found.append(p)
    expected = paper_sps(rows, losses, START[:4], max_lr, f_min, eps, positive_part)
    assert_same_trajectory(torch.stack(found), expected, FLOAT64)


def test_of_a_sum_of_squares_it_halves_the_distance():
    """The step is |x|² / |2x|² = 1/4, along 2x."""
    x = {"a": torch.tensor([3.0, 4.0], dtype=torch.float64), "b": torch.tensor(-2.0, dtype=torch.float64)}
    tx = fo.polyak_sgd()
    state, p = tx.init_state(x), x
    for _ in range(10):
        value, grads = sum((v * v).sum() for v in p.values()), {name: 2 * v for name, v in p.items()}
        updates, state = tx.update(grads, state, p, value=value)
        p = fo.apply_updates(p, updates)
    for name in x:
        torch.testing.assert_close(p[name], x[name] / 2**10, rtol=1e-13, atol=0)  # ten roundings


def test_a_gradient_of_zero_stays_zero_with_finite_derivatives():
    g = torch.zeros(3, dtype=torch.float64)

    def stepped(g, value):
        return fo.scale_by_polyak().update(g, {}, value=value)[0].sum()

    value = torch.tensor(2.0, dtype=torch.float64)
    assert stepped(g, value) == 0
    assert all(slope.isfinite().all() for slope in torch.func.grad(stepped, (0, 1))(g, value))


def test_without_the_loss_it_says_what_is_missing():
    with pytest.raises(ValueError, match="scale_by_polyak needs 'value'"):
        fo.polyak_sgd().update(torch.ones(2), fo.polyak_sgd().init_state(torch.ones(2)))


def test_behind_an_optimizer_the_loss_comes_from_the_closure():
    x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = OptimizerAdapter([x], fo.polyak_sgd())

    def closure():
        optimizer.zero_grad()
        loss = x @ x
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 25
    assert x.tolist() == [1.5, 2.0]
    closure()
    optimizer.step(value=0.5)  # of a gradient (3, 4)
    assert x.tolist() == pytest.approx([1.5 - 0.02 * 3, 2 - 0.02 * 4])
