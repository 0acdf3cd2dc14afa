"""LaProp: normalise first, then average.

    v ← β₂ v + (1 − β₂) g²
    m ← β₁ m + (1 − β₁) g / (√(v / (1 − β₂ᵗ)) + ε)
    u ← m / (1 − β₁ᵗ)

Ziyin, Wang & Ueda 2020, LaProp: Separating Momentum and Adaptivity in Adam, https://arxiv.org/abs/2002.04839
"""

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import bias_correction, sqrt
from functional_optim.transform import elementwise


@elementwise(
    slots=("exp_avg", "exp_avg_sq"),
    coded={"exp_avg": "signed", "exp_avg_sq": "positive"},
    hparams={"betas": Hparam((0.9, 0.999), FRACTION), "eps": Hparam(1e-15, NON_NEGATIVE)},
)
def scale_by_laprop(hp, t):
    """The average of normalised gradients, where Adam normalises the average: bounded whatever the two betas.

    Args:
        betas: decay of m and of v per step, each in [0, 1); β₁ may exceed β₂.
        eps: at least 0, in units of |g|.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v), like the parameters.

    Source: Ziyin et al. 2020, https://arxiv.org/abs/2002.04839. The authors' program keeps the learning rate inside m, which
    differs where the rate changes; this is the paper's. For its decay, see `laprop`. Neither torch nor optax has a counterpart.
    """
    b1, b2 = hp["betas"]
    c1, c2 = bias_correction(b1, t), bias_correction(b2, t)

    def rule(g, p, m, v):
        v = b2 * v + (1 - b2) * g * g
        m = b1 * m + (1 - b1) * g / (sqrt(v / c2) + hp["eps"])
        return m / c1, m, v

    return rule
