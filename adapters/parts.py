"""How the tensors of parameters reach a kernel, which wants them 1-D and of one length: one by one, or packed.

A large tensor is viewed flat, in place. Small ones, whose cost is the call and not the elements, share one call: their slots are
moved into packed buffers once (`optimizer.state` then holds views of these), gradients and parameters are gathered each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .layout import Flat
from .memory import flat, foreach, is_dense, is_lazy, reals
from .stages import Passage, Signature
from .tracing import Dtypes

# Below this many elements, gathering a tensor costs less than a call of its own.
SMALL = 13_000


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


@dataclass(frozen=True, eq=False)
class Leaf:
    """One parameter of a plan: its kind, the tensor, its state, and the names of its counts in there."""

    index: int
    kind: Kind
    param: Tensor
    grad_dtype: torch.dtype
    state: Flat
    counts: Sequence[str]

    @property
    def slots(self) -> Sequence[str]:
        """The names of the slots that kernels take."""
        return self.kind.passage.slots

    @property
    def names(self) -> list[str]:
        """The names of all in its state that a step writes."""
        return [*self.slots, *self.counts]

    def values(self) -> list[Tensor]:
        """The slots, in the order of the links."""
        return [self.state[name] for name in self.slots]

    def signature(self) -> Signature:
        """The device, and the dtypes that a kernel sees, complex tensors being pairs of reals."""
        slots = tuple(slot.dtype.to_real() for slot in self.values())
        return self.param.device, Dtypes(self.grad_dtype.to_real(), self.param.dtype.to_real(), slots)


class Single:
    """One tensor, in place where it is dense; else through a contiguous copy, its slots being dense in any case."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaves, self.signature = [leaf], leaf.signature()
        p = leaf.param
        self.in_place = is_dense(p) and not is_lazy(p)
        self.strides = p.stride() if self.in_place else torch.empty_like(p, device="meta").contiguous().stride()
        for name, slot in zip(leaf.slots, leaf.values(), strict=True):
            if slot.stride() != self.strides:
                leaf.state[name] = self._laid_out(slot)
        self.slots = [flat(slot) for slot in leaf.values()]
        self.param = flat(p) if self.in_place else None

    def open(self, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The gradient and the parameter, flat."""
        (leaf,) = self.leaves
        return self.flat(grads[leaf.index]), flat(self._laid_out(leaf.param)) if self.param is None else self.param

    def close(self, p: Tensor) -> None:
        """Store the parameter where `open` had to copy it."""
        if self.param is None:
            self.leaves[0].param.copy_(self.shaped(p)[0])

    def flat(self, x: Tensor) -> Tensor:
        """A tensor shaped like the parameter, flat; itself, where it is laid out as the parameter is."""
        return flat(self._laid_out(x) if x.stride() != self.strides or is_lazy(x) else x)

    def shaped(self, x: Tensor) -> list[Tensor]:
        """The reverse of `flat`, for each leaf."""
        p = self.leaves[0].param
        x = torch.view_as_complex(x.view(-1, 2)) if p.is_complex() else x
        return [x.as_strided(p.shape, self.strides)]

    def _laid_out(self, x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, self.strides, dtype=x.dtype, device=x.device).copy_(x)


class Pack:
    """Small tensors of one kind and set of dtypes, side by side in one buffer for each role."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.leaves = list(leaves)
        first = self.leaves[0]
        self.signature = first.signature()
        self.grad = self._buffer(first.grad_dtype.to_real())
        self.param = self._buffer(first.param.dtype.to_real())
        self.grad_views, self.param_views = self.shaped(self.grad), self.shaped(self.param)
        self.params = [leaf.param.detach() for leaf in self.leaves]
        self.slots = []
        for i in range(len(first.slots)):
            buffer = self._buffer(first.values()[i].dtype.to_real())
            views = self.shaped(buffer)
            foreach["copy_"](views, [leaf.values()[i] for leaf in self.leaves])
            for leaf, view in zip(self.leaves, views, strict=True):
                leaf.state[leaf.slots[i]] = view
            self.slots.append(buffer)

    def open(self, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The gradients and the parameters, gathered."""
        foreach["copy_"](self.grad_views, [grads[leaf.index] for leaf in self.leaves])
        foreach["copy_"](self.param_views, self.params)
        return self.grad, self.param

    def close(self, p: Tensor) -> None:
        """Scatter the parameters back."""
        del p
        foreach["copy_"](self.params, self.param_views)

    def shaped(self, x: Tensor) -> list[Tensor]:
        """Of a packed buffer, each leaf's part in the leaf's shape."""
        views = []
        for leaf, part in zip(self.leaves, x.split([reals(leaf.param) for leaf in self.leaves]), strict=True):
            own = torch.view_as_complex(part.view(-1, 2)) if leaf.param.is_complex() else part
            views.append(own.view(leaf.param.shape))
        return views

    def _buffer(self, dtype: torch.dtype) -> Tensor:
        return torch.empty(sum(reals(leaf.param) for leaf in self.leaves), dtype=dtype, device=self.leaves[0].param.device)


Part: TypeAlias = Single | Pack


def parts_of(leaves: Sequence[Leaf]) -> list[Part]:
    """The leaves that have elements, each in a part; small ones that can share a kernel call share a part."""
    packs: dict[Any, list[Leaf]] = {}
    for leaf in leaves:
        small = leaf.kind.passage.is_one_kernel and reals(leaf.param) <= SMALL and not is_lazy(leaf.param)
        key = (leaf.kind, leaf.signature()) if small else leaf.index
        if leaf.param.numel():
            packs.setdefault(key, []).append(leaf)
    return [Single(members[0]) if len(members) == 1 else Pack(members) for members in packs.values()]
