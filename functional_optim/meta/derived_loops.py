"""The tangent and the transpose of a loop as loops, which are compiled as it is.

    tangent      forwards, over one step and its tangent
    transpose    forwards, remembering what was carried; then backwards, over the transposes of the steps

They run as whoever asks says, by `apply`: the loop of a plan on these tensors.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim.meta.packing import is_smooth
from functional_optim.meta.plan import Plan, Step, Tensors
from functional_optim.meta.remat import advising
from functional_optim.meta.steps import unchanged

Apply: TypeAlias = Callable[[Plan, Sequence[Tensor]], Tensors]


def tangent(apply: Apply, plan: Plan, tensors: Sequence[Tensor], moving: Sequence[int], directions: Sequence[Tensor]) -> Tensors:
    """How the smooth results of a loop change as some of its tensors move: a loop over one step and its tangent."""
    slopes = dict(zip(moving, directions, strict=True))
    # what is carried moves from the first step on
    slopes |= {i: torch.zeros_like(x) for i, x in enumerate(tensors[: plan.carried]) if is_smooth(x) and i not in slopes}
    order = sorted(slopes)
    parts = plan.parts(tensors)
    sizes = [len(part) for part in parts]
    tangents = [[slopes[i] for i in part if i in slopes] for part in plan.parts(range(len(tensors)))]

    def step(*given: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        own = [x for part, size in zip(given, sizes, strict=True) for x in part[:size]]
        along = [x for part, size in zip(given, sizes, strict=True) for x in part[size:]]
        smooth = _smooth_step(plan, own, order)
        with advising():
            _, pushed, *aux = torch.func.jvp(smooth, tuple(own[i] for i in order), tuple(along), has_aux=True)
        (carry,) = aux
        count = sum(map(is_smooth, carry))
        return [*carry, *pushed[:count]], list(pushed[count:])

    carry, constants, entries = ([*part, *more] for part, more in zip(parts, tangents, strict=True))
    ends = [plan.at_stop[i] for i in order if i < plan.carried]
    at_stop = *plan.at_stop, *(unchanged if end is unchanged else torch.zeros_like for end in ends)
    loop = _derived(plan, "tangent of", step, len(carry), len(constants), plan.stops, at_stop, tuple(order))
    outputs = apply(loop, (*carry, *constants, *entries))
    return outputs[plan.carried :]


def transposed(
    apply: Apply, plan: Plan, tensors: Sequence[Tensor], moving: Sequence[int], cotangents: Sequence[Tensor]
) -> Tensors:
    """The slopes of some tensors of a loop: a loop that remembers what was carried, and one back over the steps' transposes."""

    def remembering(carry: Any, constants: Any, entries: Any) -> tuple[Any, list[Tensor]]:
        return plan.step(carry, constants, entries)[0], [x.clone() for x in carry]

    forward = _derived(plan, "states of", remembering, plan.carried, plan.constant, plan.stops, plan.at_stop, ())
    states = apply(forward, tensors)[plan.carried :]
    carry, constants, entries = plan.parts(tensors)
    carried = [i for i, x in enumerate(carry) if is_smooth(x)]
    of_constants = [i for i in moving if plan.carried <= i < plan.carried + plan.constant]
    of_entries = [i for i in moving if i >= plan.carried + plan.constant]
    order, sums = [*carried, *of_constants, *of_entries], len(of_constants)

    def step(given: Any, constants: Any, rows: Any) -> tuple[list[Tensor], list[Tensor]]:
        own = [*rows[: plan.carried], *constants, *rows[plan.carried : plan.carried + len(entries)]]
        smooth = _smooth_step(plan, own, order)
        pull = torch.func.vjp(smooth, *(own[i] for i in order), has_aux=True)[1]
        slopes = pull((*given[sums:], *rows[plan.carried + len(entries) :]))
        end = len(carried) + sums
        added = [a + b for a, b in zip(given[:sums], slopes[len(carried) : end], strict=True)]
        return [*added, *slopes[: len(carried)]], list(slopes[end:])

    ends = [unchanged if plan.at_stop[i] is unchanged else torch.zeros_like for i in carried]
    at_stop = *(unchanged for _ in of_constants), *ends
    stops = frozenset(plan.steps - k for k in plan.stops if k)
    size = sums + len(carried)
    loop = _derived(plan, "transpose of", step, size, plan.constant, stops, at_stop, tuple(order))
    first = [*(torch.zeros_like(tensors[i]) for i in of_constants), *cotangents[: len(carried)]]
    rows = [x.flip(0) for x in (*states, *entries, *cotangents[len(carried) :])]
    found = list(apply(loop, (*first, *constants, *rows)))
    if 0 in plan.stops:
        found[:size] = loop.stopped(found[:size])
    slopes = dict(zip(of_constants, found[:sums], strict=True)) | dict(zip(carried, found[sums:size], strict=True))
    slopes |= {i: x.flip(0) for i, x in zip(of_entries, found[size:], strict=True)}
    return tuple(slopes[i] for i in moving)


def _derived(
    plan: Plan,
    kind: str,
    step: Step,
    carried: int,
    constant: int,
    stops: frozenset[int],
    at_stop: tuple[Callable[[Tensor], Tensor], ...],
    order: tuple[int, ...],
) -> Plan:
    """A loop of another step, made of that of a plan and kept where that is."""
    key, name = (kind, order, plan.key, plan.batches), f"{kind} {plan.name}"
    return Plan(step, carried, constant, plan.steps, stops, at_stop, plan.cache, key, plan.structure, name, plan.segment)


def _smooth_step(plan: Plan, tensors: Sequence[Tensor], places: Sequence[int]) -> Callable[..., tuple[Tensors, Tensors]]:
    """One step as a function of the tensors at some places, to its smooth results; beside them, the carry."""

    def smooth(*some: Tensor) -> tuple[Tensors, Tensors]:
        changed = dict(zip(places, some, strict=True))
        given = plan.parts([changed.get(i, x) for i, x in enumerate(tensors)])
        carry, logs = plan.step(*(list(part) for part in given))
        return tuple(filter(is_smooth, (*carry, *logs))), tuple(carry)

    return smooth
