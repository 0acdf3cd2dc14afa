"""The form of a transform whose update is compared with the gradient that it got."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.combined import Combined
from functional_optim.form import Path
from functional_optim.hparams import HParams
from functional_optim.transform import Transform
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class Compared(Combined):
    """What is inside, and `(update, gradient) -> update` for one real tensor."""

    inner: Transform
    compare: Callable[[Tensor, Tensor], Tensor]

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {(): self.inner}

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The inner state, unchanged."""
        return self.inner.init_fn(params, self.inner.select(hp))

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The inner update, compared with what came in."""
        new, state = self.inner.update_fn(updates, state, params, self.inner.select(hp), **extra)
        return trees.map_leaves(self._on_reals, new, updates), state

    def _on_reals(self, u: Tensor, g: Tensor) -> Tensor:
        if not u.is_complex():
            return self.compare(u, g)
        return torch.view_as_complex(self.compare(torch.view_as_real(u.resolve_conj()), torch.view_as_real(g.resolve_conj())))
