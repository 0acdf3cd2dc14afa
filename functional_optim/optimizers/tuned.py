"""Optimizers that find their own learning rate, or do without a schedule."""

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.combinators.rename import rename_hparams
from functional_optim.combinators.schedule_free import schedule_free
from functional_optim.optimizers.decays import decay
from functional_optim.optimizers.torch_optim import sgd
from functional_optim.recipe import recorded
from functional_optim.rules.d_adaptation import scale_by_d_adaptation
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.dog import scale_by_dog, scale_by_dowg
from functional_optim.rules.prodigy import scale_by_prodigy
from functional_optim.rules.rms import scale_by_rms
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.transform import Transform


@recorded
def dog(
    lr: float = 1.0,
    reps_rel: float = 1e-6,
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """DoG: gradient descent with the step size `max ‖p − x₀‖ / √(Σ ‖g‖² + ε)`; see `scale_by_dog`.

    Args:
        lr: a factor of the step size, at least 0.
        reps_rel: the first step's length relative to `1 + ‖x₀‖`, greater than 0.
        eps: ε, greater than 0, in units of g².
        weight_decay: λ, at least 0, as L2 regularisation (`g + λ p`); None for none, and no such hyper-parameter.
        state_dtype: dtype of the slot; the parameter's by default.

    Source: Ivgi et al. 2023, https://arxiv.org/abs/2302.12022. `optax.contrib.dog` is this.
    """
    return chain(
        *decay(weight_decay),
        scale_by_dog(reps_rel, eps, state_dtype=state_dtype),
        scale_by_learning_rate(lr),
        name="dog",
    )


@recorded
def dowg(
    lr: float = 1.0, eps: float = 1e-4, weight_decay: float | None = None, *, state_dtype: torch.dtype | None = None
) -> Transform:
    """DoWG: gradient descent with the step size `R / (√Σ R ‖g‖² + ε)`, `R = max ‖p − x₀‖²`; see `scale_by_dowg`.

    Args:
        lr: a factor of the step size, at least 0.
        eps: ε, greater than 0: the first squared distance, and what is added to the root.
        weight_decay: λ, at least 0, as L2 regularisation (`g + λ p`); None for none, and no such hyper-parameter.
        state_dtype: dtype of the slot; the parameter's by default.

    Source: Khaled et al. 2023, https://arxiv.org/abs/2305.16284. `optax.contrib.dowg` is this.
    """
    return chain(*decay(weight_decay), scale_by_dowg(eps, state_dtype=state_dtype), scale_by_learning_rate(lr), name="dowg")


@recorded
def prodigy(
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    d_coef: float = 1.0,
    *,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Prodigy: AdamW that estimates its own learning rate; see `scale_by_prodigy`.

    Args:
        lr: at least 0; 1, times a schedule if you like. 0 for parameters that stay as they are; the others' must be equal.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled.
        d0: the first estimate, greater than 0.
        d_coef: what estimates are multiplied by, greater than 0.
        use_bias_correction: correct the moments for their start at 0.
        safeguard_warmup: for a long warm-up, see `scale_by_prodigy`.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Mishchenko & Defazio 2023, https://arxiv.org/abs/2306.06101. `optax.contrib.prodigy` is this with bias correction.
    """
    scaled = scale_by_prodigy(
        lr,
        betas,
        eps,
        weight_decay,
        d0,
        d_coef,
        use_bias_correction=use_bias_correction,
        safeguard_warmup=safeguard_warmup,
        state_dtype=state_dtype,
    )
    return chain(scaled, scale_by_learning_rate(lr), name="prodigy")


@recorded
def dadapt_adam(
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    *,
    use_bias_correction: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """D-Adapt Adam: AdamW that estimates its own learning rate; see `scale_by_d_adaptation`.

    Args:
        lr: at least 0; 1, times a schedule if you like. 0 for parameters that stay as they are; the others' must be equal.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, greater than 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled.
        d0: the first estimate, greater than 0.
        use_bias_correction: correct the moments for their start at 0.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Defazio & Mishchenko 2023, https://arxiv.org/abs/2301.07733. `optax.contrib.dadapt_adamw` is this with bias
    correction.
    """
    scaled = scale_by_d_adaptation(
        lr, betas, eps, weight_decay, d0, use_bias_correction=use_bias_correction, state_dtype=state_dtype
    )
    return chain(scaled, name="dadapt_adam")


@recorded
def schedule_free_sgd(
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float | None = None,
    weight_lr_power: float = 2.0,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """`schedule_free(sgd(...))`: gradient descent with an average in the place of momentum and of a schedule.

    Args:
        lr: η, at least 0; 10 to 50 times what SGD with momentum takes.
        momentum: β, in (0, 1]: how close to the average the gradient is taken.
        weight_decay: λ, at least 0, at y; None for none, and no such hyper-parameter.
        weight_lr_power: at least 0; above 0, iterates of the warm-up weigh less.
        state_dtype: dtype of the slot `z`; the parameter's by default.

    Source: Defazio et al. 2024, https://arxiv.org/abs/2405.15682. `optax.contrib.schedule_free_sgd` is this; `eval_params` gives
    the parameters to evaluate.
    """
    return schedule_free(sgd(lr, weight_decay=weight_decay), momentum, weight_lr_power, state_dtype=state_dtype)


@recorded
def schedule_free_adamw(
    lr: float = 2.5e-3,
    momentum: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_lr_power: float = 2.0,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Schedule-free AdamW: an average takes the place of the momentum, whose slot is spared, and of a schedule.

    Args:
        lr: η, at least 0; 1 to 10 times what AdamW takes.
        momentum: β, in (0, 1]: how close to the average the gradient is taken.
        beta2: decay of the second moment, in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled, at y.
        weight_lr_power: at least 0; above 0, iterates of the warm-up weigh less.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Defazio et al. 2024, https://arxiv.org/abs/2405.15682. `optax.contrib.schedule_free_adamw` is this; `eval_params`
    gives the parameters to evaluate.
    """
    rms = rename_hparams(scale_by_rms(beta2, eps, bias_correction=True, state_dtype=state_dtype), alpha="beta2")
    base = chain(rms, add_decayed_weights(weight_decay), scale_by_learning_rate(lr), name="adamw_without_momentum")
    return schedule_free(base, momentum, weight_lr_power, state_dtype=state_dtype)
