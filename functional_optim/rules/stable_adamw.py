"""StableAdamW: AdamW whose step is clipped, tensor by tensor, where the second moment is out of date.

    m ← β₁ m + (1 − β₁) g,   m̂ ← m / (1 − β₁ᵗ)
    v ← β₂ v + (1 − β₂) g²,  v̂ ← v / (1 − β₂ᵗ)
    r ← max(1, √mean(g² / max(v̂, ε²)))            the mean over one tensor
    u ← (m̂ / (√v̂ + ε) + λ p) / r

Wortsman et al. 2023, Stable and low-precision training for large-scale vision-language models, https://arxiv.org/abs/2304.13013

The clip is Adafactor's (Shazeer & Stern 2018). As in the paper, it divides the learning rate, so it scales the decay as well.
"""

from functional_optim.hparams import FRACTION, NON_NEGATIVE, POSITIVE, Hparam
from functional_optim.numerics import bias_correction, sqrt
from functional_optim.transform import numbered


@numbered(
    slots=("exp_avg", "exp_avg_sq"),
    coded={"exp_avg": "signed", "exp_avg_sq": "positive"},
    hparams={
        "betas": Hparam((0.9, 0.99), FRACTION),
        "eps": Hparam(1e-6, POSITIVE),
        "weight_decay": Hparam(1e-2, NON_NEGATIVE),
    },
)
def scale_by_stable_adamw(hp, t, numbers):
    """AdamW's step, decay included, divided by how far the gradient's size exceeds what the second moment expects.

    Args:
        betas: decay of m and of v per step, each in [0, 1).
        eps: greater than 0, in units of |g|.
        weight_decay: λ, at least 0.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v), like the parameters.

    Raises:
        ValueError: `update` was called without params.

    Source: Wortsman et al. 2023, https://arxiv.org/abs/2304.13013, who write the bias correction into the betas: the same
    numbers. Neither torch nor optax has a counterpart.
    """
    b1, b2 = hp["betas"]
    c1, c2 = bias_correction(b1, t), bias_correction(b2, t)

    def moment(g, v):
        return b2 * v + (1 - b2) * g * g

    def terms(g, p, m, v):
        return g * g / (moment(g, v) / c2).clamp(min=hp["eps"] ** 2)

    def finish(sums):
        return {"excess": sqrt(sums.own[0] / sums.size).clamp(min=1.0)}

    def rule(new, g, p, m, v):
        m, v = b1 * m + (1 - b1) * g, moment(g, v)
        return (m / c1 / (sqrt(v / c2) + hp["eps"]) + hp["weight_decay"] * p) / new["excess"], m, v

    return terms, finish, rule
