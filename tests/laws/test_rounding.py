"""Kahan summation and stochastic rounding: bfloat16 parameters that small updates reach."""

import math

import pytest
import torch

import functional_optim as fo
from functional_optim.numerics import round_stochastically

SPACING = 2.0**-7  # of bfloat16 numbers from 1 to 2


def kahan_walk(dtype, u, steps, start=1.0, grad_dtype=None):
    p, tx = torch.full((3,), start, dtype=dtype), fo.chain(fo.scale(1.0), fo.kahan_sum())
    state = tx.init_state(p)
    for _ in range(steps):
        updates, state = tx.update(torch.full((3,), u, dtype=grad_dtype or dtype), state, p)
        p = fo.apply_updates(p, updates)
    return p, state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_thousand_updates_below_the_last_digit_arrive(dtype):
    eps = torch.finfo(dtype).eps
    u = eps / 64  # without help, 1 + u is 1
    assert (torch.ones((), dtype=dtype) + u).item() == 1
    p, _ = kahan_walk(dtype, u, 1000)
    assert p.dtype == dtype
    # Rounded to nearest: within half a unit. The slot's own rounding, at most eps/2 of half a unit, is far below.
    assert (p.double() - (1 + 1000 * u)).abs().max() <= 0.51 * eps


@pytest.mark.parametrize("grad_dtype", [torch.bfloat16, torch.float32])
def test_kahan_is_the_loop_in_python_floats(grad_dtype):
    def stored(x):
        return torch.tensor(x, dtype=torch.float64).bfloat16().item()

    p, c = 3.0, 0.0
    generator = torch.Generator().manual_seed(0)
    tx, ours = fo.kahan_sum(), torch.tensor(3.0, dtype=torch.bfloat16)
    state = tx.init_state(ours)
    for _ in range(200):
        g = (0.01 * torch.randn((), generator=generator)).to(grad_dtype)
        total = c + g.item()
        moved = stored(total)
        c, p = stored(total - (stored(p + moved) - p)), stored(p + moved)
        updates, state = tx.update(g, state, ours)
        ours = fo.apply_updates(ours, updates)
        assert ours.item() == p and state["kahan_comp"].item() == c


def test_kahan_stays_near_a_float64_run():
    # Adam on noisy gradients that drift: with the slot, the bfloat16 parameters are those of float64 to a rounding or two.
    generator = torch.Generator().manual_seed(0)
    grads = [(1 + torch.randn(50, generator=generator)).bfloat16() for _ in range(400)]
    runs = {}
    for name, dtype, tx in [
        ("exact", torch.float64, fo.adamw(1e-4, state_dtype=torch.float64)),
        ("plain", torch.bfloat16, fo.adamw(1e-4, state_dtype=torch.float64)),
        ("kahan", torch.bfloat16, fo.chain(fo.adamw(1e-4, state_dtype=torch.float64), fo.kahan_sum())),
    ]:
        p = torch.linspace(0.5, 2.0, 50).bfloat16().to(dtype)
        state = tx.init_state(p)
        for g in grads:
            updates, state = tx.update(g.to(dtype), state, p)
            p = fo.apply_updates(p, updates)
        runs[name] = p.double()
    off = {name: (runs[name] - runs["exact"]).abs().max().item() for name in ("plain", "kahan")}
    # Half a spacing for the rounding of p; the slot, itself of 8 bits, adds up to 2⁻⁹ of that a step, as a walk.
    assert off["kahan"] <= 0.55 * SPACING
    assert off["plain"] > 3 * SPACING


def test_kahan_behind_the_adapter_is_the_same():
    tx = fo.chain(fo.scale_by_learning_rate(2.0**-10), fo.kahan_sum())
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = fo.adapters.OptimizerAdapter([p], tx)
    for _ in range(512):
        p.grad = torch.full((3,), -1.0, dtype=torch.bfloat16)
        optimizer.step()
    assert p.tolist() == [1.5] * 3
    assert optimizer.state[p]["kahan_comp"].dtype == torch.bfloat16


def test_kahan_needs_parameters_and_skips_missing_gradients():
    tx = fo.kahan_sum()
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    state = tx.init_state(params)
    with pytest.raises(ValueError, match="kahan_sum failed without the parameters"):
        tx.update({"a": torch.ones(2), "b": None}, state)
    updates, new = tx.update({"a": torch.full((2,), 1e-8), "b": None}, state, params)
    assert updates["b"] is None and new["kahan_comp"]["b"] is state["kahan_comp"]["b"]
    assert new["kahan_comp"]["a"].tolist() == pytest.approx([1e-8] * 2)


# --- Stochastic rounding ------------------------------------------------------------------------------------------------


BF16 = [1.001, -1.001, 3e-5, 250.7, -1e30, 1e-39]
# Normal, the largest below 65504, and below 2⁻¹⁴, where float16's spacing is even.
F16 = [1.0001, -1.0001, 65500.1, 6.2e-5, 3.00003e-5, -1e-7, 1e-9]


@pytest.mark.parametrize("dtype, x", [*((torch.bfloat16, x) for x in BF16), *((torch.float16, x) for x in F16)], ids=str)
def test_the_mean_is_the_value_and_the_values_are_its_neighbours(dtype, x):
    n = 200_000
    rounded = round_stochastically(torch.full((n,), x), dtype, torch.Generator().manual_seed(0))
    assert rounded.dtype == dtype
    x = torch.tensor(x).item()  # float32
    low, high = rounded.double().unique().tolist()
    assert low < x < high
    between = torch.linspace(low, high, 9, dtype=torch.float64).to(dtype).double().unique()
    assert between.tolist() == [low, high]
    share = (x - low) / (high - low)
    deviation = (high - low) * math.sqrt(share * (1 - share) / n)
    # Five standard errors: once in two million seeds; and the seed is fixed. float32's own grid of noise adds 2⁻¹³ of a spacing.
    assert abs(rounded.double().mean().item() - x) < 5 * deviation + 2.0**-13 * (high - low)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_can_be_held_is_left_alone(dtype):
    info = torch.finfo(dtype)
    exact = torch.tensor([0.0, 1.0, -2.5, info.tiny, 3 * info.smallest_normal / 4, math.inf, -math.inf, info.max, info.min])
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(round_stochastically(exact, dtype, generator).float(), exact)
        assert round_stochastically(torch.tensor([math.nan]), dtype, generator).isnan().all()


def test_small_updates_arrive_on_average():
    # 1000 updates of 1/100 spacing, to 20 000 parameters: the mean moves by 10 spacings, where nearest moves by none.
    generator = torch.Generator().manual_seed(0)
    p = {"w": torch.ones(20_000, dtype=torch.bfloat16), "wide": torch.ones(2), "none": torch.ones(2)}
    updates = {"w": torch.full((20_000,), SPACING / 100).bfloat16(), "wide": torch.full((2,), 0.25), "none": None}
    u = updates["w"][0].double().item()
    for _ in range(1000):
        p = fo.apply_updates(p, updates, rounding="stochastic", generator=generator)
    assert p["w"].dtype == torch.bfloat16 and p["wide"].tolist() == [251.0, 251.0] and p["none"].tolist() == [1.0, 1.0]
    # Each step adds a variance of at most spacing²/100: 1000 steps make 3.2 spacings, the mean of 20 000 a 140th of that.
    assert abs(p["w"].double().mean().item() - (1 + 1000 * u)) < 5 * SPACING * math.sqrt(1000 / 100 / 20_000)
    nearest = fo.apply_updates({"w": torch.ones(3, dtype=torch.bfloat16)}, {"w": torch.full((3,), SPACING / 100)})
    assert nearest["w"].tolist() == [1.0] * 3


def test_a_generator_makes_it_repeatable():
    p, u = torch.ones(1000, dtype=torch.bfloat16), torch.full((1000,), 1e-3)

    def rounded(seed):
        return fo.apply_updates(p, u, rounding="stochastic", generator=torch.Generator().manual_seed(seed))

    assert torch.equal(rounded(1), rounded(1)) and not torch.equal(rounded(1), rounded(2))


def test_under_vmap_every_entry_has_its_own_randomness():
    p, u = torch.ones(2000, dtype=torch.bfloat16), torch.full((4, 2000), SPACING / 2)
    together = torch.vmap(lambda u: fo.apply_updates(p, u, rounding="stochastic"), randomness="different")(u)
    assert len({tuple(row.tolist()) for row in together}) == 4
    # A coin of 2000 throws: 5 standard errors are 0.056 spacings.
    assert (together.double().mean(1) - 1 - SPACING / 2).abs().max() < 0.056 * SPACING


def test_derivatives_pass_through():
    p, u = torch.ones(3, dtype=torch.bfloat16), torch.full((3,), 1e-3)
    gradient = torch.func.grad(lambda u: fo.apply_updates(p, u, rounding="stochastic").float().sum())(u)
    assert gradient.tolist() == [1.0] * 3


def test_bad_rounding_is_an_error():
    p, u = torch.ones(2), torch.ones(2)
    with pytest.raises(ValueError, match="rounding = 'up': expected 'nearest' or 'stochastic'"):
        fo.apply_updates(p, u, rounding="up")
    with pytest.raises(ValueError, match="did you mean rounding='stochastic'"):
        fo.apply_updates(p, u, generator=torch.Generator())
