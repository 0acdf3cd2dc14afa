"""The optimizers of torch.optim, each a sentence made of `chain`. A link whose number is None is left out."""

import dataclasses
from collections.abc import Sequence

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.combinators.partition import partition
from functional_optim.combinators.rename import rename_hparams
from functional_optim.optimizers.decays import decay, decayed
from functional_optim.recipe import recorded
from functional_optim.rules.adadelta import scale_by_adadelta
from functional_optim.rules.adafactor import scale_by_factored_rms, scale_by_relative_step
from functional_optim.rules.adagrad import scale_by_rss
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.adamax import scale_by_adamax
from functional_optim.rules.asgd import average_iterates, scale_by_asgd
from functional_optim.rules.clip import clip_by_block_rms
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.momentum import trace
from functional_optim.rules.muon import MuonOrAdamW, scale_by_muon
from functional_optim.rules.nadam import scale_by_nadam
from functional_optim.rules.newton_schulz import COEFFICIENTS, Schedule
from functional_optim.rules.param_scale import scale_by_param_block_rms
from functional_optim.rules.radam import scale_by_radam
from functional_optim.rules.rms import scale_by_rms, scale_by_stddev
from functional_optim.rules.rprop import scale_by_rprop
from functional_optim.rules.scale import negate, scale_by_inverse_time, scale_by_learning_rate
from functional_optim.rules.sparse_adam import scale_by_sparse_adam
from functional_optim.transform import Transform


@recorded
def sgd(
    lr: float = 1e-3,
    momentum: float | None = None,
    dampening: float = 0.0,
    weight_decay: float | None = None,
    *,
    nesterov: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Stochastic gradient descent: `p ← p − η m`, with `m ← μ m + (1 − τ)(g + λ p)`.

    Args:
        lr: η, at least 0.
        momentum: μ, at least 0; None for plain descent, without a slot and without the hyper-parameters `momentum`, `dampening`.
        dampening: τ, see `trace`.
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        nesterov: look ahead, see `trace`; needs a momentum and, as in torch, no dampening.
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

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
        *decay(weight_decay),
        *([] if momentum is None else [trace(momentum, dampening, nesterov=nesterov, state_dtype=state_dtype)]),
        scale_by_learning_rate(lr),
    ]
    return chain(*links, name="sgd")


@recorded
def adam(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    amsgrad: bool = False,
    optimized_update: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
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
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Kingma & Ba 2015, https://arxiv.org/abs/1412.6980. Retraces `torch.optim.Adam`. `optax.adam` is this without decay.
    """
    links = [
        *decay(weight_decay),
        scale_by_adam(betas, eps, amsgrad=amsgrad, optimized_update=optimized_update, state_dtype=state_dtype),
        scale_by_learning_rate(lr),
    ]
    return chain(*links, name="adam")


@recorded
def adamw(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    *,
    amsgrad: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Adam with decoupled weight decay: `p ← p − η (m̂ / (√v̂ + ε) + λ p)`.

    Args:
        lr: η, at least 0; it scales the decay too.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0.
        amsgrad: divide by the largest second moment so far.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

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


@recorded
def sparse_adam(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Adam of the elements whose gradient is not 0; see `scale_by_sparse_adam`.

    Args:
        lr: η, at least 0.
        betas: decay of the two averages per step that an element has a gradient in, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        state_dtype: dtype of the slots; the parameter's by default.

    As `torch.optim.SparseAdam` of the same gradients, made sparse.
    """
    return chain(scale_by_sparse_adam(betas, eps, state_dtype=state_dtype), scale_by_learning_rate(lr), name="sparse_adam")


@recorded
def amsgrad(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """AMSGrad: Adam that divides by the largest second moment so far. The same as `adam(amsgrad=True)`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Reddi et al. 2018, https://arxiv.org/abs/1904.09237. Retraces `torch.optim.Adam(amsgrad=True)`; `optax.amsgrad` takes
    the maximum after the bias correction.
    """
    return chain(scale_by_adam(betas, eps, amsgrad=True, state_dtype=state_dtype), scale_by_learning_rate(lr), name="amsgrad")


@recorded
def nadam(
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | None = None,
    momentum_decay: float = 4e-3,
    *,
    decoupled_weight_decay: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """NAdam: Adam with Nesterov's momentum, which warms up; see `scale_by_nadam`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        momentum_decay: ψ, at least 0: how fast the momentum warms up.
        decoupled_weight_decay: decay the parameter itself, as `adamw` does.
        state_dtype: dtype of the slots like the parameters, or a codec; theirs by default.

    Source: Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ. Retraces `torch.optim.NAdam`; `optax.nadam` has
    no warm-up: that is a huge ψ, such as 1e6, and `optax.nadamw` with decoupled weight decay.
    """
    rule = scale_by_nadam(betas, eps, momentum_decay, state_dtype=state_dtype)
    return chain(*decayed(rule, weight_decay, decoupled_weight_decay), scale_by_learning_rate(lr), name="nadam")


@recorded
def radam(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    decoupled_weight_decay: bool = False,
    degenerated_to_sgd: bool = True,
    optimized_update: bool = True,
    state_dtype: torch.dtype | Codec | None = None,
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
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Liu et al. 2020, https://arxiv.org/abs/1908.03265. Retraces `torch.optim.RAdam`, and with `optimized_update=False`
    `optax.radam`.
    """
    rule = scale_by_radam(
        betas, eps, degenerated_to_sgd=degenerated_to_sgd, optimized_update=optimized_update, state_dtype=state_dtype
    )
    return chain(*decayed(rule, weight_decay, decoupled_weight_decay), scale_by_learning_rate(lr), name="radam")


@recorded
def adamax(
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Adamax: Adam with the largest recent gradient in place of the root mean square; see `scale_by_adamax`.

    Args:
        lr: η, at least 0.
        betas: decay of the average and of the maximum, each in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Kingma & Ba 2015, https://arxiv.org/abs/1412.6980. Retraces `torch.optim.Adamax` and `optax.adamax`.
    `optax.adamaxw` is `chain(scale_by_adamax(), add_decayed_weights(), scale_by_learning_rate())`.
    """
    links = [*decay(weight_decay), scale_by_adamax(betas, eps, state_dtype=state_dtype), scale_by_learning_rate(lr)]
    return chain(*links, name="adamax")


@recorded
def adagrad(
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float | None = None,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Adagrad: `p ← p − η / (1 + (t − 1) γ) · g / (√s + ε)`, s the sum of all g²; see `scale_by_rss`.

    Args:
        lr: η, at least 0.
        lr_decay: γ, per step, at least 0.
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        initial_accumulator_value: of s, at least 0, in units of g².
        eps: ε, at least 0, in units of |g|.
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

    Source: Duchi et al. 2011, https://jmlr.org/papers/v12/duchi11a.html. Retraces `torch.optim.Adagrad`. `optax.adagrad` has ε
    in the root, and other defaults.
    """
    links = [
        *decay(weight_decay),
        scale_by_rss(initial_accumulator_value, eps, state_dtype=state_dtype),
        scale_by_inverse_time(lr_decay),
        scale_by_learning_rate(lr),
    ]
    return chain(*links, name="adagrad")


@recorded
def adadelta(
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float | None = None,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Adadelta: steps in the parameter's own units; see `scale_by_adadelta`.

    Args:
        lr: a factor that the paper does without, at least 0.
        rho: decay of both averages, in [0, 1].
        eps: ε, at least 0, in units of g².
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Zeiler 2012, https://arxiv.org/abs/1212.5701. Retraces `torch.optim.Adadelta`; `optax.adadelta` has its decay after
    the rule.
    """
    links = [*decay(weight_decay), scale_by_adadelta(rho, eps, state_dtype=state_dtype), scale_by_learning_rate(lr)]
    return chain(*links, name="adadelta")


@recorded
def rmsprop(
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float | None = None,
    momentum: float | None = None,
    *,
    centered: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """RMSprop: gradients divided by their root mean square, then momentum; see `scale_by_rms`, `scale_by_stddev`.

    Args:
        lr: η, at least 0.
        alpha: decay of the averages, in [0, 1).
        eps: ε, at least 0, in units of |g|.
        weight_decay: λ, at least 0, as L2 regularisation; None for none, and no such hyper-parameter.
        momentum: μ, at least 0, of the divided gradients; None for none, without a slot and such a hyper-parameter.
        centered: divide by the standard deviation instead.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Hinton 2012; Graves 2013, https://arxiv.org/abs/1308.0850. Retraces `torch.optim.RMSprop`; `optax.rmsprop` has ε in
    the root, and other defaults.
    """
    links = [
        *decay(weight_decay),
        (scale_by_stddev if centered else scale_by_rms)(alpha, eps, state_dtype=state_dtype),
        *([] if momentum is None else [trace(momentum, state_dtype=state_dtype)]),
        scale_by_learning_rate(lr),
    ]
    return chain(*links, name="rmsprop")


@recorded
def rprop(
    lr: float = 1e-2,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Rprop: a step size for each element, for whole-batch gradients; see `scale_by_rprop`.

    Args:
        lr: the first step size, at least 0, read when the state is made and never again: no schedule or scheduler changes it.
        etas: its factors at a change of sign, in (0, 1), and without one, greater than 1.
        step_sizes: the smallest and the largest step size, at least 0.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Riedmiller & Braun 1993, https://doi.org/10.1109/ICNN.1993.298623. Retraces `torch.optim.Rprop`.
    """
    return chain(scale_by_rprop(lr, etas, step_sizes, state_dtype=state_dtype), negate(), name="rprop")


@recorded
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
        *decay(weight_decay),
        scale_by_asgd(lr, lambd, alpha),
        negate(),
        average_iterates(t0, state_dtype=state_dtype),
    ]
    return chain(*links, name="asgd")


@recorded
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
        *decay(weight_decay),
        scale_by_learning_rate(lr),
        name="adafactor",
    )


@recorded
def muon(
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    ns_coefficients: tuple[float, float, float] | str | Schedule = COEFFICIENTS,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    *,
    nesterov: bool = True,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = "match_rms_adamw",
    ns_dtype: torch.dtype | None = torch.bfloat16,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Muon for parameters of at least two dimensions, AdamW for the rest; see `scale_by_muon`.

    Embeddings and output layers are matrices too, though those who train language models give them to AdamW: for that, write
    the `partition` yourself, with `by_name`.

    Args:
        lr: η of both, at least 0; `muon.lr` and `adamw.lr` set one of them.
        weight_decay: λ of both, at least 0; `muon.weight_decay` and `adamw.weight_decay` set one of them.
        momentum: μ of Muon, in [0, 1).
        ns_coefficients: of its iteration; see `scale_by_muon`.
        betas: AdamW's.
        eps: AdamW's. Muon's is the hyper-parameter `muon.eps`.
        nesterov, ns_steps, ns_dtype: see `scale_by_muon`; here, as in torch, the iteration is in bfloat16.
        adjust_lr_fn: see `scale_by_muon`; "match_rms_adamw" is what lets both branches have one learning rate.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

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
    return for_matrices("muon", [rule], lr, weight_decay, betas, eps, state_dtype)


def for_matrices(
    name: str,
    links: Sequence[Transform],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    state_dtype: torch.dtype | Codec | None,
    label: str = "muon",
) -> Transform:
    """These links, decay and the rate for matrices, under a label; AdamW of the same numbers for vectors and scalars."""
    matrices = chain(*links, add_decayed_weights(weight_decay), scale_by_learning_rate(lr), name=name)
    branches = {label: matrices, "adamw": adamw(lr, betas, eps, weight_decay, state_dtype=state_dtype)}
    return dataclasses.replace(partition(branches, MuonOrAdamW(label)), name=name)
