"""AdamC's weight decay: it falls with the square of the learning rate.

    u ← u + λ (η / η_max) p                      before the factor −η

Defazio 2025, Why Gradients Rapidly Increase Near the End of Training, https://arxiv.org/abs/2506.02285
"""

from functional_optim.hparams import NON_NEGATIVE, POSITIVE, Hparam
from functional_optim.transform import elementwise


@elementwise(
    hparams={"weight_decay": Hparam(1e-2, NON_NEGATIVE), "lr": Hparam(1e-3, NON_NEGATIVE), "max_lr": Hparam(1e-3, POSITIVE)}
)
def add_corrected_decayed_weights(hp):
    """Add the parameter times `weight_decay · lr / max_lr`, so that the ratio of gradient to weight norm stays as it is while the
    learning rate falls.

    Its place is where that of `add_decayed_weights` is: after the moments, and before `scale_by_learning_rate`, with which it
    shares `lr`.

    Args:
        weight_decay: λ, at least 0.
        lr: η, the present learning rate, at least 0.
        max_lr: η_max, the largest learning rate of the schedule, greater than 0.

    Raises:
        ValueError: `update` was called without params.

    Source: Defazio 2025, https://arxiv.org/abs/2506.02285, for layers that a normalisation follows; the others keep the plain
    decay there. Neither torch nor optax has a counterpart.
    """
    decay = hp["weight_decay"] * hp["lr"] / hp["max_lr"]

    def rule(u, p):
        return u + decay * p

    return rule
