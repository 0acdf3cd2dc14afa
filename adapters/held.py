"""What a plan was made for: parameters, gradients and state; and whether they still are what they were."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .layout import Flat
from .memory import are_same

try:
    from torch._C._dynamo import guards  # Private to torch, and may move.
except ImportError:
    guards = None

TensorGuards: Any = getattr(guards, "TensorGuards", None)


class Held:
    """The parameters of a plan, their slots and counts; held, so that no other tensor can pass for one of them.

    Attributes:
        params, groups: the parameters, and the number of the group of each.
        slots: theirs, one parameter after another.
        counts: the step counts, one row for each parameter; `optimizer.state` holds views of it.
        seen: `counts` as lists, as the last step left them.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        groups: Sequence[int],
        states: Sequence[Flat],
        slots: Sequence[str],
        counts: Sequence[str],
    ) -> None:
        """Put the counts of these states, which are complete, into one tensor; `slots` and `counts` are names in them."""
        self.params, self.groups = list(params), list(groups)
        self.seen = [[float(state[name]) for name in counts] for state in states]
        self.counts = torch.tensor(self.seen, dtype=torch.float32, device="cpu").view(len(states), len(counts))
        for state, row in zip(states, self.counts, strict=True):
            state.update(zip(counts, row.unbind(), strict=True))
        self.slots = [state[name] for state in states for name in slots]
        self._names = (*slots, *counts)
        self._values = [state[name] for state in states for name in self._names]
        self._are_alike = _likeness((*params, *grads, *self.slots))
        self._states: list[Flat] = []
        self._own: list[Flat] = []

    def settle(self, states: Mapping[Tensor, Flat]) -> None:
        """From now on the plan holds, as long as these are the states of the optimizer's parameters."""
        self._states, self._own = list(states.values()), [states[p] for p in self.params]

    def fits(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], groups: Sequence[int], states: Mapping[Tensor, Flat]
    ) -> bool:
        """Whether nobody added, replaced or reshaped a tensor, or set a count."""
        return (
            groups == self.groups
            and are_same(params, self.params)
            and are_same(states.values(), self._states)
            and are_same([state.get(name) for state in self._own for name in self._names], self._values)
            and self._are_alike(*params, *grads, *self.slots)
            and self.counts.tolist() == self.seen
        )

    def advance(self) -> None:
        """Count a step of every parameter."""
        self.seen = self.counts.add_(1).tolist()


def _likeness(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Whether tensors have the types, shapes, strides, dtypes and devices of these, all of which `p.data = ...` may change.

    The guards of `torch.compile` ask it in 10 µs of 200 tensors; Python takes ten times as long.
    """
    if TensorGuards is None:
        traits = list(map(_traits, tensors))
        return lambda *others: list(map(_traits, others)) == traits
    sizes, strides = [list(x.shape) for x in tensors], [list(x.stride()) for x in tensors]
    return TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check


def _traits(x: Tensor) -> Any:
    strides = x.stride() if x.layout == torch.strided else None
    return type(x), x.layout, x.device, x.dtype, x.shape, strides, x.is_conj(), x.is_neg()
