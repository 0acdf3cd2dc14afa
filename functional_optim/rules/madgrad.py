"""MADGRAD: dual averaging with a cube root and momentum.

    λ ← (η + ε) √t
    s ← s + λ g
    ν ← ν + λ g²
    z ← x₀ − s / (∛ν + ε)
    p ← μ p + (1 − μ) z

Defazio & Jelassi 2022, Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method for Stochastic
Optimization, https://arxiv.org/abs/2101.11075

ε is added to the learning rate as well, as in the authors' program. ∛ has slope 0 at 0.
"""

from functional_optim.hparams import FRACTION, NON_NEGATIVE, POSITIVE, Hparam
from functional_optim.lifting import copied, zeros
from functional_optim.numerics import cbrt, double
from functional_optim.transform import elementwise


@elementwise(
    slots={"grad_sum_sq": zeros, "s": zeros, "x0": copied},
    hparams={"lr": Hparam(1e-2, NON_NEGATIVE), "momentum": Hparam(0.9, FRACTION), "eps": Hparam(1e-6, POSITIVE)},
)
def scale_by_madgrad(hp, t):
    """Move towards `x₀ − s / (∛ν + ε)`, where s and ν are the weighted sums of all gradients and of their squares.

    The update holds the learning rate and the sign: no `scale_by_learning_rate` follows.

    Args:
        lr: η, at least 0.
        momentum: μ, in [0, 1).
        eps: greater than 0, in units of ∛(lr · g²).
        state_dtype: dtype of the slots; the parameter's by default.

    State: `step` () int64; `grad_sum_sq` (ν), `s` and the starting point `x0`, like the parameters.

    Raises:
        ValueError: `update` was called without params.

    Source: Defazio & Jelassi 2022, https://arxiv.org/abs/2101.11075. As `optax.contrib.scale_by_madgrad`; torch has no
    counterpart.
    """
    weight = (hp["lr"] + hp["eps"]) * double(t) ** 0.5
    mu = hp["momentum"]

    def rule(g, p, v, s, x0):
        v = v + weight * g * g
        s = s + weight * g
        z = x0 - s / (cbrt(v) + hp["eps"])
        return (1 - mu) * (z - p), v, s, x0

    return rule
