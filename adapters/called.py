"""The way that always works: each rule is called as its transform calls it, leaf by leaf."""

from collections.abc import Sequence

import torch
from torch import Tensor

from functional_optim.hparams import HParams
from functional_optim.lifting import widened
from functional_optim.reductions import SumOver

from .links import Link
from .memory import real
from .parts import Column, Leaf
from .run import Run, Work, lifted


class Called:
    """Stages whose rules are called themselves."""

    def refuses(self, leaf: Leaf, hparams: HParams) -> str:
        """Nothing: this always works."""
        return ""

    def ready(self, run: Run, work: Work) -> None:
        """Look at the numbers: a rule may refuse them."""
        values, counts = run.numbers[work.kind]
        for link in work.stage.links:
            if link.rule and (link.rule.reduce is None or link in run.reduced):
                step = counts[link.step] + 1 if link.rule.counts else None
                link.rule.rule(values[link], step, run.reduced.get(link))

    def step(self, run: Run, work: Work, slots: Sequence[Column]) -> None:
        """Leaf by leaf."""
        updates: Column = []
        for i, leaf in enumerate(work.part.leaves):
            u, own = [work.u[i]], [[column[i]] for column in slots]
            for link in work.stage.links:
                mine = own[work.stage.slots_of(link)]
                u, new = lifted(run, link, [leaf], u, [work.p[i]], mine)
                for (slot,), (value,) in zip(mine, new, strict=True):
                    slot.copy_(value)
            updates += u
            if work.stage.last and work.stage.fuses and not work.stage.is_still:
                work.p[i].add_(u[0].to(leaf.update_dtype))
        work.u = updates

    def sums(self, run: Run, work: Work, link: Link) -> list[Tensor]:
        """Of each leaf's terms."""
        reduction = link.form.reduce
        assert isinstance(reduction, SumOver)
        columns = [self.reaching(run, work, link), work.p, *work.slots[work.stage.slots_of(link)]]
        sums = []
        for row in zip(*columns, strict=True):
            u, p, *slots = (widened(real(x)) for x in row)
            sums.append([term.sum() for term in reduction.terms(u, p, dict(zip(link.slots, slots, strict=True)))])
        return [torch.stack(column).sum() for column in zip(*sums, strict=True)]

    def reaching(self, run: Run, work: Work, link: Link) -> Column:
        """Through the links before it, whose new slots are forgotten."""
        u = work.u
        for other in work.stage.links[: work.stage.links.index(link)]:
            u, _ = lifted(run, other, work.part.leaves, u, work.p, work.slots[work.stage.slots_of(other)])
        return u
