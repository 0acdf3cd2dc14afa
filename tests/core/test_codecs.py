"""Codecs: what codes stand for, how they are rounded, and what an optimizer makes of them."""

import math

import pytest
import torch

import functional_optim as fo
from functional_optim.codecs import MANTISSA, POSITIVE, SIGNED
from functional_optim.numerics import round_stochastically
from functional_optim.philox import words

KINDS = [(8, SIGNED), (8, POSITIVE), (4, SIGNED), (4, POSITIVE)]


def spread(sigma, shape=(40, 16), seed=0):
    """Numbers of either sign whose sizes are lognormal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.exp(sigma * torch.randn(shape, generator=generator))


def given(kind, sigma=2.0):
    return spread(sigma).abs() if kind == POSITIVE else spread(sigma)


@pytest.mark.parametrize("bits, kind", KINDS)
def test_codes_stand_for_what_the_definition_says(bits, kind):
    """Against plain numbers: y of each code, which counts on from δ in floats of a few digits, and what x is for the scale 4."""
    codec, top, digits = fo.Blockwise(bits, block=16, min_size=1), 2 ** (bits - (kind == SIGNED)) - 1, MANTISSA[bits, kind]

    def y(code):
        exponent, fraction = divmod(code - top, 2**digits)
        return 2.0**exponent * (1 + fraction / 2**digits)

    for code in range(1, top + 1, 1 if bits == 4 else 9):
        value = 4.0 * (y(code) - y(0)) / (1 - y(0))
        x = torch.tensor([4.0, value] if kind == POSITIVE else [4.0, -value])
        stored = codec.encode(x, kind, code, 0)
        torch.testing.assert_close(codec.decode(stored, kind, x.shape), x, rtol=1e-6, atol=0)
        if bits == 8:
            # The sign of what is negative is the first bit.
            assert stored[0].tolist() == [top, code if kind == POSITIVE else code - 128]


@pytest.mark.parametrize("bits, kind", KINDS)
def test_what_was_decoded_has_the_same_codes_at_any_step(bits, kind):
    codec, x = fo.Blockwise(bits, min_size=1), given(kind)
    for t in range(60):
        stored = codec.encode(x, kind, t, 0)
        for later in (t + 1, t + 2, 3 * t + 5):
            again = codec.encode(codec.decode(stored, kind, x.shape), kind, later, 0)
            assert torch.equal(again[0], stored[0]), t
            # The scale may change in its last digits, which are not looked at.
            assert torch.equal(codec.decode(again, kind, x.shape), codec.decode(stored, kind, x.shape)), t


@pytest.mark.parametrize("bits, kind", KINDS)
def test_the_mean_of_what_is_stored_is_what_was_to_be_stored(bits, kind):
    """Rounded evenly, the mean of n lies within about 1/n of a step; a step is the number's own size in 4 bits. What lies within
    2⁻⁷ of the largest number of a block is taken for it."""
    codec, x, steps = fo.Blockwise(bits, min_size=1), given(kind, 0.3), 200
    mean = sum(codec.decode(codec.encode(x, kind, t, 1), kind, x.shape) for t in range(1, steps + 1)) / steps
    # Below the smallest code of 4 bits nothing is in proportion.
    there = x.abs() > x.abs().max() / 16
    torch.testing.assert_close(mean[there], x[there], rtol=0.03 if bits == 4 else 8e-3, atol=0)


# More than whole blocks of 128.
SIZES = [(*KINDS[0], 129), (*KINDS[1], 200), (*KINDS[3], 383)]


def test_what_is_compiled_decodes_the_last_block_too():
    """To the last bit: what is multiplied there is not added to anything."""

    def decoded(stored, xs):
        return [
            x * fo.Blockwise(bits).decode(own, kind, x.shape) for (bits, kind, _), own, x in zip(SIZES, stored, xs, strict=True)
        ]

    stored = [fo.Blockwise(bits).encode(given(kind).view(-1)[:size], kind, 1, 0) for bits, kind, size in SIZES]
    xs = [torch.full((size,), 3.0) for *_, size in SIZES]
    for found, expected in zip(fo.meta.compiled(decoded)(stored, xs), decoded(stored, xs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.full
@pytest.mark.parametrize("make, bits, steps, size", [(fo.adamw, 8, 3, 130), (fo.adabelief, 4, 4, 200)])
def test_a_compiled_loop_steps_the_last_block_too(make, bits, steps, size):
    """Beside the loop without the compiler, which contracts products and sums: codes may differ in some places by one."""
    loop = fo.meta.unroll(lambda p: (p**2).sum(), make(lr=0.1, state_dtype=fo.Blockwise(bits, min_size=1)), steps)
    p = torch.linspace(0.5, 1.5, size)
    torch.testing.assert_close(fo.meta.compiled(loop)(p).params, loop(p).params, rtol=0, atol=0.01)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [1.0, 1e-20, 1e-38, 1e-44])
def test_nothing_positive_decodes_to_zero_and_zero_does(bits, size):
    codec = fo.Blockwise(bits, block=16, min_size=1)
    x = (torch.logspace(0, -30, 31) * size).clamp(min=1e-45)
    x[-1] = 0.0
    decoded = codec.decode(codec.encode(x, POSITIVE, 3, 1), POSITIVE, x.shape)
    assert (decoded[:-1] > 0).all() and decoded[-1] == 0


def test_a_block_with_a_number_that_is_not_finite_decodes_to_nan_and_no_other_block_does():
    codec = fo.Blockwise(block=16, min_size=1)
    for bad in (math.inf, -math.inf, math.nan):
        x = torch.ones(40)
        x[20] = bad
        decoded = codec.decode(codec.encode(x, SIGNED, 1, 0), SIGNED, x.shape)
        assert decoded[16:32].isnan().all() and torch.equal(decoded[:16], x[:16]) and torch.equal(decoded[32:], x[32:])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", [SIGNED, POSITIVE])
@pytest.mark.parametrize("pattern", [-1, 0x7FFFFFFF, -(1 << 22), 0x7FC00000, 0x7F800001])
def test_every_nan_of_a_scale_decodes_to_nan(bits, kind, pattern):
    """Kernels find the largest number with NaN of all bits set."""
    codec = fo.Blockwise(bits, block=16, min_size=1)
    codes, scale = codec.encode(torch.ones(40), kind, 1, 0)
    scale[1] = torch.tensor(pattern, dtype=torch.int32).view(torch.float32)
    decoded = codec.decode((codes, scale), kind, (40,))
    assert decoded[16:32].isnan().all() and decoded[:16].isfinite().all() and decoded[32:].isfinite().all()


def test_codes_are_the_same_for_any_number_of_threads():
    codec, x, threads = fo.Blockwise(), spread(1.0, (300, 300)), torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(codec.encode(x, SIGNED, 7, 0))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def errors_of_updates(sigma, bits, steps, count=64 * 64):
    """Of a coded Adam beside a plain one, on the same gradients: Σ(u − u')² / Σu², and the largest ratio of their maxima."""
    generator = torch.Generator().manual_seed(1)
    scales = torch.exp(sigma * torch.randn(count, generator=generator)) * 1e-3
    drift = 0.3 * torch.randn(count, generator=generator)
    plain, coded = fo.scale_by_adam(), fo.scale_by_adam(state_dtype=fo.Blockwise(bits))
    p = torch.zeros(count)
    states, error, norm, ratio = [plain.init_state(p), coded.init_state(p)], 0.0, 0.0, 0.0
    for _ in range(steps):
        g = (torch.randn(count, generator=generator) + drift) * scales
        u, states[0] = plain.update(g, states[0])
        v, states[1] = coded.update(g, states[1])
        error, norm = error + float(((u - v) ** 2).sum()), norm + float((u**2).sum())
        ratio = max(ratio, float(v.abs().max() / u.abs().max()))
    return error / norm, ratio


@pytest.mark.parametrize(
    "bits, sigma, bound, largest", [(8, 0.0, 0.01, 2), (8, 1.5, 0.01, 2), (8, 2.5, 0.05, 2), (4, 1.5, 0.7, 2.5)]
)
def test_updates_are_close_to_those_of_a_float32_state(bits, sigma, bound, largest):
    """Gradients whose sizes within a block differ as exp(σ z). Rounded to nearest, or with codes at equal distances, it fails."""
    error, ratio = errors_of_updates(sigma, bits, 200)
    assert error < bound and ratio < largest


@pytest.mark.parametrize("bits, kind", KINDS)
def test_codes_and_scales_of_any_size_are_finite(bits, kind):
    """From float32's smallest numbers to its very largest; what is close to the scale is not rounded beyond it, and 0 stays 0."""
    codec = fo.Blockwise(bits, block=16, min_size=1)
    for size in (torch.finfo(torch.float32).max, 3.2e38, 1e-37, 1e-45):
        x = torch.cat([torch.zeros(1), torch.linspace(0.5, 1.0, 15) * size])
        for t in range(20):
            decoded = codec.decode(codec.encode(x, kind, t, 0), kind, x.shape)
            assert decoded.isfinite().all() and decoded[0] == 0
            assert decoded.double().max() <= 1.0001 * x.double().max() + 2.0**-90
            assert size < 1 or decoded[-1] >= 0.9 * size


CUTS = [
    ((6, 32), 0, 4, True),  # rows are blocks: anywhere between them
    ((6, 20), 0, 2, False),  # they are not
    ((64,), 0, 2, False),  # nor is there one, though this cut is between blocks: another would not be
    ((2, 6, 32), 1, 5, True),
    ((3, 64), 1, 2, True),  # within rows, between blocks
    ((3, 64), 1, 3, False),
    ((3, 48), 1, 2, False),
    ((4, 2, 8), 0, 3, True),  # two of the second dimension are a block
    ((4, 2, 8), 1, 2, False),
    ((4, 4, 8), 1, 2, True),
    ((4, 4, 8), 2, 2, False),
]


@pytest.mark.parametrize("bits, kind", KINDS)
@pytest.mark.parametrize("shape, dim, pieces, fits", CUTS)
def test_what_may_be_cut_has_the_codes_of_its_pieces(shape, dim, pieces, fits, bits, kind):
    """In one dimension, cut as torch cuts. Counted on from the elements before, the codes are those of the whole."""
    codec, x = fo.Blockwise(bits, block=16, min_size=1), spread(1.0, shape)
    x = x.abs() if kind == POSITIVE else x
    whole = codec.encode(x, kind, 7, 1)
    assert tuple(tuple(part.shape) for part in whole) == codec.shapes(shape)
    assert all(torch.equal(part * 0, zeros) for part, zeros in zip(whole, codec.zeros(shape, kind, x.device), strict=True))
    assert codec.may_be_cut(shape, dim, pieces) == fits
    if fits and dim == 0:
        before, found = 0, []
        for piece in x.chunk(pieces, dim):
            found.append(codec.encode(piece, kind, 7, 1, before))
            before += piece.numel()
        assert all(torch.equal(part, torch.cat(own, dim)) for part, own in zip(whole, zip(*found, strict=True), strict=True))


def test_stochastic_rounding_is_a_function_of_step_slot_and_place_with_the_right_mean():
    codec, x = fo.Stochastic(), torch.full((2000,), 1 + 1 / 1024)
    first = codec.encode(x, SIGNED, 5, 0)[0]
    assert first.dtype == torch.bfloat16 and torch.equal(first, codec.encode(x, SIGNED, 5, 0)[0])
    assert not torch.equal(first, codec.encode(x, SIGNED, 6, 0)[0]) and not torch.equal(first, codec.encode(x, SIGNED, 5, 1)[0])
    assert not torch.equal(first, codec.encode(x, SIGNED, 5, 0, place=1)[0])
    # The first tensor of its shape has the numbers of runs from before tensors had places.
    assert torch.equal(first, round_stochastically(x, torch.bfloat16, noise=words(x.shape, 0, 5, 0)))
    # A step of bfloat16 is 1/128 here: an eighth of 2000 goes up, ± 4 standard deviations of 15.
    assert abs(int((first > 1).sum()) - 250) < 60


def test_a_slow_average_in_bfloat16_arrives_only_if_it_is_rounded_at_random():
    g, plain, coded = torch.ones(512), fo.ema(0.997), fo.ema(0.997, state_dtype=fo.Stochastic())
    nearest = fo.ema(0.997, state_dtype=torch.bfloat16)
    ends = []
    for tx in (plain, coded, nearest):
        state = tx.init_state(g)
        for _ in range(300):
            _, state = tx.update(g, state)
        ends.append(float(state["exp_avg"].float().mean()))
    assert ends[1] == pytest.approx(ends[0], rel=5e-3) and ends[2] < 0.9 * ends[0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"bits": 2}, "bits = 2 of Blockwise: expected 8 or 4"),
        ({"bits": True}, "= True: expected"),
        ({"bits": 8.0}, "= 8.0: expected a whole number"),
        ({"block": 48}, "block = 48 of Blockwise: expected a power of 2"),
        ({"block": 8}, "block of Blockwise"),
        ({"min_size": -1}, "min_size of Blockwise"),
    ],
)
def test_unfit_codecs_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fo.Blockwise(**arguments)
    with pytest.raises(TypeError, match="expected torch.bfloat16 or torch.float16"):
        fo.Stochastic(torch.float32)
