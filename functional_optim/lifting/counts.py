"""Counts of updates, of all leaves together or of each by itself."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.hparams import PerLeaf
from functional_optim.trees import Spec, Tree


def device_of(params: Tree) -> torch.device | None:
    """Where the parameters are: the device of the first; None where there is none."""
    return next((p.device for p in trees.leaves(params) if p is not None), None)


def new_count(params: Tree) -> Tensor:
    """A count of updates, at 0, where the parameters are."""
    return torch.zeros((), dtype=torch.int64, device=device_of(params))


def advanced(count: Any, updates: Sequence[Tensor | None], spec: Spec) -> Any:
    """A count after another update; of counts that leaves have for themselves, those of leaves with a gradient."""
    if not isinstance(count, PerLeaf):
        return count + 1
    counts = zip(count.values(spec, "step"), updates, strict=True)
    return PerLeaf(trees.unflatten(spec, [n if u is None else n + 1 for n, u in counts]))
