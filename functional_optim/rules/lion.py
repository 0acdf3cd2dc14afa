"""Lion: the sign of an interpolated momentum.

    c ← β₁ m + (1 − β₁) g
    m ← β₂ m + (1 − β₂) g
    u ← sign(c)

Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, https://arxiv.org/abs/2302.06675

The sign of 0 is 0, as in the paper's program.
"""

from functional_optim.hparams import FRACTION, Hparam
from functional_optim.transform import elementwise


@elementwise(slots=("exp_avg",), coded={"exp_avg": "signed"}, hparams={"betas": Hparam((0.9, 0.99), FRACTION)})
def scale_by_lion(hp):
    """The sign of a mix of momentum and gradient: every element moves by ±1, before the learning rate.

    Args:
        betas: the share of the old momentum in the mix, and its decay per step, each in [0, 1).
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

    State: `exp_avg` (m), like the parameters. No count: there is no bias correction.

    The sign of NaN is 0 in torch: where one gradient was NaN the momentum stays it, and the parameter stands still, without a
    word. `apply_if_finite(...)` around the chain leaves such a step out.

    Source: Chen et al. 2023, https://arxiv.org/abs/2302.06675, who take a learning rate 3 to 10 times smaller than AdamW's, and
    a weight decay as many times larger. As `optax.scale_by_lion`; torch has no counterpart.

    >>> import torch
    >>> tx = scale_by_lion()
    >>> tx.update(torch.tensor([3.0, 0.0, -0.1]), tx.init_state(torch.zeros(3)))[0]
    tensor([ 1.,  0., -1.])
    """
    b1, b2 = hp["betas"]

    def rule(g, p, m):
        c = b1 * m + (1 - b1) * g
        m = b2 * m + (1 - b2) * g
        return c.sign(), m

    return rule
