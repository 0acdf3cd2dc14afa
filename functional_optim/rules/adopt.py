"""ADOPT: normalise by the past second moment, then average.

    v ← g²                                          at the first step, which moves nothing
    c ← clip(g / max(√v, ε), ±(t − 1)^¼)            later, with the v of the step before
    m ← β₁ m + (1 − β₁) c
    v ← β₂ v + (1 − β₂) g²
    u ← m                                           Nesterov:  u ← β₁ m + (1 − β₁) c

Taniguchi et al. 2024, ADOPT: Modified Adam Can Converge with Any β₂ with the Optimal Rate, https://arxiv.org/abs/2411.02853

The clip is the authors' addition, on by default in their program, as here.
"""

from functional_optim.hparams import FRACTION, POSITIVE, Hparam
from functional_optim.numerics import double, sqrt, where
from functional_optim.transform import elementwise


@elementwise(
    slots=("exp_avg", "exp_avg_sq"),
    coded={"exp_avg": "signed", "exp_avg_sq": "positive"},
    hparams={"betas": Hparam((0.9, 0.9999), FRACTION), "eps": Hparam(1e-6, POSITIVE)},
)
def scale_by_adopt(hp, t, *, nesterov: bool = False, clipped: bool = True):
    """Divide the gradient by the root of the average square of the gradients before it, then take the average.

    As a gradient never meets itself in the denominator, the method converges whatever β₂. The first update is 0.

    Args:
        betas: decay of m and of v per step, each in [0, 1).
        eps: greater than 0, in units of |g|: the least denominator.
        nesterov: return the average looked ahead, `β₁ m + (1 − β₁) c`, instead of m.
        clipped: limit the normalised gradient to ±k^¼, k = 1, 2, … counting the updates that move something.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v), like the parameters.

    Source: Taniguchi et al. 2024, https://arxiv.org/abs/2411.02853. As `optax.contrib.scale_by_adopt`; torch has no counterpart.
    """
    b1, b2 = hp["betas"]
    b1, b2 = where(t == 1, 1.0, b1), where(t == 1, 0.0, b2)
    bound, least = double(t - 1) ** 0.25, where(t == 1, 1.0, hp["eps"])

    def rule(g, p, m, v):
        c = g / sqrt(v).clamp(min=least)
        c = c.clamp(-bound, bound) if clipped else c
        m = b1 * m + (1 - b1) * c
        v = b2 * v + (1 - b2) * g * g
        return b1 * m + (1 - b1) * c if nesterov else m, m, v

    return rule
