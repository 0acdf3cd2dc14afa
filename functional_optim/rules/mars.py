"""MARS: a gradient with its variance reduced, for any optimizer to follow.

    c ← g + γ β₁ / (1 − β₁) (g − g₋)              g₋ the gradient of the step before; at the first step c ← g
    c ← c · min(1, ρ / ‖c‖)                       ‖c‖ over one tensor; ρ = 1

Yuan et al. 2024, MARS: Unleashing the Power of Variance Reduction for Training Large Models, https://arxiv.org/abs/2411.10438

This is the paper's MARS-approx: exact MARS evaluates g₋ on the present batch, at the cost of a second gradient.
"""

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import sqrt, where
from functional_optim.transform import numbered


@numbered(
    slots=("last_grad",),
    hparams={
        "betas": Hparam((0.95, 0.99), FRACTION),
        "gamma": Hparam(0.025, NON_NEGATIVE),
        "correction_norm": Hparam(1.0, "(0, inf)"),
    },
)
def mars_correction(hp, t, numbers):
    """Add to the gradient what it has changed by, scaled by `gamma · β₁ / (1 − β₁)`, and clip the result, tensor by tensor.

    Its place is before the moments: `chain(mars_correction(), scale_by_adam((0.95, 0.99)), ...)`, which share `betas`.

    Args:
        betas: those of the rule that follows; β₁ is used here. Each in [0, 1).
        gamma: γ, at least 0; with 0 nothing but the clip is left.
        correction_norm: ρ, the largest norm of a corrected gradient, greater than 0.
        state_dtype: dtype of the slot; the parameter's by default.

    State: `step` () int64; `last_grad` (g₋), like the parameters.

    Source: Yuan et al. 2024, https://arxiv.org/abs/2411.10438. The authors' program has g₋ = 0 at the first step, and so enlarges
    the first gradient; timm leaves it alone, as here. Neither torch nor optax has a counterpart.
    """
    b1, _ = hp["betas"]
    share = where(t == 1, 0.0, hp["gamma"] * b1 / (1 - b1))

    def corrected(g, last):
        return g + share * (g - last)

    def terms(g, p, last):
        return corrected(g, last) ** 2

    def finish(sums):
        return {"factor": hp["correction_norm"] / sqrt(sums.own[0]).clamp(min=hp["correction_norm"])}

    def rule(new, g, p, last):
        return new["factor"] * corrected(g, last), g

    return terms, finish, rule
