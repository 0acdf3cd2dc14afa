"""What the forms of all combinators have in common."""

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.form import Form
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


def zero_unless(condition: Tensor, updates: Tree) -> Tree:
    """The updates where the () condition holds, else zeros."""
    return trees.map_leaves(lambda u: torch.where(condition, u, torch.zeros_like(u)), updates)


def choose(condition: Tensor | bool, tree: Tree, other: Tree) -> Tree:
    """The leaves of `tree` where the () condition holds, else those of `other`; of numbers, () tensors if it is a tensor."""
    if not isinstance(condition, Tensor):
        return tree if condition else other
    return trees.map_leaves(lambda a, b: torch.where(condition, a, b), tree, other)
