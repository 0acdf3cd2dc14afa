"""Transforms that do one thing in some steps and another in the rest: the form that they share.

What decides is known on the host, or lies in a tensor. In the first case only one of the two is run; else both are, and what has
been decided is chosen. Engines look inside: a step in which the gate is closed costs them what is left to do in it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.combined import Combined, zero_unless
from functional_optim.form import Path
from functional_optim.hparams import HParams
from functional_optim.lifting import new_count
from functional_optim.numerics import cond, real
from functional_optim.reductions import SumOver
from functional_optim.transform import Transform, elementwise
from functional_optim.trees import Tree

# What is run, in order: a part, by the keys to its state; or a rule of the form's own, whose slots are in the form's own state.
Acts: TypeAlias = Sequence[tuple[Path, Transform]]


class Gated(Combined):
    """The form of a transform that asks, before each step, which of two ways to go."""

    @property
    def reduce(self) -> SumOver | None:
        """A whole-tree quantity of the updates that arrive, which decides; None where the clocks do."""
        return None

    def opens(self, clocks: Mapping[str, Any], hp: HParams, found: Any) -> Any:
        """Whether the gate is open in this step, a bool or a () tensor.

        Args:
            clocks: the form's own, before the step.
            hp: its hyper-parameters.
            found: what was reduced.
        """
        raise NotImplementedError

    def advanced(self, clocks: Mapping[str, Any], opens: Any) -> dict[str, Any]:
        """The clocks after the step."""
        raise NotImplementedError

    def acts(self, opens: bool) -> Acts:
        """What is run. The last of its own rules behind a closed gate, if there is one, returns updates of 0."""
        raise NotImplementedError

    def own_hparams(self, clocks: Mapping[str, Any]) -> dict[str, Any]:
        """What the form's own rules get."""
        del clocks
        return {}

    def fed(self, updates: Tree, state: Tree) -> Tree:
        """What its own rules see of the updates; where these are None, so is the result."""
        del state
        return updates

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The clocks at 0, and the states of the parts."""
        clocks = {name: new_count(params) for name in self.clocks}
        return {**clocks, **{keys[0]: part.init_fn(params, part.select(hp)) for keys, part in self.parts.items()}}

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """One of the two ways."""
        clocks = {name: state[name] for name in self.clocks}
        kept = {name: value for name, value in state.items() if name not in clocks}
        opens = self.opens(clocks, hp, None if self.reduce is None else self.reduce(*_columns(updates, params)))
        # What is decided against is computed nevertheless where a tensor decides; on zeros, so that its derivative is finite too.
        clean = zero_unless(opens, updates) if isinstance(opens, Tensor) and self.reduce else updates

        def through(way: bool) -> tuple[Tree, Tree]:
            u, new = clean if way else updates, dict(kept)
            for keys, part in self.acts(way):
                if keys:
                    u, new[keys[0]] = part.update_fn(u, state[keys[0]], params, part.select(hp), **extra)
                else:
                    own = {name: kept[name] for name in slots_of(part)}
                    result, after = part.update_fn(self.fed(u, state), own, params, self.own_hparams(clocks))
                    u, new = trees.map_leaves(lambda _, x: x, u, result), {**new, **after}
            return u, new

        u, new = cond(opens, lambda: through(True), lambda: through(False))
        return u, {**self.advanced(clocks, opens), **new}


def slots_of(rule: Transform) -> Sequence[str]:
    """The keys to the state of a rule of a form's own."""
    return tuple(getattr(rule.form, "slots", ()))


def arriving(reduce: SumOver) -> Transform:
    """A rule that reduces what arrives and changes nothing."""
    return elementwise(reduce=reduce, name="arriving")(_unchanged)()


def _unchanged(hp: HParams, found: Any) -> Callable[[Tensor, Any], Tensor]:
    del hp, found
    return lambda u, p: u


def _columns(updates: Tree, params: Tree) -> tuple[list[Tensor], list[Tensor | None]]:
    leaves = trees.leaves(updates)
    others = [None] * len(leaves) if params is None else trees.leaves(params)
    pairs = [(real(u), real(p)) for u, p in zip(leaves, others, strict=True) if u is not None]
    return [u for u, _ in pairs], [p for _, p in pairs]


@elementwise(name="nothing")
def nothing(hp):
    """An update of 0, whatever came."""
    del hp
    return lambda u, p: torch.zeros_like(u)
