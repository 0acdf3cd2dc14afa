"""Optimizers whose step of a tensor goes by a norm."""

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.combinators.rename import rename_hparams
from functional_optim.recipe import recorded
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.fromage import shrink_after_step
from functional_optim.rules.momentum import trace
from functional_optim.rules.novograd import scale_by_novograd
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.rules.trust_ratio import scale_by_trust_ratio
from functional_optim.transform import Transform


@recorded
def lamb(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    *,
    trust_clip: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """LAMB: AdamW whose update of each tensor has the length of the parameter, times the learning rate.

    Args:
        lr: η, at least 0: how far a tensor moves, in units of its own norm.
        betas: decay of the two moments, each in [0, 1).
        eps: at least 0, in units of |g|.
        weight_decay: λ, at least 0; its part of the update is scaled too.
        trust_clip: let no update grow, see `scale_by_trust_ratio`.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    The ε of `scale_by_trust_ratio` is the hyper-parameter `trust_eps`.

    Source: You et al. 2020, https://arxiv.org/abs/1904.00962, with φ the identity. As `optax.lamb`. timm's, as NVIDIA's, first
    clips the norm of all gradients at 1: `chain(clip_by_global_norm(), lamb())`; and it leaves parameters without a decay
    unscaled, unless told to `always_adapt`: give them a branch of `adam` in a `partition`.
    """
    return chain(
        scale_by_adam(betas, eps, state_dtype=state_dtype),
        add_decayed_weights(weight_decay),
        rename_hparams(scale_by_trust_ratio(trust_clip=trust_clip), eps="trust_eps"),
        scale_by_learning_rate(lr),
        name="lamb",
    )


@recorded
def lars(
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 1e-3,
    eps: float = 0.0,
    *,
    nesterov: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """LARS: momentum of steps that are in proportion to each tensor's norm, `c ‖p‖ / ‖g + λ p‖`.

    Args:
        lr: η, at least 0. It enters before the momentum, so that a change of it takes effect gradually.
        momentum: μ, at least 0.
        weight_decay: λ, at least 0, as L2 regularisation.
        trust_coefficient: c, at least 0.
        eps: at least 0, in units of the gradient's norm.
        nesterov: look ahead, see `trace`.
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

    Source: You et al. 2017, https://arxiv.org/abs/1708.03888, who divide by `‖g‖ + λ ‖p‖`. As `optax.lars`. timm's, which divides
    as they do, has the rate after the momentum, leaves parameters without a decay unscaled unless told to `always_adapt` (here,
    a branch of `sgd` in a `partition`), and with `trust_clip` steps by at most η.
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps),
        scale_by_learning_rate(lr),
        trace(momentum, nesterov=nesterov, state_dtype=state_dtype),
        name="lars",
    )


@recorded
def fromage(lr: float = 1e-2, min_norm: float = 1e-6) -> Transform:
    """Fromage: `p ← (p − η g ‖p‖ / ‖g‖) / √(1 + η²)`, tensor by tensor.

    Args:
        lr: η, at least 0: how far a tensor moves, in units of its own norm; Bernstein et al. take 0.01 for everything.
        min_norm: the least that a norm counts as, at least 0.

    Source: Bernstein et al. 2020, https://arxiv.org/abs/2002.03432. As `optax.fromage`.
    """
    return chain(scale_by_trust_ratio(min_norm), scale_by_learning_rate(lr), shrink_after_step(lr), name="fromage")


@recorded
def novograd(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.25),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """NovoGrad: momentum of gradients normalised tensor by tensor; see `scale_by_novograd`.

    Args:
        lr: η, at least 0.
        betas: decay of the momentum and of each tensor's average squared norm, each in [0, 1).
        eps: at least 0, in units of the gradient's norm.
        weight_decay: λ, at least 0.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Ginsburg et al. 2019, https://arxiv.org/abs/1905.11286. As `optax.novograd`.
    """
    return chain(
        scale_by_novograd(betas, eps, weight_decay, state_dtype=state_dtype), scale_by_learning_rate(lr), name="novograd"
    )
