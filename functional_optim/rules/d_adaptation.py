"""D-Adaptation of Adam: its learning rate is an estimate of the distance to the solution.

    e ← d η κ                                      κ = √(1 − β₂ᵗ) / (1 − β₁ᵗ) with bias correction, else 1
    r ← √β₂ r + (1 − √β₂) ⟨e g, s / (√v + ε)⟩      ⟨·,·⟩ and |·|₁ over all parameters with η > 0
    m ← β₁ m + (1 − β₁) e g
    v ← β₂ v + (1 − β₂) g²
    s ← √β₂ s + (1 − √β₂) e g
    u ← −m / (√v + ε) − λ e p
    d ← max(d, r / ((1 − √β₂) |s|₁))

Defazio & Mishchenko 2023, Learning-Rate-Free Learning by D-Adaptation, https://arxiv.org/abs/2301.07733
"""

import torch

from functional_optim.hparams import FRACTION, NON_NEGATIVE, POSITIVE, Hparam
from functional_optim.numerics import bias_correction, double, either, sqrt
from functional_optim.transform import numbered


def agree(hparams):
    """One distance is estimated, for a rate that all parameters share that move at all."""
    rates = sorted({float(hp["lr"]) for hp in hparams if not isinstance(hp["lr"], torch.Tensor)} - {0.0})
    if len(rates) > 1:
        found = ", ".join(map(str, rates))
        raise ValueError(f"parameters have the learning rates {found}. They must be equal, or 0 for what is to stay as it is.")


@numbered(
    slots=("exp_avg", "exp_avg_sq", "s"),
    coded={"exp_avg": "signed", "exp_avg_sq": "positive"},
    shared={"d": lambda hp: hp["d0"], "numerator_weighted": 0.0},
    hparams={
        "lr": Hparam(1.0, NON_NEGATIVE),
        "betas": Hparam((0.9, 0.999), FRACTION),
        "eps": Hparam(1e-8, POSITIVE),
        "weight_decay": Hparam(0.0, NON_NEGATIVE),
        "d0": Hparam(1e-6, POSITIVE),
    },
    each=("lr", "eps", "weight_decay"),
    agree=agree,
)
def scale_by_d_adaptation(hp, t, numbers, *, use_bias_correction: bool = False):
    """Adam's step times d, a running lower bound of the distance to the solution, in the ∞-norm.

    The learning rate is part of the average m, so the update holds it, and the sign: no `scale_by_learning_rate` follows.

    Args:
        lr: η, at least 0; 1, times a schedule if you like. Parameters whose rate is 0 stay as they are, their slots too, and have
            no part in the estimate; the others' must be equal.
        betas: decay of m and of v per step, each in [0, 1); r and s decay by √β₂.
        eps: greater than 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled.
        d0: the first d, greater than 0; it may be far too small.
        use_bias_correction: correct the moments for their start at 0.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v) and `s`, like the parameters; `d` and `numerator_weighted` (r), ()
    float64 tensors that all parameters share.

    Raises:
        ValueError: `update` was called without params, or parameters have different rates other than 0. (Rates that are tensors
            are not read: each then has a part in proportion to its own.)

    Source: Defazio & Mishchenko 2023, https://arxiv.org/abs/2301.07733, and the authors' program, whose names these are; it can
    limit the growth of d as well, and goes on to decay parameters whose rate is 0, and to move them by what they remember.
    `optax.contrib.dadapt_adamw` always corrects the bias. torch has no counterpart.
    """
    b1, b2 = hp["betas"]
    root, moves = double(b2) ** 0.5, hp["lr"] > 0
    correction = bias_correction(b2, t) ** 0.5 / bias_correction(b1, t) if use_bias_correction else 1.0

    d, r = numbers["d"], numbers["numerator_weighted"]
    e = d * hp["lr"] * correction

    def weighted(g, s):
        return either(moves, root * s + (1 - root) * e * g, s)

    def terms(g, p, m, v, s):
        return e * g * s / (sqrt(v) + hp["eps"]), size(moves, weighted(g, s))

    def finish(sums):
        product, size = sums.all
        numerator, total = root * r + (1 - root) * product, (1 - root) * size
        still = total == 0
        estimate = torch.maximum(d, numerator / torch.where(still, 1.0, total))
        return {"d": torch.where(still, d, estimate), "numerator_weighted": torch.where(still, r, numerator)}

    def rule(new, g, p, m, v, s):
        m = either(moves, b1 * m + (1 - b1) * e * g, m)
        v = either(moves, b2 * v + (1 - b2) * g * g, v)
        u = -m / (sqrt(v) + hp["eps"]) - hp["weight_decay"] * e * p
        return either(moves, u, torch.zeros_like(m)), m, v, weighted(g, s)

    return terms, finish, rule


def size(moves, s):
    """The terms of |s|₁ over the parameters that move."""
    return either(moves, s.abs(), torch.zeros_like(s))
