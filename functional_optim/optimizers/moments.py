"""Optimizers that divide by a moment of the gradient: Adam's further family."""

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.combinators.signed import with_gradient_signs
from functional_optim.optimizers.decays import decay, decayed
from functional_optim.recipe import recorded
from functional_optim.rules.adabelief import scale_by_belief
from functional_optim.rules.adagc import clip_by_adagc
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.adam_atan2 import scale_by_adam_atan2
from functional_optim.rules.adam_mini import scale_by_adam_mini
from functional_optim.rules.adamc import add_corrected_decayed_weights
from functional_optim.rules.adan import scale_by_adan
from functional_optim.rules.ademamix import scale_by_ademamix, scale_by_simplified_ademamix
from functional_optim.rules.adopt import scale_by_adopt
from functional_optim.rules.came import scale_by_came
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.laprop import scale_by_laprop
from functional_optim.rules.madgrad import scale_by_madgrad
from functional_optim.rules.mars import mars_correction
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.rules.sm3 import scale_by_sm3
from functional_optim.rules.sophia import scale_by_sophia
from functional_optim.rules.stable_adamw import scale_by_stable_adamw
from functional_optim.rules.yogi import scale_by_yogi
from functional_optim.transform import Transform


@recorded
def adabelief(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    weight_decay: float | None = None,
    *,
    decoupled_weight_decay: bool = True,
    rectify: bool = False,
    degenerated_to_sgd: bool = True,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """AdaBelief: steps are long where gradients agree; see `scale_by_belief`.

    Args:
        lr: η, at least 0.
        betas: decay of m and of the squared error of m, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        eps_root: ε', at least 0, in units of g²; the paper's is ε too.
        weight_decay: λ, at least 0; None for none, and no such hyper-parameter.
        decoupled_weight_decay: decay the parameter itself, as `adamw` does; False for L2 regularisation.
        rectify: rectify the step as RAdam does, as the authors' program does by default.
        degenerated_to_sgd: with `rectify`, descend with momentum in the first steps; False takes no step then.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Zhuang et al. 2020, https://arxiv.org/abs/2010.07468. As `optax.adabelief`; torch has no counterpart.
    """
    rule = scale_by_belief(betas, eps, eps_root, rectify=rectify, degenerated_to_sgd=degenerated_to_sgd, state_dtype=state_dtype)
    return chain(*decayed(rule, weight_decay, decoupled_weight_decay), scale_by_learning_rate(lr), name="adabelief")


@recorded
def yogi(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-3,
    initial_accumulator_value: float = 1e-6,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Yogi: Adam whose second moment forgets large gradients slowly; see `scale_by_yogi`.

    Args:
        lr: η, at least 0.
        betas: decay of m and size of v's steps, each in [0, 1).
        eps: at least 0, in units of |g|.
        initial_accumulator_value: where both moments start, at least 0.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Zaheer et al. 2018, https://papers.nips.cc/paper/2018/hash/90365351ccc7437a1309dc64e4db32a3-Abstract.html.
    As `optax.yogi`.
    """
    return chain(
        scale_by_yogi(betas, eps, initial_accumulator_value, state_dtype=state_dtype), scale_by_learning_rate(lr), name="yogi"
    )


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
def sm3(
    lr: float = 1e-3, momentum: float = 0.9, eps: float = 1e-8, *, state_dtype: torch.dtype | Codec | None = None
) -> Transform:
    """SM3: Adagrad with an accumulator per row and per column, and momentum; see `scale_by_sm3`.

    Args:
        lr: η, at least 0.
        momentum: μ, in [0, 1).
        eps: greater than 0, in units of g².
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Anil et al. 2019, https://arxiv.org/abs/1901.11150. As `optax.sm3`.
    """
    return chain(scale_by_sm3(momentum, eps, state_dtype=state_dtype), scale_by_learning_rate(lr), name="sm3")


@recorded
def sophia(
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.965, 0.99),
    rho: float = 0.04,
    weight_decay: float = 1e-1,
    eps: float = 1e-12,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Sophia: clipped Newton steps, with decoupled weight decay; see `scale_by_sophia`.

    Every `update` takes the keyword `hessian_diag`, an estimate of the Hessian's diagonal or None.

    Args:
        lr: η, at least 0: the most that an element moves, but for the decay.
        betas: decay of m per step, and of h per estimate, each in [0, 1).
        rho: ρ, at least 0: the larger, the more elements take Newton's step, divided by ρ.
        weight_decay: λ, at least 0.
        eps: at least 0, in units of the Hessian.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Liu et al. 2023, https://arxiv.org/abs/2305.14342.
    """
    return chain(
        scale_by_sophia(betas, rho, eps, state_dtype=state_dtype),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
        name="sophia",
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
def adam_mini(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    blocks: int | None = 1,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Adam-mini: Adam with one second moment for a block of elements; see `scale_by_adam_mini` for which.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        blocks: into how many equal blocks the rows of a parameter are split; None for one block per row.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Zhang et al. 2024, https://arxiv.org/abs/2406.16793.
    """
    scaled = scale_by_adam_mini(betas, eps, blocks=blocks, state_dtype=state_dtype)
    return chain(scaled, *decay(weight_decay), scale_by_learning_rate(lr), name="adam_mini")


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


@recorded
def came(
    lr: float = 2e-4,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    eps: tuple[float, float] = (1e-30, 1e-16),
    weight_decay: float | None = None,
    clip_threshold: float = 1.0,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """CAME: Adafactor with a confidence; see `scale_by_came`.

    Args:
        lr: η, at least 0.
        betas: decay of the step, the second moment and the confidence, each in [0, 1).
        eps: added to squares of gradients, and of deviations of the step; each at least 0.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        clip_threshold: the largest root mean square of a step before it is averaged, greater than 0.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Luo et al. 2023, https://arxiv.org/abs/2307.02047.
    """
    scaled = scale_by_came(betas, eps, clip_threshold, state_dtype=state_dtype)
    return chain(scaled, *decay(weight_decay), scale_by_learning_rate(lr), name="came")
