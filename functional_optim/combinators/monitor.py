"""Transforms that remember norms, for a person to read, and change nothing."""

import torch
from torch import Tensor

from functional_optim.combinators.compared import ARRIVED, Compared
from functional_optim.hparams import HParams
from functional_optim.numerics import sqrt
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, numbered, require_transform


def _zero(p: Tensor, hp: HParams) -> Tensor:
    del hp
    return torch.zeros_like(p.detach(), dtype=torch.promote_types(p.dtype.to_real(), torch.float32)).sum()


def _norms(hp, numbers, *, what):
    def terms(u, p):
        return u * u

    def finish(sums):
        return {f"{what}_norms": sqrt(sums.own[0]), f"{what}_norm": sqrt(sums.all[0])}

    def rule(new, u, p):
        return u

    return terms, finish, rule


@recorded
def monitor(what: str = "update") -> Transform:
    """Remember the norm of the updates at this place in a chain, over all parameters and of each; change nothing.

        chain(monitor("grad"), adamw(), monitor("update"))        # state_get(state, "grad_norm")

    Put it before a clipping link for the norm before clipping.

    Args:
        what: what the updates are at this place: the norms are called `{what}_norm` and `{what}_norms`.

    State: `{what}_norm` () float64 over all leaves with a gradient, and `{what}_norms`, a tree of () tensors like the parameters.

    Raises:
        TypeError: `what` is no text. It is no wrapper, and stands beside others in a chain.

    Differs from `optax.monitor`, which takes functions and averages.
    """
    if not isinstance(what, str):
        raise TypeError(f"what = {what!r} of monitor: expected a word for its names, as in chain(monitor('grad'), adamw()).")
    numbers = {f"{what}_norm": 0.0}
    return numbered(own={f"{what}_norms": _zero}, shared=numbers, name=f"monitor_{what}")(_norms)(what)


SEEN = ("grad", "update", "param")


@numbered(
    own={"effective_lrs": _zero, **{f"{what}_norms": _zero for what in SEEN}},
    shared={"effective_lr": 0.0, **{f"{what}_norm": 0.0 for what in SEEN}},
    leaf_extra=(ARRIVED,),
    name="log_norms",
)
def _all_norms(hp, numbers):
    def terms(u, p, g):
        return g * g, u * u, p * p

    def finish(sums):
        own, total = (dict(zip(SEEN, map(sqrt, squares), strict=True)) for squares in (sums.own, sums.all))
        return {
            "effective_lrs": _ratio(own["update"], own["grad"]),
            "effective_lr": _ratio(total["update"], total["grad"]),
            **{f"{what}_norms": norm for what, norm in own.items()},
            **{f"{what}_norm": norm for what, norm in total.items()},
        }

    def rule(new, u, p, g):
        return u

    return terms, finish, rule


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
    form = Compared(transform, _all_norms(), ("inner",))
    return Transform.of(form, transform.declared, transform.name)


def _ratio(norm: Tensor, other: Tensor) -> Tensor:
    zero = other == 0
    return torch.where(zero, 0.0, norm / torch.where(zero, 1.0, other))
