"""What the forms of all combinators have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.form import Form, Path
from functional_optim.hparams import HParams
from functional_optim.transform import Transform
from functional_optim.trees import Tree


class Combined(Form):
    """The form of a transform made of others. Those that it may be asked about are its `parts`."""

    @property
    def single(self) -> tuple[str, ...]:
        """Its own hyper-parameters that have one value for all leaves."""
        return ()

    def takes_each(self, name: str) -> bool:
        """Whether this is passed on, to parts that may refuse it."""
        return name not in self.single


class Transparent(Combined):
    """The form of a transform that leaves updates to its parts: what becomes of a leaf is their business."""

    @property
    def mixes_leaves(self) -> bool:
        return False

    @property
    def sees_shapes(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class Around(Transparent):
    """The form of a transform that hands another its hyper-parameters, and does nothing else."""

    inner: Transform

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {(): self.inner}

    def handed(self, keys: Path, hp: HParams, state: Tree) -> dict[str, Any]:
        """As `inner_hparams`."""
        return self.inner_hparams(hp)

    def inner_hparams(self, hp: HParams) -> dict[str, Any]:
        """Its own, by the same names."""
        return self.inner.select(hp)

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The inner state, unchanged."""
        return self.inner.init_fn(params, self.inner_hparams(hp))

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The inner update."""
        return self.inner.update_fn(updates, state, params, self.inner_hparams(hp), **extra)


def zero_unless(condition: Tensor, updates: Tree) -> Tree:
    """The updates where the () condition holds, else zeros."""
    return trees.map_leaves(lambda u: torch.where(condition, u, torch.zeros_like(u)), updates)


def choose(condition: Tensor | bool, tree: Tree, other: Tree) -> Tree:
    """The leaves of `tree` where the () condition holds, else those of `other`; of numbers, () tensors if it is a tensor."""
    if not isinstance(condition, Tensor):
        return tree if condition else other
    return trees.map_leaves(lambda a, b: torch.where(condition, a, b), tree, other)
