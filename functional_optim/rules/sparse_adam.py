"""Adam of the elements that have a gradient; the others wait, and so do their averages.

where g ≠ 0:   m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  u ← √(1 − β₂ᵗ) / (1 − β₁ᵗ) m / (√v + ε)
elsewhere:     u ← 0
"""

import torch

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import bias_correction, sqrt
from functional_optim.transform import elementwise


@elementwise(
    slots=("exp_avg", "exp_avg_sq"), hparams={"betas": Hparam((0.9, 0.999), FRACTION), "eps": Hparam(1e-8, NON_NEGATIVE)}
)
def scale_by_sparse_adam(hp, t):
    """Adam's update where the gradient is not 0, and none elsewhere: rows of an embedding that a batch does not ask for keep
    their averages until one does.

    Args:
        betas: decay of m and of v per step that an element has a gradient in, each in [0, 1).
        eps: at least 0, in units of |g|, added to the root before the bias is corrected.
        state_dtype: dtype of the slots; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v), like the parameters.

    The correction goes by the steps of all. Gradients are dense here, as trees of gradients are; `fo.adapters.SparseAdam` takes
    sparse ones, and computes what they name alone.

    As `torch.optim.SparseAdam` of the same gradient, made sparse. optax has none.

    >>> tx = scale_by_sparse_adam()
    >>> tx.update(torch.tensor([3.0, 0.0]), tx.init_state(torch.zeros(2)))[0].round(decimals=4)
    tensor([1., 0.])
    """
    b1, b2 = hp["betas"]
    factor = bias_correction(b2, t) ** 0.5 / bias_correction(b1, t)

    def rule(g, p, m, v):
        has = g != 0
        m = torch.where(has, b1 * m + (1 - b1) * g, m)
        v = torch.where(has, b2 * v + (1 - b2) * g * g, v)
        return factor * m / (sqrt(v) + hp["eps"]) * has, m, v

    return rule
