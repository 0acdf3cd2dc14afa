"""A rule for all tensors of a tree at once."""

from dataclasses import dataclass
from typing import Any, ClassVar

from functional_optim import trees
from functional_optim.hparams import HParams, spread
from functional_optim.lifting.lifted import Lifted
from functional_optim.lifting.slots import Seed
from functional_optim.sharded import on_one_mesh, whole
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class WholeTree(Lifted):
    """A transform that is a rule for all tensors together, with () values that they share.

    `rule(gs, ps, shared, *slots) -> (updates, shared, *slots)`, lists of leaves and the shared values by name. What all leaves
    share can't be computed with a value for each, of the step or of a hyper-parameter that the rule does not ask for so.

    Attributes:
        each: names of the hyper-parameters of which the rule gets a list, a value for each leaf.
    """

    each: tuple[str, ...] = ()
    first: ClassVar[tuple[str, ...]] = ("gs", "ps", "shared")

    @property
    def seeds(self) -> tuple[str, ...]:
        """The shared values that are seeds."""
        return tuple(name for name, start in self.shared.items() if isinstance(start, Seed))

    def takes_each(self, name: str) -> bool:
        """Where the rule gets a list."""
        return name in self.each

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The first state: the slots', and the shared values at their start, () tensors of float64."""
        return {**super().init(params, hp), **self._shared_starts(params, hp)}

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """One step of the rule on the leaves that have a gradient; the other leaves' slots stay as they are."""
        u, spec = trees.flatten(updates)
        p = [None] * len(u) if params is None else trees.leaves(params)
        slots = self._slot_leaves(state, updates, spec)
        given = self._leaf_extras(extra, updates, spec)
        t = state["step"] + 1 if self.counts else None

        present = [i for i in range(len(u)) if u[i] is not None]
        columns = (u, p, *slots, *given)
        columns = [on_one_mesh([self._opened(column[i], k) for i in present]) for k, column in enumerate(columns)]
        own = spread(hp, None, spec)
        lists = {name: [own[i][0][name] for i in present] for name in self.each}
        rule = self.scalars({**hp, **lists, **self.numbers_of(extra)}, *([t] if self.counts else []), **self.options)
        shared = {name: state[name] for name in self.shared}
        arguments = (columns[0], columns[1], shared, *columns[2:])
        new_updates, new_shared, *new_slots = self._run(rule, arguments, has_params=params is not None)
        for name, leaves, new in zip(("update", *self.slots), (u, *slots), (new_updates, *new_slots), strict=True):
            for i, x in zip(present, new, strict=True):
                leaves[i] = self.closed(name, x, leaves[i])
        new_state = {name: trees.unflatten(spec, slot) for name, slot in zip(self.slots, slots, strict=True)}
        new_state |= {name: whole(new_shared[name]).to(state[name].dtype) for name in self.shared}
        return trees.unflatten(spec, u), {"step": t, **new_state} if self.counts else new_state
