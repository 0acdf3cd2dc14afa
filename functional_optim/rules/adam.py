"""Adam, and its AMSGrad form.

    m ← β₁ m + (1 − β₁) g
    v ← β₂ v + (1 − β₂) g²
    v̂ ← v / (1 − β₂ᵗ)                AMSGrad:  w ← max(w, v),  v̂ ← w / (1 − β₂ᵗ)
    u ← m / (1 − β₁ᵗ) / (√v̂ + ε)    optimized:  √v̂ + ε / √(1 − β₂ᵗ) in place of √v̂ + ε

Kingma & Ba 2015, Adam: A Method for Stochastic Optimization, https://arxiv.org/abs/1412.6980
Reddi, Kale & Kumar 2018, On the Convergence of Adam and Beyond, https://arxiv.org/abs/1904.09237

Here √ has slope 0 at 0, so that derivatives through a zero gradient are finite. AMSGrad takes the maximum of the uncorrected
moments, as torch and the paper do (optax corrects them first).
"""

import torch

from functional_optim.codecs import Codec
from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import bias_correction, sqrt
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, elementwise

HPARAMS = {"betas": Hparam((0.9, 0.999), FRACTION), "eps": Hparam(1e-8, NON_NEGATIVE)}


@elementwise(
    slots=("exp_avg", "exp_avg_sq"), coded={"exp_avg": "signed", "exp_avg_sq": "positive"}, hparams=HPARAMS, name="scale_by_adam"
)
def _adam(hp, t, *, optimized_update: bool = False, debias: bool = True):
    b1, b2 = hp["betas"]
    c1, c2 = (bias_correction(b1, t), bias_correction(b2, t)) if debias else (1.0, 1.0)
    eps = hp["eps"] / c2**0.5 if optimized_update else hp["eps"]

    def rule(g, p, m, v):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        return m / c1 / (sqrt(v / c2) + eps), m, v

    return rule


@elementwise(
    slots=("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    coded={"exp_avg": "signed", "exp_avg_sq": "positive", "max_exp_avg_sq": "positive"},
    hparams=HPARAMS,
    name="scale_by_adam",
)
def _amsgrad(hp, t, *, optimized_update: bool = False, debias: bool = True):
    b1, b2 = hp["betas"]
    c1, c2 = (bias_correction(b1, t), bias_correction(b2, t)) if debias else (1.0, 1.0)
    eps = hp["eps"] / c2**0.5 if optimized_update else hp["eps"]

    def rule(g, p, m, v, w):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        w = torch.maximum(w, v)
        return m / c1 / (sqrt(w / c2) + eps), m, v, w

    return rule


@recorded
def scale_by_adam(
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    *,
    amsgrad: bool = False,
    optimized_update: bool = False,
    debias: bool = True,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Divide the average gradient by the root of its average square: `u = m̂ / (√v̂ + ε)`.

    `m̂` and `v̂` are moving averages of g and g², corrected for their start at 0. The update is about ±1 per element whatever
    the gradient's scale; scale it with `scale_by_learning_rate`.

    Args:
        betas: decay of m and of v per step, each in [0, 1).
        eps: at least 0, in units of |g|: gradients far below it move nothing.
        amsgrad: divide by the largest v so far.
        optimized_update: the order of operations that the end of the paper's section 2 proposes, `u = √(1 − β₂ᵗ) / (1 − β₁ᵗ) ·
            m / (√v + ε)`: the same for ε = 0, and in the first steps for other ε a smaller update, as if ε were larger.
        debias: correct the averages for their start at 0; where that comes later, `scale_by_bias_correction` does it.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v) and, with `amsgrad`, `max_exp_avg_sq`, like the parameters.

    Source: Kingma & Ba 2015, https://arxiv.org/abs/1412.6980; Reddi et al. 2018, https://arxiv.org/abs/1904.09237.
    Retraces `torch.optim.Adam`; differs from `optax.scale_by_adam` in the slope of √ at 0 and, with amsgrad, in the maximum of
    uncorrected moments.

    >>> import torch
    >>> tx = scale_by_adam()
    >>> updates, state = tx.update(torch.tensor([3.0, -0.1]), tx.init_state(torch.zeros(2)))
    >>> updates
    tensor([ 1.0000, -1.0000])
    """
    return (_amsgrad if amsgrad else _adam)(betas, eps, optimized_update=optimized_update, debias=debias, state_dtype=state_dtype)
