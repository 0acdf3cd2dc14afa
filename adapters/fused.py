"""The fused step: a chain of rules run as compiled kernels that read and write every tensor once, in place.

The numbers are the eager step's, to rounding. What a parameter goes through is run in stages: consecutive elementwise links
are one kernel, whatever the number of parameters, their sizes and the hyper-parameters; a link that needs a tensor's shape runs
as it does eagerly, tensor by tensor. Whole-tree quantities are computed before the stage that uses them, over all groups and
branches that the link sees.

What can't be fused raises `Unsupported` before anything is changed; the optimizer then warns and steps eagerly.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from functional_optim.hparams import HParams
from functional_optim.lifting import widened
from functional_optim.reductions import SumOver
from functional_optim.transform import Transform

from .held import Held, States
from .kernels import Kernel
from .layout import Flat, Key, Layout
from .lifted import lifted
from .links import Link, links_of, routes_of, scalars_of, values_of
from .memory import PLAIN, real
from .parts import Column, Kind, Leaf, Part, parts_of
from .stages import Kernels, Signature, Stage, at_stage, kernels_of, passage_of, slot_count
from .tracing import wide

DEVICES = ("cpu", "cuda")


class Unsupported(Exception):
    """Why a step can't be fused, in words that finish "fused=True, but ..."."""


@dataclass(eq=False)
class Work:
    """A part on its way through the stages: the updates so far and the parameters, and how many stages are done."""

    part: Part
    u: Column
    p: Column
    done: int = 0

    @property
    def kind(self) -> Kind:
        """What its leaves have in common."""
        return self.part.leaves[0].kind

    @property
    def stage(self) -> Stage:
        """The stage that comes next."""
        return self.kind.passage.stages[self.done]

    def slots(self, first: int | None = None) -> list[Column]:
        """The slots of that stage, or those of its first links only."""
        return self.part.slots[self.stage.slots][:first]


@dataclass(eq=False)
class Plan:
    """What stays the same from step to step while the same parameters have gradients and nobody touches the state.

    Attributes:
        held: the tensors it was made for.
        parts: the parameters as the kernels get them.
        joints: the links that see several leaves together, in order.
        kernels: of each stage and signature.
    """

    held: Held
    parts: list[Part]
    joints: list[Link]
    kernels: Mapping[tuple[Stage, Signature], Kernels] = field(repr=False)


class FusedStep:
    """The compiled step of one transform, for one optimizer.

    Raises:
        Unsupported: the transform is not made of such rules alone.
    """

    def __init__(self, transform: Transform, layout: Layout) -> None:
        if links_of(transform) is None:
            raise Unsupported(f"{transform.name} contains what is not a rule for one tensor, its gradient and its slots")
        self.transform, self.layout = transform, layout
        self.plan: Plan | None = None

    def fits(self, params: Sequence[Tensor], grads: Sequence[Tensor], groups: Sequence[int], states: States) -> bool:
        """Whether the plan of the last step still holds: nobody added, replaced or moved a tensor, or set a count."""
        plan = self.plan
        return plan is not None and plan.held.fits(params, grads, groups, states) and all(part.fits() for part in plan.parts)

    def prepare(
        self,
        params: Mapping[Key, Tensor],
        grads: Sequence[Tensor],
        groups: Sequence[int],
        states: States,
        hparams: Mapping[int, HParams],
        waiting: Mapping[Key, Flat],
    ) -> None:
        """Make a plan for these tensors, whose states are complete; compile what is not compiled yet.

        Args:
            params, grads, groups: of the parameters that have gradients.
            states: of the optimizer.
            hparams: those of each group, by its number.
            waiting: the states of parameters that sit out.

        Raises:
            Unsupported: some tensor can't be fused, or the compiler failed. The state has its old values.
        """
        self.plan = None  # It may hold the last reference to tensors that were replaced.
        links, tensors = links_of(self.transform, params) or [], list(params.values())
        routes = routes_of(links, list(params))
        passages = {route: passage_of(route, self.layout, key) for route, key in zip(routes, params, strict=True)}
        leaves = []
        for i, (key, p, g, group, route) in enumerate(zip(params, tensors, grads, groups, routes, strict=True)):
            kind = Kind(passages[route], group, tuple(map(int, self.layout.counts_in(key, states[p]))))
            leaves.append(Leaf(i, kind, p, g, states[p]))
            _require_plain(leaves[-1])
        kernels = self._compiled(leaves, hparams)
        parts = parts_of(leaves)
        own, slots = [leaf.state for leaf in leaves], [leaf.slots for leaf in leaves]
        held = Held(tensors, grads, groups, own, slots, self.layout, list(params), waiting)
        held.settle(states)
        joints = [link for link in links if link.form.reduce or link.form.batched]
        self.plan = Plan(held, parts, joints, kernels)

    def planned(self, grads: Sequence[Tensor], hparams: Mapping[int, HParams]) -> Callable[[], None]:
        """The step over the tensors of the plan, which what is returned takes. `hparams` are each group's, by its number.

        Raises:
            Exception: whatever a schedule raises.
        """
        assert self.plan is not None
        return Run(self.plan, grads, hparams).run

    def _compiled(self, leaves: Sequence[Leaf], hparams: Mapping[int, HParams]) -> dict[tuple[Stage, Signature], Kernels]:
        kinds = {(leaf.kind.passage, leaf.signature()): leaf.kind.group for leaf in leaves}
        counts = dict.fromkeys((value.path for value in self.layout.counts), 0)
        try:
            return {
                (stage, signature): kernels_of(stage, at_stage(signature, i, stage), hparams[group], counts)
                for (passage, signature), group in kinds.items()
                for i, stage in enumerate(passage.stages)
                if stage.fuses
            }
        except Exception as error:  # Whatever goes wrong in a compiler: no toolchain, a rule it can't trace, a bug of its own.
            raise Unsupported(f"compiling the step failed: {type(error).__name__}: {error}") from error


class Run:
    """One step over a plan."""

    def __init__(self, plan: Plan, grads: Sequence[Tensor], hparams: Mapping[int, HParams]) -> None:
        self.plan, self.grads = plan, grads
        self.counts, self.values = {}, {}
        for kind in {part.leaves[0].kind for part in plan.parts}:
            self.counts[kind] = plan.held.counts_now(kind.counts)
            self.values[kind] = values_of(kind.passage.place, hparams[kind.group], self.counts[kind])
        self.vectors: dict[Any, Tensor] = {}
        self.reduced: dict[Link, Any] = {}

    def run(self) -> None:
        """Step every parameter and its counts."""
        self._run()
        torch.autograd.graph.increment_version(self.plan.held.params)
        self.plan.held.advance()

    def _run(self) -> None:
        """Up to each link that sees several leaves together, all of these; after the last, one part after another."""
        works = [Work(part, *part.open(self.grads)) for part in self.plan.parts]
        for link in self.plan.joints:
            meeting = [work for work in works if link in work.kind.passage.place]
            for work in meeting:
                self._advance(work, work.kind.passage.place[link])
            if meeting:
                self._meet(link, meeting)
        while works:
            work = works.pop()
            self._advance(work, len(work.kind.passage.stages))
            work.part.close(work.p)

    def _advance(self, work: Work, number: int) -> None:
        """Bring a part to this stage."""
        while work.done < number:
            if work.stage.fuses:
                self._fused(work)
            else:
                self._lifted([work])

    def _meet(self, link: Link, works: list[Work]) -> None:
        """What a link does with all parts before it does anything with one of them."""
        if not link.form.packs:
            self._lifted(works)
        elif isinstance(link.form.reduce, SumOver):
            self.reduced[link] = link.form.reduce.finish(*self._totals(link, works))
        else:
            self.reduced[link] = self._reduced(link, works)

    def _fused(self, work: Work) -> None:
        stage, kernel = work.stage, self._kernels(work).step
        columns = [work.u, work.p, *work.slots()]
        if not stage.last:
            work.u = _targets(work.u)
            columns.append(work.u)
        kernel(self._vector(kernel, len(stage.links), work), columns, work.part.lengths)
        work.done += 1

    def _kernels(self, work: Work) -> Kernels:
        return self.plan.kernels[work.stage, work.part.signature]

    def _totals(self, link: Link, works: list[Work]) -> list[Tensor]:
        """The sums of a link over the updates that reach it; nothing is written."""
        sums = []
        for work in works:
            i = work.stage.links.index(link)
            kernel = self._kernels(work).quantities[i]
            assert kernel is not None
            columns = [work.u, work.p, *work.slots(slot_count(work.stage.links[: i + 1]))]
            sums.append(kernel(self._vector(kernel, i + 1, work), columns, work.part.lengths))
        device = sums[0][0].device
        return [torch.stack([x.to(device) for x in column]).sum() for column in zip(*sums, strict=True)]

    def _reduced(self, link: Link, works: list[Work]) -> Any:
        """A reduction in general form: it gets every leaf in its shape, and the updates have to be stored for it."""
        form = link.form
        columns: list[list[Any]] = [[] for _ in range(2 + len(form.slots))]
        for work in works:
            i = work.stage.links.index(link)
            before = slot_count(work.stage.links[:i])
            kernel, u = self._kernels(work).quantities[i], work.u
            if kernel is not None:
                u = _targets(work.u)
                kernel(self._vector(kernel, i, work), [work.u, work.p, *work.slots(before), u], work.part.lengths)
            own = work.slots()[before : before + len(form.slots)]
            for column, x in zip(columns, (u, work.p, *own), strict=True):
                column.extend(_opened(leaf) for leaf in work.part.shaped(x))
        assert form.reduce is not None
        return form.reduce(columns[0], columns[1], **dict(zip(form.slots, columns[2:], strict=True)))

    def _vector(self, kernel: Kernel, links: int, work: Work) -> Tensor:
        """The numbers that a kernel over the first few links of a stage takes; parts of one kind share them."""
        kind, stage = work.kind, work.stage
        key = (kernel, stage, kind)
        if key not in self.vectors:
            scalars = scalars_of(stage.links[:links], self.values[kind], self.counts[kind], self.reduced)
            self.vectors[key] = kernel.vector(scalars)
        return self.vectors[key]

    def _lifted(self, works: list[Work]) -> None:
        """A link that is not elementwise: the ordinary lifting, over tensors in their own shapes."""
        (link,) = works[0].stage.links
        leaves = {work.part.leaves[0].index: work.part.leaves[0] for work in works}
        names = dict(zip(link.form.slots, works[0].stage.names, strict=True))
        slots = {slot: {i: leaf.state[name] for i, leaf in leaves.items()} for slot, name in names.items()}
        updates, new = lifted(
            link.form,
            {i: widened(work.u[0]) for i, work in zip(leaves, works, strict=True)},
            {i: widened(leaf.param) for i, leaf in leaves.items()},
            slots,
            {i: self.values[leaf.kind][link] for i, leaf in leaves.items()},
            {i: self.counts[leaf.kind].get(link.step) for i, leaf in leaves.items()},
        )
        for (i, leaf), work in zip(leaves.items(), works, strict=True):
            work.u = [leaf.laid_out(updates[i])]
            for slot, column in slots.items():
                column[i].copy_(new[slot][i])
            if work.stage.last:
                work.p[0].add_(work.u[0])
            work.done += 1


def _targets(column: Column) -> Column:
    """Memory for what a kernel makes of some updates."""
    return [torch.empty_like(real(x), dtype=wide(x.dtype.to_real())) for x in column]


def _opened(x: Tensor) -> Tensor | None:
    return widened(real(x))


def _require_plain(leaf: Leaf) -> None:
    """Raise Unsupported unless a kernel can work on the memory of this parameter and its slots."""
    p = leaf.param
    if type(p) not in PLAIN or p.layout != torch.strided or p.device.type not in DEVICES:
        raise Unsupported(f"a parameter is a {type(p).__name__} on {p.device}, of layout {p.layout}")
    if p.is_complex() and not all(stage.fuses for stage in leaf.kind.passage.stages):
        raise Unsupported("a parameter is complex, and a rule of the chain takes no complex tensors")
    for name, slot in zip(leaf.slots, leaf.values(), strict=True):
        if slot.shape != p.shape or slot.is_complex() != p.is_complex() or slot.device != p.device:
            raise Unsupported(f"the slot {name!r} is not shaped like its parameter, or lies on another device")
