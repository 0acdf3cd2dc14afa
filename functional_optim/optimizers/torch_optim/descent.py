"""torch.optim's optimizers that divide by no moment: SGD, averaged SGD, and Rprop, which steps by signs."""

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.optimizers.decays import decay
from functional_optim.recipe import recorded
from functional_optim.rules.asgd import average_iterates, scale_by_asgd
from functional_optim.rules.momentum import trace
from functional_optim.rules.rprop import scale_by_rprop
from functional_optim.rules.scale import negate, scale_by_learning_rate
from functional_optim.transform import Transform


@recorded
def sgd(
    lr: float = 1e-3,
    momentum: float | None = None,
    dampening: float = 0.0,
    weight_decay: float | None = None,
    *,
    nesterov: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Stochastic gradient descent: `p ← p − η m`, with `m ← μ m + (1 − τ)(g + λ p)`.

    Args:
        lr: η, at least 0.
        momentum: μ, at least 0; None for plain descent, without a slot and without the hyper-parameters `momentum`, `dampening`.
        dampening: τ, see `trace`.
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        nesterov: look ahead, see `trace`; needs a momentum and, as in torch, no dampening.
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

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
        *decay(weight_decay),
        *([] if momentum is None else [trace(momentum, dampening, nesterov=nesterov, state_dtype=state_dtype)]),
        scale_by_learning_rate(lr),
    ]
    return chain(*links, name="sgd")


@recorded
def rprop(
    lr: float = 1e-2,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Rprop: a step size for each element, for whole-batch gradients; see `scale_by_rprop`.

    Args:
        lr: the first step size, at least 0, read when the state is made and never again: no schedule or scheduler changes it.
        etas: its factors at a change of sign, in (0, 1), and without one, greater than 1.
        step_sizes: the smallest and the largest step size, at least 0.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Riedmiller & Braun 1993, https://doi.org/10.1109/ICNN.1993.298623. Retraces `torch.optim.Rprop`.
    """
    return chain(scale_by_rprop(lr, etas, step_sizes, state_dtype=state_dtype), negate(), name="rprop")


@recorded
def asgd(
    lr: float = 1e-2,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Averaged stochastic gradient descent; see `scale_by_asgd` and `average_iterates`.

    Args:
        lr: η₀, the first step size, at least 0.
        lambd: λ, the decay of parameters and of the step size, at least 0.
        alpha: the power of the decay of the step size.
        t0: the step at which the average starts.
        weight_decay: another λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        state_dtype: dtype of the average; the parameter's by default.

    Source: Polyak & Juditsky 1992, https://doi.org/10.1137/0330046. Retraces `torch.optim.ASGD`; optax has none.
    """
    links = [
        *decay(weight_decay),
        scale_by_asgd(lr, lambd, alpha),
        negate(),
        average_iterates(t0, state_dtype=state_dtype),
    ]
    return chain(*links, name="asgd")
