"""Weight decay.

    u ← u + λ p

Before the moments of an adaptive method this is L2 regularisation; after them, and before the learning rate, it is the decoupled
decay of Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101
"""

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.transform import elementwise


@elementwise(hparams={"weight_decay": Hparam(1e-2, NON_NEGATIVE)})
def add_decayed_weights(hp):
    """Add the parameter times `weight_decay` to the update: `u + λ p`. Its place in the chain decides what it means.

    Args:
        weight_decay: λ, at least 0. After `scale_by_adam` and before `scale_by_learning_rate`, a parameter without gradient
            shrinks by the factor `1 − lr·λ` a step.

    Raises:
        ValueError: `update` was called without params.

    Source: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101. As `optax.add_decayed_weights`; torch writes it into each
    optimizer.
    """

    def rule(u, p):
        return u + hp["weight_decay"] * p

    return rule
