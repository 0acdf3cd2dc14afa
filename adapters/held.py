"""What a plan was made for: parameters, gradients and state; and whether they still are what they were."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import torch_internals

from .layout import Flat, Key, Layout
from .memory import are_same

TensorGuards: Any = torch_internals.get("TensorGuards")

States: TypeAlias = Mapping[Tensor, Flat]


class Held:
    """The parameters of a plan, their slots and counts; held, so that no other tensor can pass for one of them.

    Attributes:
        params, groups: the parameters, and the number of the group of each.
        slots: theirs, one parameter after another.
        counts: the step counts, one row for each parameter, and for each that sits out but has a clock to keep; those that a
            parameter lacks are of no consequence. `optimizer.state` holds views of it.
        seen: `counts` as lists, as the last step left them.
        steps: how many there have been.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        groups: Sequence[int],
        states: Sequence[Flat],
        slots: Sequence[Sequence[str]],
        layout: Layout,
        keys: Sequence[Key],
        waiting: Mapping[Key, Flat],
    ) -> None:
        """Put the counts of these states, which are complete, into one tensor.

        Args:
            params, grads, groups, states, keys: of each parameter.
            slots: the names of each parameter's slots.
            layout: knows the names of the counts.
            waiting: the states of parameters that sit out.
        """
        self.params, self.groups = list(params), list(groups)
        self.steps, self._paths = 0, [value.path for value in layout.counts]
        counting = [*zip(keys, states, strict=True), *(waiting.items() if layout.has_clocks else ())]
        names = [[layout.names(key).get(path, "") for path in self._paths] for key, _ in counting]
        rows = list(zip(names, (state for _, state in counting), strict=True))
        self.seen = [[float(state.get(name, 0)) for name in own] for own, state in rows]
        self.counts = torch.tensor(self.seen, dtype=torch.float32, device="cpu").view(len(rows), len(self._paths))
        for (own, state), row in zip(rows, self.counts, strict=True):
            state.update((name, count) for name, count in zip(own, row.unbind(), strict=True) if name in state)
        # Who sits out a step has its clocks advance.
        self._one = torch.ones_like(self.counts)
        self._one[len(states) :] = torch.tensor([float(value.kind == "clock") for value in layout.counts], device="cpu")
        self.slots = [state[name] for state, own in zip(states, slots, strict=True) for name in own]
        self._are_alike = _likeness((*params, *grads, *self.slots))
        self._states: list[Flat] = []
        self._own: list[Flat] = []
        self._values: list[Any] = []

    def settle(self, states: States) -> None:
        """From now on the plan holds, as long as these are the states of the optimizer's parameters."""
        self._states = list(states.values())
        self._own = [states[p] for p in self.params]
        self._values = _values_of(self._own)

    def fits(self, params: Sequence[Tensor], grads: Sequence[Tensor], groups: Sequence[int], states: States) -> bool:
        """Whether nobody added, replaced or reshaped a tensor, or set a count."""
        return (
            groups == self.groups
            and are_same(params, self.params)
            and are_same(states.values(), self._states)
            and are_same(_values_of(self._own), self._values)
            and self._are_alike(*params, *grads, *self.slots)
            and self.counts.tolist() == self.seen
        )

    def advance(self) -> None:
        """Count a step of every parameter."""
        self.seen = self.counts.add_(self._one).tolist()
        self.steps += 1

    def counts_now(self, first: Sequence[int]) -> dict[tuple[str, ...], int]:
        """The counts by their paths, of a parameter that had these when the plan was made."""
        return {path: count + self.steps for path, count in zip(self._paths, first, strict=True)}


def _values_of(states: Sequence[Flat]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, states)))


def _likeness(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Whether tensors have the types, shapes, strides, dtypes and devices of these, all of which `p.data = ...` may change.

    The guards of `torch.compile` ask it in 10 µs of 200 tensors; Python takes ten times as long.
    """
    sizes, strides = [list(x.shape) for x in tensors], [list(x.stride()) for x in tensors]
    try:
        return TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    except TypeError:  # There are none (None), or not of this form.
        traits = list(map(_traits, tensors))
        return lambda *others: list(map(_traits, others)) == traits


def _traits(x: Tensor) -> Any:
    strides = x.stride() if x.layout == torch.strided else None
    return type(x), x.layout, x.device, x.dtype, x.shape, strides, x.is_conj(), x.is_neg()
