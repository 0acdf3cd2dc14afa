"""How an optimizer steps, for people: the stages of each kind of parameters, in which way they are run, and what they cost."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .buckets import Leaf, Part, Way
from .route import names_of
from .stages import Stage
from .step import Step
from .work import Plan


@dataclass(frozen=True)
class StageRow:
    """A stage that some parameters go through.

    Attributes:
        group: the number of their group.
        parameters: how many they are.
        links: what is run, in order, by the keys to its state.
        way: how.
        reason: why not in a better way; or nothing.
        reads, writes: bytes for each element of a parameter, of the updates, the parameter and the slots; 0 where the links are
            called, since what they do is their own matter.
        state: bytes of slots for each element.
    """

    group: int
    parameters: int
    links: tuple[str, ...]
    way: str
    reason: str
    reads: float
    writes: float
    state: float

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        traffic = f"; {self.reads:.4g} bytes read, {self.writes:.4g} written" if self.reads else ""
        return (
            f"group {self.group}, {self.parameters} parameters: {' → '.join(self.links) or 'nothing'}\n"
            f"    {self.way}{why}{traffic}, {self.state:.4g} of state, per element"
        )


def stages_of(steps: Sequence[Step]) -> tuple[StageRow, ...]:
    """The stages of these steps, in order."""
    return tuple(row for step in steps if step.plan is not None for row in _rows(step.plan))


def reasons_of(steps: Sequence[Step]) -> tuple[str, ...]:
    """Why a transform, or a part of it, is not run in a better way."""
    return tuple(dict.fromkeys(reason for step in steps for reason in step.reasons))


def _rows(plan: Plan) -> Iterator[StageRow]:
    members: dict[Any, list[tuple[Part, Leaf]]] = {}
    for part in plan.parts:
        for leaf in part.leaves:
            members.setdefault((part.passage, leaf.group, part.way, part.signature), []).append((part, leaf))
    # What differs only in numbers that are known beforehand, such as a factor that a shape gives, reads the same.
    alike = Counter[tuple[StageRow, ...]]()
    for own in members.values():
        part, leaf = own[0]
        alike[tuple(_row(plan, part, leaf, stage) for stage in part.passage.stages)] += len(own)
    for rows, parameters in alike.items():
        yield from (replace(row, parameters=parameters) for row in rows)


def _row(plan: Plan, part: Part, leaf: Leaf, stage: Stage) -> StageRow:
    reason = plan.refusals.get((stage, part.way), "")
    called = not stage.fuses or bool(reason) or part.way is Way.CALLED
    whole = [link for link in stage.links if link.rule is None]
    if not stage.fuses:
        reason = "it is no rule for one tensor, its gradient and its slots" if whole else "it needs the shapes of tensors"
    sizes = [_bytes(leaf, i) for i in range(stage.slots.start, stage.slots.stop)]
    stored = leaf.stepped if stage.steps_copy else leaf.param
    size, grad = stored.element_size(), leaf.grad_dtype.itemsize
    state = sum(sizes)
    moves = 0 if stage.is_still else size
    copied = (size, leaf.param.element_size()) if stage.steps_copy and stage.last else (0, 0)
    return StageRow(
        group=leaf.group,
        parameters=1,
        links=names_of(link for link in stage.links if not link.remembers),
        way=(Way.CALLED if called else part.way).value,
        reason=reason,
        reads=0 if called or stage.is_idle else grad * (1 + len(stage.further)) + moves + state + copied[0],
        writes=0 if called else moves + state + copied[1],
        state=state + copied[0],
    )


def _bytes(leaf: Leaf, i: int) -> float:
    """Of a slot, for each element of the parameter."""
    slot, count = leaf.values()[i], leaf.param.numel()
    return slot.element_size() if slot.numel() == count else slot.element_size() * slot.numel() / max(count, 1)
