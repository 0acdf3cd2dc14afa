"""Schedules against closed forms, optax and torch's schedulers, for Python numbers and for tensors."""

import math

import pytest
import torch

import functional_optim as fo

CASES = [(1.0, 0, 1, 0.0), (0.3, 5, 20, 0.01), (2.0, 4, 12, 0.0), (0.1, 1, 2, 0.05), (1.0, 0, 30, 0.2), (0.2, 9, 10, 0.5)]
# A cosine and four operations in float64.
FLOAT64 = 1e-14


def closed_form(step, peak, warmup, total, end):
    if step < warmup:
        return peak * step / warmup
    if step >= total:
        return end
    return end + (peak - end) * math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2


@pytest.mark.parametrize("case", CASES)
def test_warmup_cosine_is_its_closed_form(case):
    schedule = fo.warmup_cosine(*case)
    for step in range(40):
        assert schedule(step) == pytest.approx(closed_form(step, *case), rel=FLOAT64, abs=1e-16)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_of_a_tensor_it_is_the_same_to_float64(case, dtype):
    schedule = fo.warmup_cosine(*case)
    for step in range(40):
        found = schedule(torch.tensor(step, dtype=dtype))
        assert found.shape == ()
        assert found.item() == pytest.approx(schedule(step), rel=FLOAT64, abs=1e-16)


@pytest.mark.parametrize("case", CASES)
def test_warmup_cosine_is_optax(case):
    import jax
    import optax

    peak, warmup, total, end = case
    with jax.enable_x64(True):
        theirs = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, total, end)
        expected = [float(theirs(jax.numpy.asarray(step, dtype="float64"))) for step in range(40)]
    ours = fo.warmup_cosine(*case)
    # optax forms end/peak · peak for the floor: a few more roundings.
    assert [ours(step) for step in range(40)] == pytest.approx(expected, rel=1e-13, abs=1e-15)


def test_the_fall_is_torchs_cosine_annealing():
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=25, eta_min=0.04)
    ours = fo.warmup_cosine(peak=0.4, total_steps=25, end=0.04)
    for step in range(26):
        # torch multiplies 25 ratios of neighbours.
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_it_is_continuous_where_its_pieces_meet():
    schedule = fo.warmup_cosine(0.3, 5, 20, 0.01)
    for joint in (5.0, 20.0):
        # Slope at most 0.3 / 5 per step.
        assert schedule(joint - 1e-9) == pytest.approx(schedule(joint + 1e-9), abs=2e-9 * 0.06 + 1e-15)
    assert schedule(5) == 0.3 and schedule(20) == schedule(10**9) == pytest.approx(0.01, rel=FLOAT64)


def test_under_vmap_it_is_a_loop():
    schedule = fo.warmup_cosine(0.3, 5, 20, 0.01)
    steps = torch.arange(40, dtype=torch.float64)
    batched = torch.vmap(schedule)(steps)
    expected = torch.tensor([schedule(step) for step in range(40)], dtype=torch.float64)
    torch.testing.assert_close(batched, expected, rtol=FLOAT64, atol=1e-16)


def test_its_derivatives_are_those_of_the_closed_form():
    for step in (0, 3, 5, 11, 20, 30):

        def at(peak, end, step=step):
            return fo.warmup_cosine(peak, 5, 20, end)(torch.tensor(float(step), dtype=torch.float64))

        peak, end = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.01, dtype=torch.float64)
        by_peak, by_end = torch.func.grad(at, argnums=(0, 1))(peak, end)
        # The value is linear in both: the slopes are the values at (1, 0) and (0, 1).
        assert by_peak.item() == pytest.approx(closed_form(step, 1.0, 5, 20, 0.0), rel=1e-13, abs=1e-15)
        assert by_end.item() == pytest.approx(closed_form(step, 0.0, 5, 20, 1.0), rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("warmup, total", [(5, 5), (6, 5), (-1, 5), (0, 0)])
def test_steps_out_of_order(warmup, total):
    with pytest.raises(ValueError, match=rf"warmup_steps = {warmup} must lie in \[0, total_steps\), and total_steps is {total}"):
        fo.warmup_cosine(1.0, warmup, total)


def test_in_a_chain_it_scales_the_update_to_float64():
    schedule = fo.warmup_cosine(0.3, 3, 10, 0.01)
    tx = fo.scale_by_schedule(schedule)
    g = torch.full((2,), 7.0, dtype=torch.float64)
    state = tx.init_state(g)
    for step in range(15):
        u, state = tx.update(g, state)
        expected = 7.0 * closed_form(step, 0.3, 3, 10, 0.01)
        torch.testing.assert_close(u, torch.full_like(u, expected), rtol=FLOAT64, atol=1e-15)
