"""The trust ratio, and LAMB, LARS and Fromage, which are made of it: the papers' loops over one tensor in plain floats."""

import math

import pytest
import torch
from trajectories import (
    FLOAT64,
    START,
    assert_same_trajectory,
    awkward_gradients,
    columns,
    paper_adam,
    paper_momentum,
    params_of,
    random_tree,
    transposed,
    tree_run,
)

import functional_optim as fo


def length(xs):
    return math.sqrt(math.fsum(x * x for x in xs))


def paper_lamb(rows, p, lr, b1, b2, eps, wd):
    """You et al. 2020, Algorithm 2, with φ the identity, for one layer."""
    ratios = transposed(paper_adam(gs, b1, b2, eps) for gs in columns(rows))
    found = []
    for row in ratios:
        r = [x + wd * w for x, w in zip(row, p, strict=True)]
        trust = length(p) / length(r)
        p = [w - lr * trust * x for w, x in zip(p, r, strict=True)]
        found.append(p)
    return found


def paper_lars(rows, p, lr, mu, wd, c):
    """You et al. 2017, Algorithm 1, for one layer, with ‖g + λ w‖ for ‖g‖ + λ ‖w‖ as optax has it."""
    v, found = [0.0] * len(p), []
    for row in rows:
        g = [x + wd * w for x, w in zip(row, p, strict=True)]
        local = c * length(p) / length(g)
        v = [mu * vi + lr * local * x for vi, x in zip(v, g, strict=True)]
        p = [w - vi for w, vi in zip(p, v, strict=True)]
        found.append(p)
    return found


def paper_fromage(rows, p, lr):
    """Bernstein et al., Algorithm 1, for one layer."""
    found = []
    for row in rows:
        ratio = length(p) / length(row)
        p = [(w - lr * ratio * g) / math.sqrt(1 + lr * lr) for w, g in zip(p, row, strict=True)]
        found.append(p)
    return found


@pytest.mark.parametrize("wd", [0.0, 0.1])
def test_lamb_is_the_papers_loop(wd):
    rows = awkward_gradients()
    expected = paper_lamb(rows, START, 0.1, 0.9, 0.999, 1e-6, wd)
    assert_same_trajectory(params_of(fo.lamb(lr=0.1, weight_decay=wd), rows), expected, FLOAT64)


@pytest.mark.parametrize("mu, wd", [(0.9, 0.0), (0.5, 0.1)])
def test_lars_is_the_papers_loop(mu, wd):
    rows = awkward_gradients()
    expected = paper_lars(rows, START, 0.5, mu, wd, 0.01)
    assert_same_trajectory(params_of(fo.lars(0.5, mu, wd, trust_coefficient=0.01), rows), expected, FLOAT64)


def test_fromage_is_the_papers_loop():
    rows = awkward_gradients()
    assert_same_trajectory(params_of(fo.fromage(lr=0.3), rows), paper_fromage(rows, START, 0.3), FLOAT64)


def test_a_fromage_step_at_a_right_angle_keeps_the_norm():
    p, g = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([-8.0, 6.0], dtype=torch.float64)
    tx = fo.fromage(lr=0.7)
    update, _ = tx.update(g, tx.init_state(p), p)
    assert (p + update).norm().item() == pytest.approx(5.0, rel=1e-14)


def test_an_update_gets_the_length_of_its_parameter_leaf_by_leaf():
    p, u = random_tree(0), random_tree(1)
    scaled, _ = fo.scale_by_trust_ratio(trust_coefficient=0.5).update(u, {}, p)
    for name in p:
        assert scaled[name].norm().item() == pytest.approx(0.5 * p[name].norm().item(), rel=1e-14)
        # The direction stays.
        assert (scaled[name] * u[name]).sum().item() == pytest.approx((scaled[name].norm() * u[name].norm()).item(), rel=1e-14)


def test_where_a_norm_is_zero_the_update_stays():
    u = torch.tensor([3.0, 4.0], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    tx = fo.scale_by_trust_ratio(trust_coefficient=0.5, eps=0.1)
    assert torch.equal(tx.update(u, {}, zero)[0], u)
    assert torch.equal(tx.update(zero, {}, u)[0], zero)
    by_u, by_p = torch.func.grad(lambda u, p: tx.update(u, {}, p)[0].sum(), (0, 1))(zero, zero)
    assert torch.equal(by_u, torch.ones(2, dtype=torch.float64)) and torch.equal(by_p, zero)


def test_a_clipped_ratio_lets_no_update_grow():
    p, u = [torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0]), torch.tensor([0.0, 20.0])]
    for tx in (fo.scale_by_trust_ratio(trust_clip=True), fo.scale_by_trust_ratio()):
        short, long = tx.update(u, {}, p)[0]
        assert long.tolist() == [0.0, 5.0] and short.tolist() == [0.0, 2.0 if tx.form.options["trust_clip"] else 5.0]
    updates, _ = fo.lamb(trust_clip=True, lr=1.0).update(p, fo.lamb().init_state(p), p)
    assert all(torch.allclose(update, -torch.ones(2)) for update in updates)  # Adam's first step, shorter than the parameter


@pytest.mark.parametrize("wd", [0.0, 0.1])
def test_lamb_with_a_trust_ratio_of_one_is_adamw(wd):
    """Both norms count as 1e12, so their ratio is 1."""
    trees = [random_tree(seed) for seed in range(21)]
    found = tree_run(fo.lamb(0.1, eps=1e-8, weight_decay=wd), trees, hparams={"min_norm": 1e12})
    expected = tree_run(fo.adamw(0.1, weight_decay=wd), trees)
    for name in found:
        assert torch.equal(found[name], expected[name])


def test_lars_with_a_trust_ratio_of_one_is_momentum():
    rows = awkward_gradients()
    hp = {"min_norm": 1e12, "trust_coefficient": 1.0}
    expected = []
    for p, gs in zip(START, columns(rows), strict=True):
        path = []
        for m in paper_momentum([0.1 * g for g in gs], 0.9):
            p = p - m
            path.append(p)
        expected.append(path)
    assert_same_trajectory(params_of(fo.lars(lr=0.1), rows, hparams=hp), transposed(expected), FLOAT64)


def test_parameters_are_asked_for():
    with pytest.raises(ValueError, match="scale_by_trust_ratio failed without the parameters"):
        fo.scale_by_trust_ratio().update(torch.ones(2), {})
