"""A step into new tensors: nothing that it is given is written to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.form import Path
from functional_optim.hparams import HParams, PerLeaf, one_or_each
from functional_optim.lifting import widened

from ..state.layout import Key
from .buckets import Column, Leaf, Part, Way
from .given import CountTable
from .lifted import wider
from .route import Link
from .run import Run
from .work import Plan, Refused, Work


class Leaves(NamedTuple):
    """Of what `update` is given; those without a gradient have None for it."""

    grads: Sequence[Any]
    params: Sequence[Any]
    state: Sequence[Any]


class Place(NamedTuple):
    """What a link that is called sees.

    Attributes:
        keys: the parameters, in order; None where there is none.
        spec: the structure of what it sees of their tree.
        cells: the places of its part of the state among all leaves of the state.
        state_spec: the structure of that part.
    """

    keys: Sequence[Key | None]
    spec: trees.Spec
    cells: Sequence[int]
    state_spec: trees.Spec


@dataclass(eq=False)
class FreshPlan(Plan):
    """What is to be known of trees.

    Attributes:
        slots: of each parameter, the places of its slots among the leaves of the state.
        loose: the parameters some of whose tensors a kernel can't read as they lie.
        called: what links that are no rules see.
        shared: the places of values that all leaves share, by path.
        numbers: the places of the numbers that each leaf keeps, by path.
        advances: the places of the counts that a step advances.
        own: those of counts that leaves have for themselves, which advance where there is a gradient.
        steps: whether parameters are asked for, and not updates.
    """

    slots: Mapping[Leaf, Sequence[int]]
    loose: set[Leaf]
    called: Mapping[Link, Place]
    shared: Mapping[Path, int]
    numbers: Mapping[Path, Mapping[Key, int]]
    advances: Sequence[int]
    own: Sequence[Mapping[Key, int]]
    steps: bool


class FreshRun(Run):
    """One step of the pure function.

    Args:
        plan: what is stepped.
        given: the leaves.
        hparams: of each group of leaves that take the same.
        counts: of each leaf, before the step.
        extra: what else `update` was given.
        records: whether autograd is on for what is no rule.

    Attributes:
        state: the leaves of the new state.
    """

    plan: FreshPlan

    def __init__(
        self,
        plan: FreshPlan,
        given: Leaves,
        hparams: Mapping[int, HParams],
        counts: CountTable,
        extra: Mapping[str, Any],
        *,
        records: bool,
    ) -> None:
        self._leaves = given
        self.state = list(given.state)
        self._records = records
        super().__init__(plan, hparams, counts, lambda: extra)
        self._cells: dict[Part, list[tuple[int, ...]]] = {}
        self.works = [self._opened(there) for part in plan.parts if (there := part.among(given.grads))]
        self._new: dict[Part, list[Sequence[Tensor]]] = {work.part: list(work.held) for work in self.works}

    def finish(self) -> list[Any]:
        """The new parameters, or the updates, leaf by leaf; and `state` is complete."""
        steps = self.plan.steps
        results = list(self._leaves.params if steps else self._leaves.grads)
        while self.works:
            work = self.works.pop()
            self.advance(work, len(work.passage.stages))
            last, leaves = work.passage.stages[-1], work.part.leaves
            if not last.is_still:
                column = self._results(work, stepped=steps and last.fuses)
                for leaf, x in zip(leaves, column, strict=True):
                    results[leaf.index] = x
            for cells, values in zip(self._cells[work.part], self._new.pop(work.part), strict=True):
                for cell, value in zip(cells, values, strict=True):
                    self.state[cell] = value
        present = [leaf.key for part in self._cells for leaf in part.leaves]
        own = [cells[key] for cells in self.plan.own for key in present if key in cells]
        for cell in (*self.plan.advances, *own):
            self.state[cell] = self.state[cell] + 1
        self.plan.is_new = False
        return results

    def set(self, path: Path, value: Any) -> None:
        """A value that all leaves share."""
        cell = self.plan.shared[path]
        old = self.state[cell]
        self.state[cell] = value.to(old.dtype) if isinstance(value, Tensor) else torch.full_like(old, value)

    def target(self, work: Work) -> list[Column]:
        """New tensors; for what works in place, copies."""
        stage = work.stage
        if stage.fuses and work.part.way is Way.COMPILED and (stage, Way.COMPILED) not in self.plan.refusals:
            new = [list(map(torch.empty_like, column)) for column in work.slots]
        else:
            new = [[x.clone() for x in column] for column in work.slots]
            if stage.steps and stage.fuses and not stage.is_still:
                work.p = [x.clone() for x in work.p]
        self._new[work.part][stage.slots] = new
        return new

    def store(self, works: Sequence[Work], new: Sequence[Column]) -> None:
        """To be handed out at the end."""
        first = 0
        for work in works:
            own = slice(first, first + len(work.u))
            self._new[work.part][work.stage.slots] = [column[own] for column in new]
            first += len(work.u)

    def places(self, link: Link, name: str, work: Work) -> list[Tensor]:
        """In the state given."""
        cells = self.plan.numbers[(*link.path, name)]
        return [self._leaves.state[cells[leaf.key]] for leaf in work.part.leaves]

    def keep(self, link: Link, name: str, work: Work, new: Tensor) -> None:
        """A tensor of its own for each leaf."""
        cells = self.plan.numbers[(*link.path, name)]
        for leaf, value in zip(work.part.leaves, new.expand(len(work.part.leaves)), strict=True):
            cell = cells[leaf.key]
            self.state[cell] = value.to(self.state[cell].dtype, copy=True)

    def shared(self, path: Path) -> Tensor:
        """In the state given."""
        return self._leaves.state[self.plan.shared[path]]

    def share(self, new: Mapping[Path, Any]) -> None:
        """Into the new state."""
        for path, value in new.items():
            self.set(path, value)

    def call(self, link: Link, works: Sequence[Work]) -> None:
        """On trees of the very structure that it sees without an engine."""
        place = self.plan.called[link]
        rows = {leaf.key: (work, i, leaf) for work in works for i, leaf in enumerate(work.part.leaves)}
        updates = {key: widened(work.u[i].to(wider(work.u[i], leaf))) for key, (work, i, leaf) in rows.items()}
        params = [None if key is None else self._leaves.params[key.number] for key in place.keys]
        own = (
            trees.unflatten(place.spec, [updates.get(key) if key else None for key in place.keys]),
            trees.unflatten(place.state_spec, [self._leaves.state[cell] for cell in place.cells]),
            trees.unflatten(place.spec, [None if p is None else widened(p) for p in params]),
        )
        hparams = link.transform.select(self._hparams_of(link, place, works))
        with torch.set_grad_enabled(self._records):
            computed, state = link.transform.update_fn(*own, hparams, **self.extra())
        (found, spec), (new, state_spec) = trees.flatten(computed), trees.flatten(state)
        if spec != place.spec or state_spec != place.state_spec:
            raise Refused(f"{link} returns trees of another structure")
        for cell, value in zip(place.cells, new, strict=True):
            self.state[cell] = value
        for key, u in zip(place.keys, found, strict=True):
            if key is not None and key in rows:
                work, i, leaf = rows[key]
                work.u = [*work.u[:i], leaf.laid_out(u.to(updates[key].dtype)), *work.u[i + 1 :]]
        for work in works:
            work.next()

    def _hparams_of(self, link: Link, place: Place, works: Sequence[Work]) -> dict[str, Any]:
        """One value of each, or one for each leaf that the link sees; those without a gradient get some value."""
        leaves = [leaf for work in works for leaf in work.part.leaves]
        first, each = self.numbers(leaves[0])[0][link], {leaf.key: self.numbers(leaf)[0][link] for leaf in leaves}
        if len({leaf.group for leaf in leaves}) == 1:
            return dict(first)
        found: dict[str, Any] = {}
        for name in first:
            column = {i: each.get(key, first)[name] for i, key in enumerate(place.keys) if key}
            value = one_or_each(column)
            is_several = isinstance(value, PerLeaf)
            filled = [column.get(i) for i in range(len(place.keys))]
            found[name] = PerLeaf(trees.unflatten(place.spec, filled)) if is_several else value
        return found

    def _opened(self, part: Part) -> Work:
        """A part with its tensors, as they are taken."""
        given, plan = self._leaves, self.plan
        self._cells[part] = list(zip(*(plan.slots[leaf] for leaf in part.leaves), strict=True))
        u, p = ([column[leaf.index] for leaf in part.leaves] for column in (given.grads, given.params))
        slots = [[given.state[cell] for cell in cells] for cells in self._cells[part]]
        if plan.loose.isdisjoint(part.leaves):
            return Work(part, u, p, slots)
        u, p = ([leaf.laid_out(x) for leaf, x in zip(part.leaves, column, strict=True)] for column in (u, p))
        for i in part.passage.elementwise:
            slots[i] = [leaf.laid_out(x) for leaf, x in zip(part.leaves, slots[i], strict=True)]
        return Work(part, u, p, slots)

    def _results(self, work: Work, *, stepped: bool) -> Column:
        """What becomes of a part, whose parameters may be stepped already."""
        if stepped:
            return work.p
        rows = zip(work.part.leaves, work.u, work.p, strict=True)
        if self.plan.steps:
            return [(p + u.to(leaf.update_dtype)).to(p.dtype) for leaf, u, p in rows]
        return [_like(u, self._leaves.grads[leaf.index]) for leaf, u, _ in rows]


def _like(u: Tensor, grad: Tensor) -> Tensor:
    """An update in the form of its gradient."""
    u = torch.view_as_complex(u) if grad.is_complex() and not u.is_complex() else u
    return u.to(grad.dtype)
