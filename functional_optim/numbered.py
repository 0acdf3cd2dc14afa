"""Rules for one tensor that ask for sums, of their own leaf or of all, and may keep numbers from step to step.

Such a rule comes in three parts, so that an engine that goes over the elements in its own way runs the same definition as
`update` does: the terms of the sums, element by element; what is made of the sums, a little arithmetic with numbers; and the
update, element by element.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.hparams import HParams, spread
from functional_optim.lifting import Leafwise, Rule, advanced, widened
from functional_optim.sharded import on_one_mesh, total, whole
from functional_optim.trees import Tree

# `(u, p, *slots, *further) -> terms`, of the sums; `sums -> numbers`; and `(numbers, u, p, *slots, *further) -> update, *slots`.
Parts: TypeAlias = tuple[Callable[..., Any] | None, Callable[["Sums"], Mapping[str, Any]], Rule]


class Sums(NamedTuple):
    """Sums over the elements, () tensors.

    Attributes:
        own: over those of one leaf.
        all: over those of all leaves, where the rule says that it takes them, or has numbers that all share; else none.
        size: how many elements the leaf has, as reals: a number, or a tensor.
    """

    own: tuple[Tensor, ...]
    all: tuple[Tensor, ...]
    size: Any


class Found(NamedTuple):
    """The numbers of a rule in one step.

    Attributes:
        old: those that it keeps, before the step.
        new: what it makes of them and of the sums; those that it keeps, and others that the update takes.
    """

    old: Mapping[str, Any]
    new: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Numbered(Leafwise):
    """A transform that is a rule for one tensor with numbers: `scalars(hp[, t], numbers, **options) -> Parts`.

    Attributes:
        each: the hyper-parameters that may differ between leaves; None for all.
        over_all: whether its numbers depend on sums over all leaves, or all share some.
        agree: raises ValueError unless these hyper-parameters, of all leaves, go together.
    """

    each: tuple[str, ...] | None = None
    over_all: bool = False
    agree: Callable[[Sequence[HParams]], None] | None = None

    @property
    def own_counts(self) -> tuple[str, ...]:
        """The step, unless all leaves share it with other numbers."""
        return ("step",) if self.counts and not self.shared else ()

    @property
    def shared_names(self) -> tuple[str, ...]:
        """The keys of the state that hold one value for all leaves."""
        return (*self.shared, *(("step",) if self.counts and self.shared else ()))

    @property
    def kept(self) -> tuple[str, ...]:
        """What the numbers are called that it keeps, but for the step."""
        return (*self.own, *self.shared)

    @property
    def mixes_leaves(self) -> bool:
        """Whether it asks for sums over all."""
        return self.over_all

    @property
    def sees_shapes(self) -> bool:
        """True: it may ask for sums over one leaf."""
        return True

    @property
    def finds(self) -> bool:
        """True: there are numbers to be found before the update."""
        return True

    @property
    def sums_all_only(self) -> bool:
        """False: those of each leaf may matter, too."""
        return False

    def takes_each(self, name: str) -> bool:
        """Whether it may have one value per leaf."""
        return self.each is None or name in self.each

    def parts_of(self, hp: HParams, t: Any, numbers: Mapping[str, Any]) -> Parts:
        """The rule under these scalars and with these numbers."""
        parts: Any = self.scalars(hp, *([t] if self.counts else []), numbers, **self.options)
        return parts

    def terms(self, hp: HParams, t: Any, old: Any) -> Callable[..., Sequence[Tensor]] | None:
        """The terms of the sums that it asks for."""
        terms = self.parts_of(hp, t, old)[0]
        return None if terms is None else lambda *columns: listed(terms(*columns))

    def finish(self, hp: HParams, t: Any, old: Any, sums: Any) -> Found:
        """Its numbers, of the old ones and the sums."""
        return Found(old, self.parts_of(hp, t, old)[1](sums))

    def rule(self, hp: HParams, t: Any, reduced: Any) -> Rule:
        """The rule for one tensor under these scalars and with these numbers."""
        rule = self.parts_of(hp, t, reduced.old)[2]
        return lambda *columns: rule(reduced.new, *columns)

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The first state: every slot and number at its start."""
        leaves, spec = trees.flatten(params)
        scalars = spread(hp, None, spec)
        own = {
            name: [None if p is None else self._started(start, p, each.hp) for p, each in zip(leaves, scalars, strict=True)]
            for name, start in self.own.items()
        }
        return {
            **super().init(params, hp),
            **{name: trees.unflatten(spec, numbers) for name, numbers in own.items()},
            **self._shared_starts(params, hp),
        }

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """One step of the rule on every leaf that has a gradient; the other leaves keep their slots and numbers."""
        u, spec = trees.flatten(updates)
        p = [None] * len(u) if params is None else trees.leaves(params)
        slots = self._slot_leaves(state, updates, spec)
        own = {name: trees.leaves_like(state[name], updates, spec, f"state[{name!r}]", "grads") for name in self.own}
        given = self._leaf_extras(extra, updates, spec)
        t = (state["step"] + 1 if self.shared else advanced(state["step"], u, spec)) if self.counts else None
        shared = {name: state[name] for name in self.shared}
        scalars = spread({**hp, **self.numbers_of(extra), **self._places(u, slots, hp, spec)}, t, spec)

        present = [i for i in range(len(u)) if u[i] is not None]
        self.require_agreement([scalars[i].hp for i in present])
        columns = (u, p, *slots, *given)
        columns = [on_one_mesh([self._opened(column[i], k) for i in present]) for k, column in enumerate(columns)]
        rows: dict[int, Sequence[Any]] = dict(zip(present, zip(*columns, strict=True), strict=True))
        if not rows and u and shared:  # What all share changes nevertheless, as with a leaf that has no element.
            rows[0] = [torch.zeros(0, device="cpu")] * len(columns)
        parts = {i: self.parts_of(*scalars[i][:2], {**shared, **{name: widened(own[name][i]) for name in own}}) for i in rows}
        has_params = params is not None
        sums = {i: self._sums(parts[i][0], row, has_params=has_params) for i, row in rows.items()}
        totals = tuple(map(total, zip(*sums.values(), strict=True))) if self.over_all else ()
        new = {i: parts[i][1](Sums(tuple(map(whole, sums[i])), totals, rows[i][0].numel())) for i in rows}
        for i in present:
            outputs = self._called(functools.partial(parts[i][2], new[i]), rows[i])
            for name, column, value in zip(("update", *self.slots), (u, *slots), outputs, strict=True):
                column[i] = self.closed(name, value, column[i])
            for name in own:
                own[name][i] = whole(new[i][name]).to(own[name][i].dtype)
        new_shared = next(iter(new.values()), shared)
        new_state = {name: trees.unflatten(spec, leaves) for name, leaves in (*zip(self.slots, slots, strict=True), *own.items())}
        new_state |= {name: whole(new_shared[name]).to(state[name].dtype) for name in self.shared}
        return trees.unflatten(spec, u), {"step": t, **new_state} if self.counts else new_state

    def require_agreement(self, hparams: Sequence[HParams]) -> None:
        """Raise ValueError unless these, of all leaves, go together."""
        try:
            if self.agree is not None:
                self.agree(hparams)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def _sums(self, terms: Callable[..., Any] | None, row: Sequence[Any], *, has_params: bool) -> tuple[Tensor, ...]:
        return () if terms is None else tuple(x.sum() for x in listed(self._run(terms, row, has_params=has_params)))


def listed(terms: Any) -> Sequence[Any]:
    """Terms of which there may be a single one."""
    return tuple(terms) if isinstance(terms, tuple | list) else (terms,)
