"""MoMo-Adam: the step length from a model of the loss, for Adam; the algorithm, with its letters, is in `momo.py`.

Schaipp et al. 2023, MoMo: Momentum Models for Adaptive Learning Rates, https://arxiv.org/abs/2305.07583
"""

from functional_optim.hparams import ANY, FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import bias_correction, sqrt
from functional_optim.rules.momo_model import MODEL, model, products, way
from functional_optim.transform import numbered


@numbered(
    slots=("exp_avg", "exp_avg_sq"),
    coded={"exp_avg": "signed", "exp_avg_sq": "positive"},
    hparams={
        "lr": Hparam(1e-2, "[0, inf]"),
        "betas": Hparam((0.9, 0.999), FRACTION),
        "eps": Hparam(1e-8, NON_NEGATIVE),
        "weight_decay": Hparam(0.0, NON_NEGATIVE),
        "lower_bound": Hparam(0.0, ANY),
    },
    shared=MODEL,
    each=(),
    extra=("value",),
)
def momo_adam(hp, t, numbers, *, adapt_lower_bound: bool = False):
    """Adam whose step length adapts to the loss: `momo` in the metric of Adam's denominator.

    Args:
        lr: η, the largest step length, at least 0; infinity for none.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay, lower_bound, adapt_lower_bound: as for `momo`.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v); `mean_value`, `mean_product`, `lower_bound_estimate`, () float64.

    Source: Schaipp et al. 2023, https://arxiv.org/abs/2305.07583, and the authors' program (its `divide=True`).
    `optax.contrib.momo_adam` is this without a decay, as with `momo`.
    """
    b1, b2 = hp["betas"]
    c1, c2 = bias_correction(b1, t), bias_correction(b2, t)

    def averages(g, m, v):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        return m, v, m / (sqrt(v / c2) + hp["eps"])

    def terms(g, p, m, v):
        m, v, direction = averages(g, m, v)
        return products(g, p, m, direction)

    def finish(sums):
        return model(hp, b1, c1, sums, numbers, adapt_lower_bound)

    def rule(new, g, p, m, v):
        m, v, direction = averages(g, m, v)
        return way(hp, new["tau"], direction, p), m, v

    return terms, finish, rule
