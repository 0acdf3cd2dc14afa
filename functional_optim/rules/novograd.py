"""NovoGrad: momentum of gradients that are normalised layer by layer.

    v ← ‖g‖²                         at the first step
    v ← β₂ v + (1 − β₂) ‖g‖²         later; one number per tensor
    m ← β₁ m + g / (√v + ε) + λ p
    u ← m

Ginsburg et al. 2019, Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep Networks,
https://arxiv.org/abs/1905.11286
"""

import torch

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import sqrt, where
from functional_optim.transform import numbered


def _one_number(p, hp):
    return torch.zeros((), dtype=p.dtype.to_real(), device=p.device)


@numbered(
    slots=("exp_avg",),
    coded={"exp_avg": "signed"},
    own={"exp_avg_sq": _one_number},
    hparams={
        "betas": Hparam((0.9, 0.25), FRACTION),
        "eps": Hparam(1e-8, NON_NEGATIVE),
        "weight_decay": Hparam(0.0, NON_NEGATIVE),
    },
)
def scale_by_novograd(hp, t, numbers):
    """Accumulate each tensor's gradient, divided by its average norm, with momentum: `m ← β₁ m + g / (√v + ε) + λ p`.

    Args:
        betas: decay of m and of v, each in [0, 1).
        eps: at least 0, in units of ‖g‖.
        weight_decay: λ, at least 0; it is part of what momentum accumulates.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), like the parameters; `exp_avg_sq` (v), () for each of them.

    Raises:
        ValueError: `update` was called without params.

    Source: Ginsburg et al. 2019, https://arxiv.org/abs/1905.11286. As `optax.scale_by_novograd`, but for the slope of √ at 0.
    """
    b1, b2 = hp["betas"]
    share = where(t == 1, 1.0, 1 - b2)

    def terms(g, p, m):
        return g * g

    def finish(sums):
        v = b2 * numbers["exp_avg_sq"] + share * sums.own[0]
        return {"exp_avg_sq": v, "size": sqrt(v) + hp["eps"]}

    def rule(new, g, p, m):
        m = b1 * m + g / new["size"] + hp["weight_decay"] * p
        return m, m

    return terms, finish, rule
