"""Optimizers whose gradients are averaged otherwise than Adam's: over several spans, by differences, in sums."""

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.optimizers.decays import decay
from functional_optim.recipe import recorded
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.adan import scale_by_adan
from functional_optim.rules.ademamix import scale_by_ademamix, scale_by_simplified_ademamix
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.madgrad import scale_by_madgrad
from functional_optim.rules.mars import mars_correction
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.transform import Transform


@recorded
def adan(
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Adan: adaptive moments with Nesterov's momentum, and decoupled decay; see `scale_by_adan`.

    Args:
        lr: η, at least 0; it scales the decay too.
        betas: decay of the averages of the gradient, of its differences and of the squares, each in [0, 1).
        eps: at least 0, in units of |g|.
        weight_decay: λ, at least 0: a step multiplies parameters by `1 − η λ`, where the paper divides by `1 + η λ`.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Xie et al. 2022, https://arxiv.org/abs/2208.06677. As its authors' program with `no_prox=True`; `optax.adan` weighs
    the differences otherwise, see `scale_by_adan`.
    """
    return chain(
        scale_by_adan(betas, eps, state_dtype=state_dtype),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
        name="adan",
    )


@recorded
def ademamix(
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    alpha: float = 5.0,
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    alpha_warmup: int | None = None,
    beta3_warmup: int | None = None,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """AdEMAMix: `p ← p − η ((m̂₁ + α m₂) / (√v̂ + ε) + λ p)`; see `scale_by_ademamix`.

    Args:
        lr: η, at least 0.
        betas: decay of the fast average, the second moment and the slow average, each in [0, 1).
        alpha: α, the weight of the slow average, at least 0.
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        alpha_warmup, beta3_warmup: steps in which α and β₃ rise; the paper takes the length of the run. None for at once.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Pagliardini et al. 2024, https://arxiv.org/abs/2409.03137. `optax.contrib.ademamix` is this.
    """
    scaled = scale_by_ademamix(betas, alpha, eps, alpha_warmup=alpha_warmup, beta3_warmup=beta3_warmup, state_dtype=state_dtype)
    return chain(scaled, *decay(weight_decay), scale_by_learning_rate(lr), name="ademamix")


@recorded
def simplified_ademamix(
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.99, 0.95),
    alpha: float = 0.0,
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    beta1_warmup: int | None = None,
    min_beta1: float = 0.9,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Simplified AdEMAMix: `p ← p − η ((m + α g) / (√v̂ + ε) + λ p)` with `m ← β₁ m + g`; see `scale_by_simplified_ademamix`.

    Args:
        lr: η, at least 0; about (1 − β₁) times what Adam takes.
        betas: decay of the sum and of the second moment, each in [0, 1).
        alpha: α, the weight of the present gradient, at least 0.
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        beta1_warmup, min_beta1: let β₁ rise over so many steps, from a number in (0, 1); see `scale_by_simplified_ademamix`.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Morwani et al. 2025, https://arxiv.org/abs/2502.02431. `optax.contrib.simplified_ademamix` is this without a warm-up.
    """
    scaled = scale_by_simplified_ademamix(
        betas, alpha, eps, beta1_warmup=beta1_warmup, min_beta1=min_beta1, state_dtype=state_dtype
    )
    return chain(scaled, *decay(weight_decay), scale_by_learning_rate(lr), name="simplified_ademamix")


@recorded
def mars(
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.95, 0.99),
    eps: float = 1e-8,
    weight_decay: float | None = None,
    gamma: float = 0.025,
    correction_norm: float = 1.0,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """MARS-AdamW: AdamW on gradients with reduced variance; see `mars_correction`, which goes before other optimizers as well.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        gamma: γ, at least 0, how much of the correction is used.
        correction_norm: the largest norm of a tensor's corrected gradient, greater than 0.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Yuan et al. 2024, https://arxiv.org/abs/2411.10438. The authors' program gives vectors to plain AdamW by default; here
    all parameters are treated alike.
    """
    return chain(
        mars_correction(betas, gamma, correction_norm, state_dtype=state_dtype),
        scale_by_adam(betas, eps, state_dtype=state_dtype),
        *decay(weight_decay),
        scale_by_learning_rate(lr),
        name="mars",
    )


@recorded
def madgrad(
    lr: float = 1e-2,
    momentum: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """MADGRAD: dual averaging with a cube root; see `scale_by_madgrad`.

    Args:
        lr: η, at least 0.
        momentum: μ, in [0, 1).
        eps: ε, greater than 0.
        weight_decay: λ, at least 0, as L2 regularisation (`g + λ p`); None for none, and no such hyper-parameter.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Defazio & Jelassi 2022, https://arxiv.org/abs/2101.11075. `optax.contrib.madgrad` is this.
    """
    return chain(*decay(weight_decay), scale_by_madgrad(lr, momentum, eps, state_dtype=state_dtype), name="madgrad")
