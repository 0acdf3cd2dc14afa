"""Prodigy: Adam whose learning rate is an estimate of the distance to the solution.

    e ← d η κ                                      κ = √(1 − β₂ᵗ) / (1 − β₁ᵗ) with bias correction, else 1
    r ← √β₂ r + d/d₀ ⟨e g, x₀ − p⟩                 ⟨·,·⟩ and |·|₁ over all parameters with η > 0
    s ← √β₂ s + d/d₀ · e g
    m ← β₁ m + (1 − β₁) d g
    v ← β₂ v + (1 − β₂) d² g²
    d' ← max(d, c r / |s|₁)
    u ← d κ (m / (√v + d' ε) + λ p),  d ← d'       before the factor −η

Mishchenko & Defazio 2023, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, https://arxiv.org/abs/2306.06101
"""

import torch

from functional_optim.hparams import FRACTION, NON_NEGATIVE, POSITIVE, Hparam
from functional_optim.lifting import copied, zeros
from functional_optim.numerics import bias_correction, double, either, sqrt
from functional_optim.rules.d_adaptation import agree, size
from functional_optim.transform import numbered


@numbered(
    slots={"exp_avg": zeros, "exp_avg_sq": zeros, "s": zeros, "p0": copied},
    coded={"exp_avg": "signed", "exp_avg_sq": "positive"},
    shared={"d": lambda hp: hp["d0"], "d_numerator": 0.0},
    hparams={
        "lr": Hparam(1.0, NON_NEGATIVE),
        "betas": Hparam((0.9, 0.999), FRACTION),
        "eps": Hparam(1e-8, NON_NEGATIVE),
        "weight_decay": Hparam(0.0, NON_NEGATIVE),
        "d0": Hparam(1e-6, POSITIVE),
        "d_coef": Hparam(1.0, POSITIVE),
    },
    each=("lr", "eps", "weight_decay"),
    agree=agree,
)
def scale_by_prodigy(hp, t, numbers, *, use_bias_correction: bool = False, safeguard_warmup: bool = False):
    """Adam's step times d, a running lower bound of the distance to the solution. `scale_by_learning_rate` follows, with the same
    `lr`.

    Args:
        lr: η, at least 0; 1, times a schedule if you like: the estimate takes account of it. Parameters whose rate is 0 stay as
            they are, their slots too, and have no part in the estimate; the others' must be equal.
        betas: decay of m and of v per step, each in [0, 1); r and s decay by √β₂.
        eps: at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled.
        d0: the first d, greater than 0; it may be far too small.
        d_coef: c, greater than 0, what estimates are multiplied by: the knob to turn if the steps are too large or too small.
        use_bias_correction: correct the moments for their start at 0.
        safeguard_warmup: leave η κ out of s, so that a long warm-up does not inflate the estimate.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v), `s`, and the first parameters `p0` (x₀), like the parameters; `d` and
    `d_numerator` (r), () float64 tensors that all parameters share.

    Raises:
        ValueError: `update` was called without params, or parameters have different rates other than 0. (Rates that are tensors
            are not read: each then has a part in proportion to its own.)

    Source: Mishchenko & Defazio 2023, https://arxiv.org/abs/2306.06101, and the authors' program, whose names these are; it can
    limit the growth of d as well, and goes on to decay parameters whose rate is 0, and to move them by what they remember.
    `optax.contrib.prodigy` always corrects the bias. torch has no counterpart.
    """
    b1, b2 = hp["betas"]
    b3, d0, moves = double(b2) ** 0.5, hp["d0"], hp["lr"] > 0
    correction = bias_correction(b2, t) ** 0.5 / bias_correction(b1, t) if use_bias_correction else 1.0

    d, r = numbers["d"], numbers["d_numerator"]
    e = d * hp["lr"] * correction
    rate = d if safeguard_warmup else e

    def weighted(g, s):
        return either(moves, b3 * s + d / d0 * rate * g, s)

    def terms(g, p, m, v, s, p0):
        return e * g * (p0 - p), size(moves, weighted(g, s))

    def finish(sums):
        product, total = sums.all
        numerator = b3 * r + d / d0 * product
        still = total == 0
        estimate = hp["d_coef"] * numerator / torch.where(still, 1.0, total)
        new_d = torch.where(still, d, torch.maximum(d, estimate))
        return {"d": new_d, "d_numerator": torch.where(still, r, numerator)}

    def rule(new, g, p, m, v, s, p0):
        m = either(moves, b1 * m + (1 - b1) * d * g, m)
        v = either(moves, b2 * v + (1 - b2) * d * d * g * g, v)
        u = d * correction * (m / (sqrt(v) + new["d"] * hp["eps"]) + hp["weight_decay"] * p)
        return u, m, v, weighted(g, s), p0

    return terms, finish, rule
