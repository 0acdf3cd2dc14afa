"""D-Adaptation of Adam: its learning rate is an estimate of the distance to the solution.

    e ← d η κ                                      κ = √(1 − β₂ᵗ) / (1 − β₁ᵗ) with bias correction, else 1
    r ← √β₂ r + (1 − √β₂) e ⟨g, s / (√v + ε)⟩      ⟨·,·⟩ and |·|₁ over all parameters
    m ← β₁ m + (1 − β₁) e g
    v ← β₂ v + (1 − β₂) g²
    s ← √β₂ s + (1 − √β₂) e g
    u ← −m / (√v + ε) − λ e p
    d ← max(d, r / ((1 − √β₂) |s|₁))

Defazio & Mishchenko 2023, Learning-Rate-Free Learning by D-Adaptation, https://arxiv.org/abs/2301.07733
"""

import torch

from functional_optim.hparams import FRACTION, NON_NEGATIVE, POSITIVE, Hparam
from functional_optim.numerics import bias_correction, double, inner_product, sqrt
from functional_optim.transform import whole_tree


@whole_tree(
    slots=("exp_avg", "exp_avg_sq", "s"),
    shared={"d": lambda hp: hp["d0"], "numerator_weighted": 0.0},
    hparams={
        "lr": Hparam(1.0, NON_NEGATIVE),
        "betas": Hparam((0.9, 0.999), FRACTION),
        "eps": Hparam(1e-8, POSITIVE),
        "weight_decay": Hparam(0.0, NON_NEGATIVE),
        "d0": Hparam(1e-6, POSITIVE),
    },
)
def scale_by_d_adaptation(hp, t, *, use_bias_correction: bool = False):
    """Adam's step times d, a running lower bound of the distance to the solution, in the ∞-norm.

    The learning rate is part of the average m, so the update holds it, and the sign: no `scale_by_learning_rate` follows.

    Args:
        lr: η, at least 0; 1, times a schedule if you like. One value for all parameters.
        betas: decay of m and of v per step, each in [0, 1); r and s decay by √β₂.
        eps: greater than 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled.
        d0: the first d, greater than 0; it may be far too small.
        use_bias_correction: correct the moments for their start at 0.
        state_dtype: dtype of the slots; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v) and `s`, like the parameters; `d` and `numerator_weighted` (r), ()
    float64 tensors that all parameters share.

    Raises:
        ValueError: `update` was called without params, or `lr` differs between parameters.

    Source: Defazio & Mishchenko 2023, https://arxiv.org/abs/2301.07733, and the authors' program, whose names these are; it can
    limit the growth of d as well. `optax.contrib.dadapt_adamw` always corrects the bias. torch has no counterpart.
    """
    b1, b2 = hp["betas"]
    root, eps = double(b2) ** 0.5, hp["eps"]
    correction = bias_correction(b2, t) ** 0.5 / bias_correction(b1, t) if use_bias_correction else 1.0

    def rule(gs, ps, shared, ms, vs, ss):
        dlr = shared["d"] * hp["lr"] * correction
        agreement = inner_product(gs, [s / (sqrt(v) + eps) for s, v in zip(ss, vs, strict=True)])
        numerator = root * shared["numerator_weighted"] + (1 - root) * dlr * agreement
        ms = [b1 * m + (1 - b1) * dlr * g for m, g in zip(ms, gs, strict=True)]
        vs = [b2 * v + (1 - b2) * g * g for v, g in zip(vs, gs, strict=True)]
        ss = [root * s + (1 - root) * dlr * g for s, g in zip(ss, gs, strict=True)]
        total = inner_product([s.abs() for s in ss], [torch.ones_like(s) for s in ss])
        d = torch.maximum(shared["d"], numerator / torch.where(total == 0, 1.0, (1 - root) * total))
        us = [-m / (sqrt(v) + eps) - hp["weight_decay"] * dlr * p for m, v, p in zip(ms, vs, ps, strict=True)]
        return us, {"d": d, "numerator_weighted": numerator}, ms, vs, ss

    return rule
