"""The fused step: a chain of rules run as compiled kernels that read and write every tensor once, in place.

The numbers are the eager step's, to rounding. A chain is run in stages: consecutive elementwise links are one kernel,
whatever the number of parameters, their sizes and the hyper-parameters; a link that needs a tensor's shape runs as it
does eagerly, tensor by tensor. Whole-tree quantities are computed before the stage that uses them, over all groups.

What can't be fused raises `Unsupported` before anything is changed; the optimizer then warns and steps eagerly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim.hparams import one_or_each
from functional_optim.lifting import widened
from functional_optim.reductions import SumOver
from functional_optim.transform import Transform

from .held import Held
from .kernels import Kernel
from .layout import Flat, Layout, detached_from
from .links import Link, links_of, scalars_of
from .memory import PLAIN, real
from .parts import Column, Leaf, Part, parts_of
from .stages import HParams, Kernels, Signature, Stage, at_stage, kernels_of, slot_count, stages_of
from .tracing import wide

States: TypeAlias = Mapping[Tensor, Flat]

DEVICES = ("cpu", "cuda")


class Unsupported(Exception):
    """Why a step can't be fused, in words that finish "fused=True, but ..."."""


@dataclass(eq=False)
class Work:
    """A part on its way through the stages: the updates so far and the parameters."""

    part: Part
    u: Column
    p: Column

    def slots(self, stage: Stage, first: int | None = None) -> list[Column]:
        """The slots of a stage, or those of its first links only."""
        return self.part.slots[stage.slots][:first]


@dataclass(eq=False)
class Plan:
    """What stays the same from step to step while the same parameters have gradients and nobody touches the state.

    Attributes:
        held: the tensors it was made for.
        parts: the parameters as the kernels get them.
        kernels: of each stage and signature.
    """

    held: Held
    parts: list[Part]
    kernels: Mapping[tuple[int, Signature], Kernels] = field(repr=False)


class FusedStep:
    """The compiled step of one transform, for one optimizer.

    Raises:
        Unsupported: the transform is not made of such rules alone.
    """

    def __init__(self, transform: Transform, layout: Layout) -> None:
        links = links_of(transform)
        if links is None:
            raise Unsupported(f"{transform.name} contains what is not a rule for one tensor, its gradient and its slots")
        self.links = links
        self.stages = stages_of(links, layout)
        self.slots = [name for stage in self.stages if stage.fuses for name in stage.names]
        self.counts = [layout.name_of[(*link.path, "step")] for link in links if link.form.counts]
        self.plan: Plan | None = None

    def fits(self, params: Sequence[Tensor], grads: Sequence[Tensor], groups: Sequence[int], states: States) -> bool:
        """Whether the plan of the last step still holds: nobody added, replaced or moved a tensor, or set a count."""
        plan = self.plan
        return plan is not None and plan.held.fits(params, grads, groups, states) and all(part.fits() for part in plan.parts)

    def prepare(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        groups: Sequence[int],
        states: States,
        hparams: Mapping[int, HParams],
    ) -> None:
        """Make a plan for these tensors, whose states are complete; compile what is not compiled yet.

        Raises:
            Unsupported: some tensor can't be fused, or the compiler failed. The state has its old values.
        """
        self.plan = None  # It may hold the last reference to tensors that were replaced.
        leaves = [
            Leaf(i, group, p, g, states[p], self.slots) for i, (p, g, group) in enumerate(zip(params, grads, groups, strict=True))
        ]
        for leaf in leaves:
            _require_plain(leaf, elementwise=all(stage.fuses for stage in self.stages))
        kernels = self._compiled({leaf.signature() for leaf in leaves}, hparams[groups[0]])

        counts = [tuple(float(leaf.state[name]) for name in self.counts) for leaf in leaves]
        parts = parts_of(leaves, counts, may_share=len(self.stages) == 1 and self.stages[0].fuses)
        held = Held(params, grads, groups, [leaf.state for leaf in leaves], self.slots, self.counts)
        held.settle(states)
        self.plan = Plan(held, parts, kernels)

    def run(self, grads: Sequence[Tensor], hparams: Mapping[int, HParams]) -> None:
        """Step every parameter of the plan, `hparams` being those of each group by its number."""
        plan = self.plan
        assert plan is not None
        Run(self.stages, plan, grads, hparams).run()
        torch.autograd.graph.increment_version(plan.held.params)
        plan.held.advance()

    def _compiled(self, signatures: set[Signature], hparams: HParams) -> dict[tuple[int, Signature], Kernels]:
        try:
            return {
                (i, signature): kernels_of(self.stages[i], at_stage(signature, i, self.stages[i]), hparams)
                for signature in signatures
                for i in range(len(self.stages))
                if self.stages[i].fuses
            }
        except Exception as error:  # Whatever goes wrong in a compiler: no toolchain, a rule it can't trace, a bug of its own.
            raise Unsupported(f"compiling the step failed: {type(error).__name__}: {error}") from error


class Run:
    """One step over a plan."""

    def __init__(self, stages: list[Stage], plan: Plan, grads: Sequence[Tensor], hparams: Mapping[int, HParams]) -> None:
        self.stages, self.plan, self.grads, self.hparams = stages, plan, grads, hparams
        self.vectors: dict[Any, Tensor] = {}
        self.reduced: dict[tuple[int, int], Any] = {}

    def run(self) -> None:
        """All stages for one part after another, or part by part in step where a later stage looks at the whole tree."""
        works = [self._opened(part) for part in self.plan.parts]
        if self.stages[0].fuses:
            self._reduce(0, works)
        together = any(stage.joint for i, stage in enumerate(self.stages) if i or not stage.fuses)
        for chunk in [works] if together else ([works.pop()] for _ in range(len(works))):
            for i, stage in enumerate(self.stages):
                if stage.fuses:
                    self._fused(i, chunk)
                else:
                    self._single(stage, chunk)
            for work in chunk:
                work.part.close(work.p)

    def _opened(self, part: Part) -> Work:
        return Work(part, *part.open(self.grads))

    def _fused(self, number: int, works: list[Work]) -> None:
        stage = self.stages[number]
        if number > 0:
            self._reduce(number, works)
        for work in works:
            kernel = self.plan.kernels[number, work.part.signature].step
            columns = [work.u, work.p, *work.slots(stage)]
            if not stage.last:
                work.u = _targets(work.u)
                columns.append(work.u)
            kernel(self._vector(kernel, number, len(stage.links), work), columns, work.part.lengths)

    def _reduce(self, number: int, works: list[Work]) -> None:
        """The whole-tree quantities of a stage, each over the updates that reach its link; nothing is written."""
        for i in self.stages[number].reduces:
            reduction = self.stages[number].links[i].form.reduce
            if isinstance(reduction, SumOver) and works:
                self.reduced[number, i] = reduction.finish(*self._totals(number, i, works))
            else:
                self.reduced[number, i] = self._reduced(number, i, works)

    def _totals(self, number: int, i: int, works: list[Work]) -> list[Tensor]:
        stage, sums = self.stages[number], []
        for work in works:
            kernel = self.plan.kernels[number, work.part.signature].quantities[i]
            assert kernel is not None
            columns = [work.u, work.p, *work.slots(stage, slot_count(stage.links[: i + 1]))]
            sums.append(kernel(self._vector(kernel, number, i + 1, work), columns, work.part.lengths))
        device = sums[0][0].device
        return [torch.stack([x.to(device) for x in column]).sum() for column in zip(*sums, strict=True)]

    def _reduced(self, number: int, i: int, works: list[Work]) -> Any:
        """A reduction in general form: it gets every leaf in its shape, and the updates have to be stored for it."""
        stage = self.stages[number]
        form, before = stage.links[i].form, slot_count(stage.links[:i])
        columns: list[list[Any]] = [[] for _ in range(2 + len(form.slots))]
        for work in works:
            kernel, u = self.plan.kernels[number, work.part.signature].quantities[i], work.u
            if kernel is not None:
                u = _targets(work.u)
                kernel(self._vector(kernel, number, i, work), [work.u, work.p, *work.slots(stage, before), u], work.part.lengths)
            own = work.slots(stage)[before : before + len(form.slots)]
            for column, x in zip(columns, (u, work.p, *own), strict=True):
                column.extend(_opened(leaf) for leaf in work.part.shaped(x))
        assert form.reduce is not None
        return form.reduce(columns[0], columns[1], **dict(zip(form.slots, columns[2:], strict=True)))

    def _vector(self, kernel: Kernel, number: int, links: int, work: Work) -> Tensor:
        """The numbers that a kernel over the first few links of a stage takes; parts of one group and count share them."""
        leaf = work.part.leaves[0]
        counts = tuple(self.plan.held.seen[leaf.index])
        key = (kernel, number, leaf.group, counts)
        if key not in self.vectors:
            stage = self.stages[number]
            reduced = [self.reduced[number, i] for i in stage.reduces if (number, i) in self.reduced]
            steps = [int(count) for count in counts[stage.counts]]
            self.vectors[key] = kernel.vector(scalars_of(stage.links[:links], self.hparams[leaf.group], steps, reduced))
        return self.vectors[key]

    def _single(self, stage: Stage, works: list[Work]) -> None:
        """A link that is not elementwise: the ordinary lifting, over tensors in their own shapes."""
        (link,) = stage.links
        for chunk in [works] if stage.joint else [[work] for work in works]:
            self._lifted(link, stage, chunk)
        if stage.last:
            for work in works:
                work.p[0].add_(work.u[0])

    def _lifted(self, link: Link, stage: Stage, works: list[Work]) -> None:
        leaves = {work.part.leaves[0].index: work.part.leaves[0] for work in works}
        updates = {i: widened(work.u[0]) for i, work in zip(leaves, works, strict=True)}
        params = {i: widened(leaf.param) for i, leaf in leaves.items()}
        hp = {
            name: one_or_each({i: self.hparams[leaf.group][own] for i, leaf in leaves.items()})
            for name, own in link.hparams.items()
        }
        state: dict[str, Any] = {
            slot: {i: leaf.state[name] for i, leaf in leaves.items()}
            for slot, name in zip(link.form.slots, stage.names, strict=True)
        }
        if link.form.counts:
            state["step"] = one_or_each({i: int(self.plan.held.seen[i][stage.counts.start]) for i in leaves})

        owned = [*params.values(), *(slot for slots in state.values() if isinstance(slots, dict) for slot in slots.values())]
        updates, new = detached_from(owned, link.form.update(updates, state, params, hp))
        for i, work in zip(leaves, works, strict=True):
            work.u = [leaves[i].laid_out(updates[i])]
            for slot in link.form.slots:
                state[slot][i].copy_(new[slot][i])


def _targets(column: Column) -> Column:
    """Memory for what a kernel makes of some updates."""
    return [torch.empty_like(real(x), dtype=wide(x.dtype.to_real())) for x in column]


def _opened(x: Tensor) -> Tensor | None:
    return widened(real(x))


def _require_plain(leaf: Leaf, elementwise: bool) -> None:
    """Raise Unsupported unless a kernel can work on the memory of this parameter and its slots."""
    p = leaf.param
    if type(p) not in PLAIN or p.layout != torch.strided or p.device.type not in DEVICES:
        raise Unsupported(f"a parameter is a {type(p).__name__} on {p.device}, of layout {p.layout}")
    if p.is_complex() and not elementwise:
        raise Unsupported("a parameter is complex, and a rule of the chain takes no complex tensors")
    for name, slot in zip(leaf.slots, leaf.values(), strict=True):
        if slot.shape != p.shape or slot.is_complex() != p.is_complex() or slot.device != p.device:
            raise Unsupported(f"the slot {name!r} is not shaped like its parameter, or lies on another device")
