"""Adam-atan2: Adam with an arctangent in the place of the division, and no ε.

    m ← β₁ m + (1 − β₁) g
    v ← β₂ v + (1 − β₂) g²
    u ← a · atan2(m / (1 − β₁ᵗ), b √(v / (1 − β₂ᵗ)))

Everett et al. 2024, Scaling Exponents Across Parameterizations and Optimizers, https://arxiv.org/abs/2407.05872

At a gradient that was 0 from the start, the slope of u is 0, as that of √ is.
"""

from functional_optim.hparams import FRACTION, POSITIVE, Hparam
from functional_optim.numerics import atan2, bias_correction, sqrt
from functional_optim.transform import elementwise


@elementwise(
    slots=("exp_avg", "exp_avg_sq"),
    coded={"exp_avg": "signed", "exp_avg_sq": "positive"},
    hparams={"betas": Hparam((0.9, 0.999), FRACTION), "a": Hparam(1.27, POSITIVE), "b": Hparam(1.0, POSITIVE)},
)
def scale_by_adam_atan2(hp, t):
    """Adam's step without an ε: `u = a · atan2(m̂, b √v̂)`, the same for gradients of any scale, and at most a π/2.

    Args:
        betas: decay of m and of v per step, each in [0, 1).
        a: greater than 0; 1.27 ≈ 4/π makes the step of a steady gradient 1, as Adam's is.
        b: greater than 0: a larger one makes the step more like a/b · m̂ / √v̂, and less bounded.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v), like the parameters.

    Source: Everett et al. 2024, https://arxiv.org/abs/2407.05872. Neither torch nor optax has a counterpart.
    """
    b1, b2 = hp["betas"]
    c1, c2 = bias_correction(b1, t), bias_correction(b2, t)

    def rule(g, p, m, v):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        return hp["a"] * atan2(m / c1, hp["b"] * sqrt(v / c2)), m, v

    return rule
