"""What the forms of all combinators have in common, and a walk through them."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.origin import Handed, Origin
from functional_optim.transform import Transform
from functional_optim.trees import Tree


class Combined:
    """The form of a transform made of others; what engines, layouts and laws may ask of it."""

    # Hyper-parameters with a value per leaf are passed on.
    per_leaf: ClassVar[bool] = True
    # The keys of its own state that hold a count which may differ between leaves.
    own_counts: ClassVar[tuple[str, ...]] = ()
    # Names of what `update` has to be given by keyword.
    extra: ClassVar[tuple[str, ...]] = ()
    leaf_extra: ClassVar[tuple[str, ...]] = ()

    @property
    def single(self) -> tuple[str, ...]:
        """Its own hyper-parameters that have one value for all leaves."""
        return ()

    @property
    def parts(self) -> Mapping[tuple[str, ...], Transform]:
        """The transforms inside, each by the keys to its state."""
        raise NotImplementedError

    def shares(self, params: Tree) -> Mapping[tuple[str, ...], Tree]:
        """What each part sees of a tree of parameters."""
        return dict.fromkeys(self.parts, params)

    def origins(self, path: tuple[str, ...], outer: Mapping[str, Origin]) -> Handed | None:
        """Where the hyper-parameters of each part come from, if all that this form does is to run its parts, in order, each on
        what it sees; else None, and no engine looks inside.

        Args:
            path: the keys to its own state.
            outer: where its own hyper-parameters come from.
        """
        return None

    def check(self, params: Tree) -> None:
        """Raise where these parameters, all of them, don't suit; called once, by `init_state`."""
        for keys, share in self.shares(params).items():
            check(self.parts[keys], share)


def check(transform: Transform, params: Tree) -> None:
    """Let a transform that is part of another refuse parameters."""
    if isinstance(transform.form, Combined):
        transform.form.check(params)


def nested(transform: Transform, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The keys to the state, and the form, of a transform and of all inside it, outermost first."""
    yield path, transform.form
    if isinstance(transform.form, Combined):
        for keys, part in transform.form.parts.items():
            yield from nested(part, (*path, *keys))


def zero_unless(condition: Tensor, updates: Tree) -> Tree:
    """The updates where the () condition holds, else zeros."""
    return trees.map_leaves(lambda u: torch.where(condition, u, torch.zeros_like(u)), updates)


def choose(condition: Tensor, tree: Tree, other: Tree) -> Tree:
    """The leaves of `tree` where the () condition holds, else those of `other`; of numbers, () tensors."""
    return trees.map_leaves(lambda a, b: torch.where(condition, a, b), tree, other)
