"""The counter-based generator: its authors' test vectors, Python integers, and whether its numbers are normal."""

import itertools
import math

import pytest
import torch

from functional_optim.philox import normal, philox

# Of the authors' Random123 distribution, kat_vectors: philox 4x32, 10 rounds; counter, key, words.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def int64(*xs):
    return tuple(torch.tensor(x) for x in xs)


def philox_of_integers(counter, key):
    """Salmon et al.'s rounds, in Python's unbounded integers."""
    (x0, x1, x2, x3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * x0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * x2, 2**32)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return x0, x1, x2, x3


@pytest.mark.parametrize("counter, key, words", VECTORS)
def test_the_authors_vectors(counter, key, words):
    assert philox_of_integers(counter, key) == words
    assert tuple(int(x) for x in philox(int64(*counter), int64(*key))) == words


def test_words_of_many_counters_are_those_of_the_integers():
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(2**32, (4, 200), generator=generator)
    keys = torch.randint(2**32, (2, 200), generator=generator)
    c0, c1, c2, c3 = counters
    found = torch.stack(philox((c0, c1, c2, c3), (keys[0], keys[1])))
    expected = [philox_of_integers(c, k) for c, k in zip(counters.T.tolist(), keys.T.tolist(), strict=True)]
    assert found.T.tolist() == [list(words) for words in expected]


def test_normal_is_box_and_mullers_transform_of_those_words():
    seed, step, stream = 5 * 2**32 + 7, 3, 2
    found = normal((2, 3), *int64(seed, step), stream)
    radii, angles = [], []
    for block in range(2):
        a, b, c, d = ((word + 0.5) / 2**32 for word in philox_of_integers((block, stream, step, 0), (7, 5)))
        radii.append([math.sqrt(-2 * math.log(u)) for u in (a, c)])
        angles.append([2 * math.pi * u for u in (b, d)])
    # By kind, then by block: cos and sin of the first pair, cos and sin of the second.
    expected = [
        radii[block][pair] * part(angles[block][pair])
        for pair, part, block in itertools.product(range(2), (math.cos, math.sin), range(2))
    ]
    assert found.flatten().tolist() == pytest.approx(expected[:6], rel=1e-12)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (4,), (5,), (0, 3), (2, 3, 4)])
def test_any_shape(shape):
    z = normal(shape, *int64(0, 1), 0)
    assert z.shape == shape and z.dtype == torch.float64 and z.isfinite().all()


N = 200_000


@pytest.fixture(scope="module")
def draws():
    return normal((N,), *int64(1, 1), 0)


def test_the_distribution_is_the_normal_one(draws):
    """Kolmogorov & Smirnov: √n times the largest distance of the distribution functions exceeds 1.95 once in a thousand."""
    x = draws.sort().values
    cdf = (1 + torch.erf(x / math.sqrt(2))) / 2
    ranks = torch.arange(N + 1) / N
    distance = torch.maximum((cdf - ranks[:-1]).abs().max(), (ranks[1:] - cdf).abs().max())
    assert math.sqrt(N) * distance.item() < 1.95


@pytest.mark.parametrize("power, moment, variance", [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)])
def test_moments(draws, power, moment, variance):
    # Four standard errors; E z¹² − 15² = 10395 − 225.
    assert (draws**power).mean().item() == pytest.approx(moment, abs=4 * math.sqrt(variance / N))


def test_draws_do_not_depend_on_each_other(draws):
    """Neighbours, the two of a pair, and draws that differ in one bit of seed, step or stream: correlations of ±4/√n at most."""
    others = {
        "next": draws.roll(1),
        "block": draws.roll(N // 4),
        "pair": draws.roll(N // 2),
        "seed": normal((N,), *int64(2, 1), 0),
        "high seed": normal((N,), *int64(1 + 2**32, 1), 0),
        "step": normal((N,), *int64(1, 2), 0),
        "stream": normal((N,), *int64(1, 1), 1),
    }
    for name, other in others.items():
        for f in (lambda x: x, lambda x: (x * x - 1) / math.sqrt(2)):
            assert abs((f(draws) * f(other)).mean().item()) < 4 / math.sqrt(N), name
