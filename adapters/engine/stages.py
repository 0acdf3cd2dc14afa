"""What a parameter goes through, cut into stages that run together."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor

from functional_optim.form import Path
from functional_optim.lifting import widened

from .route import Link, Mark, Route, marks_before, slot_count


class Ending(Enum):
    """What is done with the results of a run of links."""

    STEP = "add the update to the parameter, and store the slots"
    UPDATE = "write the update into a tensor of its own, and store the slots"
    PEEK = "write the update into a tensor of its own, and leave the slots"
    STORE = "store the slots"
    TOTAL = "return the sums over what the last link reduces, and write nothing"
    NEW_STEP = "write the parameter after the step, and the slots, into tensors of their own"
    NEW_UPDATE = "write the update and the slots into tensors of their own"
    NEW_RESULT = "the same, with the update in the dtype that it came in"
    NEW_STORE = "write the slots into tensors of their own"

    def outcome(self, u: Tensor, new: Sequence[Tensor], p: Tensor, *slots: Tensor) -> list[Tensor]:
        """What is to be written, in the dtype of the parameter and of each slot: the target, and the new slots."""
        stored = [value.to(slot.dtype) for value, slot in zip(new, slots, strict=True)]
        if self is Ending.PEEK:
            return [u]
        if self in (Ending.STORE, Ending.NEW_STORE):
            return stored
        return [(widened(p) + u).to(p.dtype) if self in (Ending.STEP, Ending.NEW_STEP) else u, *stored]

    def targets(self, dtypes: "Dtypes") -> list[torch.dtype]:
        """The dtypes of further columns, behind those that are read."""
        first = {
            Ending.UPDATE: [wide(dtypes.update)],
            Ending.PEEK: [wide(dtypes.update)],
            Ending.NEW_STEP: [dtypes.param],
            Ending.NEW_UPDATE: [wide(dtypes.update)],
            Ending.NEW_RESULT: [dtypes.update],
        }.get(self, [])
        return [*first, *(dtypes.slots if self.name.startswith("NEW") else ())]

    def written(self, dtypes: "Dtypes") -> list[int]:
        """Which columns the outcome is written to."""
        count, end = len(dtypes.all), 2 + len(dtypes.slots)
        targets = range(count, count + len(self.targets(dtypes)))
        first = [1] if self is Ending.STEP else []
        return [*first, *targets, *(range(2, end) if self in (Ending.STEP, Ending.UPDATE, Ending.STORE) else ())]


@dataclass(frozen=True)
class Dtypes:
    """The dtypes of one leaf's tensors, complex ones as reals; `further` ones are those of updates that arrived before."""

    update: torch.dtype
    param: torch.dtype
    slots: tuple[torch.dtype, ...]
    further: tuple[torch.dtype, ...] = ()

    @property
    def scalars(self) -> torch.dtype:
        """What the kernel computes in: the widest of its tensors, at least float32."""
        wide = torch.float64 in self.all
        return torch.float64 if wide else torch.float32

    @property
    def all(self) -> tuple[torch.dtype, ...]:
        """Those of all columns, in their order."""
        return (self.update, self.param, *self.slots, *self.further)

    def restricted(self, links: Sequence[Link]) -> "Dtypes":
        """What the first few links of a run see."""
        return Dtypes(self.update, self.param, self.slots[: slot_count(links)], self.further[: len(marks_before(links))])


@dataclass(frozen=True, eq=False)
class Stage:
    """Links that run together: elementwise ones, or a single other one.

    Attributes:
        links: in order.
        slots: where the slots of theirs are among those of the passage.
        last: whether it is the last one.
        steps: whether the parameter is stepped with what comes out; else that is the result.
        marks: the places where updates that a later stage asks for arrive together with those of this one.
    """

    links: list[Link]
    slots: slice
    last: bool
    steps: bool
    marks: tuple[Mark, ...] = ()

    @cached_property
    def further(self) -> list[Mark]:
        """The places before it where updates arrived that it asks for."""
        return marks_before(self.links)

    @cached_property
    def steps_copy(self) -> bool:
        """Whether what it takes for the parameter is a copy."""
        return bool(self.links) and self.links[0].copy is not None

    @cached_property
    def is_still(self) -> bool:
        """Whether the parameter stays as it is."""
        return self.steps and bool(self.links) and self.links[-1].is_still

    @cached_property
    def is_idle(self) -> bool:
        """Whether nothing is to be done at all."""
        return self.is_still and self.slots.start == self.slots.stop

    @cached_property
    def finding(self) -> list[Link]:
        """The links that have something to find out before they are run."""
        return [link for link in self.links if link.rule and link.rule.finds]

    @cached_property
    def fuses(self) -> bool:
        """Whether this is a run of elementwise links; no link at all is one, too."""
        return all(link.packs for link in self.links)

    @cached_property
    def is_batched(self) -> bool:
        """Whether its one link takes tensors of equal shapes together."""
        return len(self.links) == 1 and self.links[0].rule is not None and self.links[0].rule.batched

    @cached_property
    def is_lifted(self) -> bool:
        """Whether its one link is run as its transform runs it: on tensors of equal shapes together, on slots that are kept in
        codes, or with the places of leaves."""
        rule = self.links[0].rule if self.links and not self.fuses else None
        return rule is not None and (self.is_batched or rule.coding is not None or rule.places)

    def slots_of(self, link: Link) -> slice:
        """Where the slots of one link are among those of the stage."""
        first = slot_count(self.links[: self.links.index(link)])
        return slice(first, first + len(link.slots))


@dataclass(frozen=True, eq=False)
class Passage:
    """A route in stages.

    Attributes:
        stages: in order; at least one.
        slots: what `optimizer.state` calls the slots of all rules.
        place: the number of each link's stage.
        copy: the place among the slots of what is stepped instead of the parameter, which is then this, rounded; or None.
    """

    stages: list[Stage]
    slots: list[str]
    place: Mapping[Link, int]
    copy: int | None = None

    @property
    def came_first(self) -> frozenset[Mark]:
        """The places at which gradients arrive as they are."""
        return frozenset(self.stages[0].marks)

    @cached_property
    def counting(self) -> list[Link]:
        """The links with a step of their own for each leaf."""
        return [link for link in self.place if link.rule and link.rule.counts and link not in self.sharing]

    @cached_property
    def is_steady(self) -> bool:
        """Whether its links have the same hyper-parameters in each step, as long as the transform has."""
        return all(link.is_steady for link in self.place)

    @cached_property
    def is_constant(self) -> bool:
        """Whether, beyond that, its rules are given nothing else: no count, and nothing that they have found out."""
        return self.is_steady and not any(link.rule and (link.rule.counts or link.rule.finds) for link in self.place)

    @cached_property
    def is_one_run(self) -> bool:
        """Whether all of it is elementwise."""
        return len(self.stages) == 1 and self.stages[0].fuses

    @cached_property
    def is_batched(self) -> bool:
        """Whether some link takes tensors of equal shapes together."""
        return any(stage.is_batched for stage in self.stages)

    @cached_property
    def sharing(self) -> list[Link]:
        """The links whose step all leaves share with other numbers."""
        return [link for link in self.place if link.rule and link.rule.counts and link.rule.shared]

    @cached_property
    def elementwise(self) -> list[int]:
        """The places of the slots of elementwise links."""
        own = [] if self.copy is None else [self.copy]
        return [*(i for stage in self.stages if stage.fuses for i in range(stage.slots.start, stage.slots.stop)), *own]


def passage_of(route: Route, named: Callable[[Path, Sequence[str]], Sequence[str]], *, steps: bool = True) -> Passage:
    """The links of a route, which a parameter goes through, in runs of elementwise ones, each as long as can be.

    Args:
        route: the links.
        named: what slots are called, of the keys to a link's state and their names there.
        steps: whether the last stage steps the parameter; else its updates are the result.
    """
    stages: list[Stage] = []
    slots: list[str] = []
    for run, marks in _runs(route) or [([], ())]:
        first, last = len(slots), run[-1:] == list(route[-1:])
        slots += [name for link in run for name in named(link.path, link.slots)]
        stages.append(Stage(run, slice(first, len(slots)), last, last and steps, marks))
    places, copy = {link: i for i, stage in enumerate(stages) for link in stage.links}, route[-1].copy if route else None
    if copy is None:
        return Passage(stages, slots, places)
    return Passage(stages, [*slots, *named(copy[:-1], copy[-1:])], places, copy=len(slots))


def _runs(route: Route) -> list[tuple[list[Link], tuple[Mark, ...]]]:
    """The runs, and what is to be remembered of the updates that arrive at each.

    What is remembered for another run is remembered between runs: that may end one, and so make others do the same.
    """
    cuts: set[Link] = set()
    while True:
        runs: list[list[Link]] = [[]]
        for link in route:
            if link in cuts or not link.packs or (runs[-1] and (not runs[-1][-1].packs or runs[-1][-1].copy != link.copy)):
                runs.append([])
            runs[-1] += [link] if link not in cuts else []
        crossing = {mark for run in runs for mark in marks_before(run)}
        found = {link for link in route if link.remembers in crossing}
        if found == cuts:
            return _with_marks(route, runs, cuts)
        cuts = found


def _with_marks(route: Route, runs: Sequence[list[Link]], cuts: Container[Link]) -> list[tuple[list[Link], tuple[Mark, ...]]]:
    """Each run that has links, with what is remembered of the updates that arrive at its first one."""
    waiting: dict[Link, tuple[Mark, ...]] = {}
    marks: tuple[Mark, ...] = ()
    for link in route:
        if link in cuts:
            marks = (*marks, link.mark) if link.mark else marks
        else:
            waiting[link], marks = marks, ()
    return [(run, waiting[run[0]]) for run in runs if run]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the update of a gradient of this (real) dtype is computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32
