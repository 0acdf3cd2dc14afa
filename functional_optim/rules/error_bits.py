"""Error bits: a bfloat16 parameter and a byte of what rounding left behind are a number of 24 bits.

    w ← p + e s(p) / 256 + u        s(p): the spacing of the dtype's numbers at p
    p ← w, rounded
    e ← 256 (w − p) / s(p), rounded, in [−127, 127]

Gonzalez Ortiz et al. 2026, FlashOptim, https://arxiv.org/abs/2602.23349
"""

import torch
from torch import Tensor

from functional_optim.hparams import HParams
from functional_optim.rules.arrival import rounded, step_to
from functional_optim.transform import elementwise

# Errors in units of the spacing of numbers, which is twice the largest error.
LEVELS, LARGEST = 256, 127

# The dtype of the byte tells that of the parameter; the second is kept without a sign, for that reason alone.
STORED = {torch.bfloat16: torch.int8, torch.float16: torch.uint8}
PARAMETERS = {stored: dtype for dtype, stored in STORED.items()}
ZERO = {torch.int8: 0, torch.uint8: 128}

# A bit more than half a spacing over 1, by which any number is moved to the next one: 1 is in the middle and might stay.
NEXT = {torch.bfloat16: 1 + 1.01 * 2.0**-8, torch.float16: 1 + 1.01 * 2.0**-11}

# What is nearer to 0 is spaced as if it were not: these are float16's least number, and one whose 256th part float32 has.
LEAST = {torch.bfloat16: 2.0**-110, torch.float16: 2.0**-24}


def no_error(p: Tensor, hp: HParams) -> Tensor:
    """The start: a parameter is where it is; of one that has no error bits, nothing."""
    del hp
    stored = STORED.get(p.dtype)
    if stored is None:
        return torch.empty(0, dtype=torch.int16, device=p.device)
    return torch.full_like(p, ZERO[stored], dtype=stored, requires_grad=False)


@elementwise(slots={"error_bits": no_error}, as_stored=("error_bits",), dtypes=tuple(STORED))
def error_bits(hp):
    """Keep what rounding takes from a parameter of low precision in a byte: bfloat16 parameters train as if of 24 bits.

    It belongs at the end of the chain, after the learning rate: `chain(adamw(), error_bits())`. With the byte a bfloat16
    parameter has 16 significant bits, for 3 bytes together where a float32 copy takes 6; updates below 2⁻¹⁷ of it are lost
    still. Rules before it see the parameter without the byte. Parameters of float32 and more stay as they are, and have none.

    Steps are exact to half a unit of those bits, or a whole one where the error is half a spacing; but of an update larger than
    what the parameter becomes, as many bits arrive as the dtype has. bfloat16 numbers below 1e-31 are spaced as that one is.

    State: `error_bits` (e), int8, or for float16 uint8 from 128 on, in the shape of the parameter; empty for others.

    Raises:
        ValueError: `update` was called without params.

    Source: FlashOptim, https://arxiv.org/abs/2602.23349, which rounds its byte over 127 units of half a spacing. HeavyBall's
    `ecc="bf16+8"` keeps the same; neither torch nor optax has a counterpart.

    >>> import torch
    >>> p = torch.tensor(1.0, dtype=torch.bfloat16)
    >>> tx = error_bits()
    >>> state = tx.init_state(p)
    >>> for _ in range(512):
    ...     update, state = tx.update(torch.tensor(2.0**-10, dtype=torch.bfloat16), state, p)
    ...     p = p + update
    >>> p
    tensor(1.5000, dtype=torch.bfloat16)
    """
    del hp

    def rule(u, p, e):
        dtype = PARAMETERS.get(e.dtype)
        if dtype is None:
            return u, e
        zero, unit = ZERO[e.dtype], 1 / LEVELS
        w = p + (e.to(p.dtype) - zero) * (unit * spacing(p, dtype)) + u
        update, there = step_to(p, w, dtype)
        error = (w - there) / (unit * spacing(there, dtype))
        return update, error.round().clamp(-LARGEST, LARGEST) + zero

    return rule


def spacing(p: Tensor, dtype: torch.dtype) -> Tensor:
    """How far apart numbers of a dtype are at those that are given, which are some of them."""
    size = p.abs()
    return (rounded(size * NEXT[dtype], dtype) - size).clamp(min=LEAST[dtype])
