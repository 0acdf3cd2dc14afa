"""What a plan was made for: parameters, gradients and state; and whether they still are what they were."""

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from itertools import chain, compress
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from functional_optim import torch_internals
from functional_optim.form import Path
from functional_optim.sharded import is_sharded, local

from ..state.layout import Flat, Key, Layout
from .given import CountTable
from .memory import are_same, lacks_some
from .placement import Placement, placement_of

TensorGuards: Any = torch_internals.get("TensorGuards")

States: TypeAlias = Mapping[Tensor, Flat]


class Present(NamedTuple):
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

    def among(self, keys: Container[Key]) -> "Present":
        """Those that are called like this."""
        there = [key in keys for key in self.keys]
        keys_there, params = list(compress(self.keys, there)), list(compress(self.params, there))
        return Present(keys_there, params, list(compress(self.grads, there)), list(compress(self.groups, there)))


class Held:
    """The parameters of a plan, their slots and counts; held, so that no other tensor can pass for one of them.

    In a step some of the parameters may have no gradient: those sit it out.

    Attributes:
        params, groups: the parameters, and the number of the group of each.
        slots: theirs, one parameter after another.
        counts: the step counts, one row for each parameter, and for each that is not of the plan but has a clock to keep; those
            that a parameter lacks are of no consequence. `optimizer.state` holds views of it.
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
        # By `id`, since a tensor takes long to hash; as they are held, no other has it.
        self._rows = {id(p): row for row, p in enumerate(self.params)}
        self._paths = [value.path for value in layout.counts]
        counting = [*zip(keys, states, strict=True), *(waiting.items() if layout.has_clocks else ())]
        names = [[layout.names(key).get(path, "") for path in self._paths] for key, _ in counting]
        rows = list(zip(names, (state for _, state in counting), strict=True))
        self.counts, self._count = self._gathered(rows), len(rows)
        for (own, state), row in zip(rows, self.counts, strict=True):
            state.update((name, count) for name, count in zip(own, row.unbind(), strict=True) if name in state)
        self._are_clocks = torch.tensor([value.kind == "clock" for value in layout.counts], dtype=torch.bool, device="cpu")
        own_slots = [[state[name] for name in own] for state, own in zip(states, slots, strict=True)]
        self.slots = list(chain.from_iterable(own_slots))
        self._likes = [_like(*row) for row in zip(present.grads, self.params, own_slots, strict=True)]
        # The memory of those that are spread over processes, and how their gradients are.
        self._placements = list(map(placement_of, self.params)) if any(map(is_sharded, self.params)) else []
        self._memory = list(map(local, self.params)) if self._placements else []
        self._placements_of_grads = list(map(placement_of, present.grads)) if self._placements else []
        tensors = [*present.params, *present.grads, *self.slots]
        self._are_alike = likeness(list(map(local, tensors)) if self._placements else tensors)
        self._states: list[Flat] = []
        self._own: list[Flat] = []
        self._values: list[Any] = []

    @property
    def table(self) -> CountTable:
        """`counts` as numbers, as the last step left them."""
        return self._table

    def settle(self, states: States) -> None:
        """From now on the plan holds, as long as these are the states of the optimizer's parameters."""
        self._states = list(states.values())
        self._own = [states[p] for p in self.params]
        self._values = list(chain.from_iterable(map(dict.values, self._own)))

    def placed(self, present: Present) -> Sequence[Tensor | None] | None:
        """The gradients of all parameters, None where there is none; or None, if there are those of others."""
        if present.groups == self.groups and are_same(present.params, self.params):
            return present.grads
        found = list(map(self._rows.get, map(id, present.params)))
        rows = [row for row in found if row is not None]
        if len(rows) < len(found) or present.groups != [self.groups[row] for row in rows]:
            return None
        grads: list[Tensor | None] = [None] * len(self.params)
        for row, grad in zip(rows, present.grads, strict=True):
            grads[row] = grad
        return grads

    def known(self) -> dict[Tensor, Tensor]:
        """By parameters, tensors that are like their gradients, whether those are there or not."""
        likes = self._completed([None] * len(self.params))
        return {p: like for p, like in zip(self.params, likes, strict=True) if like is not None}

    def fits(self, grads: Sequence[Tensor | None], states: States) -> bool:
        """Whether these are gradients of its parameters, and nobody added, replaced or reshaped a tensor, or set a count."""
        if lacks_some(grads):
            grads = self._completed(grads)
            if lacks_some(grads):
                return False
        return (
            are_same(states.values(), self._states)
            and are_same([*chain.from_iterable(map(dict.values, self._own))], self._values)
            and (self._fit_in_memory(grads) if self._placements else self._are_alike(*self.params, *grads, *self.slots))
            and self._are_counts_known()
        )

    def own(self, grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Of gradients that are spread over processes, what this process has, placed as the parameters are."""
        if not self._placements:
            return grads
        rows = zip(grads, self._placements, strict=True)
        return [grad if grad is None or placement is None else placement.own(grad) for grad, placement in rows]

    def _fit_in_memory(self, grads: Sequence[Any]) -> bool:
        """Whether gradients, parameters and slots that are spread over processes are like those before."""
        return (
            are_same(map(local, self.params), self._memory)
            and all(map(_is_placed, grads, self._placements_of_grads))
            and self._are_alike(*map(local, [*self.params, *grads, *self.slots]))
        )

    def moving(self, paths: Collection[Path]) -> Tensor:
        """What a step adds to the counts of a parameter in which those at these paths advance."""
        return torch.tensor([float(path in paths) for path in self._paths], dtype=torch.float32, device="cpu")

    def advance(self, ones: Tensor, grads: Sequence[Tensor | None], clocks: Mapping[Path, float]) -> None:
        """Count a step, in which there were these gradients: add this, and set these clocks.

        Of parameters without a gradient only clocks advance.
        """
        if not self._paths:
            return
        count = self._count
        if len(grads) == count and not lacks_some(grads):
            self.counts.add_(ones)
        else:
            there = [grad is not None for grad in grads]
            others = torch.tensor([*there, *[False] * (count - len(there))], device="cpu").logical_not()
            self.counts.add_(torch.where(others[:, None] & ~self._are_clocks, 0.0, ones))
        for path, value in clocks.items():
            self.counts[:, self._paths.index(path)] = value
        self._seen = self.counts.view(-1).tolist()  # Row by row it takes ten times as long.
        self._table = CountTable(self._paths, list(zip(*[iter(self._seen)] * len(self._paths), strict=True)))

    def _gathered(self, rows: Sequence[tuple[Sequence[str], Flat]]) -> Tensor:
        """The counts of some states, by what each calls them, as one tensor."""
        seen = [[float(state.get(name, 0)) for name in own] for own, state in rows]
        self._table, self._seen = CountTable(self._paths, seen), list(chain.from_iterable(seen))
        return torch.tensor(seen, dtype=torch.float32, device="cpu").view(len(rows), len(self._paths))

    def _are_counts_known(self) -> bool:
        """Whether nobody has set one."""
        return self.counts.view(-1).tolist() == self._seen

    def _completed(self, grads: Sequence[Any]) -> Sequence[Any]:
        """The gradients, and what is like them where there is none; None for those that nothing is like."""
        likes = zip(grads, self.params, self._likes, strict=True)
        return [(p.detach() if like is p else like) if grad is None else grad for grad, p, like in likes]


def _is_placed(x: Any, placement: Placement | None) -> bool:
    """Whether a tensor is spread like this."""
    if placement is None or not is_sharded(x):
        return placement is None and not is_sharded(x)
    return x.placements is placement.placements or placement_of(x) == placement


def _like(grad: Tensor, p: Tensor, slots: Sequence[Tensor]) -> Tensor | None:
    """What is like a gradient and there anyway: a slot, or, detached, the parameter itself; or None."""
    traits = _traits(grad)
    slot = next((slot for slot in slots if _traits(slot) == traits), None)
    if slot is not None:
        return slot.detach()  # A second time the same tensor would be no guard.
    return p if _traits(p.detach()) == traits else None


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
    derives = x.requires_grad and torch.is_grad_enabled()
    return type(x), x.layout, x.device, x.dtype, x.shape, strides, x.is_conj(), x.is_neg(), derives
