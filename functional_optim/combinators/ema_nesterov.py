"""Nesterov's look-ahead with a mean of steps: gradients are taken ahead of the parameters, in the direction that they go.

    x ← y + u                          from the point y where the gradient was taken
    e ← β e + (1 − β) (x − x before)
    y ← x + s e                        what the parameters hold

As in entries of the optimization track of the speed-runs of NanoGPT.
"""

import torch
from torch import Tensor

from functional_optim.combinators.chain import chain
from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.lifting import OneNumber
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, numbered, require_transform


def _trained(p: Tensor, average: Tensor, ahead: Tensor) -> Tensor:
    """What lies behind the point that the parameters hold."""
    return p - ahead.to(p.dtype) * average


@numbered(
    slots=("step_avg",),
    own={"ahead": OneNumber(lambda hp: 0.0)},
    hparams={"lookahead": Hparam(0.3, NON_NEGATIVE), "step_decay": Hparam(0.99, FRACTION)},
    evaluated_at=_trained,
    name="ema_nesterov",
)
def _ahead(hp, numbers):
    """How far ahead the parameters are is kept, since a schedule may change it."""
    b = hp["step_decay"]

    def finish(sums):
        return {"ahead": torch.zeros_like(numbers["ahead"]) + hp["lookahead"]}

    def rule(new, u, p, e):
        e = b * e + (1 - b) * (u + numbers["ahead"] * e)
        return u + new["ahead"] * e, e

    return None, finish, rule


@recorded
def ema_nesterov(transform: Transform, lookahead: float = 0.3, step_decay: float = 0.99) -> Transform:
    """Take gradients ahead of the parameters, by a share of the mean of the last steps.

    The parameters that the caller holds are the point ahead; `evaluated`, and `eval_params` of an optimizer, give those that are
    trained. Look ahead in a part of the run only with a schedule of `lookahead`: at 0 both are one again.

    Args:
        transform: what makes the steps, with its learning rate.
        lookahead: s, at least 0: how many mean steps ahead. A hyper-parameter, as the next.
        step_decay: β, in [0, 1).

    State: the transform's under its name; under `"ema_nesterov"`, `step_avg` (e), like the parameters, and `ahead`, the s in
    force, a number for each leaf.

    Raises:
        TypeError: this is no transform.

    Source: entries of modded-nanogpt's optimization track of 2026. Neither torch nor optax has it; the look-ahead of `lookahead`
    is another.

    >>> from functional_optim import scale
    >>> tx, p = ema_nesterov(scale(-1.0), lookahead=1.0, step_decay=0.5), torch.tensor(0.0)
    >>> tx.update(torch.tensor(-1.0), tx.init_state(p), p)[0]
    tensor(1.5000)
    """
    require_transform(transform, "ema_nesterov")
    return chain(transform, _ahead(lookahead, step_decay), name="ema_nesterov")
