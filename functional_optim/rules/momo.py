"""MoMo: the step length from a model of the loss, for momentum and for Adam.

    m ← β m + (1 − β) g        f̄ ← β f̄ + (1 − β) f        γ ← β γ + (1 − β) ⟨g, p⟩        averages with one β
    D = 1, or √v̂ + ε (Adam)    ρ = 1, or 1 − βᵗ (Adam)
    τ = min(η / ρ, max(0, (1 + η λ)(f̄ − ρ f* − γ) + ⟨m, p⟩) / ⟨m, m / D⟩)                `momo_model.py`
    p ← (p − τ m / D) / (1 + η λ)

This minimises the averaged linear models of the loss, cut off at its lower bound f*, plus `‖x − p‖²_D / (2 η)` and, for a decay,
`λ/2 ‖x‖²_D`: η is the largest step length. All averages start at the first value (MoMo) or at 0 (MoMo-Adam).

Schaipp et al. 2023, MoMo: Momentum Models for Adaptive Learning Rates, https://arxiv.org/abs/2305.07583
"""

from functional_optim.hparams import ANY, FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import where
from functional_optim.rules.momo_model import MODEL, model, products, way
from functional_optim.transform import numbered


@numbered(
    slots=("exp_avg",),
    coded={"exp_avg": "signed"},
    hparams={
        "lr": Hparam(1.0, "[0, inf]"),
        "momentum": Hparam(0.9, FRACTION),
        "weight_decay": Hparam(0.0, NON_NEGATIVE),
        "lower_bound": Hparam(0.0, ANY),
    },
    shared=MODEL,
    each=(),
    extra=("value",),
)
def momo(hp, t, numbers, *, adapt_lower_bound: bool = False):
    """Momentum whose step length adapts to the loss: a whole optimizer, that takes its own `lr` as the largest step length.

    It needs the loss: `update(grads, state, params, value=loss)`; behind the adapter, `step(closure)` or `step(value=loss)`.

    Args:
        lr: η, the largest step length, at least 0; infinity for none.
        momentum: β, in [0, 1).
        weight_decay: λ, at least 0: part of what the step minimises.
        lower_bound: f*, below which the loss can't go.
        adapt_lower_bound: estimate f* while training; `lower_bound` is then what the estimate stays above.

    State: `step` () int64; `exp_avg` (m); `mean_value` (f̄), `mean_product` (γ), `lower_bound_estimate` (f*), () float64.

    Source: Schaipp et al. 2023, https://arxiv.org/abs/2305.07583, and the authors' program. `optax.contrib.momo` is this without
    a decay; with one, it forgets to divide the step, too, by 1 + η λ.

    >>> import torch
    >>> tx = momo()
    >>> p = torch.tensor(2.0)
    >>> tx.update(torch.tensor(4.0), tx.init_state(p), p, value=4.0)[0]  # f = p²: the model reaches 0 at p = 1
    tensor(-1.)
    """
    beta = where(t == 1, 0.0, hp["momentum"])

    def average(g, m):
        return beta * m + (1 - beta) * g

    def terms(g, p, m):
        m = average(g, m)
        return products(g, p, m, m)

    def finish(sums):
        return model(hp, beta, 1.0, sums, numbers, adapt_lower_bound)

    def rule(new, g, p, m):
        m = average(g, m)
        return way(hp, new["tau"], m, p), m

    return terms, finish, rule
