"""AdaBelief: Adam that divides by how far gradients stray from their average.

    m ← β₁ m + (1 − β₁) g
    s ← β₂ s + (1 − β₂) (g − m)² + ε'
    u ← m̂ / (√ŝ + ε)                    rectified:  r m̂ / (√ŝ + ε), as RAdam

Zhuang et al. 2020, AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients, https://arxiv.org/abs/2010.07468

ε' is the paper's ε, added at every step and kept in s. The rectified form is its authors' program's.
"""

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import bias_correction, sqrt
from functional_optim.rules.radam import rectification
from functional_optim.transform import elementwise


@elementwise(
    slots=("exp_avg", "exp_avg_var"),
    coded={"exp_avg": "signed", "exp_avg_var": "positive"},
    hparams={
        "betas": Hparam((0.9, 0.999), FRACTION),
        "eps": Hparam(1e-16, NON_NEGATIVE),
        "eps_root": Hparam(1e-16, NON_NEGATIVE),
    },
)
def scale_by_belief(hp, t, *, rectify: bool = False, degenerated_to_sgd: bool = True):
    """Divide the average gradient by the root of the average square of its error: `u = m̂ / (√ŝ + ε)`.

    Steps are long where gradients agree, even if they are small, and short where they don't.

    Args:
        betas: decay of m and of s per step, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        eps_root: ε', at least 0, in units of g²; s tends to at least ε' / (1 − β₂).
        rectify: multiply by RAdam's r, and as long as there is none take no adaptive step.
        degenerated_to_sgd: the step m̂ instead, with `rectify`; False takes none.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_var` (s), like the parameters.

    Source: Zhuang et al. 2020, https://arxiv.org/abs/2010.07468. As `optax.scale_by_belief`; torch has no counterpart.

    >>> import torch
    >>> tx = scale_by_belief(betas=(0.5, 0.75))
    >>> tx.update(torch.tensor([3.0, -0.1]), tx.init_state(torch.zeros(2)))[0]
    tensor([ 2., -2.])
    """
    b1, b2 = hp["betas"]
    c1, c2 = bias_correction(b1, t), bias_correction(b2, t)
    r, adapts = rectification(b2, t, 1.0 if degenerated_to_sgd else 0.0) if rectify else (1.0, 1.0)

    def rule(g, p, m, s):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) * (g - m) + hp["eps_root"]
        return r * m / c1 / (adapts * (sqrt(s / c2) + hp["eps"]) + (1 - adapts)), m, s

    return rule
