"""The way that always works: each rule is called as its transform calls it, leaf by leaf."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim.hparams import HParams
from functional_optim.lifting import widened
from functional_optim.numerics import real

from ..buckets import Column, Leaf
from ..given import of_leaf
from ..lifted import lifted, wider
from ..memory import foreach
from ..route import Link, opened, run_links
from ..run import Run
from ..work import Work


class Called:
    """Stages whose rules are called themselves."""

    def refuses(self, leaf: Leaf, hparams: HParams) -> str:
        """Nothing: this always works."""
        return ""

    def ready(self, run: Run, work: Work) -> Any:
        """The numbers, once all are known: a rule may refuse them."""
        found = run.found(work)
        for link in work.stage.links:
            if link.rule and (not link.rule.finds or link in found):
                for _, given in run.given(work).kinds:
                    link.rule.rule(*given(link), found.get(link))
        return None if any(link not in found for link in work.stage.finding) else run.scalars(work, work.stage.links)

    def step(self, run: Run, work: Work, slots: Sequence[Column], prepared: Any) -> None:
        """Leaf by leaf; or those of equal shapes together, if the rule wants them so."""
        updates: Column = []
        links = work.stage.links
        if work.stage.is_lifted:
            work.u, new = lifted(run, links[0], work.part.leaves, work.u, work.p, slots)
            for column, values in zip(slots, new, strict=True):
                rows = [(x, value) for x, value in zip(column, values, strict=True) if value is not x]
                if rows:
                    foreach["copy_"](*map(list, zip(*rows, strict=True)))
            return
        names = [(link.form, name) for link in links for name in link.slots]
        for i, leaf in enumerate(work.part.leaves):
            u, new = run_links(links, run.at_place(links, of_leaf(prepared, i), leaf), self._row(work, links, i))
            for (form, name), slot, value in zip(names, slots, new, strict=True):
                slot[i].copy_(form.closed(name, value, slot[i]))
            if links:
                u = links[-1].form.closed("update", u, widened(work.u[i].to(wider(work.u[i], leaf))))
            updates.append(leaf.laid_out(u))
            if work.stage.steps and work.stage.fuses and not work.stage.is_still:
                work.p[i].add_(u.to(leaf.update_dtype))
        work.u = updates

    def sums(self, run: Run, work: Work, link: Link) -> list[Tensor]:
        """Of each leaf's terms."""
        links = work.stage.links[: work.stage.links.index(link) + 1]
        scalars, sums = run.scalars(work, links), []
        for i in range(len(work.u)):
            terms, _ = run_links(links, of_leaf(scalars, i), self._row(work, links, i), total=True)
            sums.append([term.sum() for term in terms])
        return [torch.stack(column) for column in zip(*sums, strict=True)]

    def reaching(self, run: Run, work: Work, link: Link) -> Column:
        """Through the links before it, whose new slots are forgotten."""
        links = work.stage.links[: work.stage.links.index(link)]
        scalars = run.scalars(work, links)
        return [run_links(links, of_leaf(scalars, i), self._row(work, links, i))[0] for i in range(len(work.u))]

    def _row(self, work: Work, links: Sequence[Link], i: int) -> list[Tensor]:
        """What the first few links of a stage see of a leaf."""
        u, *others = (column[i] for column in work.columns_of(links))
        return opened(links, [real(x) for x in (u.to(wider(u, work.part.leaves[i])), *others)])
