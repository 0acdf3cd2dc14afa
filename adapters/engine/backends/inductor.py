"""The way of compiled kernels, which read and write every tensor once, in place.

The numbers are the ordinary step's, to rounding. A run of elementwise links is one kernel, whatever the number of parameters,
their sizes and the hyper-parameters.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from functional_optim import torch_internals, trees
from functional_optim.hparams import HParams
from functional_optim.lifting import widened
from functional_optim.numbered import Found, Numbered, Sums
from functional_optim.numerics import real
from functional_optim.reductions import SumOver

from ..buckets import Column, Leaf, Signature
from ..lengths import Lengths
from ..memory import PLAIN
from ..route import Link, numbers_asked, scalars_of, slot_count, values_of
from ..run import Run
from ..stages import Dtypes, Ending, Stage, wide
from ..work import Work
from .kernels import Request, kernels_for

DEVICES = ("cpu", "cuda")

# Those for which the kernels are Triton's.
GPUS = ("cuda",)

# Up to this many different numbers are computed one after another, by Python; more of them together, by torch.
FEW = 4


class Kernel(Protocol):
    """A compiled run of links: of `kernels`, or of `triton`."""

    def vector(self, scalars: Sequence[Any]) -> Tensor | Sequence[Tensor]:
        """The numbers that it takes for these scalars, one after another: for all rows, or for each."""
        ...

    def __call__(self, vector: Tensor | Sequence[Tensor], columns: Sequence[Sequence[Tensor]], lengths: Lengths) -> list[Tensor]:
        """Run over every row of some columns of these lengths; the sums over each row."""
        ...


@dataclass(frozen=True, eq=False)
class Kernels:
    """The kernels of a stage for one signature: those that its quantities are computed with, by link, and the one that steps."""

    quantities: Mapping[int, Kernel]
    step: Kernel


class Compiled:
    """Stages as kernels, for one plan; each is compiled before the first step.

    Args:
        fresh: whether they write into other tensors than they read.
    """

    def __init__(self, *, fresh: bool = False) -> None:
        self._fresh = fresh
        self.kernels: dict[tuple[Stage, Signature], Kernels] = {}
        self.failed: dict[tuple[Stage, Signature], str] = {}

    def refuses(self, leaf: Leaf, hparams: HParams) -> str:
        """Why no kernel can step this parameter; or nothing, and then they are compiled."""
        p = leaf.param
        if type(p) not in PLAIN or p.layout != torch.strided or p.device.type not in DEVICES:
            return f"a parameter is a {type(p).__name__} on {p.device}, of layout {p.layout}"
        if p.is_complex() and not leaf.passage.is_one_run:
            return "a parameter is complex, and a rule of the chain takes no complex tensors"
        for i in leaf.passage.elementwise:
            slot = leaf.values()[i]
            if slot.shape != p.shape or slot.is_complex() != p.is_complex() or slot.device != p.device:
                return f"the slot {leaf.slots[i]!r} is not shaped like its parameter, or lies on another device"
        for i, stage in enumerate(leaf.passage.stages):
            key = (stage, leaf.signature())
            if stage.fuses and not stage.is_idle and key not in self.kernels and key not in self.failed:
                try:
                    self.kernels[key] = _kernels_of(stage, _at_stage(leaf, i, stage), hparams, _ending(stage, fresh=self._fresh))
                except Exception as error:  # Whatever goes wrong in a compiler: no toolchain, a rule it can't trace, its own bug.
                    self.failed[key] = f"compiling the step failed: {type(error).__name__}: {error}"
            if key in self.failed:
                return self.failed[key]
        return ""

    def ready(self, run: Run, work: Work) -> Tensor | Sequence[Tensor] | None:
        """The numbers, once all are known."""
        if run.waiting(work):
            return None
        return self._vector(run, self._kernels(work).step, len(work.stage.links), work)

    def step(self, run: Run, work: Work, slots: Sequence[Column], prepared: Tensor | Sequence[Tensor]) -> None:
        """One kernel, over all leaves."""
        del run
        stage, kernel = work.stage, self._kernels(work).step
        columns = work.columns if self._fresh else [work.u, work.p, *slots, *(work.further if work.arrived else ())]
        if not stage.steps:
            work.u = list(map(torch.empty_like, work.u)) if self._fresh and stage.last else _targets(work.u)
            columns.append(work.u)
        elif self._fresh and not stage.is_still:
            work.p = list(map(torch.empty_like, work.p))
            columns.append(work.p)
        columns += slots if self._fresh else ()
        kernel(prepared, columns, work.part.lengths)

    def sums(self, run: Run, work: Work, link: Link) -> list[Tensor]:
        """One kernel that reads."""
        i = work.stage.links.index(link)
        kernel = self._kernels(work).quantities[i]
        columns = work.columns_of(work.stage.links[: i + 1])
        return kernel(self._vector(run, kernel, i + 1, work), columns, work.part.lengths)

    def reaching(self, run: Run, work: Work, link: Link) -> Column:
        """One kernel that stores them, or what came in."""
        i = work.stage.links.index(link)
        kernel = self._kernels(work).quantities.get(i)
        if kernel is None:
            return work.u
        u = _targets(work.u)
        columns = [*work.columns_of(work.stage.links[:i]), u]
        kernel(self._vector(run, kernel, i, work), columns, work.part.lengths)
        return u

    def _kernels(self, work: Work) -> Kernels:
        return self.kernels[work.stage, work.part.signature]

    def _vector(self, run: Run, kernel: Kernel, links: int, work: Work) -> Tensor | Sequence[Tensor]:
        """The numbers that a kernel over the first few links of a stage takes: for all leaves, or for each."""
        key = (kernel, work.stage, run.owner(work))
        if key not in run.cache:
            run.cache[key] = self._new_vector(run, kernel, work.stage.links[:links], work)
        return run.cache[key]

    def _new_vector(self, run: Run, kernel: Kernel, links: Sequence[Link], work: Work) -> Tensor | Sequence[Tensor]:
        if run.is_uniform(work):
            return kernel.vector(run.flat(work, links))
        given = run.given(work)
        if not given.varies or run.varies(work) or given.kind_count > FEW:
            return kernel.vector(trees.leaves(run.scalars(work, links)))
        vectors: dict[int, Any] = {}
        for rows, own in given.kinds:
            vectors |= dict.fromkeys(rows, kernel.vector(trees.leaves(run.scalars(work, links, own))))
        return [vectors[i] for i in range(len(vectors))]


def _kernels_of(stage: Stage, signature: Signature, hparams: HParams, ending: Ending) -> Kernels:
    """Compile a stage, for tensors of these dtypes as they reach it; of the numbers, what counts is which of them are pairs."""
    device, dtypes = signature
    asked = dict.fromkeys(numbers_asked(stage.links), 1.0)
    values, reduced = values_of(stage.links, hparams, defaultdict(int), asked), {}

    def given(link: Link) -> tuple[HParams, Any]:
        return values[link], 1 if link.form.counts else None

    def request(links: list[Link], ending: Ending) -> Request:
        return Request(links, ending, dtypes.restricted(links), device, scalars_of(links, given, reduced))

    quantities: dict[int, Request] = {}
    for i, link in enumerate(stage.links):
        before = slot_count(stage.links[:i])
        if isinstance(link.form, Numbered):
            sums, found = _found_like(link.form, values[link])
            reduced[link] = found.old
            if sums:
                quantities[i] = request(stage.links[: i + 1], Ending.TOTAL)
            reduced[link] = found
        elif isinstance(link.form.reduce, SumOver):
            quantities[i] = request(stage.links[: i + 1], Ending.TOTAL)
        elif link.form.reduce and i:
            quantities[i] = request(stage.links[:i], Ending.PEEK)
        if link.form.reduce:
            own = dtypes.slots[before : before + len(link.slots)]
            reduced[link] = _reduced_like(link, Dtypes(dtypes.update, dtypes.param, own))
    *found, step = _maker(device)([*quantities.values(), request(stage.links, ending)])
    return Kernels(dict(zip(quantities, found, strict=True)), step)


def _maker(device: torch.device) -> Callable[[Sequence[Request]], Sequence[Kernel]]:
    """What makes kernels for a device."""
    if device.type not in GPUS:
        return kernels_for
    from . import triton  # A package that torch brings along where it is built for GPUs.

    return triton.kernels_for


def _ending(stage: Stage, *, fresh: bool) -> Ending:
    """What the kernel that steps does with its results."""
    if stage.is_still:
        return Ending.NEW_STORE if fresh else Ending.STORE
    if stage.steps:
        return Ending.NEW_STEP if fresh else Ending.STEP
    return Ending.UPDATE if not fresh else Ending.NEW_RESULT if stage.last else Ending.NEW_UPDATE


def _reduced_like(link: Link, dtypes: Dtypes) -> Any:
    """A stand-in for what a link reduces to: a tree of the same structure, of ones."""
    with torch_internals.FakeTensorMode():
        tensors = [torch.empty(2, dtype=dtype, device="cpu") for dtype in (dtypes.update, dtypes.param, *dtypes.slots)]
        u, p, *slots = [[widened(x)] for x in tensors]
        assert link.form.reduce is not None
        like = link.form.reduce(u, p, **dict(zip(link.form.slots, slots, strict=True)))
    if any(not isinstance(x, Tensor) or x.ndim for x in trees.leaves(like)):
        raise TypeError(f"{link.form.name} reduces to something else than () tensors")
    return trees.map_leaves(lambda x: 1.0, like)


def _found_like(form: Numbered, hp: HParams) -> tuple[int, Found]:
    """How many sums a rule asks for, and a stand-in for its numbers: of the same structure, of ones."""
    old = dict.fromkeys(form.kept, torch.ones((), dtype=torch.float64, device="cpu"))
    terms = form.terms(hp, 1, old)
    columns = [torch.ones(2, dtype=torch.float64, device="cpu") for _ in (*"up", *form.slots, *form.leaf_extra)]
    sums = () if terms is None else tuple(x.sum() for x in terms(*columns))
    return len(sums), trees.map_leaves(lambda x: 1.0, form.finish(hp, 1, old, Sums(sums, sums, columns[0].numel())))


def _at_stage(leaf: Leaf, number: int, stage: Stage) -> Signature:
    """What reaches a stage: its own slots, and after the first one updates in at least float32."""
    device, dtypes = leaf.signature()
    first = leaf.passage.came_first
    further = tuple(dtypes.update if mark in first else wide(dtypes.update) for mark in stage.further)
    update = wide(dtypes.update) if number else dtypes.update
    param = leaf.stepped.dtype.to_real() if stage.steps_copy else dtypes.param
    return device, Dtypes(update, param, dtypes.slots[stage.slots], further)


def _targets(column: Column) -> Column:
    """Memory for what a kernel makes of some updates."""
    return [torch.empty_like(real(x), dtype=wide(x.dtype.to_real())) for x in column]
