"""Random numbers as a pure function of a seed and a position: a counter-based generator, for rules that need noise.

torch's generators keep their state outside of tensors, where `vmap`, a checkpoint of the transform and a second call with the
same arguments can't reach it. Philox 4×32-10 turns a counter of four 32-bit words and a key of two into four random words, by ten
rounds of multiplications. torch runs it on GPUs; here it is int64 arithmetic.

Salmon, Moraes, Dror & Shaw 2011, Parallel Random Numbers: As Easy as 1, 2, 3, https://doi.org/10.1145/2063384.2063405
"""

import math

import torch
from torch import Tensor

from functional_optim.numerics import Scalar, double

WORD = 0xFFFFFFFF
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
# The golden ratio and √3 − 1, in 32 bits.
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
# The golden ratio in 53 bits, odd: its multiples lie far apart.
APART = 0x13C6EF372FE94F


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words from the words of a counter and of a key: int64 tensors in [0, 2³²) that broadcast."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        (high0, low0), (high1, low1) = _product(MULTIPLIERS[0], x0), _product(MULTIPLIERS[1], x2)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return x0, x1, x2, x3


def normal(
    shape: torch.Size | tuple[int, ...], seed: Scalar, step: Scalar, stream: int, device: torch.device | None = None
) -> Tensor:
    """Standard normal numbers in float64, the same for the same arguments; different for different ones.

    By Box & Muller's method from 32-bit words; none is larger than 6.8.

    Args:
        shape: of the result; at most 2³⁴ elements.
        seed: a whole number below 2⁶³, or a () tensor of one. Those that rules have as hyper-parameters are at most 2⁵³.
        step: a whole number below 2³², or a () tensor of one.
        stream: tells draws of one step apart; below 2³².
        device: of the result.
    """
    count = math.prod(shape)
    # In (0, 1], whose logarithm is finite.
    a, b, c, d = (double(word) / 2**32 + 2**-33 for word in _words(count, seed, step, stream, device))
    pairs = [(_radius(a), 2 * math.pi * b), (_radius(c), 2 * math.pi * d)]
    drawn = [part for radius, angle in pairs for part in (radius * angle.cos(), radius * angle.sin())]
    return torch.cat(drawn)[:count].reshape(shape)


def words(
    shape: torch.Size | tuple[int, ...], seed: Scalar, step: Scalar, stream: int, device: torch.device | None = None
) -> Tensor:
    """Random whole numbers in [0, 2³²), int64, as a function of the same arguments."""
    count = math.prod(shape)
    return torch.cat(_words(count, seed, step, stream, device))[:count].reshape(shape)


def halves(
    shape: torch.Size | tuple[int, ...], seed: Scalar, step: Scalar, stream: int, device: torch.device | None = None
) -> Tensor:
    """Random whole numbers in [0, 2¹⁶), int64, two out of a word."""
    count = math.prod(shape)
    both = torch.cat(_words((count + 1) // 2, seed, step, stream, device))
    return torch.cat([both & 0xFFFF, both >> 16])[:count].reshape(shape)


def _words(count: int, seed: Scalar, step: Scalar, stream: int, device: torch.device | None) -> tuple[Tensor, ...]:
    """Four for each block of the counter, as many blocks as it takes."""
    block = torch.arange((count + 3) // 4, device=device)
    zero = torch.zeros_like(block)
    seed, step = (torch.as_tensor(x, device=device).to(torch.int64) for x in (seed, step))
    return philox((block, zero + stream, zero + step, zero), (seed & WORD, seed >> 32))


def seed_apart(seed: Tensor, number: int) -> Tensor:
    """A seed for the rule of this number, from 1, made of that of the first: far from any that a person chooses.

    It is a whole number that the dtype holds, as the seed is.
    """
    modulus = 1 << (53 if seed.dtype == torch.float64 else 24)
    return ((seed.to(torch.int64) + number * APART) % modulus).to(seed.dtype)


def _radius(u: Tensor) -> Tensor:
    return (-2 * u.log()).sqrt()


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low word of a product, by halves of the number: compilers assume that nothing overflows."""
    low = (a & 0xFFFF) * b
    rest = (a >> 16) * b + (low >> 16)
    return rest >> 16, (rest & 0xFFFF) << 16 | low & 0xFFFF
