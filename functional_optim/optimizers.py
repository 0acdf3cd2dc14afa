"""Whole optimizers: each a sentence made of `chain`. A link whose number is None is left out."""

import dataclasses

import torch

from functional_optim.combinators.chain import chain
from functional_optim.combinators.partition import partition
from functional_optim.combinators.rename import rename_hparams
from functional_optim.combinators.schedule_free import schedule_free
from functional_optim.combinators.signed import with_gradient_signs
from functional_optim.rules.adabelief import scale_by_belief
from functional_optim.rules.adadelta import scale_by_adadelta
from functional_optim.rules.adafactor import scale_by_factored_rms, scale_by_relative_step
from functional_optim.rules.adagc import clip_by_adagc
from functional_optim.rules.adagrad import scale_by_rss
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.adam_atan2 import scale_by_adam_atan2
from functional_optim.rules.adam_mini import scale_by_adam_mini
from functional_optim.rules.adamax import scale_by_adamax
from functional_optim.rules.adamc import add_corrected_decayed_weights
from functional_optim.rules.adan import scale_by_adan
from functional_optim.rules.ademamix import scale_by_ademamix, scale_by_simplified_ademamix
from functional_optim.rules.adopt import scale_by_adopt
from functional_optim.rules.asgd import average_iterates, scale_by_asgd
from functional_optim.rules.came import scale_by_came
from functional_optim.rules.clip import clip_by_block_rms
from functional_optim.rules.d_adaptation import scale_by_d_adaptation
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.dog import scale_by_dog, scale_by_dowg
from functional_optim.rules.ema import ema
from functional_optim.rules.fromage import shrink_after_step
from functional_optim.rules.laprop import scale_by_laprop
from functional_optim.rules.lion import scale_by_lion
from functional_optim.rules.madgrad import scale_by_madgrad
from functional_optim.rules.mars import mars_correction
from functional_optim.rules.momentum import trace
from functional_optim.rules.muon import COEFFICIENTS, MuonOrAdamW, scale_by_muon
from functional_optim.rules.nadam import scale_by_nadam
from functional_optim.rules.noise import add_noise
from functional_optim.rules.novograd import scale_by_novograd
from functional_optim.rules.optimistic import scale_by_optimistic_gradient
from functional_optim.rules.param_scale import scale_by_param_block_rms
from functional_optim.rules.polyak import scale_by_polyak
from functional_optim.rules.prodigy import scale_by_prodigy
from functional_optim.rules.radam import scale_by_radam
from functional_optim.rules.rms import scale_by_rms, scale_by_stddev
from functional_optim.rules.rprop import scale_by_rprop
from functional_optim.rules.scale import negate, scale_by_inverse_time, scale_by_learning_rate
from functional_optim.rules.sign import scale_by_sign
from functional_optim.rules.sm3 import scale_by_sm3
from functional_optim.rules.sophia import scale_by_sophia
from functional_optim.rules.stable_adamw import scale_by_stable_adamw
from functional_optim.rules.trust_ratio import scale_by_trust_ratio
from functional_optim.rules.yogi import scale_by_yogi
from functional_optim.transform import Transform


def sgd(
    lr: float = 1e-3,
    momentum: float | None = None,
    dampening: float = 0.0,
    weight_decay: float | None = None,
    *,
    nesterov: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Stochastic gradient descent: `p ← p − η m`, with `m ← μ m + (1 − τ)(g + λ p)`.

    Args:
        lr: η, at least 0.
        momentum: μ, at least 0; None for plain descent, without a slot and without the hyper-parameters `momentum`, `dampening`.
        dampening: τ, see `trace`.
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        nesterov: look ahead, see `trace`; needs a momentum and, as in torch, no dampening.
        state_dtype: dtype of the slot; the parameter's by default.

    Raises:
        ValueError: a number out of range, dampening without momentum, or Nesterov without momentum or with dampening.

    Retraces `torch.optim.SGD`. `optax.sgd` has neither dampening nor decay.
    """
    if momentum is None and dampening != 0:
        raise ValueError(f"dampening={dampening} needs a momentum: there is nothing to dampen without one.")
    if nesterov and (momentum is None or dampening != 0):
        raise ValueError(
            f"nesterov=True needs a momentum and dampening=0, but got momentum={momentum} and dampening={dampening}."
        )
    links = [
        *_decay(weight_decay),
        *([] if momentum is None else [trace(momentum, dampening, nesterov=nesterov, state_dtype=state_dtype)]),
        scale_by_learning_rate(lr),
    ]
    return chain(*links, name="sgd")


def adam(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    amsgrad: bool = False,
    optimized_update: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Adam: `p ← p − η m̂ / (√v̂ + ε)`; see `scale_by_adam`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, as L2 regularisation (`g + λ p` before the moments); None for none, and no such
            hyper-parameter. Usually `adamw` is what you want.
        amsgrad: divide by the largest second moment so far.
        optimized_update: ε outside the bias correction, see `scale_by_adam`.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Kingma & Ba 2015, https://arxiv.org/abs/1412.6980. Retraces `torch.optim.Adam`. `optax.adam` is this without decay.
    """
    links = [
        *_decay(weight_decay),
        scale_by_adam(betas, eps, amsgrad=amsgrad, optimized_update=optimized_update, state_dtype=state_dtype),
        scale_by_learning_rate(lr),
    ]
    return chain(*links, name="adam")


def adamw(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    *,
    amsgrad: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Adam with decoupled weight decay: `p ← p − η (m̂ / (√v̂ + ε) + λ p)`.

    Args:
        lr: η, at least 0; it scales the decay too.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0.
        amsgrad: divide by the largest second moment so far.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101. Retraces `torch.optim.AdamW`;
    `optax.adamw` has the default weight_decay 1e-4.

    >>> import torch
    >>> tx = adamw(lr=0.1, weight_decay=0.0)
    >>> params = torch.tensor([1.0, 1.0])
    >>> updates, state = tx.update(torch.tensor([5.0, 0.0]), tx.init_state(params), params, {"lr": 0.5})
    >>> updates
    tensor([-0.5000, -0.0000])
    """
    return chain(
        scale_by_adam(betas, eps, amsgrad=amsgrad, state_dtype=state_dtype),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
        name="adamw",
    )


# --- The others of torch.optim, AdaBelief and Sophia ----------------------------------------------------------------------


def nadam(
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | None = None,
    momentum_decay: float = 4e-3,
    *,
    decoupled_weight_decay: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """NAdam: Adam with Nesterov's momentum, which warms up; see `scale_by_nadam`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        momentum_decay: ψ, at least 0: how fast the momentum warms up.
        decoupled_weight_decay: decay the parameter itself, as `adamw` does.
        state_dtype: dtype of the slots like the parameters; theirs by default.

    Source: Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ. Retraces `torch.optim.NAdam`; `optax.nadam` has
    no warm-up: that is a huge ψ, such as 1e6.
    """
    rule = scale_by_nadam(betas, eps, momentum_decay, state_dtype=state_dtype)
    return chain(*_decayed(rule, weight_decay, decoupled_weight_decay), scale_by_learning_rate(lr), name="nadam")


def radam(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    decoupled_weight_decay: bool = False,
    degenerated_to_sgd: bool = True,
    optimized_update: bool = True,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """RAdam: Adam without the need of a warm-up; see `scale_by_radam`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        decoupled_weight_decay: decay the parameter itself, as `adamw` does.
        degenerated_to_sgd: descend with momentum in the first steps; False takes no step then (decoupled decay goes on).
        optimized_update: ε outside the bias correction, as torch has it; False is the paper's and optax's.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Liu et al. 2020, https://arxiv.org/abs/1908.03265. Retraces `torch.optim.RAdam`, and with `optimized_update=False`
    `optax.radam`.
    """
    rule = scale_by_radam(
        betas, eps, degenerated_to_sgd=degenerated_to_sgd, optimized_update=optimized_update, state_dtype=state_dtype
    )
    return chain(*_decayed(rule, weight_decay, decoupled_weight_decay), scale_by_learning_rate(lr), name="radam")


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
    state_dtype: torch.dtype | None = None,
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
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Zhuang et al. 2020, https://arxiv.org/abs/2010.07468. As `optax.adabelief`; torch has no counterpart.
    """
    rule = scale_by_belief(betas, eps, eps_root, rectify=rectify, degenerated_to_sgd=degenerated_to_sgd, state_dtype=state_dtype)
    return chain(*_decayed(rule, weight_decay, decoupled_weight_decay), scale_by_learning_rate(lr), name="adabelief")


def adamax(
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Adamax: Adam with the largest recent gradient in place of the root mean square; see `scale_by_adamax`.

    Args:
        lr: η, at least 0.
        betas: decay of the average and of the maximum, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Kingma & Ba 2015, https://arxiv.org/abs/1412.6980. Retraces `torch.optim.Adamax` and `optax.adamax`.
    """
    links = [*_decay(weight_decay), scale_by_adamax(betas, eps, state_dtype=state_dtype), scale_by_learning_rate(lr)]
    return chain(*links, name="adamax")


def adagrad(
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float | None = None,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Adagrad: `p ← p − η / (1 + (t − 1) γ) · g / (√s + ε)`, s the sum of all g²; see `scale_by_rss`.

    Args:
        lr: η, at least 0.
        lr_decay: γ, per step, at least 0.
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        initial_accumulator_value: of s, at least 0, in units of g².
        eps: ε, at least 0, in units of |g|.
        state_dtype: dtype of the slot; the parameter's by default.

    Source: Duchi et al. 2011, https://jmlr.org/papers/v12/duchi11a.html. Retraces `torch.optim.Adagrad`. `optax.adagrad` has ε
    in the root, and other defaults.
    """
    links = [
        *_decay(weight_decay),
        scale_by_rss(initial_accumulator_value, eps, state_dtype=state_dtype),
        scale_by_inverse_time(lr_decay),
        scale_by_learning_rate(lr),
    ]
    return chain(*links, name="adagrad")


def adadelta(
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Adadelta: steps in the parameter's own units; see `scale_by_adadelta`.

    Args:
        lr: a factor that the paper does without, at least 0.
        rho: decay of both averages, in [0, 1].
        eps: ε, at least 0, in units of g².
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Zeiler 2012, https://arxiv.org/abs/1212.5701. Retraces `torch.optim.Adadelta`; `optax.adadelta` has its decay after
    the rule.
    """
    links = [*_decay(weight_decay), scale_by_adadelta(rho, eps, state_dtype=state_dtype), scale_by_learning_rate(lr)]
    return chain(*links, name="adadelta")


def rmsprop(
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float | None = None,
    momentum: float | None = None,
    *,
    centered: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """RMSprop: gradients divided by their root mean square, then momentum; see `scale_by_rms`, `scale_by_stddev`.

    Args:
        lr: η, at least 0.
        alpha: decay of the averages, in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        momentum: μ, at least 0, of the divided gradients; None for none, without a slot and such a hyper-parameter.
        centered: divide by the standard deviation instead.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Hinton 2012; Graves 2013, https://arxiv.org/abs/1308.0850. Retraces `torch.optim.RMSprop`; `optax.rmsprop` has ε in
    the root, and other defaults.
    """
    links = [
        *_decay(weight_decay),
        (scale_by_stddev if centered else scale_by_rms)(alpha, eps, state_dtype=state_dtype),
        *([] if momentum is None else [trace(momentum, state_dtype=state_dtype)]),
        scale_by_learning_rate(lr),
    ]
    return chain(*links, name="rmsprop")


def rprop(
    lr: float = 1e-2,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Rprop: a step size for each element, for whole-batch gradients; see `scale_by_rprop`.

    Args:
        lr: the first step size, at least 0.
        etas: its factors at a change of sign, in (0, 1), and without one, greater than 1.
        step_sizes: the smallest and the largest step size, at least 0.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Riedmiller & Braun 1993, https://doi.org/10.1109/ICNN.1993.298623. Retraces `torch.optim.Rprop`.
    """
    return chain(scale_by_rprop(lr, etas, step_sizes, state_dtype=state_dtype), negate(), name="rprop")


def asgd(
    lr: float = 1e-2,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Averaged stochastic gradient descent; see `scale_by_asgd` and `average_iterates`.

    Args:
        lr: η₀, the first step size, at least 0.
        lambd: λ, the decay of parameters and of the step size, at least 0.
        alpha: the power of the decay of the step size.
        t0: the step at which the average starts.
        weight_decay: another λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        state_dtype: dtype of the average; the parameter's by default.

    Source: Polyak & Juditsky 1992, https://doi.org/10.1137/0330046. Retraces `torch.optim.ASGD`; optax has none.
    """
    links = [
        *_decay(weight_decay),
        scale_by_asgd(lr, lambd, alpha),
        negate(),
        average_iterates(t0, state_dtype=state_dtype),
    ]
    return chain(*links, name="asgd")


def adafactor(
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    eps1: float | None = None,
    eps2: float = 1e-3,
    d: float = 1.0,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Adafactor: factored moments, and steps in proportion to each parameter's root mean square; see `scale_by_factored_rms`.

    Args:
        lr: η, at least 0: the most that a parameter moves, in units of its root mean square. From step 1 / η² on the step falls
            as 1 / √t.
        beta2_decay: τ, at most 0; the t-th gradient enters the moments with the weight `t^τ`.
        eps1: ε₁, at least 0, in units of |g|; None for the machine epsilon, and no such hyper-parameter.
        eps2: ε₂, at least 0: what a smaller parameter counts as, so that zeros can move.
        d: the most that the root mean square of an update may be before it is scaled, greater than 0.
        weight_decay: λ, at least 0, decoupled and scaled by η alone; None for none, and no such hyper-parameter.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235. Retraces `torch.optim.Adafactor`, whose `eps` is the pair
    (ε₁, ε₂). `optax.adafactor` has no step that falls with time, adds ε₁ to g², and leaves small matrices unfactored.
    """
    return chain(
        scale_by_factored_rms(beta2_decay, eps1, state_dtype=state_dtype),
        rename_hparams(clip_by_block_rms(d), threshold="d"),
        rename_hparams(scale_by_param_block_rms(eps2), min_scale="eps2"),
        scale_by_relative_step(lr),
        *_decay(weight_decay),
        scale_by_learning_rate(lr),
        name="adafactor",
    )


def sophia(
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.965, 0.99),
    rho: float = 0.04,
    weight_decay: float = 1e-1,
    eps: float = 1e-12,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Sophia: clipped Newton steps, with decoupled weight decay; see `scale_by_sophia`.

    Every `update` takes the keyword `hessian_diag`, an estimate of the Hessian's diagonal or None.

    Args:
        lr: η, at least 0: the most that an element moves, but for the decay.
        betas: decay of m per step, and of h per estimate, each in [0, 1).
        rho: ρ, at least 0: the larger, the more elements take Newton's step, divided by ρ.
        weight_decay: λ, at least 0.
        eps: at least 0, in units of the Hessian.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Liu et al. 2023, https://arxiv.org/abs/2305.14342.
    """
    return chain(
        scale_by_sophia(betas, rho, eps, state_dtype=state_dtype),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
        name="sophia",
    )


def muon(
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    *,
    nesterov: bool = True,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = "match_rms_adamw",
    ns_dtype: torch.dtype | None = torch.bfloat16,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Muon for parameters of at least two dimensions, AdamW for the rest; see `scale_by_muon`.

    Embeddings and output layers are matrices too, though those who train language models give them to AdamW: for that, write
    the `partition` yourself, with `by_name`.

    Args:
        lr: η of both, at least 0; `muon.lr` and `adamw.lr` set one of them.
        weight_decay: λ of both, at least 0; `muon.weight_decay` and `adamw.weight_decay` set one of them.
        momentum: μ of Muon, in [0, 1).
        ns_coefficients: of its iteration.
        betas: AdamW's.
        eps: AdamW's. Muon's is the hyper-parameter `muon.eps`.
        nesterov, ns_steps, ns_dtype: see `scale_by_muon`; here, as in torch, the iteration is in bfloat16.
        adjust_lr_fn: see `scale_by_muon`; "match_rms_adamw" is what lets both branches have one learning rate.
        state_dtype: dtype of the slots; the parameter's by default.

    State: of each branch, over a flat dict of its parameters, under `"muon"` and `"adamw"`.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025, https://arxiv.org/abs/2502.16982.
    With matrices alone, `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`. `optax.contrib.muon` takes matrices only, and
    has other defaults.
    """
    rule = scale_by_muon(
        momentum,
        ns_coefficients,
        nesterov=nesterov,
        ns_steps=ns_steps,
        adjust_lr_fn=adjust_lr_fn,
        ns_dtype=ns_dtype,
        state_dtype=state_dtype,
    )
    branches = {
        "muon": chain(rule, add_decayed_weights(weight_decay), scale_by_learning_rate(lr), name="muon"),
        "adamw": adamw(lr, betas, eps, weight_decay, state_dtype=state_dtype),
    }
    return dataclasses.replace(partition(branches, MuonOrAdamW()), name="muon")


# --- More adaptive moments ----------------------------------------------------------------------------------------------


def amsgrad(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """AMSGrad: Adam that divides by the largest second moment so far. The same as `adam(amsgrad=True)`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Reddi et al. 2018, https://arxiv.org/abs/1904.09237. Retraces `torch.optim.Adam(amsgrad=True)`; `optax.amsgrad` takes
    the maximum after the bias correction.
    """
    return chain(scale_by_adam(betas, eps, amsgrad=True, state_dtype=state_dtype), scale_by_learning_rate(lr), name="amsgrad")


def yogi(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-3,
    initial_accumulator_value: float = 1e-6,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Yogi: Adam whose second moment forgets large gradients slowly; see `scale_by_yogi`.

    Args:
        lr: η, at least 0.
        betas: decay of m and size of v's steps, each in [0, 1).
        eps: at least 0, in units of |g|.
        initial_accumulator_value: where both moments start, at least 0.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Zaheer et al. 2018, https://papers.nips.cc/paper/2018/hash/90365351ccc7437a1309dc64e4db32a3-Abstract.html.
    As `optax.yogi`.
    """
    return chain(
        scale_by_yogi(betas, eps, initial_accumulator_value, state_dtype=state_dtype), scale_by_learning_rate(lr), name="yogi"
    )


def adan(
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Adan: adaptive moments with Nesterov's momentum, and decoupled decay; see `scale_by_adan`.

    Args:
        lr: η, at least 0; it scales the decay too.
        betas: decay of the averages of the gradient, of its differences and of the squares, each in [0, 1).
        eps: at least 0, in units of |g|.
        weight_decay: λ, at least 0: a step multiplies parameters by `1 − η λ`, where the paper divides by `1 + η λ`.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Xie et al. 2022, https://arxiv.org/abs/2208.06677. As its authors' program with `no_prox=True`; `optax.adan` weighs
    the differences otherwise, see `scale_by_adan`.
    """
    return chain(
        scale_by_adan(betas, eps, state_dtype=state_dtype),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
        name="adan",
    )


def sm3(lr: float = 1e-3, momentum: float = 0.9, eps: float = 1e-8, *, state_dtype: torch.dtype | None = None) -> Transform:
    """SM3: Adagrad with an accumulator per row and per column, and momentum; see `scale_by_sm3`.

    Args:
        lr: η, at least 0.
        momentum: μ, in [0, 1).
        eps: greater than 0, in units of g².
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Anil et al. 2019, https://arxiv.org/abs/1901.11150. As `optax.sm3`.
    """
    return chain(scale_by_sm3(momentum, eps, state_dtype=state_dtype), scale_by_learning_rate(lr), name="sm3")


# --- A step per tensor in proportion to its norm ------------------------------------------------------------------------


def lamb(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """LAMB: AdamW whose update of each tensor has the length of the parameter, times the learning rate.

    Args:
        lr: η, at least 0: how far a tensor moves, in units of its own norm.
        betas: decay of the two moments, each in [0, 1).
        eps: at least 0, in units of |g|.
        weight_decay: λ, at least 0; its part of the update is scaled too.
        state_dtype: dtype of the slots; the parameter's by default.

    The ε of `scale_by_trust_ratio` is the hyper-parameter `trust_eps`.

    Source: You et al. 2020, https://arxiv.org/abs/1904.00962, with φ the identity. As `optax.lamb`.
    """
    return chain(
        scale_by_adam(betas, eps, state_dtype=state_dtype),
        add_decayed_weights(weight_decay),
        rename_hparams(scale_by_trust_ratio(), eps="trust_eps"),
        scale_by_learning_rate(lr),
        name="lamb",
    )


def lars(
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 1e-3,
    eps: float = 0.0,
    *,
    nesterov: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """LARS: momentum of steps that are in proportion to each tensor's norm, `c ‖p‖ / ‖g + λ p‖`.

    Args:
        lr: η, at least 0. It enters before the momentum, so that a change of it takes effect gradually.
        momentum: μ, at least 0.
        weight_decay: λ, at least 0, as L2 regularisation.
        trust_coefficient: c, at least 0.
        eps: at least 0, in units of the gradient's norm.
        nesterov: look ahead, see `trace`.
        state_dtype: dtype of the slot; the parameter's by default.

    Source: You et al. 2017, https://arxiv.org/abs/1708.03888, who divide by `‖g‖ + λ ‖p‖`. As `optax.lars`.
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps),
        scale_by_learning_rate(lr),
        trace(momentum, nesterov=nesterov, state_dtype=state_dtype),
        name="lars",
    )


def fromage(lr: float = 1e-2, min_norm: float = 1e-6) -> Transform:
    """Fromage: `p ← (p − η g ‖p‖ / ‖g‖) / √(1 + η²)`, tensor by tensor.

    Args:
        lr: η, at least 0: how far a tensor moves, in units of its own norm; Bernstein et al. take 0.01 for everything.
        min_norm: the least that a norm counts as, at least 0.

    Source: Bernstein et al. 2020, https://arxiv.org/abs/2002.03432. As `optax.fromage`.
    """
    return chain(scale_by_trust_ratio(min_norm), scale_by_learning_rate(lr), shrink_after_step(lr), name="fromage")


def novograd(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.25),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """NovoGrad: momentum of gradients normalised tensor by tensor; see `scale_by_novograd`.

    Args:
        lr: η, at least 0.
        betas: decay of the momentum and of each tensor's average squared norm, each in [0, 1).
        eps: at least 0, in units of the gradient's norm.
        weight_decay: λ, at least 0.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Ginsburg et al. 2019, https://arxiv.org/abs/1905.11286. As `optax.novograd`.
    """
    return chain(
        scale_by_novograd(betas, eps, weight_decay, state_dtype=state_dtype), scale_by_learning_rate(lr), name="novograd"
    )


# --- Signs --------------------------------------------------------------------------------------------------------------


def lion(
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 1e-3,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Lion: `p ← p − η (sign(β₁ m + (1 − β₁) g) + λ p)`; see `scale_by_lion`.

    Args:
        lr: η, at least 0: every element moves by this much; it scales the decay too.
        betas: the share of the old momentum in the mix, and its decay, each in [0, 1).
        weight_decay: λ, at least 0.
        state_dtype: dtype of the slot; the parameter's by default.

    Source: Chen et al. 2023, https://arxiv.org/abs/2302.06675, who take lr 3 to 10 times smaller than AdamW's and weight_decay
    as many times larger. As `optax.lion`.
    """
    return chain(
        scale_by_lion(betas, state_dtype=state_dtype), add_decayed_weights(weight_decay), scale_by_learning_rate(lr), name="lion"
    )


def sign_sgd(lr: float = 1e-3) -> Transform:
    """signSGD: `p ← p − η sign(g)`.

    Args:
        lr: η, at least 0: every element moves by this much.

    Source: Bernstein et al. 2018, https://arxiv.org/abs/1802.04434. As `optax.sign_sgd`.
    """
    return chain(scale_by_sign(), scale_by_learning_rate(lr), name="sign_sgd")


def signum(lr: float = 1e-3, momentum: float = 0.9, *, state_dtype: torch.dtype | None = None) -> Transform:
    """Signum: `p ← p − η sign(m)`, with `m ← β m + (1 − β) g`.

    Args:
        lr: η, at least 0: every element moves by this much.
        momentum: β, in [0, 1).
        state_dtype: dtype of the slot; the parameter's by default.

    Source: Bernstein et al. 2018, https://arxiv.org/abs/1802.04434. As `optax.signum(beta)`.
    """
    average = rename_hparams(ema(momentum, debias=False, state_dtype=state_dtype), decay="momentum")
    return chain(average, scale_by_sign(), scale_by_learning_rate(lr), name="signum")


# --- Descent with a twist -----------------------------------------------------------------------------------------------


def noisy_sgd(lr: float = 1e-3, eta: float = 0.01, gamma: float = 0.55, seed: int = 0) -> Transform:
    """Gradient descent with noise of variance `η / tᵞ` on the gradient; see `add_noise`.

    Args:
        lr: the learning rate, at least 0.
        eta: η, the variance at the first step, at least 0.
        gamma: γ, how fast it falls.
        seed: a whole number; the noise is a function of it and of the step.

    Source: Neelakantan et al. 2015, https://arxiv.org/abs/1511.06807. As `optax.noisy_sgd`, with other random bits.
    """
    return chain(add_noise(eta, gamma, seed), scale_by_learning_rate(lr), name="noisy_sgd")


def polyak_sgd(
    lr: float = 1.0, max_lr: float = 1.0, f_min: float = 0.0, eps: float = 0.0, *, positive_part: bool = False
) -> Transform:
    """Gradient descent with the Polyak step: `p ← p − min((f − f*) / (‖u‖² + ε), γ) u`, with u = η g; see `scale_by_polyak`.

    Args:
        lr: η, at least 0; it scales the gradient before the step is measured, so that a smaller η gives a longer step.
        max_lr: γ, the longest step, greater than 0.
        f_min: f*, the least value of the loss.
        eps: at least 0, in units of ‖u‖².
        positive_part: no step where the loss is below f*.

    `update` needs the loss, `value=f`; behind an optimizer, `step(closure)` passes it.

    Source: Loizou et al. 2021, https://arxiv.org/abs/2002.10542. As `optax.polyak_sgd`, whose `scaling` is `lr`.
    """
    return chain(scale_by_learning_rate(lr), scale_by_polyak(max_lr, f_min, eps, positive_part=positive_part), name="polyak_sgd")


def optimistic_gradient_descent(
    lr: float = 1e-3, alpha: float = 1.0, beta: float = 1.0, *, state_dtype: torch.dtype | None = None
) -> Transform:
    """Optimistic gradient descent: `p ← p − η (α g + β (g − g₋₁))`; see `scale_by_optimistic_gradient`.

    Args:
        lr: η, at least 0.
        alpha: α, the weight of the gradient.
        beta: β, the weight of its change.
        state_dtype: dtype of the slot; the parameter's by default.

    Source: Mokhtari et al. 2020, https://arxiv.org/abs/1901.08511. As `optax.optimistic_gradient_descent`.
    """
    return chain(
        scale_by_optimistic_gradient(alpha, beta, state_dtype=state_dtype),
        scale_by_learning_rate(lr),
        name="optimistic_gradient_descent",
    )


def optimistic_adam(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Optimistic Adam: Adam's update, corrected by how it changed: `p ← p − η (α u + β (u − u₋₁))`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: at least 0, in units of |g|.
        alpha: α, the weight of the update.
        beta: β, the weight of its change.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Daskalakis, Ilyas, Syrgkanis & Zeng 2018, Training GANs with Optimism, https://arxiv.org/abs/1711.00141.
    As `optax.optimistic_adam_v2(nesterov=False)`.
    """
    return chain(
        scale_by_adam(betas, eps, state_dtype=state_dtype),
        scale_by_optimistic_gradient(alpha, beta, state_dtype=state_dtype),
        scale_by_learning_rate(lr),
        name="optimistic_adam",
    )


# --- What people train with now -------------------------------------------------------------------------------------------


def ademamix(
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    alpha: float = 5.0,
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    alpha_warmup: int | None = None,
    beta3_warmup: int | None = None,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """AdEMAMix: `p ← p − η ((m̂₁ + α m₂) / (√v̂ + ε) + λ p)`; see `scale_by_ademamix`.

    Args:
        lr: η, at least 0.
        betas: decay of the fast average, the second moment and the slow average, each in [0, 1).
        alpha: α, the weight of the slow average, at least 0.
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        alpha_warmup, beta3_warmup: steps in which α and β₃ rise; the paper takes the length of the run. None for at once.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Pagliardini et al. 2024, https://arxiv.org/abs/2409.03137. `optax.contrib.ademamix` is this.
    """
    scaled = scale_by_ademamix(betas, alpha, eps, alpha_warmup=alpha_warmup, beta3_warmup=beta3_warmup, state_dtype=state_dtype)
    return chain(scaled, *_decay(weight_decay), scale_by_learning_rate(lr), name="ademamix")


def simplified_ademamix(
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.99, 0.95),
    alpha: float = 0.0,
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Simplified AdEMAMix: `p ← p − η ((m + α g) / (√v̂ + ε) + λ p)` with `m ← β₁ m + g`; see `scale_by_simplified_ademamix`.

    Args:
        lr: η, at least 0; about (1 − β₁) times what Adam takes.
        betas: decay of the sum and of the second moment, each in [0, 1).
        alpha: α, the weight of the present gradient, at least 0.
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Morwani et al. 2025, https://arxiv.org/abs/2502.02431. `optax.contrib.simplified_ademamix` is this.
    """
    scaled = scale_by_simplified_ademamix(betas, alpha, eps, state_dtype=state_dtype)
    return chain(scaled, *_decay(weight_decay), scale_by_learning_rate(lr), name="simplified_ademamix")


def adopt(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.9999),
    eps: float = 1e-6,
    weight_decay: float | None = None,
    *,
    nesterov: bool = False,
    clipped: bool = True,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """ADOPT: `p ← p − η (m + λ p)`, m the average of gradients normalised by the past; see `scale_by_adopt`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, greater than 0, in units of |g|: the least denominator.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        nesterov: look ahead, see `scale_by_adopt`.
        clipped: bound normalised gradients by the fourth root of the step.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Taniguchi et al. 2024, https://arxiv.org/abs/2411.02853. `optax.contrib.adopt` is this without decay; the authors'
    program does not decay at the first step.
    """
    scaled = scale_by_adopt(betas, eps, nesterov=nesterov, clipped=clipped, state_dtype=state_dtype)
    return chain(scaled, *_decay(weight_decay), scale_by_learning_rate(lr), name="adopt")


def laprop(
    lr: float = 4e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-15,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """LaProp: `p ← p − η (m̂ + λ p)`, m the average of normalised gradients; see `scale_by_laprop`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Ziyin et al. 2020, https://arxiv.org/abs/2002.04839.
    """
    scaled = scale_by_laprop(betas, eps, state_dtype=state_dtype)
    return chain(scaled, *_decay(weight_decay), scale_by_learning_rate(lr), name="laprop")


def stable_adamw(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-6,
    weight_decay: float = 1e-2,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """StableAdamW: AdamW's step divided by `max(1, √mean(g² / max(v̂, ε²)))`, tensor by tensor; see `scale_by_stable_adamw`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, greater than 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Wortsman et al. 2023, https://arxiv.org/abs/2304.13013.
    """
    return chain(
        scale_by_stable_adamw(betas, eps, weight_decay, state_dtype=state_dtype), scale_by_learning_rate(lr), name="stable_adamw"
    )


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
        *_decay(weight_decay),
        scale_by_learning_rate(lr),
        name="mars",
    )


def grams(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Grams: `p ← p − η (sign(g) |u| + λ p)`, u being Adam's step; see `with_gradient_signs`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Cao et al. 2024, https://arxiv.org/abs/2412.17107.
    """
    signed = with_gradient_signs(scale_by_adam(betas, eps, state_dtype=state_dtype))
    return chain(signed, *_decay(weight_decay), scale_by_learning_rate(lr), name="grams")


def adamc(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    max_lr: float | None = None,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """AdamC: AdamW whose decay falls with the square of the learning rate, `p ← p − η (m̂ / (√v̂ + ε) + λ (η / η_max) p)`.

    Args:
        lr: η, at least 0; scheduled, or this does nothing that `adamw` does not.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0.
        max_lr: η_max, the largest learning rate of the schedule; `lr` if None.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Defazio 2025, https://arxiv.org/abs/2506.02285, who keeps plain decay for layers that no normalisation follows.
    """
    return chain(
        scale_by_adam(betas, eps, state_dtype=state_dtype),
        add_corrected_decayed_weights(weight_decay, lr, lr if max_lr is None else max_lr),
        scale_by_learning_rate(lr),
        name="adamc",
    )


def adam_atan2(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float | None = None,
    a: float = 1.27,
    b: float = 1.0,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Adam without ε: `p ← p − η (a · atan2(m̂, b √v̂) + λ p)`; see `scale_by_adam_atan2`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        a, b: greater than 0, the scales of the angle and of the denominator.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Everett et al. 2024, https://arxiv.org/abs/2407.05872.
    """
    scaled = scale_by_adam_atan2(betas, a, b, state_dtype=state_dtype)
    return chain(scaled, *_decay(weight_decay), scale_by_learning_rate(lr), name="adam_atan2")


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
    return chain(*_decay(weight_decay), scale_by_madgrad(lr, momentum, eps, state_dtype=state_dtype), name="madgrad")


def adam_mini(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    blocks: int | None = 1,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Adam-mini: Adam with one second moment for a block of elements; see `scale_by_adam_mini` for which.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        blocks: into how many equal blocks the rows of a parameter are split; None for one block per row.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Zhang et al. 2024, https://arxiv.org/abs/2406.16793.
    """
    scaled = scale_by_adam_mini(betas, eps, blocks=blocks, state_dtype=state_dtype)
    return chain(scaled, *_decay(weight_decay), scale_by_learning_rate(lr), name="adam_mini")


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
    state_dtype: torch.dtype | None = None,
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


def came(
    lr: float = 2e-4,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    eps: tuple[float, float] = (1e-30, 1e-16),
    weight_decay: float | None = None,
    clip_threshold: float = 1.0,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """CAME: Adafactor with a confidence; see `scale_by_came`.

    Args:
        lr: η, at least 0.
        betas: decay of the step, the second moment and the confidence, each in [0, 1).
        eps: added to squares of gradients, and of deviations of the step; each at least 0.
        weight_decay: λ, at least 0, decoupled; None for none, and no such hyper-parameter.
        clip_threshold: the largest root mean square of a step before it is averaged, greater than 0.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Luo et al. 2023, https://arxiv.org/abs/2307.02047.
    """
    scaled = scale_by_came(betas, eps, clip_threshold, state_dtype=state_dtype)
    return chain(scaled, *_decay(weight_decay), scale_by_learning_rate(lr), name="came")


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
        *_decay(weight_decay), scale_by_dog(reps_rel, eps, state_dtype=state_dtype), scale_by_learning_rate(lr), name="dog"
    )


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
    return chain(*_decay(weight_decay), scale_by_dowg(eps, state_dtype=state_dtype), scale_by_learning_rate(lr), name="dowg")


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
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Prodigy: AdamW that estimates its own learning rate; see `scale_by_prodigy`.

    Args:
        lr: at least 0; 1, times a schedule if you like. One value for all parameters.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled.
        d0: the first estimate, greater than 0.
        d_coef: what estimates are multiplied by, greater than 0.
        use_bias_correction: correct the moments for their start at 0.
        safeguard_warmup: for a long warm-up, see `scale_by_prodigy`.
        state_dtype: dtype of the slots; the parameter's by default.

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


def dadapt_adam(
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    *,
    use_bias_correction: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """D-Adapt Adam: AdamW that estimates its own learning rate; see `scale_by_d_adaptation`.

    Args:
        lr: at least 0; 1, times a schedule if you like. One value for all parameters.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, greater than 0, in units of |g|.
        weight_decay: λ, at least 0, decoupled.
        d0: the first estimate, greater than 0.
        use_bias_correction: correct the moments for their start at 0.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Defazio & Mishchenko 2023, https://arxiv.org/abs/2301.07733. `optax.contrib.dadapt_adamw` is this with bias
    correction.
    """
    scaled = scale_by_d_adaptation(
        lr, betas, eps, weight_decay, d0, use_bias_correction=use_bias_correction, state_dtype=state_dtype
    )
    return chain(scaled, name="dadapt_adam")


def _decay(weight_decay: float | None) -> list[Transform]:
    return [] if weight_decay is None else [add_decayed_weights(weight_decay)]


def _decayed(rule: Transform, weight_decay: float | None, decoupled: bool) -> list[Transform]:
    """The rule with its decay, if any: after it if decoupled, else before."""
    return [rule, *_decay(weight_decay)] if decoupled else [*_decay(weight_decay), rule]
