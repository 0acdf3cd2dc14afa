"""RAdam: Adam whose adaptive step is rectified while its variance estimate is young.

    m ← β₁ m + (1 − β₁) g
    v ← β₂ v + (1 − β₂) g²
    ρ∞ = 2 / (1 − β₂) − 1        ρ ← ρ∞ − 2 t β₂ᵗ / (1 − β₂ᵗ)
    r ← √[ (ρ − 4)(ρ − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρ) ]
    u ← r m̂ / (√v̂ + ε)           where ρ > 5
    u ← m̂                        else: descent with momentum; or 0, no step at all

Liu et al. 2020, On the Variance of the Adaptive Learning Rate and Beyond, https://arxiv.org/abs/1908.03265

The paper rectifies from ρ > 4 on; its authors' program, torch and optax from 5. ρ∞ itself is at most 5 where β₂ ≤ 2/3: such an
RAdam never adapts.
"""

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import bias_correction, double, sqrt, where
from functional_optim.transform import elementwise


@elementwise(
    slots=("exp_avg", "exp_avg_sq"),
    coded={"exp_avg": "signed", "exp_avg_sq": "positive"},
    hparams={"betas": Hparam((0.9, 0.999), FRACTION), "eps": Hparam(1e-8, NON_NEGATIVE)},
)
def scale_by_radam(hp, t, *, degenerated_to_sgd: bool = True, optimized_update: bool = True):
    """Adam's update, rectified: `u = r m̂ / (√v̂ + ε)`, and `m̂` while v̂ has seen too few gradients to be trusted.

    Args:
        betas: decay of m and of v per step, each in [0, 1).
        eps: at least 0, in units of |g|.
        degenerated_to_sgd: take the step m̂ until r exists (5 steps with the default betas); False takes none, moments advance.
        optimized_update: ε is added to √v before the bias is corrected, as in torch, so that the first steps feel it most:
            `√v̂ + ε / √(1 − β₂ᵗ)`. False is the paper's √v̂ + ε, and optax's.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v), like the parameters.

    Source: Liu et al. 2020, https://arxiv.org/abs/1908.03265. Retraces `torch.optim.RAdam`; with `optimized_update=False`,
    `optax.scale_by_radam`.

    >>> import torch
    >>> tx = scale_by_radam()
    >>> tx.update(torch.tensor([3.0, -0.1]), tx.init_state(torch.zeros(2)))[0]
    tensor([ 3.0000, -0.1000])
    """
    b1, b2 = hp["betas"]
    c1, c2 = bias_correction(b1, t), bias_correction(b2, t)
    eps = hp["eps"] / c2**0.5 if optimized_update else hp["eps"]
    r, adapts = rectification(b2, t, 1.0 if degenerated_to_sgd else 0.0)

    def rule(g, p, m, v):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        return r * m / c1 / (adapts * (sqrt(v / c2) + eps) + (1 - adapts)), m, v

    return rule


def rectification(b2, t, fallback):
    """r and 1 where the variance of an adaptive step can be bounded; else `fallback` and 0."""
    b2, t = double(b2), double(t)
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * t * b2**t / bias_correction(b2, t)
    tractable = rho > 5
    # Where it is not, 6 stands in for both: the root below must exist, and so must its derivatives.
    rho, rho_inf = where(tractable, rho, 6.0), where(tractable, rho_inf, 6.0)
    r = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
    return where(tractable, r, fallback), where(tractable, 1.0, 0.0)
