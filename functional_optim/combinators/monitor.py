"""Transforms that remember norms, for a person to read, and change nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from functional_optim import trees
from functional_optim.combinators.combined import Combined
from functional_optim.form import Form, Path
from functional_optim.hparams import HParams
from functional_optim.numerics import double, global_norm
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class Monitor(Form):
    """The form of a monitor: what the updates at its place are called."""

    what: str

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


@recorded
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
    return Transform.of(form, {}, f"monitor_{what}")


GRAD, UPDATE, PARAM = Monitor("grad"), Monitor("update"), Monitor("param")


@dataclass(frozen=True, eq=False)
class Logged(Combined):
    """The form of a transform whose norms are remembered."""

    inner: Transform

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {("inner",): self.inner}

    def init(self, params: Tree, hp: HParams) -> Tree:
        """Norms of 0, and the inner state."""
        norms = {**GRAD.init(params, hp), **UPDATE.init(params, hp), **PARAM.init(params, hp)}
        ratios = {"effective_lr": norms["grad_norm"].clone(), "effective_lrs": trees.map_leaves(torch.clone, norms["grad_norms"])}
        return {**norms, **ratios, "inner": self.inner.init_fn(params, self.inner.select(hp))}

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The inner update, and the norms of what went in and came out."""
        if params is None:
            raise ValueError("log_norms needs the parameters: update(grads, state, params).")
        seen = trees.map_leaves(lambda g, p: p, updates, params)
        grads = GRAD.update(updates, state, params, hp)[1]
        updates, inner = self.inner.update_fn(updates, state["inner"], params, self.inner.select(hp), **extra)
        norms = {**grads, **UPDATE.update(updates, state, params, hp)[1], **PARAM.update(seen, state, params, hp)[1]}
        ratios = {
            "effective_lr": _ratio(norms["update_norm"], norms["grad_norm"]),
            "effective_lrs": trees.map_leaves(_ratio, norms["update_norms"], norms["grad_norms"]),
        }
        return updates, {**norms, **ratios, "inner": inner}


@recorded
def log_norms(transform: Transform) -> Transform:
    """Remember, beside a transform, the norms of its gradients, its updates and the parameters, of each leaf and of all.

    Around a whole optimizer, `grad_norm` is the norm before clipping.

    State, () float64 over all leaves with a gradient, and with an s a tree of () tensors like the parameters: `grad_norm`,
    `grad_norms`; `update_norm`, `update_norms`; `param_norm`, `param_norms`, before the update; `effective_lr`, `effective_lrs`,
    the update's norm over the gradient's, 0 where that is 0. The transform's state is under `"inner"`.

    Read them with `state_get(state, "grad_norm")`; behind the adapter, in `optimizer.state[p]`.

    >>> from functional_optim import sgd, state_get
    >>> tx = log_norms(sgd(lr=0.5))
    >>> w = torch.tensor([3.0, 4.0])
    >>> _, state = tx.update(w, tx.init_state(w), w)
    >>> float(state_get(state, "grad_norm")), float(state_get(state, "effective_lr"))
    (5.0, 0.5)
    """
    require_transform(transform, "log_norms")
    form = Logged(transform)
    return Transform.of(form, transform.declared, transform.name)


def _ratio(norm: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    zero = other == 0
    return torch.where(zero, 0.0, norm / torch.where(zero, 1.0, other))


def _norm(x: torch.Tensor) -> torch.Tensor:
    return global_norm([torch.view_as_real(x) if x.is_complex() else x])


def _total(norms: Any) -> torch.Tensor:
    norm = global_norm(trees.leaves(norms))
    return double(norm)


def _real(p: torch.Tensor) -> torch.dtype:
    return torch.promote_types(p.real.dtype if p.is_complex() else p.dtype, torch.float32)
