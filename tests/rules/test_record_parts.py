"""Parts of records: a floor under rows, a radial brake, a look-ahead by a mean of steps; and a record of ten parts."""

import copy

import pytest
import torch
from loops import randn
from trajectories import FLOAT64

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter


def test_rows_move_by_a_share_of_their_length_at_least():
    for shape in [(4, 3), (3, 2, 2), (5,), ()]:
        p, u = randn(*shape, seed=1), randn(*shape)
        found, _ = fo.row_floor(0.5).update(u, {}, p)
        each = (p.unbind(), u.unbind(), found.unbind()) if shape else ([p], [u], [found])
        for row, old, new in zip(*each, strict=True):
            factor = max(1.0, 0.5 * float(row.norm()) / float(old.norm()))
            torch.testing.assert_close(new, factor * old, rtol=FLOAT64, atol=0)
    assert fo.row_floor().update(torch.zeros(2, 2), {}, torch.ones(2, 2))[0].abs().sum() == 0


@pytest.mark.parametrize("pinned", [False, True])
def test_norms_change_by_a_share(pinned):
    """The definition of the record's author, in plain operations, outwards and inwards."""
    p = randn(3, 4, seed=1)
    tx = fo.radial_brake(0.5, 0.25, pinned=pinned)
    for u in (0.3 * p + 0.1 * randn(3, 4), -0.3 * p + 0.1 * randn(3, 4), -5.0 * p):
        q = p + u
        change = (p * u).sum() / p.norm() if pinned else q.norm() - p.norm()
        length = max(float(p.norm() + (0.5 if change > 0 else 0.25) * change), 0.0)
        torch.testing.assert_close(p + tx.update(u, {}, p)[0], q * length / q.norm(), rtol=1e-11, atol=1e-12)
    across = randn(3, 4)
    across -= (across * p).sum() / (p * p).sum() * p
    grown = (p + tx.update(across, {}, p)[0]).norm() - p.norm()
    assert abs(grown) < 1e-12 if pinned else 0 < grown < (p + across).norm() - p.norm()


def test_a_brake_without_shares_is_a_step_on_the_sphere_and_with_all_of_it_none():
    p, u = randn(3, 4, seed=1), randn(3, 4)
    on_ball = p + fo.radial_brake(0.0, 0.0).update(u, {}, p)[0]
    torch.testing.assert_close(on_ball.norm(), p.norm(), rtol=FLOAT64, atol=0)
    torch.testing.assert_close(fo.radial_brake(1.0, 1.0).update(u, {}, p)[0], u, rtol=1e-11, atol=1e-12)
    zero = torch.zeros(3, 4, dtype=torch.float64)
    for pinned in (False, True):
        torch.testing.assert_close(fo.radial_brake(0.5, pinned=pinned).update(u, {}, zero)[0], 0.5 * u, rtol=FLOAT64, atol=0)


def test_look_ahead_is_the_records_loop():
    """The loop that moves the parameters ahead, takes the gradient, steps from there, and never moves back; in steps 3 to 11."""
    a, start, end = torch.linspace(0.5, 3.0, 5, dtype=torch.float64), 3, 12
    x, before, mean, points = *(torch.zeros(5, dtype=torch.float64) for _ in range(3)), []
    for step in range(20):
        x = x + (0.3 if start <= step < end else 0.0) * mean
        points.append(x)
        x = x - 0.1 * (a * x - 1)
        mean, before = 0.9 * mean + 0.1 * (x - before), x
    # The look-ahead of a step is that of the gradient after it.
    window = fo.piecewise_constant([0.0, 0.3, 0.0], boundaries=[start - 1, end - 1])
    tx = fo.scheduled(fo.ema_nesterov(fo.sgd(0.1), step_decay=0.9), lookahead=window)
    p = torch.zeros(5, dtype=torch.float64)
    leaf = p.clone().requires_grad_()
    optimizer, state = OptimizerAdapter([leaf], tx), tx.init_state(p)
    for point in points:
        torch.testing.assert_close(p, point, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(leaf.detach(), point, rtol=1e-11, atol=1e-13)
        p, state = tx.step(a * p - 1, state, p)
        leaf.grad = a * leaf.detach() - 1
        optimizer.step()
    torch.testing.assert_close(p, x, rtol=1e-11, atol=1e-13)


def test_the_parameters_behind_are_evaluated():
    tx, p = fo.ema_nesterov(fo.sgd(0.1), 0.5, 0.0), randn(3)
    new, state = tx.step(randn(3, seed=1), tx.init_state(p), p)
    torch.testing.assert_close(fo.evaluated(tx, state, new), p - 0.1 * randn(3, seed=1), rtol=1e-11, atol=1e-13)


def a_record():
    """Ten parts and what is around them, in the manner of record 46 of the optimization track: twelve lines."""
    matrices = fo.chain(
        fo.trace(momentum=0.95, nesterov=True),
        fo.rotate(fo.scale_by_rms(0.9, bias_correction=True), precondition_frequency=2),
        fo.orthogonalize("polar_express"),
        fo.scale_by_row_rms(),
        fo.scale_by_shape("match_rms_adamw"),
        fo.row_floor(),
        fo.cautious_decay(0.1),
        fo.scale_by_learning_rate(),
        fo.radial_brake(pinned=True),
    )
    step = fo.ema_nesterov(
        fo.partition({"matrices": matrices, "rest": fo.adamw(betas=(0.8, 0.95))}, fo.by_ndim({2: "matrices"}, "rest"))
    )
    return fo.ema_params(fo.scheduled(step, lr=fo.warmup_cosine(0.02, 2, 8), **{"momentum": fo.linear(0.85, 0.95, 5)}))


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_record_of_ten_parts_runs_on_both_engines(fused):
    params = {"w": randn(4, 4, seed=1), "twin": randn(4, 4, seed=2), "other": randn(3, 3, seed=3), "b": randn(5, seed=4)}
    tx = a_record()
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    optimizer, state = OptimizerAdapter(leaves.items(), tx, fused=fused), tx.init_state(params)
    for step in range(8):
        grads = {name: randn(*p.shape, seed=10 * step + i) for i, (name, p) in enumerate(params.items())}
        params, state = tx.step(grads, state, params)
        for name, leaf in leaves.items():
            leaf.grad = grads[name]
        optimizer.step()
        for name, leaf in leaves.items():
            # Five steps of an iteration that enlarges rounding, eight times over.
            torch.testing.assert_close(leaf.detach(), params[name], rtol=1e-8, atol=1e-8)
    assert fo.from_config(fo.to_config(tx)).hparams == tx.hparams
    averages = fo.evaluated(tx, state, params)
    with fo.adapters.eval_params(optimizer):
        for name, leaf in leaves.items():
            torch.testing.assert_close(leaf.detach(), averages[name], rtol=1e-8, atol=1e-8)
    assert copy.deepcopy(optimizer.state_dict()).keys() == optimizer.state_dict().keys()
