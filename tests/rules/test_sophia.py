"""Sophia: the paper's loop in plain floats, Sophia-G's estimate against a Gauss-Newton matrix, and what it reduces to."""

import pytest
import torch
from trajectories import FLOAT64, assert_same_trajectory, awkward_gradients, columns, transposed, updates_of

import functional_optim as fo

EVERY = 3


def estimates(rows):
    """An estimate for each element at every third step, None at the others; one of them negative."""
    hs = [[abs(g) for g in row] if t % EVERY == 0 else None for t, row in enumerate(rows)]
    hs[2 * EVERY][0] *= -1
    return hs


def paper_sophia(gs, hs, b1, b2, rho, eps):
    """Liu et al. 2023, Algorithm 3, for one element; the sign of m at a curvature of 0 or less."""
    m = h = 0.0
    found = []
    for g, estimate in zip(gs, hs, strict=True):
        m = b1 * m + (1 - b1) * g
        h = h if estimate is None else b2 * h + (1 - b2) * estimate
        found.append(min(max(m / max(rho * h, eps), -1.0), 1.0))
    return found


def labml_sophia(gs, hs, b1, b2, rho, eps):
    """The annotated paper's program: (1/ρ) clip(m / (h + ε), −ρ, ρ)."""
    m = h = 0.0
    found = []
    for g, estimate in zip(gs, hs, strict=True):
        h = h if estimate is None else b2 * h + (1 - b2) * estimate
        m = b1 * m + (1 - b1) * g
        found.append(min(max(m / (h + eps), -rho), rho) / rho)
    return found


def run(tx, rows, hs):
    state, found = tx.init_state(torch.tensor(rows[0], dtype=torch.float64)), []
    for row, h in zip(rows, hs, strict=True):
        h = None if h is None else torch.tensor(h, dtype=torch.float64)
        update, state = tx.update(torch.tensor(row, dtype=torch.float64), state, hessian_diag=h)
        found.append(update)
    return torch.stack(found)


def per_element(loop, rows, hs, *numbers):
    own = [[None if h is None else h[i] for h in hs] for i in range(len(rows[0]))]
    return transposed(loop(gs, each, *numbers) for gs, each in zip(columns(rows), own, strict=True))


@pytest.mark.parametrize("numbers", [(0.965, 0.99, 0.04, 1e-12), (0.5, 0.7, 2.0, 1e-3), (0.9, 0.0, 10.0, 1e-12)])
def test_the_papers_loop(numbers):
    rows = awkward_gradients()
    b1, b2, rho, eps = numbers
    hs = estimates(rows)
    found = run(fo.scale_by_sophia((b1, b2), rho, eps), rows, hs)
    assert_same_trajectory(found, per_element(paper_sophia, rows, hs, *numbers), FLOAT64)
    clipped = found.abs() == 1
    assert clipped.any() and not clipped.all()


def test_the_annotated_papers_program():
    # Its ε is added to h: 1e-12 of curvatures of about 1.
    rows = [[g for g in row[:1]] for row in awkward_gradients()]
    hs = [[1.0 + abs(row[0])] if t % EVERY == 0 else None for t, row in enumerate(rows)]
    found = run(fo.scale_by_sophia((0.9, 0.95), 0.3, 1e-12), rows, hs)
    assert_same_trajectory(found, per_element(labml_sophia, rows, hs, 0.9, 0.95, 0.3, 1e-12), 1e-10)


def test_before_the_first_estimate_it_is_the_sign_of_the_momentum():
    rows = awkward_gradients()
    found = run(fo.scale_by_sophia(), rows, [None] * len(rows))
    moments = updates_of(fo.chain(fo.scale_by_lion((0.965, 0.965))), rows)
    # A momentum below ε / 1 of 1e-12 is no sign yet: the column of tiny gradients.
    kept = [0, 1, 2, 3, 4, 6, 7]
    assert torch.equal(found[:, kept], moments[:, kept])


def test_on_a_quadratic_it_takes_newtons_step():
    curvature = torch.tensor([1.0, 100.0, 1e4], dtype=torch.float64)
    p = torch.tensor([0.5, -0.5, 0.25], dtype=torch.float64)
    tx = fo.sophia(lr=1.0, betas=(0.0, 0.0), rho=1.0, weight_decay=0.0)
    update, _ = tx.update(curvature * p, tx.init_state(p), p, hessian_diag=curvature)
    torch.testing.assert_close(update, -p, rtol=1e-15, atol=0)


def test_the_estimate_is_gauss_newtons_diagonal_on_average():
    # Softmax regression: Σ over labels of their probability times the estimate is the diagonal of the Gauss-Newton matrix, which
    # for one example is the Hessian's.
    w = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)

    def loss(w, label):
        return -torch.log_softmax(w @ x, 0)[label]

    hessian = torch.func.hessian(loss)(w, 0).reshape(12, 12).diagonal().reshape(3, 4)
    probabilities = torch.softmax(w @ x, 0)
    estimate = sum(probabilities[k] * fo.gauss_newton_bartlett(torch.func.grad(loss)(w, k), batch_size=1) for k in range(3))
    torch.testing.assert_close(estimate, hessian, rtol=1e-13, atol=1e-15)
    assert fo.gauss_newton_bartlett({"w": w, "b": None}, batch_size=8)["b"] is None
    assert torch.equal(fo.gauss_newton_bartlett([w], batch_size=8)[0], 8 * w * w)


def test_without_the_estimate_it_says_what_is_missing():
    w = torch.ones(2)
    tx = fo.sophia()
    with pytest.raises(ValueError, match=r"scale_by_sophia needs 'hessian_diag': pass it by keyword"):
        tx.update(w, tx.init_state(w), w)


def test_behind_the_adapter():
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = fo.adapters.OptimizerAdapter([p], fo.sophia(lr=0.1, weight_decay=0.0, betas=(0.0, 0.0), rho=1.0))
    p.grad = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    optimizer.step(hessian_diag={p: torch.full_like(p, 4.0)})
    torch.testing.assert_close(p.detach(), 1 - 0.1 * torch.tensor([0.25, 0.5, -0.75], dtype=torch.float64), rtol=1e-15, atol=0)
    optimizer.step(hessian_diag=None)
    assert torch.equal(optimizer.state[p]["hessian"], torch.full_like(p, 4.0))
