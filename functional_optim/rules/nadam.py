"""NAdam: Adam with Nesterov's momentum, which warms up.

    μₜ = β₁ (1 − ½ · 0.96^(t ψ))        Π ← Π μₜ, from 1
    m ← β₁ m + (1 − β₁) g
    v ← β₂ v + (1 − β₂) g²
    m̂ ← μₜ₊₁ m / (1 − Π μₜ₊₁) + (1 − μₜ) g / (1 − Π)
    u ← m̂ / (√v̂ + ε)

Dozat 2016, Incorporating Nesterov Momentum into Adam, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ

Here, as in torch, m decays by β₁ and not by μₜ.
"""

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.lifting import OneNumber
from functional_optim.numerics import bias_correction, double, sqrt
from functional_optim.transform import numbered


@numbered(
    slots=("exp_avg", "exp_avg_sq"),
    coded={"exp_avg": "signed", "exp_avg_sq": "positive"},
    own={"mu_product": OneNumber(lambda hp: 1.0)},
    hparams={
        "betas": Hparam((0.9, 0.999), FRACTION),
        "eps": Hparam(1e-8, NON_NEGATIVE),
        "momentum_decay": Hparam(4e-3, NON_NEGATIVE),
    },
)
def scale_by_nadam(hp, t, numbers):
    """Adam's update, its momentum looked ahead: `u = m̂ / (√v̂ + ε)`, m̂ a mix of the next momentum and the gradient.

    Args:
        betas: decay of m and of v per step, each in [0, 1).
        eps: at least 0, in units of |g|.
        momentum_decay: ψ, at least 0: how fast μ rises from β₁/2 to β₁, by 4 % of what is left per 1/ψ steps.
        state_dtype: dtype of the slots like the parameters, or a codec; theirs by default.

    State: `step` () int64; `mu_product` (Π), a () float64 for each leaf; `exp_avg` (m), `exp_avg_sq` (v), like the parameters.

    Source: Dozat 2016. Retraces `torch.optim.NAdam`. `optax.nadam` has no warm-up: that is a huge ψ, such as 1e6.

    >>> import torch
    >>> tx = scale_by_nadam(momentum_decay=1e6)
    >>> tx.update(torch.tensor([3.0, -0.1]), tx.init_state(torch.zeros(2)))[0]
    tensor([ 1.4737, -1.4737])
    """
    b1, b2 = hp["betas"]
    c2 = bias_correction(b2, t)
    mu, mu_next = (b1 * (1 - 0.5 * 0.96 ** (double(step) * hp["momentum_decay"])) for step in (t, t + 1))

    def finish(sums):
        return {"mu_product": numbers["mu_product"] * mu}

    def rule(new, g, p, m, v):
        product = new["mu_product"]
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        ahead = mu_next / (1 - product * mu_next) * m + (1 - mu) / (1 - product) * g
        return ahead / (sqrt(v / c2) + hp["eps"]), m, v

    return None, finish, rule
