"""Adan: adaptive moments with Nesterov's momentum, by way of the differences of gradients.

    δ ← g − g₋₁                     0 at the first step
    m ← β₁ m + (1 − β₁) g
    d ← β₂ d + (1 − β₂) δ
    n ← β₃ n + (1 − β₃) (g + β₂ δ)²
    u ← (m̂ + β₂ d̂) / (√n̂ + ε)       with m̂ = m / (1 − β₁ᵗ), and so on

Xie, Zhou, Li, Lin & Yan 2022, Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models,
https://arxiv.org/abs/2208.06677

The paper's βᵢ are 1 − βᵢ here, as in its authors' program, https://github.com/sail-sg/Adan, which also adds the bias corrections.
"""

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import bias_correction, sqrt, where
from functional_optim.transform import elementwise


@elementwise(
    slots=("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad"),
    coded={"exp_avg": "signed", "exp_avg_diff": "signed", "exp_avg_sq": "positive"},
    hparams={"betas": Hparam((0.98, 0.92, 0.99), FRACTION), "eps": Hparam(1e-8, NON_NEGATIVE)},
)
def scale_by_adan(hp, t):
    """Divide averages of the gradient and of its change by a root mean square: `u = (m̂ + β₂ d̂) / (√n̂ + ε)`.

    Args:
        betas: decay of m, of the average difference d and of the average square n, each in [0, 1).
        eps: at least 0, in units of |g|.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_diff` (d), `exp_avg_sq` (n), `previous_grad`, like the parameters.

    Source: Xie et al. 2022, https://arxiv.org/abs/2208.06677. Differs from `optax.scale_by_adan`, which weighs the differences
    by `1 − b2` where the paper and its program have what is b2 there: 0.08 instead of 0.92 by default. With b2 = 0.5 they agree.
    """
    b1, b2, b3 = hp["betas"]
    c1, c2, c3 = (bias_correction(b, t) for b in (b1, b2, b3))
    later = where(t == 1, 0.0, 1.0)

    def rule(g, p, m, d, n, old):
        change = later * (g - old)
        ahead = g + b2 * change
        m = b1 * m + (1 - b1) * g
        d = b2 * d + (1 - b2) * change
        n = b3 * n + (1 - b3) * ahead * ahead
        return (m / c1 + b2 * d / c2) / (sqrt(n / c3) + hp["eps"]), m, d, n, g

    return rule
