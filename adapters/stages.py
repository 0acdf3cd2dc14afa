"""A chain cut into stages that run together, and the kernels of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

from functional_optim import trees
from functional_optim.reductions import SumOver

from .kernels import Kernel, kernel_for
from .layout import Layout
from .links import Link, scalars_of
from .parts import Signature
from .tracing import Dtypes, Ending, reduced_like, wide

HParams: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Stage:
    """Links that run together: elementwise ones in one kernel, or a single other one.

    Attributes:
        links: in order.
        names: what `optimizer.state` calls their slots.
        slots, counts: where theirs are among the slots of all elementwise links, and among all counts.
        last: whether the parameter is updated here.
    """

    links: list[Link]
    names: list[str]
    slots: slice
    counts: slice
    last: bool

    @property
    def fuses(self) -> bool:
        """Whether this is a run of elementwise links."""
        return self.links[0].form.packs

    @property
    def reduces(self) -> list[int]:
        """The links that need a whole-tree quantity."""
        return [i for i, link in enumerate(self.links) if link.form.reduce]

    @property
    def joint(self) -> bool:
        """Whether some link has to see all leaves before any of them goes on."""
        return any(link.form.reduce or link.form.batched for link in self.links)


@dataclass(frozen=True, eq=False)
class Kernels:
    """The kernels of a stage for one signature: those that its quantities are computed with, by link, and the one that steps."""

    quantities: Mapping[int, Kernel | None]
    step: Kernel


def stages_of(links: list[Link], layout: Layout) -> list[Stage]:
    """The links in runs of elementwise ones, each as long as can be."""
    runs = [list(run) for _, run in groupby(enumerate(links), lambda item: -1 if item[1].form.packs else item[0])]
    stages, slots, counts = [], 0, 0
    for run in runs:
        own = [link for _, link in run]
        names = [layout.name_of[(*link.path, name)] for link in own for name in link.form.slots]
        first_slot, first_count = slots, counts
        slots += len(names) if own[0].form.packs else 0
        counts += sum(link.form.counts for link in own)
        stages.append(Stage(own, names, slice(first_slot, slots), slice(first_count, counts), own[-1] is links[-1]))
    return stages


def kernels_of(stage: Stage, signature: Signature, hparams: HParams) -> Kernels:
    """Compile a stage, for tensors of these dtypes as they reach it."""
    device, dtypes = signature
    reduced: list[Any] = []

    def compiled(links: list[Link], ending: Ending) -> Kernel:
        steps = [0] * sum(link.form.counts for link in links)
        spec = trees.flatten(scalars_of(links, hparams, steps, reduced))[1]
        return kernel_for(links, ending, dtypes.restricted(slot_count(links)), device, spec)

    quantities: dict[int, Kernel | None] = {}
    for i in stage.reduces:
        link, before = stage.links[i], slot_count(stage.links[:i])
        if isinstance(link.form.reduce, SumOver):
            quantities[i] = compiled(stage.links[: i + 1], Ending.TOTAL)
        else:
            quantities[i] = compiled(stage.links[:i], Ending.PEEK) if i else None
        own = dtypes.slots[before : before + len(link.form.slots)]
        reduced.append(reduced_like(link, Dtypes(dtypes.update, dtypes.param, own)))
    return Kernels(quantities, compiled(stage.links, Ending.STEP if stage.last else Ending.UPDATE))


def at_stage(signature: Signature, number: int, stage: Stage) -> Signature:
    """What reaches a stage: its own slots, and after the first one an update in at least float32."""
    device, dtypes = signature
    return device, Dtypes(wide(dtypes.update) if number else dtypes.update, dtypes.param, dtypes.slots[stage.slots])


def slot_count(links: Sequence[Link]) -> int:
    """How many slots these links have together."""
    return sum(len(link.form.slots) for link in links)
