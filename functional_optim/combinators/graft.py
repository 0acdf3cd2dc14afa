"""Grafting: the direction of one transform, the size of another.

    u ← d ‖s‖ / ‖d‖        of each tensor, by their Euclidean norms

Agarwal et al. 2020, Disentangling Adaptive Gradient Methods from Learning Rates, https://arxiv.org/abs/2002.11803
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.combined import Combined
from functional_optim.form import Path
from functional_optim.hparams import HParams, merge
from functional_optim.numerics import norm
from functional_optim.recipe import recorded
from functional_optim.sharded import whole
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class Grafted(Combined):
    """The form of a transform whose updates have the direction of one transform and the size of another."""

    direction: Transform
    size: Transform

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {("direction",): self.direction, ("size",): self.size}

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The two states."""
        return {keys[0]: part.init_fn(params, part.select(hp)) for keys, part in self.parts.items()}

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The update of the one, as large as that of the other."""
        found, new = {}, {}
        for (name,), part in self.parts.items():
            found[name], new[name] = part.update_fn(updates, state[name], params, part.select(hp), **extra)
        return trees.map_leaves(_as_large_as, found["direction"], found["size"]), new


@recorded
def graft(direction: Transform, size: Transform) -> Transform:
    """Take the direction of each tensor's update from one transform, and its norm from another: `d ‖s‖ / ‖d‖`.

    Both see the same gradients. So a learning rate that is known to suit the second, such as AdamW's, suits the first:
    `chain(graft(scale_by_shampoo(), scale_by_adam()), add_decayed_weights(), scale_by_learning_rate())`.

    Args:
        direction: a transform whose updates point where to go; where they are 0, so are the grafted ones.
        size: a transform whose updates are as large as they should be.

    State: the two states under `"direction"` and `"size"`.

    Raises:
        TypeError: one of these is no transform.
        ValueError: both have a hyper-parameter of one name, with different defaults; `rename_hparams` tells them apart.

    Source: Agarwal et al. 2020, https://arxiv.org/abs/2002.11803. Neither torch nor optax has it.

    >>> from functional_optim import identity, scale_by_sign
    >>> tx = graft(scale_by_sign(), identity())
    >>> g = torch.tensor([3.0, -4.0])
    >>> tx.update(g, tx.init_state(g))[0]
    tensor([ 3.5355, -3.5355])
    """
    require_transform(direction, "graft, direction")
    require_transform(size, "graft, size")
    declared = merge({direction.name: direction.declared, size.name: size.declared})
    return Transform.of(Grafted(direction, size), declared, "graft")


def _as_large_as(direction: Tensor, size: Tensor) -> Tensor:
    length = whole(norm(direction))
    return direction * (whole(norm(size)) / torch.where(length == 0, 1.0, length)).to(direction.dtype)
