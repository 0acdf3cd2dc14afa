"""Matrix products on the host: of symmetric ones about half is computed, in strips of rows, and mirrored.

Only where nobody watches, as in `numerics.added_product`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from functional_optim.numerics import Scalar, added_product

# `(x, first, last)`: of the product that x gives, the rows in between, up to the column `last`. x may be a stack.
Strip: TypeAlias = Callable[[Tensor, int, int], Tensor]

# Of fewer rows, a whole product takes no longer than its half and the mirroring.
LEAST = 512
# What an x86 processor has one of if it multiplies such numbers; on another torch makes float32's of them, piece by piece.
INSTRUCTIONS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}


@functools.cache
def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device multiplies numbers of this dtype by itself; where it does not, float32's are faster. If unknown: yes."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch 2.10 can't tell.
    names = INSTRUCTIONS.get(dtype, ())
    is_told = device.type == "cpu" and known.get("architecture") == "x86_64" and names
    return not is_told or any(known.get(name, True) for name in names)


def gram(x: Tensor) -> Tensor:
    """`x xᵀ` of each of a stack of matrices."""
    return _by_strips(x, lambda x, first, last: x[..., first:last, :] @ x[..., :last, :].mT)


def quadratic(x: Tensor, a: Scalar, b: Scalar) -> Tensor:
    """`a x + b x²` of each of a stack of symmetric matrices, rounded once."""

    def strip(x: Tensor, first: int, last: int) -> Tensor:
        rows = x[..., first:last, :]
        return added_product(rows[..., :last], rows, x[..., :last], a, b)

    return _by_strips(x, strip)


def _by_strips(x: Tensor, strip: Strip) -> Tensor:
    rows, height = x.shape[1], _height(x)
    if x.device.type != "cpu" or rows < LEAST:
        return strip(x, 0, rows)
    # The product of a matrix is faster than that of a stack of one.
    only = x[0] if len(x) == 1 else x
    whole = _mirrored([strip(only, first, min(first + height, rows)) for first in range(0, rows, height)])
    return whole.reshape(len(x), rows, rows)


def _height(x: Tensor) -> int:
    """Rows of a strip: with fewer, a call costs more than it saves, and the faster the products, the more."""
    return 256 if x.element_size() < 4 else 128


def _mirrored(strips: Sequence[Tensor]) -> Tensor:
    """The symmetric matrices of which these are the rows, up to the diagonal and a little beyond."""
    ends = [strip.shape[-1] for strip in strips]
    rows = zip(strips, [0, *ends], ends, range(1, len(strips) + 1), strict=False)
    return torch.cat([torch.cat([own, *(x[..., first:last].mT for x in strips[n:])], -1) for own, first, last, n in rows], -2)
