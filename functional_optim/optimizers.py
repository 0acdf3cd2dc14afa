"""Whole optimizers: each a sentence made of `chain`. A link whose number is None is left out."""

import torch

from functional_optim.combinators.chain import chain
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.momentum import trace
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.transform import Transform


def sgd(
    lr: float = 1e-3,
    momentum: float | None = None,
    dampening: float = 0.0,
    weight_decay: float | None = None,
    *,
    nesterov: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Stochastic gradient descent: `p ← p − η m`, with `m ← μ m + (1 − τ)(g + λ p)`.

    Args:
        lr: η, at least 0.
        momentum: μ, at least 0; None for plain descent, without a slot and without the hyper-parameters `momentum`, `dampening`.
        dampening: τ, see `trace`.
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        nesterov: look ahead, see `trace`; needs a momentum and, as in torch, no dampening.
        state_dtype: dtype of the slot; the parameter's by default.

    Raises:
        ValueError: a number out of range, dampening without momentum, or Nesterov without momentum or with dampening.

    Retraces `torch.optim.SGD`. `optax.sgd` has neither dampening nor decay.
    """
    if momentum is None and dampening != 0:
        raise ValueError(f"dampening={dampening} needs a momentum: there is nothing to dampen without one.")
    if nesterov and (momentum is None or dampening != 0):
        raise ValueError(
            f"nesterov=True needs a momentum and dampening=0, but got momentum={momentum} and dampening={dampening}."
        )
    links = [
        *([] if weight_decay is None else [add_decayed_weights(weight_decay)]),
        *([] if momentum is None else [trace(momentum, dampening, nesterov=nesterov, state_dtype=state_dtype)]),
        scale_by_learning_rate(lr),
    ]
    return chain(*links, name="sgd")


def adam(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    amsgrad: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Adam: `p ← p − η m̂ / (√v̂ + ε)`; see `scale_by_adam`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, as L2 regularisation (`g + λ p` before the moments); None for none, and no such
            hyper-parameter. Usually `adamw` is what you want.
        amsgrad: divide by the largest second moment so far.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Kingma & Ba 2015, https://arxiv.org/abs/1412.6980. Retraces `torch.optim.Adam`. `optax.adam` is this without decay.
    """
    links = [
        *([] if weight_decay is None else [add_decayed_weights(weight_decay)]),
        scale_by_adam(betas, eps, amsgrad=amsgrad, state_dtype=state_dtype),
        scale_by_learning_rate(lr),
    ]
    return chain(*links, name="adam")


def adamw(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    *,
    amsgrad: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Adam with decoupled weight decay: `p ← p − η (m̂ / (√v̂ + ε) + λ p)`.

    Args:
        lr: η, at least 0; it scales the decay too.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0.
        amsgrad: divide by the largest second moment so far.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101. Retraces `torch.optim.AdamW`;
    `optax.adamw` has the default weight_decay 1e-4.

    >>> import torch
    >>> tx = adamw(lr=0.1, weight_decay=0.0)
    >>> params = torch.tensor([1.0, 1.0])
    >>> updates, state = tx.update(torch.tensor([5.0, 0.0]), tx.init_state(params), params, {"lr": 0.5})
    >>> updates
    tensor([-0.5000, -0.0000])
    """
    return chain(
        scale_by_adam(betas, eps, amsgrad=amsgrad, state_dtype=state_dtype),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
        name="adamw",
    )
