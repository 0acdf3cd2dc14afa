"""The way of rules whose slots are stored in codes: block by block, each decoded, stepped and encoded before the next.

So no more of a slot is ever alive in float32 than a block. A block is as long as the evenness of rounding is (`codecs.PERIOD`):
it is rounded as the pure function rounds it, wherever it lies. Where kernels are wanted, one does all of it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim import codecs, trees
from functional_optim.codecs import Blockwise
from functional_optim.coding import counted_from
from functional_optim.numerics import real
from functional_optim.transform import Transform

from ..buckets import Column, Leaf
from ..given import of_leaf
from ..lifted import wider
from ..memory import on_host
from ..prologue import is_column
from ..route import Link, opened, run_links, stored_of
from ..run import Run
from ..work import Work
from .called import Called

# Elements of a block of rules without codes.
BLOCK = 1 << 17

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# What slots without codes may be stored as, beside those in codes, where a kernel is to step them.
KEPT = (*FLOATS, torch.int8, torch.uint8)


class Coded(Called):
    """Stages with coded slots.

    Args:
        reasons: why something is not run as kernels; None where these are not wanted.
    """

    def __init__(self, reasons: dict[str, None] | None) -> None:
        self._reasons = reasons
        self._kernels: dict[Any, Any] = {}

    def ready(self, run: Run, work: Work) -> tuple[Any, int, Sequence[Any]] | None:
        """The kernel, where there is one, the length of its blocks, and the numbers, once all are known."""
        scalars = super().ready(run, work)
        if scalars is None:
            return None
        block = self._block(work)
        kept = _kept(work) if block else None
        return None if kept is None else self._kernel(run, work, kept), block, scalars

    def step(self, run: Run, work: Work, slots: Sequence[Column], prepared: tuple[Any, int, Sequence[Any]]) -> None:
        """Leaf by leaf, and of each leaf block by block."""
        stage, (kernel, block, scalars) = work.stage, prepared
        if not stage.fuses:
            super().step(run, work, slots, scalars)
            return
        updates, numbers, by_kernel = [], None, []
        are_shared = kernel is not None and not any(map(is_column, trees.leaves(list(scalars))))
        for i, leaf in enumerate(work.part.leaves):
            u = real(work.u[i]).to(wider(work.u[i], leaf).to_real())
            row = [u, *(real(column[i]) for column in work.columns[1:])]
            targets, count = [real(column[i]) for column in slots], u.numel()
            if kernel is not None and all(x.is_contiguous() for x in (*row, *targets)):
                if numbers is None or not are_shared:
                    numbers = kernel.numbers(stage.links, of_leaf(scalars, i))
                by_kernel.append(_in_place(numbers, leaf.before // block, row, targets))
                updates.append(u)
                continue
            links = _counted_from(stage.links, leaf.before)
            target = None if stage.steps else torch.empty_like(u)
            for start, end in _stretches(links, row, count):
                piece = [_cut(x, start, end, count) for x in row]
                new_u, new = run_links(links, run.at_place(stage.links, of_leaf(scalars, i), leaf), opened(links, piece))
                for slot, value in zip(targets, new, strict=True):
                    _cut(slot, start, end, count).copy_(value)
                if target is not None:
                    _cut(target, start, end, count).copy_(new_u)
                elif not stage.is_still:
                    piece[1].add_(new_u.to(leaf.update_dtype.to_real()))
            updates.append(target if target is not None else u)
        if kernel is not None and by_kernel:  # All at once: between long leaves Python would find no cache as it left it.
            kernel(by_kernel)
        work.u = updates

    def sums(self, run: Run, work: Work, link: Link) -> list[Tensor]:
        """Of each leaf's terms, which are those of a block at a time."""
        links = work.stage.links[: work.stage.links.index(link) + 1]
        scalars, sums = run.scalars(work, links), []
        for i in range(len(work.u)):
            row = self._row(work, links, i)
            count = row[0].numel()
            found: list[Tensor] = []
            for start, end in _stretches(links, row, count):
                terms, _ = run_links(links, of_leaf(scalars, i), [_cut(x, start, end, count) for x in row], total=True)
                own = [term.sum() for term in terms]
                found = [x + y for x, y in zip(found, own, strict=True)] if found else own
            sums.append(found)
        return [torch.stack(column) for column in zip(*sums, strict=True)]

    def _block(self, work: Work) -> int:
        """The length of the blocks of all slots that may be in codes; 0 where no kernel is for this."""
        stage, p = work.stage, work.p[0]
        codings = [link.form.coding for link in stage.links if link.rule and link.form.coding]
        blocks = {coding.codec.block if isinstance(coding.codec, Blockwise) else 0 for coding in codings}
        fits = self._reasons is not None and stage.fuses and stage.steps and not stage.is_still and not stage.further
        if not fits or len(blocks) != 1 or not on_host(p) or p.dtype not in FLOATS:
            return 0
        return blocks.pop()

    def _kernel(self, run: Run, work: Work, kept: Sequence[torch.dtype | None]) -> Any:
        """What steps a stage, compiled when it is first asked for; None where that fails."""
        links, part = work.stage.links, work.part
        key = work.stage, part.signature
        if key not in self._kernels:
            from .coded_kernel import coded_kernel  # The compiler's modules take half a second.

            scalars = of_leaf(run.scalars(work, links), 0)
            try:
                u = wider(work.u[0], part.leaves[0]).to_real()
                self._kernels[key] = coded_kernel(links, (u, work.p[0].dtype), kept, scalars)
            except Exception as error:  # Whatever goes wrong in a compiler, or in a rule that it can't trace.
                assert self._reasons is not None
                self._reasons[f"compiling the step in codes failed: {type(error).__name__}: {error}"] = None
                self._kernels[key] = None
        return self._kernels[key]


def _kept(work: Work) -> list[torch.dtype | None] | None:
    """The dtype of each slot that is stored as it is, and None of each in codes; None where a kernel knows no such slot."""
    parts, kept = iter(work.slots), []
    for link in work.stage.links:
        for kind, count in stored_of(link):
            first = [next(parts)[0] for _ in range(count)][0]
            is_coded = link.form.coding is not None and link.form.coding.is_coded(kind, first)
            if not is_coded and (first.shape != work.p[0].shape or first.dtype not in KEPT):
                return None
            kept.append(None if is_coded else first.dtype)
    return kept


def _in_place(numbers: tuple[Tensor, Tensor], before: int, row: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
    """What a kernel gets of a leaf, before which are so many blocks; old slots go to the places of the new ones."""
    for old, new in zip(row[2:], targets, strict=True):
        if new is not old:
            new.copy_(old)
    vector, starts = numbers
    return [vector, starts + before * codecs.BLOCK if before else starts, row[0], row[1], *targets]


def _counted_from(links: Sequence[Link], before: int) -> Sequence[Link]:
    """The links for what comes behind so many elements of a tensor."""
    if not before:
        return links
    return [
        link
        if link.rule is None or link.rule.coding is None
        else dataclasses.replace(
            link, transform=Transform.of(counted_from(link.form, before), link.transform.declared, link.transform.name)
        )
        for link in links
    ]


def is_coded(leaf: Leaf) -> bool:
    """Whether a parameter goes through rules whose slots may be coded, and runs of elementwise ones have them."""
    return any(link.form.coding for link in _fusing(leaf))


def sees_stored(leaf: Leaf) -> bool:
    """Whether a rule in such a run sees a slot in the dtype in which it is stored."""
    return any(link.form.as_stored for link in _fusing(leaf))


def _fusing(leaf: Leaf) -> list[Link]:
    return [link for stage in leaf.passage.stages if stage.fuses for link in stage.links]


def _stretches(links: Sequence[Link], row: Sequence[Tensor], count: int) -> list[tuple[int, int]]:
    """Where each block starts and ends; a single one where tensors don't lie in the order in which blocks are counted."""
    lengths = [link.form.coding.codec.stretch for link in links if link.form.coding]
    if not all(lengths) or not all(x.is_contiguous() for x in row):
        return [(0, count)]
    step = max(lengths, default=BLOCK)
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def _cut(x: Tensor, start: int, end: int, count: int) -> Tensor:
    """A part of what is stored of so many numbers: some elements, or the blocks that they are."""
    if end - start == count or not x.numel():
        return x
    if x.numel() == count:  # Of several blocks, as these are, neither scales nor codes of 4 bits are as many.
        return x.view(-1)[start:end]
    # Blocks of equal length, of which the last may be filled up: scales, or two codes in a byte.
    rows = x.view(-1) if x.is_floating_point() else x.view(-1, x.shape[-1])
    block = 1 << (-(-count // len(rows)) - 1).bit_length()
    return rows[start // block : -(-end // block)]
