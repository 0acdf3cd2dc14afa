"""Tensors in rows: small ones in lists, large ones block by block, in the dtype in which rules see them."""

import functools
import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from functional_optim.numerics import LOW, real

from ..buckets import Column
from ..lengths import SMALL
from ..memory import flat, foreach, is_dense, is_lazy, on_host, reals
from ..work import Work

Row: TypeAlias = list[Sequence[Tensor]]

# Elements of a block. With fewer, the threads of an operation wait for each other as long as they work, on a busy machine; with
# more, what it stores leaves the cache: of AdamW six tensors, 12 MB.
BLOCK = 1 << 19

# On other devices, where a call costs more: elements of a list, 256 MB in float32.
LONG = 1 << 26


def pieces(work: Work, rows: Sequence[int] | None, at_least: int = 1) -> list[list[int]]:
    """Some leaves of a work, or all (None), in lists.

    On the host these are of small ones, none much longer than a block, and large ones alone; elsewhere of any size, and at least
    so many.
    """
    lengths = work.part.lengths
    small, longest = (SMALL, BLOCK) if on_host(work.p[0]) else (math.inf, min(LONG, sum(lengths) // at_least))
    return lengths.pieces(small, longest) if rows is None else lengths.in_pieces(rows, small, longest)


def rows_in(columns: Sequence[Column], piece: Sequence[int]) -> Row:
    """Some rows, in order, of each column."""
    if len(piece) == len(columns[0]):
        return list(columns)
    return [[column[i] for i in piece] for column in columns]


def blocks(row: Sequence[Sequence[Tensor]]) -> Sequence[Row]:
    """The row, or on the host a large tensor block by block."""
    first = row[0][0]
    if len(row[0]) > 1 or not on_host(first) or reals(first) <= BLOCK or not _alike([x[0] for x in row]):
        return [list(row)]
    tensors = [x[0] for x in row]
    return [[[x] for x in block] for block in zip(*(flat(x).split(BLOCK) for x in tensors), strict=True)]


def summed(columns: Sequence[Sequence[Tensor]], *, each: bool) -> list[list[Tensor]]:
    """The sums over each row of some columns, or over all rows together."""
    if each:
        return [[x.sum() for x in row] for row in zip(*columns, strict=True)]
    return [[torch.cat([x.reshape(-1) for x in column]).sum() for column in columns]]


def normed(columns: Sequence[Sequence[Tensor]], nonnegative: Sequence[bool]) -> list[Sequence[Tensor]]:
    """The sums over each row by norms, which torch has for lists; of what may be of either sign, those of two parts."""
    sums = []
    for column, is_one_part in zip(columns, nonnegative, strict=True):
        if is_one_part:
            sums.append(foreach["norm"](column, 1))
        else:
            parts = [foreach["norm"](foreach[name](column, 0.0), 1) for name in ("clamp_min", "clamp_max")]
            sums.append(foreach["sub"](*parts))
    return list(zip(*sums, strict=True))


def add(params: Sequence[Tensor], updates: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Add the updates, rounded to this dtype, to the parameters."""
    foreach["add_"](list(map(real, params)), _converted(updates, dtype.to_real()))


def opened(row: Sequence[Sequence[Tensor]]) -> Row:
    """What a rule sees: at least float32, and pairs of reals."""
    return [_converted(list(map(real, xs)), computed_in(xs[0].dtype)) for xs in row]


def _converted(tensors: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """The tensors in this dtype; all are of one."""
    if tensors[0].dtype == dtype:
        return tensors
    if on_host(tensors[0]):
        return [x.to(dtype) for x in tensors]
    targets = [torch.empty_like(x, dtype=dtype) for x in tensors]
    foreach["copy_"](targets, tensors)
    return targets


def _alike(tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors are dense, and all in the same order of elements."""
    strides = tensors[0].stride()
    return all(x.stride() == strides and not is_lazy(x) for x in tensors) and is_dense(tensors[0])


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a rule sees a tensor of this one: at least float32, and of complex numbers that of the parts."""
    dtype = dtype.to_real()
    return torch.float32 if dtype in LOW else dtype


@functools.cache
def form_of(dtypes: tuple[torch.dtype, ...]) -> tuple[torch.dtype, bool]:
    """The dtype in which a stage is computed, of those of the update, the parameter, and all else that it sees; and whether
    these are real, and stored in that."""
    dtype = computed_in(dtypes[1])
    return dtype, set(dtypes) == {dtype}
