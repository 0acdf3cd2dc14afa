"""The way of rules whose slots are stored in codes: block by block, each decoded, stepped and encoded before the next.

So no more of a slot is ever alive in float32 than a block. A block is as long as the evenness of rounding is (`codecs.PERIOD`):
it is rounded as the pure function rounds it, wherever it lies.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..buckets import Column, Leaf
from ..given import of_leaf
from ..lifted import wider
from ..memory import real, reals
from ..route import Link, run_links
from ..run import Run, Work
from .called import Called, opened

# Elements of a block of rules without codes.
BLOCK = 1 << 17


class Coded(Called):
    """Stages with coded slots."""

    def step(self, run: Run, work: Work, slots: Sequence[Column]) -> None:
        """Leaf by leaf, and of each leaf block by block."""
        stage, links = work.stage, work.stage.links
        if not stage.fuses:
            super().step(run, work, slots)
            return
        scalars, updates = run.scalars(work, links), []
        for i, leaf in enumerate(work.part.leaves):
            u = real(work.u[i]).to(wider(work.u[i], leaf).to_real())
            row = [u, *(real(column[i]) for column in work.columns[1:])]
            targets, target = [real(column[i]) for column in slots], None if stage.steps else torch.empty_like(u)
            for start, end in _stretches(links, row, reals(leaf.param)):
                piece = [_cut(x, start, end, reals(leaf.param)) for x in row]
                new_u, new = run_links(links, of_leaf(scalars, i), opened(links, piece))
                for slot, value in zip(targets, new, strict=True):
                    _cut(slot, start, end, reals(leaf.param)).copy_(value)
                if target is not None:
                    _cut(target, start, end, reals(leaf.param)).copy_(new_u)
                elif not stage.is_still:
                    piece[1].add_(new_u.to(leaf.update_dtype.to_real()))
            updates.append(target if target is not None else u)
        work.u = updates

    def sums(self, run: Run, work: Work, link: Link) -> list[Tensor]:
        """Of each leaf's terms, which are those of a block at a time."""
        links = work.stage.links[: work.stage.links.index(link) + 1]
        scalars, sums = run.scalars(work, links), []
        for i, leaf in enumerate(work.part.leaves):
            row, count = self._row(work, links, i), reals(leaf.param)
            found: list[Tensor] = []
            for start, end in _stretches(links, row, count):
                terms, _ = run_links(links, of_leaf(scalars, i), [_cut(x, start, end, count) for x in row], total=True)
                own = [term.sum() for term in terms]
                found = [x + y for x, y in zip(found, own, strict=True)] if found else own
            sums.append(found)
        return [torch.stack(column) for column in zip(*sums, strict=True)]


def is_coded(leaf: Leaf) -> bool:
    """Whether a parameter goes through rules whose slots may be coded, and runs of elementwise ones have them."""
    return any(link.rule and link.rule.coding for stage in leaf.passage.stages if stage.fuses for link in stage.links)


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
    if x.numel() == count:
        return x.view(-1)[start:end]
    # Blocks of equal length, of which the last may be filled up.
    block = 1 << (-(-count // len(x)) - 1).bit_length()
    return x[start // block : -(-end // block)]
