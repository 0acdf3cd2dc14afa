"""How the tensors of parameters reach what steps them, which takes columns of tensors: updates, parameters, and each slot.

A kernel goes down the columns, and works in place; where a call takes longer than a small tensor, one call goes down all rows.
"""

from collections import Counter
from collections.abc import Sequence
from enum import Enum
from functools import cached_property
from itertools import compress
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim.sharded import elements_before, is_sharded, local

from ..state.layout import Flat, Key
from .lengths import SMALL, Lengths
from .memory import is_dense, is_lazy, on_host, reals
from .placement import Copies, Placement, placement_of
from .prologue import taking
from .route import Link
from .stages import Dtypes, Passage

Column: TypeAlias = list[Tensor]

# What tells apart the kernels of a stage: the device and the dtypes.
Signature: TypeAlias = tuple[torch.device, Dtypes]

# Elements of the tensors of equal shapes that a rule takes together, on the host and elsewhere: iterations on them need memory
# several times as large, and on the host are faster while they fit into a cache.
LARGEST_BATCHES = 1 << 18, 1 << 24


class Way(Enum):
    """How the elementwise stages of a parameter are run: the strategy, in one word."""

    COMPILED = "a kernel"
    CODED = "blocks, each decoded, stepped and encoded"
    LISTED = "torch's in-place operations, over lists and blocks"
    CALLED = "the rules themselves"


class Leaf:
    """One parameter of a plan: its place among all, what it goes through, the tensor, its state, and how it is run.

    Of one that is spread over processes, the tensors are what this process has of it.

    Attributes:
        group: the number of its group.
        placement: how it is spread, or that several processes have it, who are to share out its work; else None.
        shape: of the whole.
        strides: how every tensor of the parameter is laid out for a kernel: as it is itself where it is dense, else contiguously.
        in_place: whether the parameter and its gradient are.
    """

    def __init__(
        self,
        index: int,
        key: Key,
        group: int,
        passage: Passage,
        param: Tensor,
        grad: Tensor,
        state: Flat,
        copies: Copies | None = None,
    ) -> None:
        self.index, self.key, self.group, self.passage = index, key, group, passage
        own = placement_of(param)
        shares = copies is not None and not all(stage.fuses for stage in passage.stages)
        self.placement, self.shape = own or (copies if shares else None), param.shape
        self._whole_strides = () if own is None else param.stride()
        self.param, self.state = local(param), state
        is_laid_out = grad.layout == torch.strided and not is_lazy(grad) and placement_of(grad) == own
        self._grad_strides = local(grad).stride() if is_laid_out else None
        self.slots = passage.slots
        self.stepped = self.param if passage.copy is None else self.slot(passage.copy)
        self.grad_dtype, self.update_dtype = grad.dtype, torch.promote_types(grad.dtype, self.stepped.dtype)
        self._signature: Signature | None = None
        self.go(Way.CALLED)

    def go(self, way: Way) -> None:
        """Be run in this way."""
        self.way, compiled = way, way is Way.COMPILED
        p = self.param
        self.strides = () if not compiled else p.stride() if is_dense(p) else _contiguous(p)
        self.in_place = not compiled or (self.fits(p) and self._grad_strides == self.strides)

    def forget(self) -> None:
        """Let go of the tensors: each step brings its own."""
        self.signature()
        del self.param, self.stepped, self.state

    @property
    def size(self) -> int:
        """How many real numbers the whole has."""
        return reals(self.param) if self.placement is None else self.shape.numel() * (2 if self.param.is_complex() else 1)

    def slot(self, i: int) -> Tensor:
        """One of the slots."""
        return local(self.state[self.slots[i]])

    def keep(self, i: int, slot: Tensor) -> None:
        """Put another tensor of the same numbers in its place."""
        is_spread = is_sharded(self.state[self.slots[i]])
        self.state[self.slots[i]] = self.whole(slot) if is_spread else slot

    def values(self) -> list[Tensor]:
        """The slots, in the order of the links."""
        if self.placement is None:
            return [self.state[name] for name in self.slots]
        return [self.slot(i) for i in range(len(self.slots))]

    def whole(self, x: Tensor) -> Tensor:
        """What is shaped like the parameter in this process, as what needs its true shape sees it."""
        return x if self.placement is None else self.placement.spread(x, self.shape, self._whole_strides)

    def whole_slot(self, link: Link, i: int, x: Tensor) -> Tensor:
        """The same, of a slot of some link, which may be shaped otherwise, and may be no shard then."""
        if self.placement is None:  # A plan that is lent the tensors of each step has no others.
            return x
        stored = self.stored(link, i)
        if not is_sharded(stored):
            return x
        return self.whole(x) if stored.shape == self.shape else self.placement.spread(x, stored.shape, stored.stride())

    def stored(self, link: Link, i: int) -> Tensor:
        """A slot of some link as the state holds it: spread as the parameter is, or not."""
        first = self.passage.stages[self.passage.place[link]].slots.start
        return self.state[self.slots[first + i]]

    @property
    def before(self) -> int:
        """How many real numbers of the whole come before those of this process, where it has some in a row."""
        if not isinstance(self.placement, Placement):
            return 0
        reals = (*self.shape, 2) if self.param.is_complex() else self.shape
        return elements_before(reals, self.placement.mesh, self.placement.placements)

    def own(self, x: Tensor) -> Tensor:
        """The reverse of `whole`."""
        return x if self.placement is None else self.placement.own(x)

    def signature(self) -> Signature:
        """The device, and the dtypes that a kernel sees, complex tensors being pairs of reals."""
        if self._signature is None:
            slots = tuple(slot.dtype.to_real() for slot in self.values())
            self._signature = self.param.device, Dtypes(self.grad_dtype.to_real(), self.param.dtype.to_real(), slots)
        return self._signature

    def fits(self, x: Tensor) -> bool:
        """Whether a kernel can work on the memory of a tensor shaped like the parameter."""
        return x.stride() == self.strides and not is_lazy(x)

    def laid_out(self, x: Tensor) -> Tensor:
        """A tensor shaped like the parameter, or a copy of it that fits."""
        if self.way is not Way.COMPILED or self.fits(x):
            return x
        return torch.empty_strided(x.shape, self.strides, dtype=x.dtype, device=x.device).copy_(x)


class Part:
    """Parameters of one passage, way and set of dtypes, each by itself, in place where a kernel fits.

    Attributes:
        groups: their groups, by number, and a leaf of each.
        rows: their places among all leaves.
        lengths: how many real numbers each has here; `sizes`: and on all processes together.
        numbers: those that links keep for each, by link and name, in so far as somebody has asked for them.
    """

    def __init__(self, leaves: Sequence[Leaf], slots: Sequence[Column], lengths: Lengths) -> None:
        self.leaves, self.slots, self.lengths = leaves, slots, lengths
        self.placement = leaves[0].placement
        self.sizes = lengths if self.placement is None else Lengths(leaf.size for leaf in leaves)
        self.signature, self.way, self.passage = leaves[0].signature(), leaves[0].way, leaves[0].passage
        self.in_place = all([leaf.in_place for leaf in leaves])
        self.groups, self.rows = groups_of(leaves), [leaf.index for leaf in leaves]
        self.numbers: dict[Any, Column] = {}
        self._own_of = taking(self.rows)

    @cached_property
    def params(self) -> Column:
        """The tensors of the parameters, where the plan holds them."""
        return [leaf.param for leaf in self.leaves]

    def among(self, present: Sequence[Any]) -> "Part | None":
        """The part of it whose gradients are there; None where none is."""
        there = [present[row] is not None for row in self.rows]
        if all(there):
            return self
        leaves = list(compress(self.leaves, there))
        slots = [list(compress(column, there)) for column in self.slots]
        return Part(leaves, slots, Lengths(compress(self.lengths, there))) if leaves else None

    def forget(self) -> None:
        """Let go of the tensors: each step brings its own."""
        self.slots = []
        for leaf in self.leaves:
            leaf.forget()

    def open(self, grads: Sequence[Any]) -> tuple[Column, Column]:
        """The gradients and the parameters, as they are taken."""
        u = list(self._own_of(grads))
        if self.in_place:
            return u, self.params
        u = [leaf.laid_out(x) for leaf, x in zip(self.leaves, u, strict=True)]
        return u, [leaf.laid_out(x) for leaf, x in zip(self.leaves, self.params, strict=True)]

    def close(self, params: Column) -> None:
        """Store the parameters of a part that `open` had to copy some of."""
        for leaf, p in zip(self.leaves, params, strict=True):
            if p is not leaf.param:
                leaf.param.copy_(p)


def parts_of(leaves: Sequence[Leaf]) -> list[Part]:
    """The leaves that have elements, each in a part; those that can share calls share a part.

    What has several stages ahead, and is large, goes alone, so that its updates are gone before those of the next are made. Of
    tensors that a rule takes together, a part has only so many, for the sake of memory.
    """
    members: dict[Any, list[Leaf]] = {}
    batched = Counter[Any]()
    for leaf in leaves:
        shares = leaf.passage.is_one_run and leaf.in_place
        # Where a call costs more than what is in between, even large tensors share it.
        small = (leaf.way is not Way.CALLED and not on_host(leaf.param)) or reals(leaf.param) <= SMALL
        # Kernels and their like see complex numbers as pairs of reals; lists of the two are kept apart.
        of_pairs = leaf.way is not Way.COMPILED and leaf.param.is_complex()
        # What is computed together takes the same numbers.
        group = leaf.group if leaf.passage.is_batched else None
        key = (leaf.passage, leaf.way, leaf.signature(), small, of_pairs, group, leaf.placement)
        if leaf.passage.is_batched:
            key = (*key, leaf.param.shape)
            batched[key] += reals(leaf.param)
            largest = max(LARGEST_BATCHES[not on_host(leaf.param)], reals(leaf.param))
            key = (*key, (batched[key] - 1) // largest)
        members.setdefault(key if shares or small or leaf.passage.is_batched else leaf.index, []).append(leaf)
    return list(map(laid_out, members.values()))


def laid_out(leaves: Sequence[Leaf]) -> Part:
    """Leaves in a batch; their slots are laid out as kernels want them."""
    for leaf in leaves:
        for i in leaf.passage.elementwise:
            slot = leaf.slot(i)
            if (own := leaf.laid_out(slot)) is not slot:
                leaf.keep(i, own)
    return batch_of(leaves)


def batch_of(leaves: Sequence[Leaf]) -> Part:
    """Leaves in a batch, as they are."""
    slots = [list(column) for column in zip(*[leaf.values() for leaf in leaves], strict=True)]
    return Part(leaves, slots, Lengths(reals(leaf.param) for leaf in leaves))


def groups_of(leaves: Sequence[Leaf]) -> dict[int, Leaf]:
    """The groups of some leaves, by their numbers, and a leaf of each."""
    return {leaf.group: leaf for leaf in reversed(leaves)}


def _contiguous(x: Tensor) -> tuple[int, ...]:
    return torch.empty_like(x, device="meta").contiguous().stride()
