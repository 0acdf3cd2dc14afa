"""Averaged stochastic gradient descent: decaying steps, and the average of the points that they reach.

    u ← η (g + λ p)                      η from η₀
    η ← η₀ / (1 + λ η₀ t)^α
    p ← p − u
    a ← a + μ (p − a)                    μ from 1
    μ ← 1 / max(1, t − t₀)

Polyak & Juditsky 1992, Acceleration of Stochastic Approximation by Averaging, https://doi.org/10.1137/0330046
The schedule of η: Bottou's sgd, https://leon.bottou.org/projects/sgd, and Xu 2011, https://arxiv.org/abs/1107.2490

η and μ are those that the last step left behind, as in torch: a new learning rate takes hold one step late.
"""

import torch
from torch import Tensor

from functional_optim.hparams import ANY, NON_NEGATIVE, Hparam
from functional_optim.lifting import OneNumber
from functional_optim.numerics import double, where
from functional_optim.transform import numbered


@numbered(
    own={"eta": OneNumber(lambda hp: hp["lr"])},
    hparams={"lr": Hparam(1e-2, NON_NEGATIVE), "lambd": Hparam(1e-4, NON_NEGATIVE), "alpha": Hparam(0.75, ANY)},
)
def scale_by_asgd(hp, t, numbers):
    """Scale by a step size that decays as a power of time, after adding a decay of the parameter: `u = η (g + λ p)`.

    The result is a step, in units of the parameter: end the chain with `negate`, not with a learning rate.

    Args:
        lr: η₀, the first step size, at least 0.
        lambd: λ, at least 0; 1 / (λ η₀) steps is when the decay of η sets in.
        alpha: the power.

    State: `step` () int64; `eta` (η), a () float64 for each leaf.

    Raises:
        ValueError: `update` was called without params.

    Source: Xu 2011, https://arxiv.org/abs/1107.2490. The first half of `torch.optim.ASGD`.
    """
    lr, lambd = hp["lr"], hp["lambd"]
    later = lr / (1 + lambd * lr * double(t)) ** hp["alpha"]

    def finish(sums):
        return {"eta": later * torch.ones_like(numbers["eta"])}

    def rule(new, g, p):
        return numbers["eta"] * (g + lambd * p)

    return None, finish, rule


def _averaged(p: Tensor, a: Tensor, mu: Tensor) -> Tensor:
    """The average; before the first step, and until it starts, the parameter."""
    return torch.where(mu == 1, p, a)


@numbered(slots=("ax",), own={"mu": OneNumber(lambda hp: 1.0)}, hparams={"t0": Hparam(1e6, ANY)}, evaluated_at=_averaged)
def average_iterates(hp, t, numbers):
    """Keep the average of the parameters from step `t0` on, in the state; updates pass unchanged. The last link of a chain.

    Until then, `ax` is the parameter itself. `evaluated(transform, state, params)` takes it for evaluation.

    Args:
        t0: the step at which the average starts.
        state_dtype: dtype of `ax`; the parameter's by default.

    State: `step` () int64; `mu` (μ), a () float64 for each leaf, the weight of the next point; `ax` (a), like the parameters.

    Raises:
        ValueError: `update` was called without params.

    Source: Polyak & Juditsky 1992, https://doi.org/10.1137/0330046. The second half of `torch.optim.ASGD`.

    >>> import torch
    >>> tx, p = average_iterates(t0=0.0), torch.tensor(1.0)
    >>> state = tx.init_state(p)
    >>> for _ in range(3):
    ...     update, state = tx.update(torch.tensor(1.0), state, p)
    ...     p = p + update
    >>> state["ax"]
    tensor(3.5000)
    """
    ahead = double(t) - hp["t0"]
    later = 1 / where(ahead > 1, ahead, 1.0)

    mu = numbers["mu"]

    def finish(sums):
        return {"mu": later * torch.ones_like(mu)}

    def rule(new, u, p, a):
        return u, (1 - mu) * a + mu * (p + u)

    return None, finish, rule
