"""What a parameter goes through, cut into stages that run together, and the kernels of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TypeAlias

import torch

from functional_optim.combinators.origin import Counts
from functional_optim.hparams import HParams
from functional_optim.reductions import SumOver

from .kernels import Kernel, kernel_for
from .layout import Key, Layout
from .links import Link, Route, scalars_of, values_of
from .tracing import Dtypes, Ending, reduced_like, wide

# What tells apart the kernels of a stage: the device and the dtypes.
Signature: TypeAlias = tuple[torch.device, Dtypes]


@dataclass(frozen=True, eq=False)
class Stage:
    """Links that run together: elementwise ones in one kernel, or a single other one.

    Attributes:
        links: in order.
        names: what `optimizer.state` calls their slots.
        slots: where theirs are among the slots of all elementwise links of the passage.
        last: whether the parameter is updated here.
    """

    links: list[Link]
    names: list[str]
    slots: slice
    last: bool

    @cached_property
    def fuses(self) -> bool:
        """Whether this is a run of elementwise links; no link at all is one, too."""
        return all(link.form.packs for link in self.links)

    @property
    def reduces(self) -> list[int]:
        """The links that need a whole-tree quantity."""
        return [i for i, link in enumerate(self.links) if link.form.reduce]


@dataclass(frozen=True, eq=False)
class Passage:
    """A route in stages.

    Attributes:
        stages: in order; at least one.
        slots: what `optimizer.state` calls the slots of all elementwise links.
        place: the number of each link's stage.
    """

    stages: list[Stage]
    slots: list[str]
    place: Mapping[Link, int]

    @property
    def is_one_kernel(self) -> bool:
        """Whether all of it runs at once."""
        return len(self.stages) == 1 and self.stages[0].fuses


@dataclass(frozen=True, eq=False)
class Kernels:
    """The kernels of a stage for one signature: those that its quantities are computed with, by link, and the one that steps."""

    quantities: Mapping[int, Kernel | None]
    step: Kernel


def passage_of(route: Route, layout: Layout, key: Key) -> Passage:
    """The links of a route in runs of elementwise ones, each as long as can be; `key` is one of the parameters that take it."""
    runs = groupby(enumerate(route), lambda item: -1 if item[1].form.packs else item[0])
    stages, slots = [], []
    for run in [[link for _, link in run] for _, run in runs] or [[]]:
        names = [name for link in run for name in layout.slots_of(key, link.path, link.form.slots)]
        first = len(slots)
        slots += names if all(link.form.packs for link in run) else []
        stages.append(Stage(run, names, slice(first, len(slots)), last=run[-1:] == list(route[-1:])))
    return Passage(stages, slots, {link: i for i, stage in enumerate(stages) for link in stage.links})


def kernels_of(stage: Stage, signature: Signature, hparams: HParams, counts: Counts) -> Kernels:
    """Compile a stage, for tensors of these dtypes as they reach it; of the numbers, what counts is which of them are pairs."""
    device, dtypes = signature
    values, reduced = values_of(stage.links, hparams, counts), {}

    def compiled(links: list[Link], ending: Ending) -> Kernel:
        scalars = scalars_of(links, values, counts, reduced)
        return kernel_for(links, ending, dtypes.restricted(slot_count(links)), device, scalars)

    quantities: dict[int, Kernel | None] = {}
    for i in stage.reduces:
        link, before = stage.links[i], slot_count(stage.links[:i])
        if isinstance(link.form.reduce, SumOver):
            quantities[i] = compiled(stage.links[: i + 1], Ending.TOTAL)
        else:
            quantities[i] = compiled(stage.links[:i], Ending.PEEK) if i else None
        own = dtypes.slots[before : before + len(link.form.slots)]
        reduced[link] = reduced_like(link, Dtypes(dtypes.update, dtypes.param, own))
    return Kernels(quantities, compiled(stage.links, Ending.STEP if stage.last else Ending.UPDATE))


def at_stage(signature: Signature, number: int, stage: Stage) -> Signature:
    """What reaches a stage: its own slots, and after the first one an update in at least float32."""
    device, dtypes = signature
    return device, Dtypes(wide(dtypes.update) if number else dtypes.update, dtypes.param, dtypes.slots[stage.slots])


def slot_count(links: Sequence[Link]) -> int:
    """How many slots these links have together."""
    return sum(len(link.form.slots) for link in links)
