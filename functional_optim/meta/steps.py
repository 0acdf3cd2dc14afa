"""The compiled step of a loop and its transpose, run as often as there are steps; in a program, as one operation of it."""

import collections
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from functional_optim.meta.packing import is_smooth
from functional_optim.meta.parts import Part, Views, keep
from functional_optim.meta.plan import Plan, Tensors
from functional_optim.meta.routines import HOLDER, Form, Routine, Run, held, holding
from functional_optim.torch_internals import is_traced, memory_of

# How many steps a loop that may end takes between two looks at whether it has, for which it waits for a device.
LOOK = 16


@functools.cache
def _keep_pages() -> None:
    """Let the memory that a step frees stay with the process, for the next step.

    Linux's allocator gives back what is large, and the pages of what is asked for next are zeroed one by one: up to a third of
    the time of a loop that carries some MB. It keeps blocks up to the largest that it has seen freed, of at most 32 MiB. Of this
    one no page is ever touched.
    """
    torch.empty(2**25 - 2**14, dtype=torch.uint8, device="cpu")


@dataclass(frozen=True, eq=False)
class Code:
    """A compiled step, and its transpose if derivatives are taken.

    Attributes:
        step: tensors to the carry, the logs and what the transpose wants.
        saved: how the last of these come of the tensors and of what the step computes.
        passed: which tensors the carry may be, or be parts of, after the step.
        transpose: that and the cotangents of the smooth carry and the smooth logs to slopes of the tensors at `moving`.
        carried: how many tensors the carry has.
        outputs: tensors like the carry and the logs, without elements.
        moving: the places of the smooth carry and of what else moves.
        structure: what goes with the results.
    """

    step: Part
    saved: Views
    passed: tuple[bool, ...]
    transpose: Part | None
    carried: int
    outputs: tuple[Tensor, ...]
    moving: tuple[int, ...]
    structure: Any

    def forward(self, plan: Plan, tensors: Tensors, wanted: Sequence[bool] | None = None) -> tuple[list[Any], list[Any]]:
        """The last carry and the stacked logs; and of each step what its transpose wants beside `tensors`.

        Of these only what is `wanted`: a value for each result, and one for all that the transpose wants.
        """
        if plan.steps > 1 and not is_traced():
            _keep_pages()
        *returns, keeps = wanted or (True,) * (len(self.outputs) + 1)
        keeps = keeps and self.transpose is not None
        carry, constants, entries = plan.parts(tensors)
        columns = [x.unbind() for x in entries]
        logs: list[Any] = []
        rows: list[Any] = []
        for some in plan.segments():
            if keeps and plan.segment:
                rows.append((list(carry) if some.start else [], []))
            kept = rows if keeps and not plan.segment else None
            for results in self._steps(plan, some, carry, constants, columns, kept):
                carry = results[: self.carried]
                logs.append([x if returned else None for x, returned in zip(results, returns, strict=False)][self.carried :])
        last = [x if returned else None for x, returned in zip(carry, returns, strict=False)]
        outputs = [*last, *(_stacked(list(column)) for column in zip(*logs, strict=True))]
        if not rows or is_traced():  # a program writes to nothing that somebody still reads
            return outputs, rows
        # What is returned may be written to, and is not what the transpose wants: of the last step, or of one before it, from
        # which a carry has been handed on from place to place.
        handed = sum(self.passed[: self.carried])
        kept = {memory_of(x) for row in rows[-1 - handed :] for some in row for x in some if x is not None}
        return [x if x is None or memory_of(x) not in kept else x.clone() for x in outputs], rows

    def _steps(self, plan: Plan, some: range, carry: Any, constants: Any, columns: Any, rows: list[Any] | None) -> Iterator[Any]:
        """The results of some steps; to `rows`, unless it is None, what the transpose of each wants."""
        code, ended = self.step.now(), plan.ended if rows is None and not is_traced() else None
        for k in some:
            if ended is not None and k % LOOK == LOOK - 1 and ended(carry):
                return
            if k in plan.stops:
                carry = plan.stopped(carry)
            given = [*carry, *constants, *(column[k] for column in columns)]
            own = code([*given])
            if rows is not None:
                # the first carry is among the tensors of the loop, which whoever asks for the transpose has
                mine = [x if used and k else None for x, used in zip(carry, self.saved.arguments, strict=False)]
                rows.append((mine, [x if used else None for x, used in zip(own, self.saved.own, strict=True)]))
            results = self.step.views(*given, *own)
            carry = results[: self.carried]
            yield results

    def _rows(self, plan: Plan, kept: list[Any], some: range, tensors: Any) -> list[Any]:
        """What the transposes of some steps want, which are computed again where there is only what they began with."""
        if not plan.segment:
            return kept
        (carry, _), rows = kept.pop(), []
        first, constants, entries = plan.parts(tensors)
        steps = self._steps(plan, some, carry if some.start else first, constants, [x.unbind() for x in entries], rows)
        collections.deque(steps, 0)
        return rows

    def backward(self, plan: Plan, rows: list[Any], tensors: Sequence[Any], cotangents: Sequence[Tensor]) -> Tensors:
        """The slopes of a plan's moving tensors, from the cotangents of the last carry and the stacked logs; empties `rows`."""
        smooth_carry = sum(map(is_smooth, self.outputs[: self.carried]))
        carry, logs = list(cotangents[:smooth_carry]), [x.unbind() for x in cotangents[smooth_carry:]]
        first, constants, entries = plan.parts(tensors)
        if 0 in plan.stops:
            first = [x if x is None else end(x) for end, x in zip(plan.at_stop, first, strict=True)]
        columns = [x if x is None else x.unbind() for x in entries]
        sums: dict[int, Tensor] = {}
        slopes_of_entries: dict[int, list[Tensor]] = {}
        ends = [plan.at_stop[i] for i in self.moving[:smooth_carry]]
        assert self.transpose is not None
        code = self.transpose.now()
        of_steps: list[Any] = []
        for k in reversed(range(plan.steps)):
            of_steps = of_steps or self._rows(plan, rows, plan.segment_to(k), tensors)
            mine, own = of_steps.pop()  # its memory is soon free for what comes
            before = mine if k else first
            saved = self.saved.of(*before, *constants, *(column and column[k] for column in columns), *own)
            given = [*saved, *carry, *(log[k] for log in logs)]
            slopes = self.transpose.views(*given, *code([*given]))
            carry = list(slopes[:smooth_carry])
            if k in plan.stops:
                carry = [x if end is unchanged else torch.zeros_like(x) for end, x in zip(ends, carry, strict=True)]
            for i, slope in zip(self.moving[smooth_carry:], slopes[smooth_carry:], strict=True):
                if plan.axis(i):
                    slopes_of_entries.setdefault(i, []).append(slope)
                else:
                    sums[i] = sums[i] + slope if i in sums else slope
        found = dict(zip(self.moving, carry, strict=False)) | sums
        found |= {i: torch.stack(column[::-1]) for i, column in slopes_of_entries.items()}
        return tuple(found[i] for i, moves in enumerate(plan.moving) if moves)

    def forward_routine(self, plan: Plan, tensors: Tensors) -> tuple[list[Tensor], Tensor]:
        """What `forward` returns, in a program; the rest is held by a tensor."""
        plan = _without_step(plan)

        def run(given: Sequence[Tensor], wanted: Sequence[bool], once: bool) -> list[Tensor | None]:
            # what is carried on is kept for the transpose, but the program may write to what it gave
            tensors = tuple(x.clone() if passed else x for x, passed in zip(map(plain, given), self.passed, strict=True))
            outputs, rows = self.forward(plan, tensors, wanted)
            return [*_apart(outputs, given), holding(rows) if wanted[-1] else None]

        carry, logs = map(_forms, (self.outputs[: self.carried], self.outputs[self.carried :]))
        stacked = [((plan.steps, *shape), dtype, device) for shape, dtype, device in logs]
        *outputs, rows = _called(run, [*carry, *stacked, HOLDER], self.step, tensors)
        return outputs, rows

    def backward_routine(self, plan: Plan, rows: Tensor, tensors: Tensors, cotangents: Sequence[Tensor]) -> Tensors:
        """What `backward` returns, in a program."""
        plan, used = _without_step(plan), self.saved.arguments if plan.segment is None else (True,) * len(tensors)
        wanted = [x for x, is_used in zip(tensors, used, strict=True) if is_used]

        def run(given: Sequence[Tensor], wanted: Sequence[bool], once: bool) -> list[Tensor | None]:
            rest = iter(map(plain, given[1:]))
            tensors = [next(rest) if is_used else None for is_used in used]
            rows = held(given[0])
            return _apart(self.backward(plan, rows if once else list(rows), tensors, list(rest)), given)

        assert self.transpose is not None
        slopes = _forms([x for x, moves in zip(tensors, plan.moving, strict=True) if moves])
        return tuple(_called(run, slopes, self.transpose, [rows, *wanted, *cotangents]))


def _called(run: Run, forms: Sequence[Form], part: Part, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A call of a routine, in a trace."""
    routine = Routine(run, forms, [part])
    keep(routine)
    return routine(tensors)


def _forms(tensors: Sequence[Tensor]) -> list[Form]:
    return [(tuple(x.shape), x.dtype, x.device) for x in tensors]


def _without_step(plan: Plan) -> Plan:
    """How a plan's loop goes, without the functions of its owner, who may go."""
    return replace(plan, step=_forgotten, cache={}, structure=[])


def _forgotten(*args: Any) -> Any:
    raise AssertionError("a loop that runs within a program has a compiled step")


def _apart(outputs: Sequence[Tensor | None], given: Sequence[Tensor]) -> list[Tensor | None]:
    """Results that lie each in memory of its own."""
    taken = {memory_of(x) for x in given}
    apart: list[Tensor | None] = []
    for x in outputs:
        if x is None:
            apart.append(None)
            continue
        own = x.clone() if memory_of(x) in taken else x
        taken.add(memory_of(own))
        apart.append(own)
    return apart


def _stacked(column: list[Any]) -> Any:
    """One tensor of those of all steps, None of none."""
    if column[0] is None:
        return None
    return torch.stack(column) if len(column) > 1 else column[0].unsqueeze(0)


def plain(x: Tensor) -> Tensor:
    """The tensor as it is in memory; compiled code reads that."""
    return x.contiguous().resolve_conj().resolve_neg()


def unchanged(x: Tensor) -> Tensor:
    return x
