"""The last line of every step: parameters plus updates."""

from typing import Any

from torch import Tensor

from functional_optim import trees
from functional_optim.checks import check_gradients
from functional_optim.trees import Tree


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """`params + updates`, leaf by leaf, in the dtypes of `params`; a leaf whose update is None stays the same tensor.

    Raises:
        TypeError: an update is not a dense floating-point or complex tensor.
        ValueError: the trees or shapes disagree; the message names the leaf.

    >>> import torch
    >>> apply_updates({"w": torch.ones(2)}, {"w": torch.full((2,), -0.5)})
    {'w': tensor([0.5000, 0.5000])}

    As `optax.apply_updates`; torch has no counterpart.
    """
    check_gradients(updates, params, "updates")

    def add(p: Any, u: Tensor | None) -> Any:
        return p if u is None else (p + u).to(p.dtype)

    return trees.map_leaves(add, params, updates)
