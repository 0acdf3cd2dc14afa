"""Weight decay where it agrees with the update.

    u ← u + λ p [u p ≥ 0]             before the learning rate turns the sign: decay, where the step shrinks the element anyway

Chen et al. 2025, Cautious Weight Decay, https://arxiv.org/abs/2510.12402
"""

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.transform import elementwise


@elementwise(hparams={"weight_decay": Hparam(1e-2, NON_NEGATIVE)})
def cautious_decay(hp):
    """Add the parameter times `weight_decay` to those elements of the update that have its sign: `u + λ p [u p ≥ 0]`.

    It goes where `add_decayed_weights` does: after the moments, before `scale_by_learning_rate`. Unlike that, it leaves the
    stationary points of the loss where they are.

    Args:
        weight_decay: λ, at least 0.

    Raises:
        ValueError: `update` was called without params.

    Source: Chen et al. 2025, https://arxiv.org/abs/2510.12402, algorithm 1. Neither torch nor optax has it.

    >>> import torch
    >>> tx = cautious_decay(weight_decay=0.5)
    >>> tx.update(torch.tensor([1.0, 1.0]), {}, torch.tensor([2.0, -2.0]))[0]
    tensor([2., 1.])
    """

    def rule(u, p):
        return u + hp["weight_decay"] * p * (u * p >= 0)

    return rule
