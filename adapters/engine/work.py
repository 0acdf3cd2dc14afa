"""What a step works on: a plan, and the parts of it on their way through its stages, each run by a backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import is_
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from functional_optim import trees
from functional_optim.closures import constants_of
from functional_optim.form import Path
from functional_optim.hparams import HParams

from .buckets import Column, Leaf, Part, Way
from .owners import Sight
from .route import Link, Mark, marks_before, numbers_asked, slot_count
from .stages import Passage, Stage

if TYPE_CHECKING:
    from .run import Run


class Work:
    """A part on its way through the stages: the updates so far, the parameters and all slots, and how many stages are done.

    Attributes:
        stage: the next one; `slots`: its own; `p`: what it takes for the parameters.
        arrived: the updates that a later stage asks for.
        prepared: what runs the next stage, and what that takes, once that is known.
    """

    stage: Stage
    slots: list[Column]
    p: Column
    prepared: "tuple[Backend, Any] | None"

    def __init__(self, part: Part, u: Column, params: Column, held: Sequence[Column]) -> None:
        self.part, self.u, self.params, self.held = part, u, params, held
        self.passage: Passage = part.passage
        self.arrived: dict[Mark, Column] = {}
        self.done = -1
        self.next()

    def next(self) -> None:
        """Go on to the stage after this one."""
        self.go(self.done + 1)
        if self.done < len(self.passage.stages) and self.stage.marks:
            self.arrived.update(dict.fromkeys(self.stage.marks, self.u))

    def go(self, number: int) -> None:
        """Let the stage of this number be the one that comes next; one past the last is none."""
        self.done, self.prepared = number, None
        if number < len(self.passage.stages):
            self.stage = self.passage.stages[number]
            self.slots = list(self.held[self.stage.slots])
            self.p = self.stepped if self.stage.steps_copy else self.params

    def slots_at(self, link: Link) -> list[Column]:
        """Those of a link that has a stage for itself."""
        return list(self.held[self.passage.stages[self.passage.place[link]].slots])

    @property
    def stepped(self) -> Column:
        """What the last stage moves."""
        return self.params if self.passage.copy is None else self.held[self.passage.copy]

    @property
    def further(self) -> list[Column]:
        """The updates that arrived before, as far as that stage asks for them."""
        return [self.arrived[mark] for mark in self.stage.further if mark in self.arrived]

    @property
    def columns(self) -> list[Column]:
        """All that the stage sees."""
        return [self.u, self.p, *self.slots, *(self.further if self.arrived else ())]

    def columns_of(self, links: Sequence[Link]) -> list[Column]:
        """All that its first few links see."""
        slots, further = self.slots[: slot_count(links)], self.further[: len(marks_before(links))]
        return [self.u, self.p, *slots, *further]


class Backend(Protocol):
    """A way of running elementwise stages."""

    def refuses(self, leaf: Leaf, hparams: HParams) -> str:
        """Why it can't run this parameter; or nothing."""
        ...

    def ready(self, run: "Run", work: Work) -> Any:
        """What `step` takes for the work's next stage; None where something has to be found out first.

        Raises:
            Refused: it can't.
            Exception: whatever is wrong with a number.
        """
        ...

    def step(self, run: "Run", work: Work, slots: Sequence[Column], prepared: Any) -> None:
        """Run the next stage: these slots are written to, and the parameters if it is the last one; else the updates are new."""
        ...

    def sums(self, run: "Run", work: Work, link: Link) -> list[Tensor]:
        """The sums that a link of the next stage asks for, over the updates that reach it: of each leaf, or, if only those
        over all matter, of any stretches of them. Nothing is written."""
        ...

    def reaching(self, run: "Run", work: Work, link: Link) -> Column:
        """The updates that reach a link of the next stage; nothing is written."""
        ...


class Closed(Exception):
    """A gate is closed that was thought to be open; nothing has been written yet."""

    def __init__(self, path: Path) -> None:
        self.path = path


class Refused(Exception):
    """Why a stage, or a step, can't be run in some way."""


@dataclass(eq=False)
class Lasting:
    """What is known for as long as groups have the very hyper-parameters that they have.

    Attributes:
        hparams: of each group.
        values: those of links that depend on nothing else, by passage and group; `flat`: one after another.
        prepared: of parts of the plan whose rules are given nothing beside these, what runs their stages; see `Work`.
    """

    hparams: Mapping[int, HParams]
    values: dict[tuple[Passage, int], Mapping[Link, HParams]] = field(default_factory=dict)
    flat: dict[tuple[Passage, int], Mapping[Link, Sequence[Any]]] = field(default_factory=dict)
    prepared: dict[tuple[Part, int], tuple[Backend, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._has_tensors = any([isinstance(x, Tensor) for own in self.hparams.values() for x in trees.leaves(dict(own))])

    def holds(self, hparams: Mapping[int, HParams]) -> bool:
        """Whether groups have the same now; a tensor may have another value."""
        is_same = len(hparams) == len(self.hparams) and all(map(is_, map(self.hparams.get, hparams), hparams.values()))
        return is_same and not self._has_tensors


@dataclass(eq=False)
class Plan:
    """What a run needs to know.

    Attributes:
        parts: the parameters.
        links: all that the transform is made of, in order.
        backends: the ways in which elementwise stages are run.
        refusals: of stages that some way can't run, the reasons; from then on their rules are called.
        sights: what rules that need shapes do with them, by rule and shape.
        is_new: whether nothing has been run so far.
        lasting: what is known from the last step.
    """

    parts: list[Part]
    links: list[Link]
    backends: Mapping[Way, Backend]
    refusals: dict[tuple[Stage, Way], str] = field(default_factory=dict, kw_only=True)
    sights: dict[Any, Sight | None] = field(default_factory=dict, kw_only=True)
    is_new: bool = field(default=True, kw_only=True)
    lasting: Lasting = field(default_factory=lambda: Lasting({}), kw_only=True)

    def __post_init__(self) -> None:
        rules = [link.rule.scalars for link in self.links if link.rule]
        self._constants = [(rule, found) for rule in dict.fromkeys(rules) if (found := constants_of(rule))]

    @property
    def is_outdated(self) -> bool:
        """Whether a rule closes over others than when it was written down."""
        return any(constants_of(rule) != then for rule, then in self._constants)

    @cached_property
    def stops(self) -> list[Link]:
        """The links up to the last one at which leaves must meet."""
        joining = [i for i, link in enumerate(self.links) if link.joins]
        return self.links[: joining[-1] + 1] if joining else []

    @cached_property
    def placing(self) -> list[Link]:
        """The links whose rules ask for the places of leaves."""
        return [link for link in self.links if link.rule and link.rule.places]

    @cached_property
    def is_spread(self) -> bool:
        """Whether processes share out any of it."""
        return any(part.placement is not None for part in self.parts)

    @cached_property
    def constant(self) -> frozenset[Part]:
        """The parts whose rules are given the same in each step, as long as hyper-parameters are the same."""
        return frozenset(part for part in self.parts if part.passage.is_constant)

    @cached_property
    def asks(self) -> bool:
        """Whether rules ask for numbers beside the hyper-parameters."""
        return bool(numbers_asked(self.links))
