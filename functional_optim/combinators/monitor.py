"""Links that change nothing and remember norms, for a person to read."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from functional_optim import trees
from functional_optim.hparams import HParams
from functional_optim.numerics import double, global_norm
from functional_optim.transform import Transform
from functional_optim.trees import Tree


@dataclass(frozen=True)
class Monitor:
    """The form of a monitor: what the updates at its place are called, and whether it measures the parameters too."""

    what: str
    per_leaf: ClassVar[bool] = True

    def init(self, params: Tree, hp: HParams) -> Tree:
        """Norms of 0."""
        zeros = trees.map_leaves(lambda p: torch.zeros_like(p.detach(), dtype=_real(p)).sum(), params)
        return {f"{self.what}_norm": _total(zeros), f"{self.what}_norms": zeros}

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The updates as they came, and their norms; a leaf without a gradient keeps its last."""
        del extra
        norms, old = trees.leaves(trees.map_leaves(_norm, updates)), state[f"{self.what}_norms"]
        kept = [x if new is None else new.to(x.dtype) for new, x in zip(norms, trees.leaves(old), strict=True)]
        new = {f"{self.what}_norm": _total(norms), f"{self.what}_norms": trees.unflatten(trees.flatten(old)[1], kept)}
        return updates, new


def monitor(what: str = "update") -> Transform:
    """Remember the norm of the updates at this place in a chain, over all parameters and of each; change nothing.

        chain(monitor("grad"), adamw(), monitor("update"))        # state_get(state, "grad_norm")

    Put it before a clipping link for the norm before clipping.

    Args:
        what: what the updates are at this place: the norms are called `{what}_norm` and `{what}_norms`.

    State: `{what}_norm` () float64 over all leaves with a gradient, and `{what}_norms`, a tree of () tensors like the parameters.

    Differs from `optax.monitor`, which takes functions and averages.
    """
    form = Monitor(what)
    return Transform(form.init, form.update, name=f"monitor_{what}", form=form)


def _norm(x: torch.Tensor) -> torch.Tensor:
    return global_norm([torch.view_as_real(x) if x.is_complex() else x])


def _total(norms: Any) -> torch.Tensor:
    norm = global_norm(trees.leaves(norms))
    return torch.as_tensor(double(norm))


def _real(p: torch.Tensor) -> torch.dtype:
    return torch.promote_types(p.real.dtype if p.is_complex() else p.dtype, torch.float32)
