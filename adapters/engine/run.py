"""One step over a plan: stage after stage, each in its way, up to the places where several leaves must meet.

Where results go is the business of two kinds of run: into the tensors of an optimizer (`in_place`), or into new ones (`fresh`).
"""

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.form import Path
from functional_optim.hparams import HParams, together
from functional_optim.lifting import places_of, widened
from functional_optim.numbered import Numbered, Sums
from functional_optim.numerics import double, real
from functional_optim.reductions import SumOver
from functional_optim.sharded import whole

from .buckets import Column, Leaf, Way
from .given import CountTable
from .lifted import by_owners, lifted
from .memory import on_host
from .route import Link
from .scalars import Scalars
from .sums import over_all, over_each, totals_of
from .work import Backend, Closed, Plan, Refused, Work


class Run(Scalars):
    """One step over a plan.

    Args:
        plan, hparams, counts, extra: see `Scalars`.

    Attributes:
        works: the parts on their way.
        cache: for backends, until the step is over.
        ranks: of each link whose rule asks for the places of leaves, these; see `places_of`.
    """

    works: list[Work]

    def __init__(
        self,
        plan: Plan,
        hparams: Mapping[int, HParams],
        counts: CountTable,
        extra: Callable[[], Mapping[str, Any]],
    ) -> None:
        super().__init__(plan, hparams, counts, extra)
        self.cache: dict[Any, Any] = {}
        self.ranks: dict[Link, Mapping[int, int]] = {}

    @abstractmethod
    def target(self, work: Work) -> list[Column]:
        """Where the next stage of a work is to write its slots."""

    @abstractmethod
    def store(self, works: Sequence[Work], new: Sequence[Column]) -> None:
        """These are the new slots of the next stage of some works, columns over all of them."""

    @abstractmethod
    def places(self, link: Link, name: str, work: Work) -> list[Tensor]:
        """A number that is kept for each leaf."""

    @abstractmethod
    def keep(self, link: Link, name: str, work: Work, new: Tensor) -> None:
        """These are its new values, in float64; or one for all leaves of the work."""

    @abstractmethod
    def share(self, new: Mapping[Path, Any]) -> None:
        """These are new values that all leaves share."""

    @abstractmethod
    def call(self, link: Link, works: Sequence[Work]) -> None:
        """Call what is no rule itself, on its own part of the state."""

    def meet(self) -> None:
        """Go as far as the last place where leaves must meet, and look ahead: all that may fail."""
        plan = self.plan
        self.ranks = {link: self._ranks(link) for link in plan.placing}
        for i, link in enumerate(plan.links if plan.is_new else plan.stops):
            # Whatever is wrong with a rule that is called, its first step says.
            if link.joins or (plan.is_new and not link.packs):
                meeting = [work for work in self.works if link in work.passage.place]
                for work in meeting:
                    self.advance(work, work.passage.place[link])
                if meeting:
                    self._meet(link, meeting)
                if link.asks and meeting:  # Of no gradients a gate learns nothing, and stays open.
                    self._ask(link, meeting)
            elif plan.is_spread and i < len(plan.stops):
                self._gather(link)
        for work in self.works:
            self._look_ahead(work)

    def _ranks(self, link: Link) -> Mapping[int, int]:
        present = [leaf for work in self.works for leaf in work.part.leaves if link in leaf.passage.place]
        return places_of({leaf.index: leaf.shape for leaf in present})

    def at_place(self, links: Sequence[Link], scalars: list[Any], leaf: Leaf) -> list[Any]:
        """The scalars of links for one leaf, with its place among those of its shape where a rule asks for it."""
        if not any(link in self.ranks for link in links):
            return scalars
        places = [{"place": self.ranks[link][leaf.index]} if link in self.ranks else {} for link in links]
        return [({**hp, **place}, *rest) for (hp, *rest), place in zip(scalars, places, strict=True)]

    def backend(self, work: Work) -> Backend:
        """What runs the next stage of a work."""
        way = work.part.way
        called = not work.stage.fuses or (work.stage, way) in self.plan.refusals
        return self.plan.backends[Way.CALLED if called else way]

    def advance(self, work: Work, number: int) -> None:
        """Bring a part to this stage."""
        while work.done < number:
            if not work.stage.is_idle:
                self._ready(work)
                assert work.prepared is not None
                backend, prepared = work.prepared
                backend.step(self, work, self.target(work), prepared)
            work.next()

    def _ready(self, work: Work) -> None:
        """Prepare the next stage of a work, unless that is done."""
        if work.prepared is not None:
            return
        if work.part not in self.plan.constant:
            work.prepared = self._prepared(work)
            return
        lasting, key = self.plan.lasting.prepared, (work.part, work.done)
        work.prepared = lasting.get(key) or self._prepared(work)
        if work.prepared is not None:
            lasting[key] = work.prepared

    def _prepared(self, work: Work) -> tuple[Backend, Any] | None:
        """What runs the next stage of a work, and what that takes; None where something has to be found out first."""
        backend = self.backend(work)
        try:
            prepared = backend.ready(self, work)
        except Refused as reason:
            self.plan.refusals[work.stage, work.part.way] = str(reason)
            backend = self.backend(work)
            prepared = backend.ready(self, work)
        return None if prepared is None else (backend, prepared)

    def _look_ahead(self, work: Work) -> None:
        """Get everything ready that comes after, which is then no more than tensors and their shapes."""
        done, last = work.done, len(work.passage.stages)
        if done < last and not work.stage.is_idle:
            self._ready(work)
        if done + 1 < last:
            now = work.prepared
            for number in range(done + 1, last):
                work.go(number)
                if not work.stage.is_idle:
                    self._prepared(work)  # Not kept: what reaches it is not there yet, and may be of another dtype.
            work.go(done)
            work.prepared = now

    def _ask(self, link: Link, works: Sequence[Work]) -> None:
        """Raise Closed if the gate at this link is."""
        assert link.asks is not None
        leaf = works[0].part.leaves[0]
        if not link.asks.opens(self.hparams[leaf.group], self.numbers(leaf)[1], self.reduced[link]):
            raise Closed(link.path)

    def _meet(self, link: Link, works: list[Work]) -> None:
        """What a link does with all parts before it does anything with one of them."""
        if link.rule is None:
            self.call(link, works)
        elif not link.packs:
            for together in [works] if link.form.finds else _together(works):
                self._lift([link], together)
        elif isinstance(link.form, Numbered):
            self._find(link, link.form, works)
        else:
            for work in works:
                self._ready(work)
            self.reduced[link] = self._sum(link, works) if isinstance(link.form.reduce, SumOver) else self._reduce(link, works)

    def _sum(self, link: Link, works: list[Work]) -> Any:
        reduction = link.form.reduce
        assert isinstance(reduction, SumOver)
        return reduction.finish(
            *over_all([work.part for work in works], [self.backend(work).sums(self, work, link) for work in works])
        )

    def _find(self, link: Link, form: Numbered, works: list[Work]) -> None:
        """The numbers of a rule: new ones are stored when the parameters are."""
        self._require_one_value(link, form, works)
        for work in works:
            self._ready(work)
            self.learn(link, work, self._kept(link, form, work))
        old = [self._own[work.part][link] for work in works]
        asks = [form.terms(*self.given(work)(link), own) is not None for work, own in zip(works, old, strict=True)]
        own_sums = [self.backend(work).sums(self, work, link) for work in works] if all(asks) else [[] for _ in works]
        sums = over_each([work.part for work in works], own_sums)
        totals = totals_of(sums) if form.over_all else ()
        for work, numbers, own in zip(works, old, sums, strict=True):
            sizes = work.part.sizes.column(work.p[0].device)
            found = form.finish(*self.given(work)(link), numbers, Sums(tuple(own), totals, sizes))
            self.learn(link, work, found)
            for name in form.own:
                new: Tensor = found.new[name]
                self.keep(link, name, work, double(new))
        names: dict[Path, Any] = {(*link.path, name): self._own[works[0].part][link].new[name] for name in form.shared}
        if form.shared and form.counts:
            names[link.step] = self.given(works[0])(link)[1]
        self.share(names)

    def _require_one_value(self, link: Link, form: Numbered, works: list[Work]) -> None:
        """Raise ValueError where groups have different values of what there is one of for all, or of what has to agree."""
        leaves = {leaf.group: leaf for work in works for leaf in work.part.leaves}
        values = [self.numbers(leaf)[0][link] for leaf in leaves.values()]
        form.require_agreement(values)
        if len(leaves) > 1:
            link.transform.select(together(dict(enumerate(values))))

    def _kept(self, link: Link, form: Numbered, work: Work) -> dict[str, Tensor]:
        """The numbers that a rule keeps: of each leaf, unless all are equal, and what all share."""
        numbers: dict[str, Tensor] = {}
        for name in form.own:
            column = double(torch.stack(self.places(link, name, work)))
            numbers[name] = column[0] if on_host(column) and len(set(column.tolist())) == 1 else column
        return {**numbers, **{name: double(self.shared((*link.path, name))) for name in form.shared}}

    def _reduce(self, link: Link, works: list[Work]) -> Any:
        """A reduction in general form: it gets every leaf in its shape, and the updates have to be stored for it."""
        assert link.form.reduce is not None
        rows: dict[int, list[Any]] = {}
        for work in works:
            u = self.backend(work).reaching(self, work, link)
            own = work.slots[work.stage.slots_of(link)]
            for leaf, *tensors in zip(work.part.leaves, u, work.p, *own, strict=True):
                rows[leaf.index] = [leaf.whole(widened(real(x))) for x in tensors]
        u, p, *slots = ([rows[i][j] for i in sorted(rows)] for j in range(2 + len(link.slots)))
        return trees.map_leaves(whole, link.form.reduce(u, p, **dict(zip(link.slots, slots, strict=True))))

    def _lift(self, links: Sequence[Link], works: Sequence[Work]) -> None:
        """Rules that need shapes, one after another, over the leaves of these works; several, where owners run them."""
        leaves = [leaf for work in works for leaf in work.part.leaves]
        u, p = [x for work in works for x in work.u], [x for work in works for x in work.p]
        slots = [[x for work in works for x in work.slots_at(link)[i]] for link in links for i in range(len(link.slots))]
        is_shared_out = bool(works[0].part.placement) and not links[0].form.finds
        lift = functools.partial(by_owners, self, links) if is_shared_out else functools.partial(lifted, self, links[0])
        new_u, new = lift(leaves, u, p, slots)
        for link in links:
            self.store(works, new[: len(link.slots)])
            self._hand_out(works, new_u)
            new = new[len(link.slots) :]

    def gather(self) -> None:
        """Bring all that is spread over processes past the rules that need true shapes, where all processes meet."""
        for link in self.plan.links:
            self._gather(link)

    def _gather(self, link: Link) -> None:
        """Bring it past one of them: in the same order on all processes, whatever parts they have cut their shards into."""
        if link.packs or link.rule is None:
            return
        meeting = [work for work in self.works if work.part.placement and work.done <= work.passage.place.get(link, -1)]
        for work in meeting:
            self.advance(work, work.passage.place[link])
        if meeting:
            self._lift(_in_a_row(meeting), meeting)

    def _hand_out(self, works: Sequence[Work], updates: Column) -> None:
        first = 0
        for work in works:
            work.u = updates[first : first + len(work.u)]
            first += len(work.u)
            work.next()


def _in_a_row(works: Sequence[Work]) -> list[Link]:
    """The rules that need shapes and that all these works go through next, without anything in between."""
    ahead = [work.passage.stages[work.done :] for work in works]
    links: list[Link] = []
    for stages in zip(*ahead, strict=False):
        (link, *others), first = [x for stage in stages for x in stage.links], ahead[0][0]
        same = all(other is link for other in others) and link.rule is not None and not link.packs and not link.form.finds
        if not same or any(stage.steps_copy != first.steps_copy or (stage.marks and links) for stage in stages):
            break
        links.append(link)
    return links


def _together(works: Sequence[Work]) -> list[list[Work]]:
    """Those that a rule for one tensor is run on together: all that processes have to gather for it, and each other by itself."""
    spread = [work for work in works if work.part.placement]
    return [*([spread] if spread else []), *([work] for work in works if not work.part.placement)]
