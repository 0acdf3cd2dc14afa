"""AdEMAMix: Adam with a second, much slower average of the gradient.

    m₁ ← β₁ m₁ + (1 − β₁) g
    m₂ ← β₃ m₂ + (1 − β₃) g                       not corrected: it fills slowly
    v  ← β₂ v + (1 − β₂) g²
    u  ← (m₁ / (1 − β₁ᵗ) + α m₂) / (√(v / (1 − β₂ᵗ)) + ε)

    With warm-up over T steps, a = min(t / T, 1):  α is a α,  and 1/ln β₃ is (1 − a)/ln β₁ + a/ln β₃

Pagliardini, Ablin & Grangier 2024, The AdEMAMix Optimizer: Better, Faster, Older, https://arxiv.org/abs/2409.03137

The warm-up of β₃ makes the average's half-life grow linearly from that of β₁.
"""

import math

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam, plain, require_count, validate_number
from functional_optim.numerics import bias_correction, double, log, sqrt, where
from functional_optim.transform import elementwise

HPARAMS = {
    "betas": Hparam((0.9, 0.999, 0.9999), FRACTION),
    "alpha": Hparam(5.0, NON_NEGATIVE),
    "eps": Hparam(1e-8, NON_NEGATIVE),
}


@elementwise(
    slots=("exp_avg_fast", "exp_avg_slow", "exp_avg_sq"),
    coded={"exp_avg_fast": "signed", "exp_avg_slow": "signed", "exp_avg_sq": "positive"},
    hparams=HPARAMS,
)
def scale_by_ademamix(hp, t, *, alpha_warmup: int | None = None, beta3_warmup: int | None = None):
    """Adam's step with a slow average beside the fast one: `u = (m̂₁ + α m₂) / (√v̂ + ε)`.

    Args:
        betas: decay of m₁, v and m₂ per step, each in [0, 1).
        alpha: α, the weight of the slow average, at least 0; with 0 this is `scale_by_adam`.
        eps: at least 0, in units of |g|.
        alpha_warmup: in how many steps α rises from 0; None for at once. The paper takes the length of the run, for this and for
            `beta3_warmup`: without it, early steps may diverge.
        beta3_warmup: in how many steps β₃ rises from β₁, its half-life linearly; None for at once.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg_fast` (m₁), `exp_avg_slow` (m₂), `exp_avg_sq` (v), like the parameters.

    Source: Pagliardini et al. 2024, https://arxiv.org/abs/2409.03137. As `optax.contrib.scale_by_ademamix`, whose α is 6 by
    default here and 5 in `ademamix`, and whose warm-ups are schedules that the caller writes. torch has no counterpart.
    """
    b1, b2, b3 = hp["betas"]
    alpha, c1, c2 = hp["alpha"], bias_correction(b1, t), bias_correction(b2, t)
    if alpha_warmup is not None:
        alpha = alpha * _share(t, alpha_warmup)
    if beta3_warmup is not None:
        b3 = _lengthened(b1, b3, _share(t, beta3_warmup))

    def rule(g, p, m1, m2, v):
        m1 = b1 * m1 + (1 - b1) * g
        m2 = b3 * m2 + (1 - b3) * g
        v = b2 * v + (1 - b2) * g * g
        return (m1 / c1 + alpha * m2) / (sqrt(v / c2) + hp["eps"]), m1, m2, v

    return rule


def _share(t, steps):
    """How much of a warm-up is over."""
    steps = require_count("warm-up", steps, 0)
    return where(t < steps, double(t) / max(steps, 1), 1.0)


def _lengthened(start, end, a):
    """The decay per step whose half-life is so far on the way from that of one to that of another."""
    return math.e ** (1 / ((1 - a) / log(double(start)) + a / log(double(end))))


@elementwise(
    slots=("exp_avg", "exp_avg_sq"),
    coded={"exp_avg": "signed", "exp_avg_sq": "positive"},
    hparams={
        "betas": Hparam((0.99, 0.95), FRACTION),
        "alpha": Hparam(0.0, NON_NEGATIVE),
        "eps": Hparam(1e-8, NON_NEGATIVE),
    },
)
def scale_by_simplified_ademamix(hp, t, *, beta1_warmup: int | None = None, min_beta1: float = 0.9):
    """One long accumulation of gradients, and the present one beside it: `m ← β₁ m + g`, `u = (m + α g) / (√v̂ + ε)`.

    The sum m grows to 1 / (1 − β₁) times a steady gradient: take a learning rate as many times smaller than Adam's.

    Args:
        betas: decay of m and of v per step, each in [0, 1).
        alpha: α, the weight of the present gradient, at least 0.
        eps: at least 0, in units of |g|.
        beta1_warmup: in how many steps β₁ rises from `min_beta1`, its half-life linearly; None for at once. The authors take the
            length of the run.
        min_beta1: where that begins, in (0, 1).
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v), like the parameters.

    Source: Morwani et al. 2025, Connections between Schedule-Free Optimizers, AdEMAMix, and Accelerated SGD Variants,
    https://arxiv.org/abs/2502.02431, and the authors' program for the warm-up, where 10⁻⁸ is added to each β₁.
    `optax.contrib.scale_by_simplified_ademamix` has none; torch has no counterpart.
    """
    validate_number("min_beta1", min_beta1, "(0, 1)")
    b1, b2 = hp["betas"]
    if beta1_warmup is not None:
        b1 = _lengthened(plain(min_beta1), b1, _share(t, beta1_warmup))
    c2 = bias_correction(b2, t)

    def rule(g, p, m, v):
        m = b1 * m + g
        v = b2 * v + (1 - b2) * g * g
        return (m + hp["alpha"] * g) / (sqrt(v / c2) + hp["eps"]), m, v

    return rule
