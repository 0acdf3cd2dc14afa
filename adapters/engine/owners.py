"""Owners of matrices: of tensors that several processes hold, each is computed by one of them.

A rule for one tensor has to see it whole. The processes that have pieces of a tensor send them to its owner, which runs the rule
and sends back to each what that keeps of the results; while it computes, the next tensors are on their way. The rule knows
nothing of it. Which process owns what follows from shapes alone, so that nobody has to ask.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed
from torch import Tensor

from .buckets import LARGEST_BATCHES, Column, Leaf
from .memory import on_host
from .placement import Line

# Elements of the tensors that one process computes at a time, on the host and elsewhere: what is on its way takes memory.
LARGEST_ROUNDS = 1 << 22, 1 << 26

# `(leaves, u, p, slots) -> (u, slots)`, of whole tensors, in columns; p may be None.
Rule: TypeAlias = Callable[[Sequence[Leaf], Column, Column | None, Sequence[Column]], tuple[Column, Sequence[Column]]]


class Sight(NamedTuple):
    """What a rule does with a tensor of some shape.

    Attributes:
        reads_param: whether it looks at the parameter.
        cost: operations, about.
    """

    reads_param: bool
    cost: int


def owners_of(costs: Sequence[int], count: int) -> list[int]:
    """Who computes each of these, of so many processes: the costliest first, each by whoever has least to do so far.

    The busiest has at most 4/3 of what the best plan would give it; of n equal tensors, ⌈n / count⌉.

    Graham 1969, Bounds on Multiprocessing Timing Anomalies, https://doi.org/10.1137/0117039
    """
    loads, owners = [0] * count, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += costs[i]
    return owners


def sight_of(rule: Rule, leaf: Leaf, slots: Sequence[tuple[Sequence[int], torch.dtype]], dtype: torch.dtype) -> Sight | None:
    """What a rule does, found out by tensors without memory; None where that can't be, or it changes a shape.

    Args:
        rule: that it is.
        leaf: whose shape it is.
        slots: the whole shape and the dtype of each of its slots.
        dtype: of the update and the parameter, as rules see them.
    """
    from torch.utils.flop_counter import FlopCounterMode  # A tenth of a second, for those who need it.

    u = torch.empty(leaf.shape, dtype=dtype, device="meta")
    own = [[torch.empty(tuple(shape), dtype=own_dtype, device="meta")] for shape, own_dtype in slots]
    for p in (None, [u]):
        try:
            with FlopCounterMode(display=False) as counter:
                (new_u,), new = rule([leaf], [u], p, own)
        except Exception:  # It has use for the parameter, or asks for values, or refuses this shape.
            continue
        return Sight(p is not None, counter.get_total_flops() + u.numel())
    return None


@dataclass(frozen=True, eq=False)
class Matrix:
    """A tensor that one process computes.

    Attributes:
        place: among all that are computed together.
        line: the processes that have pieces of it, or copies.
        columns: what this process has of the update, of the parameter if that is needed, and of each slot.
        are_pieces: which of these are pieces of what the owner has to see.
        shapes: of the whole of each.
    """

    place: int
    leaf: Leaf
    line: Line
    owner: int
    columns: Sequence[Tensor]
    are_pieces: Sequence[bool]
    shapes: Sequence[Sequence[int]]

    def sent(self) -> list[Tensor]:
        """What this process sends to the owner."""
        return [x for x, is_piece in zip(self.columns, self.are_pieces, strict=True) if is_piece]

    def pieces(self, rank: int) -> list["Form"]:
        """What a process sends."""
        return [self.form(i, rank) for i, is_piece in enumerate(self.are_pieces) if is_piece]

    def form(self, i: int, rank: int) -> "Form":
        """What a process has of a column."""
        shape = self.line.piece(self.shapes[i], rank) if self.are_pieces[i] else tuple(self.shapes[i])
        return shape, self.columns[i].dtype

    def whole(self, received: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The columns as the owner sees them, of what each process has sent."""
        pieces, dim = iter(zip(*received, strict=True)), self.line.dim or 0
        rows = zip(self.columns, self.are_pieces, strict=True)
        return [torch.cat(next(pieces), dim) if is_piece else x for x, is_piece in rows]

    def cut(self, i: int, x: Tensor) -> list[Tensor]:
        """Of a column that has been computed, what each process gets."""
        dim = self.line.dim
        if dim is None or not self.are_pieces[i]:
            return [x] * self.line.size
        return list(x.split([self.line.piece(x.shape, rank)[dim] for rank in range(self.line.size)], dim))


# The shape and the dtype of a tensor that is to come.
Form: TypeAlias = tuple[Sequence[int], torch.dtype]


class Exchange:
    """Tensors on their way: each process sends some to each.

    Args:
        line: the processes.
        outgoing: to each.
        incoming: what comes from each.
        dtypes: of all that anybody sends.
    """

    def __init__(
        self, line: Line, outgoing: Sequence[Sequence[Tensor]], incoming: Sequence[Sequence[Form]], dtypes: Sequence[torch.dtype]
    ) -> None:
        self._incoming = incoming
        self._messages: dict[torch.dtype, tuple[Any, Tensor, Tensor, list[int]]] = {}
        for dtype in dtypes:
            sent = [[x.reshape(-1) for x in each if x.dtype == dtype] for each in outgoing]
            sizes = [sum(math.prod(shape) for shape, own in each if own == dtype) for each in incoming]
            flat = torch.cat([*(x for each in sent for x in each), torch.empty(0, dtype=dtype, device=line.device)])
            room = torch.empty(sum(sizes), dtype=dtype, device=line.device)
            counts = [sum(x.numel() for x in each) for each in sent]
            handle = torch.distributed.all_to_all_single(room, flat, sizes, counts, group=line.group, async_op=True)
            self._messages[dtype] = handle, flat, room, sizes

    def wait(self) -> list[list[Tensor]]:
        """What has come from each."""
        found: list[list[Tensor]] = [[] for _ in self._incoming]
        places: dict[torch.dtype, Iterator[Tensor]] = {}
        for dtype, (handle, _, room, _) in self._messages.items():
            handle.wait()
            parts = [math.prod(shape) for each in self._incoming for shape, own in each if own == dtype]
            places[dtype] = iter(room.split(parts) if parts else ())
        for own, each in zip(found, self._incoming, strict=True):
            own += [next(places[dtype]).view(tuple(shape)) for shape, dtype in each]
        return found


def computed_by_owners(matrices: Sequence[Matrix], rule: Rule, reads_param: bool) -> Mapping[int, Sequence[Tensor]]:
    """By their places, what this process keeps of the updates and the slots of some tensors that one line of processes has."""
    line = matrices[0].line
    found: dict[int, Sequence[Tensor]] = {}
    rounds, coming = list(_rounds(matrices)), []
    there = _sent(line, rounds[0])
    for i, together in enumerate(rounds):
        received = there.wait()
        if i + 1 < len(rounds):  # On its way while this round is computed.
            there = _sent(line, rounds[i + 1])
        coming.append((together, _returned(line, together, received, rule, reads_param)))
    for together, back in coming:
        received = [iter(each) for each in back.wait()]
        for matrix in together:
            found[matrix.place] = [next(received[matrix.owner]) for _ in _kept(matrix, reads_param)]
    return found


def _sent(line: Line, matrices: Sequence[Matrix]) -> Exchange:
    """Every piece to the owner of its tensor."""
    outgoing = [[x for matrix in matrices if matrix.owner == rank for x in matrix.sent()] for rank in range(line.size)]
    own = [matrix for matrix in matrices if matrix.owner == line.rank]
    incoming = [[form for matrix in own for form in matrix.pieces(rank)] for rank in range(line.size)]
    return Exchange(line, outgoing, incoming, _dtypes(x for matrix in matrices for x in matrix.sent()))


def _returned(
    line: Line, matrices: Sequence[Matrix], received: Sequence[Sequence[Tensor]], rule: Rule, reads_param: bool
) -> Exchange:
    """Run the rule on what is one's own, and send each process what it keeps."""
    own = [matrix for matrix in matrices if matrix.owner == line.rank]
    given = [iter(each) for each in received]
    wholes = [matrix.whole([[next(each) for _ in matrix.sent()] for each in given]) for matrix in own]
    outgoing: list[list[Tensor]] = [[] for _ in range(line.size)]
    for some in _in_batches(own):
        columns = [list(column) for column in zip(*(wholes[i] for i in some), strict=True)]
        first = 2 if reads_param else 1
        u, slots = rule([own[i].leaf for i in some], columns[0], columns[1] if reads_param else None, columns[first:])
        for n, *results in zip(some, u, *slots, strict=True):
            for i, x in zip(_kept(own[n], reads_param), results, strict=True):
                for each, piece in zip(outgoing, own[n].cut(i, x), strict=True):
                    each.append(piece)
    kept = [(matrix, i) for matrix in matrices for i in _kept(matrix, reads_param)]
    incoming = [[matrix.form(i, line.rank) for matrix, i in kept if matrix.owner == rank] for rank in range(line.size)]
    return Exchange(line, outgoing, incoming, _dtypes(matrix.columns[i] for matrix, i in kept))


def _in_batches(matrices: Sequence[Matrix]) -> Iterator[range]:
    """The places of those that a rule is run on together, which it may stack: no more than of whole parameters."""
    first, elements = 0, 0
    largest = LARGEST_BATCHES[not on_host(matrices[0].columns[0])] if matrices else 0
    for i, matrix in enumerate(matrices):
        elements += matrix.leaf.shape.numel()
        if i > first and elements > largest:
            yield range(first, i)
            first, elements = i, matrix.leaf.shape.numel()
    if matrices:
        yield range(first, len(matrices))


def _kept(matrix: Matrix, reads_param: bool) -> list[int]:
    """The columns that a rule returns: all but the parameter."""
    return [i for i in range(len(matrix.columns)) if i != 1 or not reads_param]


def _dtypes(tensors: Iterator[Tensor]) -> list[torch.dtype]:
    return sorted({x.dtype for x in tensors}, key=str)


def _rounds(matrices: Sequence[Matrix]) -> Iterator[list[Matrix]]:
    """The tensors in rounds, of which each process computes some at a time."""
    largest = LARGEST_ROUNDS[not on_host(matrices[0].columns[0])]
    by_round: dict[int, list[Matrix]] = {}
    for _, own in itertools.groupby(sorted(matrices, key=lambda each: (each.owner, each.place)), key=lambda each: each.owner):
        number, elements = 0, 0
        for matrix in own:
            size = matrix.leaf.shape.numel()
            if elements and elements + size > largest:
                number, elements = number + 1, 0
            elements += size
            by_round.setdefault(number, []).append(matrix)
    return iter([by_round[number] for number in sorted(by_round)])
