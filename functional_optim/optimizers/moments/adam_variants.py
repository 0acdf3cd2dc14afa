"""Adam with one thing of it changed: the order of its parts, a bound, a sign, the decay."""

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.combinators.signed import with_gradient_signs
from functional_optim.optimizers.decays import decay
from functional_optim.recipe import recorded
from functional_optim.rules.adagc import clip_by_adagc
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.adam_atan2 import scale_by_adam_atan2
from functional_optim.rules.adamc import add_corrected_decayed_weights
from functional_optim.rules.adopt import scale_by_adopt
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.laprop import scale_by_laprop
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.rules.stable_adamw import scale_by_stable_adamw
from functional_optim.transform import Transform


@recorded
def adopt(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.9999),
    eps: float = 1e-6,
    weight_decay: float | None = None,
    *,
    nesterov: bool = False,
    clipped: bool = True,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """ADOPT: `p ← p − η (m + λ p)`, m the average of gradients normalised by the past; see `scale_by_adopt`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, greater than 0, in units of |g|: the least denominator.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        nesterov: look ahead, see `scale_by_adopt`.
        clipped: bound normalised gradients by the fourth root of the step.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Taniguchi et al. 2024, https://arxiv.org/abs/2411.02853. `optax.contrib.adopt` is this without decay; the authors'
    program does not decay at the first step.
    """
    scaled = scale_by_adopt(betas, eps, nesterov=nesterov, clipped=clipped, state_dtype=state_dtype)
    return chain(scaled, *decay(weight_decay), scale_by_learning_rate(lr), name="adopt")


@recorded
def laprop(
    lr: float = 4e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-15,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """LaProp: `p ← p − η (m̂ + λ p)`, m the average of normalised gradients; see `scale_by_laprop`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Ziyin et al. 2020, https://arxiv.org/abs/2002.04839. The authors' program takes λ p away after the step, whatever the
    learning rate: `chain(laprop(), subtract_decayed_weights(λ))` does so but for a term λ u.
    """
    scaled = scale_by_laprop(betas, eps, state_dtype=state_dtype)
    return chain(scaled, *decay(weight_decay), scale_by_learning_rate(lr), name="laprop")


@recorded
def stable_adamw(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-6,
    weight_decay: float = 1e-2,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """StableAdamW: AdamW's step divided by `max(1, √mean(g² / max(v̂, ε²)))`, tensor by tensor; see `scale_by_stable_adamw`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, greater than 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Wortsman et al. 2023, https://arxiv.org/abs/2304.13013.
    """
    return chain(
        scale_by_stable_adamw(betas, eps, weight_decay, state_dtype=state_dtype), scale_by_learning_rate(lr), name="stable_adamw"
    )


@recorded
def grams(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Grams: `p ← p − η (sign(g) |u| + λ p)`, u being Adam's step; see `with_gradient_signs`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Cao et al. 2024, https://arxiv.org/abs/2412.17107.
    """
    signed = with_gradient_signs(scale_by_adam(betas, eps, state_dtype=state_dtype))
    return chain(signed, *decay(weight_decay), scale_by_learning_rate(lr), name="grams")


@recorded
def adamc(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    max_lr: float | None = None,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """AdamC: AdamW whose decay falls with the square of the learning rate, `p ← p − η (m̂ / (√v̂ + ε) + λ (η / η_max) p)`.

    Args:
        lr: η, at least 0; scheduled, or this does nothing that `adamw` does not.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0.
        max_lr: η_max, the largest learning rate of the schedule; `lr` if None.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Defazio 2025, https://arxiv.org/abs/2506.02285, who keeps plain decay for layers that no normalisation follows.
    """
    return chain(
        scale_by_adam(betas, eps, state_dtype=state_dtype),
        add_corrected_decayed_weights(weight_decay, lr, lr if max_lr is None else max_lr),
        scale_by_learning_rate(lr),
        name="adamc",
    )


@recorded
def adam_atan2(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float | None = None,
    a: float = 1.27,
    b: float = 1.0,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Adam without ε: `p ← p − η (a · atan2(m̂, b √v̂) + λ p)`; see `scale_by_adam_atan2`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        a, b: greater than 0, the scales of the angle and of the denominator.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Everett et al. 2024, https://arxiv.org/abs/2407.05872.
    """
    scaled = scale_by_adam_atan2(betas, a, b, state_dtype=state_dtype)
    return chain(scaled, *decay(weight_decay), scale_by_learning_rate(lr), name="adam_atan2")


@recorded
def adagc(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    lambda_abs: float = 1.0,
    lambda_rel: float = 1.05,
    beta: float = 0.98,
    *,
    warmup_steps: int = 100,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """AdaGC: AdamW on gradients clipped, tensor by tensor, by their usual norm; see `clip_by_adagc`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled.
        lambda_abs: the largest norm of all gradients together during warm-up, greater than 0.
        lambda_rel: by how much a norm may exceed the usual one, greater than 0.
        beta: decay of the usual norm per step, in [0, 1).
        warmup_steps: the first step that is clipped by the usual norm.
        state_dtype: dtype of Adam's slots; the parameter's by default.

    Source: Wang et al. 2025, https://arxiv.org/abs/2502.11034.
    """
    return chain(
        clip_by_adagc(lambda_abs, lambda_rel, beta, warmup_steps=warmup_steps),
        scale_by_adam(betas, eps, state_dtype=state_dtype),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
        name="adagc",
    )
