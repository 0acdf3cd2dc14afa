"""Adam's correction for averages that start at 0, as a link of its own.

u ← √(1 − β₂ᵗ) / (1 − β₁ᵗ) u

Kingma & Ba 2015, Adam: A Method for Stochastic Optimization, the end of section 2, https://arxiv.org/abs/1412.6980
"""

from functional_optim import numerics
from functional_optim.hparams import FRACTION, Hparam
from functional_optim.transform import elementwise


@elementwise(hparams={"betas": Hparam((0.9, 0.999), FRACTION)})
def scale_by_bias_correction(hp, t):
    """Multiply by `√(1 − β₂ᵗ) / (1 − β₁ᵗ)`: the correction of `scale_by_adam(debias=False)`, where something comes between that
    has to see its updates without.

    Args:
        betas: decay of the averages, each in [0, 1); in a chain with `scale_by_adam` one value is that of both.

    State: `step` () int64.

    Source: Kingma & Ba 2015, https://arxiv.org/abs/1412.6980. Right behind it the two are
    `scale_by_adam(optimized_update=True)`.

    >>> import torch
    >>> tx = scale_by_bias_correction((0.75, 0.96))
    >>> tx.update(torch.tensor(1.0), tx.init_state(torch.tensor(0.0)))[0]
    tensor(0.8000)
    """
    b1, b2 = hp["betas"]
    factor = numerics.bias_correction(b2, t) ** 0.5 / numerics.bias_correction(b1, t)

    def rule(u, p):
        return factor * u

    return rule
