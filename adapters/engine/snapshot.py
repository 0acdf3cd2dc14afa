"""What a plan was made for: parameters, gradients and state; and whether they still are what they were."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import torch_internals
from functional_optim.form import Path

from ..state.layout import Flat, Key, Layout
from .memory import are_same

TensorGuards: Any = torch_internals.get("TensorGuards")

States: TypeAlias = Mapping[Tensor, Flat]


@dataclass(frozen=True)
class Present:
    """The parameters that have a gradient in this step.

    Attributes:
        keys: what they are called.
        params: the tensors.
        grads: their gradients.
        groups: the number of the group of each.
    """

    keys: list[Key]
    params: list[Tensor]
    grads: list[Tensor]
    groups: list[int]


class Held:
    """The parameters of a plan, their slots and counts; held, so that no other tensor can pass for one of them.

    Attributes:
        params, groups: the parameters, and the number of the group of each.
        slots: theirs, one parameter after another.
        counts: the step counts, one row for each parameter, and for each that sits out but has a clock to keep; those that a
            parameter lacks are of no consequence. `optimizer.state` holds views of it.
        seen: `counts` as lists, as the last step left them.
    """

    def __init__(
        self,
        present: Present,
        states: Sequence[Flat],
        slots: Sequence[Sequence[str]],
        layout: Layout,
        waiting: Mapping[Key, Flat],
    ) -> None:
        """Put the counts of these states, which are complete, into one tensor.

        Args:
            present: the parameters and their gradients.
            states: of each.
            slots: the names of each parameter's slots.
            layout: knows the names of the counts.
            waiting: the states of parameters that sit out.
        """
        self.params, self.groups, keys = list(present.params), list(present.groups), present.keys
        self._paths = [value.path for value in layout.counts]
        counting = [*zip(keys, states, strict=True), *(waiting.items() if layout.has_clocks else ())]
        names = [[layout.names(key).get(path, "") for path in self._paths] for key, _ in counting]
        rows = list(zip(names, (state for _, state in counting), strict=True))
        self.seen = [[float(state.get(name, 0)) for name in own] for own, state in rows]
        self.counts = torch.tensor(self.seen, dtype=torch.float32, device="cpu").view(len(rows), len(self._paths))
        for (own, state), row in zip(rows, self.counts, strict=True):
            state.update((name, count) for name, count in zip(own, row.unbind(), strict=True) if name in state)
        self._clocks = [value.kind == "clock" for value in layout.counts]
        self._waiting = len(rows) - len(states)
        self.slots = [state[name] for state, own in zip(states, slots, strict=True) for name in own]
        self._are_alike = likeness((*present.params, *present.grads, *self.slots))
        self._states: list[Flat] = []
        self._own: list[Flat] = []
        self._values: list[Any] = []

    def settle(self, states: States) -> None:
        """From now on the plan holds, as long as these are the states of the optimizer's parameters."""
        self._states = list(states.values())
        self._own = [states[p] for p in self.params]
        self._values = _values_of(self._own)

    def fits(self, present: Present, states: States) -> bool:
        """Whether nobody added, replaced or reshaped a tensor, or set a count."""
        return (
            present.groups == self.groups
            and are_same(present.params, self.params)
            and are_same(states.values(), self._states)
            and are_same(_values_of(self._own), self._values)
            and self._are_alike(*present.params, *present.grads, *self.slots)
            and self.counts.tolist() == self.seen
        )

    def moving(self, paths: Collection[Path]) -> Tensor:
        """What a step adds in which the counts at these paths advance; of parameters that sit out, the clocks among them do."""
        moves = [path in paths for path in self._paths]
        clocks = [moving and is_clock for moving, is_clock in zip(moves, self._clocks, strict=True)]
        ones = [*[moves] * len(self.params), *[clocks] * self._waiting]
        return torch.tensor(ones, dtype=torch.float32, device="cpu").view(self.counts.shape)

    def advance(self, ones: Tensor, clocks: Mapping[Path, float]) -> None:
        """Count a step: add this, and set these clocks."""
        self.counts.add_(ones)
        for path, value in clocks.items():
            self.counts[:, self._paths.index(path)] = value
        self.seen = self.counts.tolist()

    def counts_of(self, row: int) -> dict[Path, int]:
        """The counts of a parameter by their paths."""
        return {path: int(count) for path, count in zip(self._paths, self.seen[row], strict=True)}


def _values_of(states: Sequence[Flat]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, states)))


def likeness(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Whether tensors have the types, shapes, strides, dtypes and devices of these, all of which `p.data = ...` may change.

    The guards of `torch.compile` ask it in 10 µs of 200 tensors; Python takes ten times as long.
    """
    sizes, strides = [list(x.shape) for x in tensors], [list(x.stride()) for x in tensors]
    traits = list(map(_traits, tensors))

    def are_alike(*others: Tensor) -> bool:
        return list(map(_traits, others)) == traits

    try:
        guards = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    except TypeError:  # There are none (None), or not of this form.
        return are_alike
    # A mode that watches operations, a profiler's say, is no other tensor, but the guards say no.
    return lambda *others: guards.check(*others) or are_alike(*others)


def _traits(x: Tensor) -> Any:
    strides = x.stride() if x.layout == torch.strided else None
    return type(x), x.layout, x.device, x.dtype, x.shape, strides, x.is_conj(), x.is_neg()
