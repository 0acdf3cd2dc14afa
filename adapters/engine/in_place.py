"""A step into the tensors of an optimizer.

First comes what may fail, and what has to be known of all leaves: it writes to nothing that belongs to the optimizer, and new
slots of the stages that it has to pass are kept aside. Then the rest runs in place.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.form import Path
from functional_optim.hparams import HParams, together
from functional_optim.lifting import widened
from functional_optim.sharded import local

from ..state.layout import Flat, Key, Layout, detached_from
from .buckets import Column
from .given import CountTable
from .lifted import wider
from .memory import foreach, lacks_some
from .route import Link
from .run import Run
from .work import Plan, Work


@dataclass(eq=False)
class InPlacePlan(Plan):
    """What is to be known of an optimizer.

    Attributes:
        layout: of the state.
        states: of the parameters, and of others that have any.
        advances: what a step adds to the counts of a parameter.
    """

    layout: Layout
    states: Mapping[Key, Flat]
    advances: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        self._holders: dict[Path, list[Tensor]] = {}

    def holders(self, path: Path) -> list[Tensor]:
        """The tensors that hold the value at this path, which all share; looked up once, as `InPlaceRun.places`."""
        if path not in self._holders:
            self._holders[path] = self.layout.holders(path, self.states)
        return self._holders[path]


class InPlaceRun(Run):
    """One step of an optimizer.

    Args:
        plan: what is stepped.
        grads: of its parameters; None where there is none, and then the parameter stays as it is.
        hparams, counts, extra: see `Run`.
    """

    plan: InPlacePlan

    def __init__(
        self,
        plan: InPlacePlan,
        grads: Sequence[Tensor | None],
        hparams: Mapping[int, HParams],
        counts: CountTable,
        extra: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.layout, self.states = plan.layout, plan.states
        super().__init__(plan, hparams, counts, extra)
        parts = [there for part in plan.parts if (there := part.among(grads))] if lacks_some(grads) else plan.parts
        self.works = []
        for part in parts:
            self.works.append(Work(part, *part.open(grads), part.slots))
        self._pending: list[Callable[[], None]] = []
        self._writes = False

    def write(self) -> None:
        """Step every parameter, when `meet` has done what may fail."""
        self._writes = True
        for store in self._pending:
            store()
        if self.plan.is_spread:
            self.gather()
        while self.works:
            work = self.works.pop()
            self.advance(work, len(work.passage.stages))
            if not work.passage.stages[-1].fuses:
                for leaf, p, u in zip(work.part.leaves, work.stepped, work.u, strict=True):
                    p.add_(u.to(leaf.update_dtype))
            if work.passage.copy is None:
                if not work.part.in_place:
                    work.part.close(work.params)
            else:
                foreach["copy_"]([leaf.param for leaf in work.part.leaves], work.stepped)
        self.plan.is_new = False

    def target(self, work: Work) -> list[Column]:
        """The slots themselves; before the time of writing, copies that are stored then."""
        if self._writes:
            return work.slots
        copies = [[x.clone() for x in column] for column in work.slots]
        self.store([work], copies)
        return copies

    def store(self, works: Sequence[Work], new: Sequence[Column]) -> None:
        """Copied when it is time, or at once."""
        slots = [[x for work in works for x in work.slots[i]] for i in range(len(new))]

        def write() -> None:
            for column, values in zip(slots, new, strict=True):
                foreach["copy_"](column, values)

        if self._writes:
            write()
        else:
            self._pending.append(write)

    def places(self, link: Link, name: str, work: Work) -> list[Tensor]:
        """In the states of the parameters; looked up once, as the plan holds no longer than these are there."""
        known, key = work.part.numbers, (link, name)
        if key not in known:
            found = [leaf.state[self.layout.names(leaf.key)[(*link.path, name)]] for leaf in work.part.leaves]
            known[key] = found if work.part.placement is None else list(map(local, found))
        return known[key]

    def keep(self, link: Link, name: str, work: Work, new: Tensor) -> None:
        """Copied when it is time."""
        places = self.places(link, name, work)
        column = new.expand(len(places))
        self._pending.append(functools.partial(foreach["copy_"], places, list(column.unbind())))

    def shared(self, path: Path) -> Tensor:
        """In some state, for all hold it."""
        return self.layout.shared(path, self.states)

    def share(self, new: Mapping[Path, Any]) -> None:
        """Into all states."""
        for path, value in new.items():
            stored = self.plan.holders(path)
            value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")
            if stored:
                self._pending.append(functools.partial(foreach["copy_"], stored, [value] * len(stored)))

    def call(self, link: Link, works: Sequence[Work]) -> None:
        """On what the states hold for it, as a tree by keys."""
        layout, states = self.layout, self.states
        leaves = [(leaf, work, i) for work in works for i, leaf in enumerate(work.part.leaves)]
        leaves.sort(key=lambda item: item[0].index)
        keys = [leaf.key for leaf, _, _ in leaves]
        updates = {leaf.key: leaf.whole(widened(work.u[i].to(wider(work.u[i], leaf)))) for leaf, work, i in leaves}
        params = {leaf.key: leaf.whole(widened(work.p[i])) for leaf, work, i in leaves}
        values = [self.numbers(leaf)[0][link] for leaf, _, _ in leaves]
        hp = together(dict(zip(keys, values, strict=True)))
        old = layout.read(keys, states, counts_on_host=True, under=link.path)
        owned = [*(work.p[i] for _, work, i in leaves), *(x for x in trees.leaves(old) if isinstance(x, Tensor))]
        extra = {name: _restricted(value, keys) for name, value in self.extra().items()}
        computed = link.transform.update_fn(updates, old, params, link.transform.select(hp), **extra)
        new_updates, new_state = detached_from(owned, computed)
        self._pending.append(lambda: layout.write(new_state, keys, states, under=link.path))
        for leaf, work, i in leaves:
            u = leaf.laid_out(leaf.own(new_updates[leaf.key]).to(updates[leaf.key].dtype))
            work.u = [*work.u[:i], u, *work.u[i + 1 :]]
        for work in works:
            work.next()


def _restricted(value: Any, keys: Sequence[Key]) -> Any:
    """Of a tree like the parameters, the leaves of these."""
    is_tree = isinstance(value, dict) and all(isinstance(key, Key) for key in value)
    return {key: value.get(key) for key in keys} if is_tree else value
