"""NovoGrad against its paper's loop over one tensor, and what it reduces to."""

import math

import pytest
import torch
from trajectories import FLOAT64, assert_same_trajectory, awkward_gradients, random_tree, tree_run

import functional_optim as fo


def paper_novograd(rows, p, b1, b2, eps, wd):
    """Ginsburg et al., Algorithm 1, for one layer; parameters stay as they are."""
    m, v, found = [0.0] * len(p), None, []
    for row in rows:
        square = math.fsum(g * g for g in row)
        v = square if v is None else b2 * v + (1 - b2) * square
        m = [b1 * mi + (g / (math.sqrt(v) + eps) + wd * w) for mi, g, w in zip(m, row, p, strict=True)]
        found.append(m)
    return found


@pytest.mark.parametrize("options", [((0.9, 0.25), 1e-8, 0.0), ((0.95, 0.98), 1e-3, 0.1), ((0.0, 0.0), 0.0, 1.0)])
def test_scale_by_novograd_is_the_papers_loop(options):
    (b1, b2), eps, wd = options
    rows = awkward_gradients()
    p = torch.arange(8, dtype=torch.float64)
    tx = fo.scale_by_novograd((b1, b2), eps, wd)
    state, found = tx.init_state(p), []
    for row in rows:
        update, state = tx.update(torch.tensor(row, dtype=torch.float64), state, p)
        found.append(update)
    assert state["exp_avg_sq"].shape == ()
    assert_same_trajectory(torch.stack(found), paper_novograd(rows, p.tolist(), b1, b2, eps, wd), FLOAT64)


def test_without_memory_it_divides_each_tensor_by_its_norm():
    trees = [random_tree(seed) for seed in range(5)]
    found = tree_run(fo.scale_by_novograd((0.0, 0.0), eps=1e-3), trees)
    for name in found:
        alone = [{name: tree[name]} for tree in trees]
        expected = tree_run(fo.normalize_by_update_norm(eps=1e-3), alone)
        assert_same_trajectory(found[name], expected[name], FLOAT64)


def test_a_first_gradient_of_zero_is_no_division_by_zero():
    tx = fo.novograd()
    p = torch.ones(2)
    updates, state = tx.update(torch.zeros(2), tx.init_state(p), p)
    assert torch.equal(updates, torch.zeros(2))
    updates, _ = tx.update(torch.tensor([3.0, 4.0]), state, p)
    assert updates.isfinite().all() and (updates < 0).all()
