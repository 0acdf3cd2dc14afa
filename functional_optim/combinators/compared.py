"""The form of a transform after which a rule of the wrapper's own is run, that sees what went in as well as what came out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from functional_optim.combinators.combined import Combined
from functional_optim.combinators.origin import Handed, Origin
from functional_optim.form import Path
from functional_optim.hparams import HParams
from functional_optim.transform import Transform
from functional_optim.trees import Tree

# What a rule calls the updates that came to the transform before it.
ARRIVED = "arrived"


@dataclass(frozen=True, eq=False)
class Compared(Combined):
    """What is inside, and the rule, which keeps what it has in the form's own state.

    Attributes:
        inner: the transform.
        rule: an elementwise one, without hyper-parameters, given the updates that arrived.
        key: to the state of what is inside; none where that is the whole state.
    """

    inner: Transform
    rule: Transform
    key: Path = ()

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {self.key: self.inner}

    @property
    def after(self) -> Transform:
        return self.rule

    def origins(self, path: Path, outer: Mapping[str, Origin]) -> Handed:
        """The names of what is inside are the wrapper's."""
        return {self.key: {name: outer[name] for name in self.inner.declared}}

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The rule's state, and that of what is inside."""
        inner = self.inner.init_fn(params, self.inner.select(hp))
        return {**self.rule.init_fn(params, {}), self.key[0]: inner} if self.key else inner

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The inner update, and the rule on what came of it."""
        inner_state = state[self.key[0]] if self.key else state
        new, inner_state = self.inner.update_fn(updates, inner_state, params, self.inner.select(hp), **extra)
        own = {name: value for name, value in state.items() if name != self.key[0]} if self.key else {}
        new, own = self.rule.update_fn(new, own, params, {}, **{ARRIVED: updates})
        return new, {**own, self.key[0]: inner_state} if self.key else inner_state
