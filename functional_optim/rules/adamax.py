"""Adamax: Adam with the largest recent gradient in place of the root mean square.

    m ← β₁ m + (1 − β₁) g
    w ← max(β₂ w, |g| + ε)
    u ← m / (1 − β₁ᵗ) / w

Kingma & Ba 2015, Adam: A Method for Stochastic Optimization, section 7.1, https://arxiv.org/abs/1412.6980

The paper has no ε; here it stands where torch and optax have it.
"""

import torch

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import bias_correction
from functional_optim.transform import elementwise


@elementwise(
    slots=("exp_avg", "exp_inf"),
    coded={"exp_avg": "signed", "exp_inf": "positive"},
    hparams={"betas": Hparam((0.9, 0.999), FRACTION), "eps": Hparam(1e-8, NON_NEGATIVE)},
)
def scale_by_adamax(hp, t):
    """Divide the average gradient by a decaying maximum of |g|: `u = m̂ / w`.

    Args:
        betas: decay of m and of w per step, each in [0, 1).
        eps: at least 0, in units of |g|; at 0, an element without a gradient so far gets NaN, as in torch.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_inf` (w), like the parameters.

    Source: Kingma & Ba 2015, https://arxiv.org/abs/1412.6980. Retraces `torch.optim.Adamax` and `optax.scale_by_adamax`.

    >>> import torch
    >>> tx = scale_by_adamax()
    >>> tx.update(torch.tensor([3.0, -0.1]), tx.init_state(torch.zeros(2)))[0]
    tensor([ 1., -1.])
    """
    b1, b2 = hp["betas"]
    c1 = bias_correction(b1, t)

    def rule(g, p, m, w):
        m = b1 * m + (1 - b1) * g
        w = torch.maximum(b2 * w, g.abs() + hp["eps"])
        return m / c1 / w, m, w

    return rule
