"""Weight decay, squared and absolute.

    u ← u + λ p              L2 before the moments of an adaptive method; decoupled after them, before the learning rate
    u ← u − λ p              after the learning rate: a decay that it does not scale
    u ← u + λ sign(p)        the sub-gradient of λ ‖p‖₁, in the same places as the first
    u ← S(p + u) − p         after the learning rate: the proximal step of λ ‖p‖₁, with S(x) = sign(x) max(|x| − η λ, 0)

Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101
Daubechies, Defrise & De Mol 2004, An iterative thresholding algorithm for linear inverse problems with a sparsity constraint,
https://arxiv.org/abs/math/0307152
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


@elementwise(hparams={"weight_decay": Hparam(1e-4, NON_NEGATIVE)})
def subtract_decayed_weights(hp):
    """Shrink parameters by the factor `1 − λ` a step, whatever the learning rate: `u − λ p`.

    Args:
        weight_decay: λ, the share of the parameter that a step takes away, at least 0. Its place is after
            `scale_by_learning_rate`; a learning rate that falls to 0 leaves it.

    Raises:
        ValueError: `update` was called without params.

    Source: Loshchilov & Hutter 2019, section 3, where the decay follows the schedule, though not the learning rate η₀ itself, as
    in Composer's `DecoupledAdamW` and optimi's `decouple_lr`: that is `add_decayed_weights(λ / η₀)`. In torch and optax,
    `add_decayed_weights` divided by the learning rate.
    """

    def rule(u, p):
        return u - hp["weight_decay"] * p

    return rule


@elementwise(hparams={"l1_decay": Hparam(1e-4, NON_NEGATIVE)})
def add_l1_decay(hp):
    """Add the sign of the parameter times `l1_decay` to the update: `u + λ sign(p)`, the sub-gradient of `λ ‖p‖₁`.

    It pulls every element towards 0 by the same amount and then about it, to and fro: for zeros that stay, use `soft_threshold`.

    Args:
        l1_decay: λ, at least 0. First in a chain it is part of the gradient; after the moments it is decoupled.

    Raises:
        ValueError: `update` was called without params.

    Source: Tibshirani 1996, https://doi.org/10.1111/j.2517-6161.1996.tb02080.x. Neither torch nor optax has it.
    """

    def rule(u, p):
        return u + hp["l1_decay"] * p.sign()

    return rule


@elementwise(hparams={"lr": Hparam(1e-3, NON_NEGATIVE), "l1_decay": Hparam(1e-4, NON_NEGATIVE)})
def soft_threshold(hp):
    """Move every element towards 0 by η λ after the step, and to exactly 0 what is nearer: the proximal step of `λ ‖p‖₁`.

    The last link of a chain: `chain(scale_by_learning_rate(), soft_threshold())` is ISTA, whose fixed points are the sparse
    minima of the loss plus `λ ‖p‖₁`.

    Args:
        lr: η, shared with `scale_by_learning_rate`, at least 0.
        l1_decay: λ, at least 0, in units of the gradient.

    Raises:
        ValueError: `update` was called without params.

    Source: Daubechies et al. 2004, https://arxiv.org/abs/math/0307152. Neither torch nor optax has it.

    >>> import torch
    >>> p = torch.tensor([1.0, 0.1, -0.2])
    >>> tx = soft_threshold(lr=0.5, l1_decay=0.3)
    >>> p + tx.update(torch.zeros(3), tx.init_state(p), p)[0]
    tensor([ 0.8500,  0.0000, -0.0500])
    """
    threshold = hp["lr"] * hp["l1_decay"]

    def rule(u, p):
        target = p + u
        return target.sign() * (target.abs() - threshold).clamp(min=0.0) - p

    return rule
