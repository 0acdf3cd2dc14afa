"""How the tensors of parameters reach what steps them, which takes columns of tensors: updates, parameters, and each slot.

On the host a kernel goes down the columns, and works in place. On another device, where a call takes longer than a small tensor,
small ones share one: their slots are moved into packed buffers once (`optimizer.state` then holds views of these), gradients and
parameters are gathered each step.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..state.layout import Flat, Key
from .backends.inductor_call import SMALL, Lengths
from .memory import foreach, is_dense, is_lazy, on_host, reals
from .stages import Dtypes, Passage

Column: TypeAlias = list[Tensor]

# What tells apart the kernels of a stage: the device and the dtypes.
Signature: TypeAlias = tuple[torch.device, Dtypes]

# Devices on which a call costs less than gathering a small tensor.
IN_PLACE = ("cpu",)

# Elements of the tensors of equal shapes that a rule takes together, on the host and elsewhere: iterations on them need memory
# several times as large, and on the host are faster while they fit into a cache.
LARGEST_BATCHES = 1 << 18, 1 << 24

# Elsewhere, up to this many elements, it costs more.
PACKED = 13_000


class Way(Enum):
    """How the elementwise stages of a parameter are run: the strategy, in one word."""

    COMPILED = "a kernel"
    LISTED = "torch's in-place operations, over lists and blocks"
    CALLED = "the rules themselves"


@dataclass(frozen=True)
class Kind:
    """What parameters that take the same numbers have in common.

    Attributes:
        passage: what they go through.
        group: the number of their group.
        counts: of updates so far; those that they have not are of no consequence.
    """

    passage: Passage
    group: int
    counts: tuple[int, ...]


class Leaf:
    """One parameter of a plan: its place among all, its kind, the tensor, its state, and how it is run.

    Attributes:
        strides: how every tensor of the parameter is laid out for a kernel: as it is itself where it is dense, else contiguously.
        in_place: whether the parameter and its gradient are.
        is_packed: whether it is copied to its like and back.
    """

    def __init__(self, index: int, key: Key, kind: Kind, param: Tensor, grad: Tensor, state: Flat) -> None:
        self.index, self.key, self.kind, self.param, self.grad, self.state = index, key, kind, param, grad, state
        self.grad_dtype, self.update_dtype = grad.dtype, torch.promote_types(grad.dtype, param.dtype)
        self.slots = kind.passage.slots
        self.go(Way.CALLED)

    def go(self, way: Way) -> None:
        """Be run in this way."""
        self.way, compiled = way, way is Way.COMPILED
        p = self.param
        self.strides = p.stride() if compiled and is_dense(p) else _contiguous(p) if compiled else ()
        self.in_place = not compiled or (self.fits(p) and self.fits(self.grad))
        self.is_packed = compiled and p.device.type not in IN_PLACE and reals(p) <= PACKED and not is_lazy(p)

    def values(self) -> list[Tensor]:
        """The slots, in the order of the links."""
        return [self.state[name] for name in self.slots]

    def signature(self) -> Signature:
        """The device, and the dtypes that a kernel sees, complex tensors being pairs of reals."""
        slots = tuple(slot.dtype.to_real() for slot in self.values())
        return self.param.device, Dtypes(self.grad_dtype.to_real(), self.param.dtype.to_real(), slots)

    def fits(self, x: Tensor) -> bool:
        """Whether a kernel can work on the memory of a tensor shaped like the parameter."""
        return x.stride() == self.strides and not is_lazy(x)

    def laid_out(self, x: Tensor) -> Tensor:
        """A tensor shaped like the parameter, or a copy of it that fits."""
        if self.way is not Way.COMPILED or self.fits(x):
            return x
        return torch.empty_strided(x.shape, self.strides, dtype=x.dtype, device=x.device).copy_(x)


class Batch:
    """Parameters of one kind, way and set of dtypes, each by itself, in place where a kernel fits."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.leaves, self.signature, self.way = list(leaves), leaves[0].signature(), leaves[0].way
        self.kind = leaves[0].kind
        self.lengths = Lengths(reals(leaf.param) for leaf in leaves)
        self.in_place = all(leaf.in_place for leaf in leaves)
        for leaf in leaves:
            names = [leaf.slots[i] for i in self.kind.passage.elementwise]
            leaf.state.update((name, leaf.laid_out(leaf.state[name])) for name in names)
        self.slots: list[Column] = [list(column) for column in zip(*[leaf.values() for leaf in leaves], strict=True)]

    def fits(self) -> bool:
        """True: nothing is known of the tensors' memory."""
        return True

    def open(self, grads: Sequence[Tensor]) -> tuple[Column, Column]:
        """The gradients and the parameters, as they are taken."""
        u, p = [grads[leaf.index] for leaf in self.leaves], [leaf.param for leaf in self.leaves]
        if self.in_place:
            return u, p
        u = [leaf.laid_out(x) for leaf, x in zip(self.leaves, u, strict=True)]
        return u, [leaf.laid_out(x) for leaf, x in zip(self.leaves, p, strict=True)]

    def close(self, params: Column) -> None:
        """Store the parameters that `open` had to copy."""
        for leaf, p in zip(self.leaves, () if self.in_place else params, strict=not self.in_place):
            if p is not leaf.param:
                leaf.param.copy_(p)

    def shaped(self, column: Column) -> Column:
        """The tensors of a column in the shapes of the parameters."""
        return column


class Pack:
    """Small tensors of one kind and set of dtypes, side by side in one buffer for each role."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.leaves = list(leaves)
        first = self.leaves[0]
        self.signature, self.kind, self.way = first.signature(), first.kind, first.way
        self.grad = [self._buffer(first.grad_dtype.to_real())]
        self.param = [self._buffer(first.param.dtype.to_real())]
        self.lengths = Lengths([self.grad[0].numel()])
        self.grad_views, self.param_views = self.shaped(self.grad), self.shaped(self.param)
        self.params = [leaf.param.detach() for leaf in self.leaves]
        self.slots: list[Column] = []
        for i in range(len(first.slots)):
            buffer = [self._buffer(first.values()[i].dtype.to_real())]
            views = self.shaped(buffer)
            foreach["copy_"](views, [leaf.values()[i] for leaf in self.leaves])
            for leaf, view in zip(self.leaves, views, strict=True):
                leaf.state[leaf.slots[i]] = view
            self.slots.append(buffer)
        self.places = self._places()

    def fits(self) -> bool:
        """Whether the slots still are parts of the buffers, and nobody moved the parameters' memory (`p.data = ...`)."""
        return self._places() == self.places

    def open(self, grads: Sequence[Tensor]) -> tuple[Column, Column]:
        """The gradients and the parameters, gathered."""
        foreach["copy_"](self.grad_views, [grads[leaf.index] for leaf in self.leaves])
        foreach["copy_"](self.param_views, self.params)
        return self.grad, self.param

    def close(self, params: Column) -> None:
        """Scatter the parameters back."""
        del params
        foreach["copy_"](self.params, self.param_views)

    def shaped(self, column: Column) -> Column:
        """Of a packed buffer, each leaf's part in the leaf's shape."""
        (x,), views = column, []
        for leaf, part in zip(self.leaves, x.split([reals(leaf.param) for leaf in self.leaves]), strict=True):
            own = torch.view_as_complex(part.view(-1, 2)) if leaf.param.is_complex() else part
            views.append(own.view(leaf.param.shape))
        return views

    def _places(self) -> list[int]:
        return [x.data_ptr() for leaf in self.leaves for x in (leaf.param, *leaf.values())]

    def _buffer(self, dtype: torch.dtype) -> Tensor:
        return torch.empty(sum(reals(leaf.param) for leaf in self.leaves), dtype=dtype, device=self.leaves[0].param.device)


Part: TypeAlias = Batch | Pack


def parts_of(leaves: Sequence[Leaf]) -> list[Part]:
    """The leaves that have elements, each in a part; those that can share calls share a part.

    What has several stages ahead, and is large, goes alone, so that its updates are gone before those of the next are made. Of
    tensors that a rule takes together, a part has only so many, for the sake of memory.
    """
    members: dict[Any, list[Leaf]] = {}
    batched = Counter[Any]()
    for leaf in leaves:
        shares = leaf.kind.passage.is_one_run and (leaf.is_packed or leaf.in_place)
        # Where a call costs more than what is in between, even large tensors share it.
        is_away = leaf.way is Way.LISTED and not on_host(leaf.param)
        small = leaf.is_packed, is_away or reals(leaf.param) <= SMALL
        # Kernels and their like see complex numbers as pairs of reals; lists of the two are kept apart.
        of_pairs = leaf.way is not Way.COMPILED and leaf.param.is_complex()
        key = (leaf.kind, leaf.way, leaf.signature(), small, of_pairs)
        if leaf.kind.passage.is_batched:
            key = (*key, leaf.param.shape)
            batched[key] += reals(leaf.param)
            largest = max(LARGEST_BATCHES[not on_host(leaf.param)], reals(leaf.param))
            key = (*key, (batched[key] - 1) // largest)
        members.setdefault(key if shares or small[1] or leaf.kind.passage.is_batched else leaf.index, []).append(leaf)
    return [Pack(own) if _is_packed(own) else Batch(own) for own in members.values()]


def _is_packed(leaves: Sequence[Leaf]) -> bool:
    """Whether these share a buffer: what asks for sums over each leaf goes over them one by one."""
    passage = leaves[0].kind.passage
    return len(leaves) > 1 and leaves[0].is_packed and passage.is_one_run and all(x.form.sums_all_only for x in passage.place)


def _contiguous(x: Tensor) -> tuple[int, ...]:
    return torch.empty_like(x, device="meta").contiguous().stride()
