"""Whole optimizers: each a sentence made of `chain`. A link whose number is None is left out."""

import dataclasses

import torch

from functional_optim.combinators.chain import chain
from functional_optim.combinators.partition import partition
from functional_optim.combinators.rename import rename_hparams
from functional_optim.rules.adabelief import scale_by_belief
from functional_optim.rules.adadelta import scale_by_adadelta
from functional_optim.rules.adagrad import scale_by_rss
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.adamax import scale_by_adamax
from functional_optim.rules.adan import scale_by_adan
from functional_optim.rules.asgd import average_iterates, scale_by_asgd
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.ema import ema
from functional_optim.rules.fromage import shrink_after_step
from functional_optim.rules.lion import scale_by_lion
from functional_optim.rules.momentum import trace
from functional_optim.rules.muon import COEFFICIENTS, MuonOrAdamW, scale_by_muon
from functional_optim.rules.nadam import scale_by_nadam
from functional_optim.rules.noise import add_noise
from functional_optim.rules.novograd import scale_by_novograd
from functional_optim.rules.optimistic import scale_by_optimistic_gradient
from functional_optim.rules.polyak import scale_by_polyak
from functional_optim.rules.radam import scale_by_radam
from functional_optim.rules.rms import scale_by_rms, scale_by_stddev
from functional_optim.rules.rprop import scale_by_rprop
from functional_optim.rules.scale import negate, scale_by_inverse_time, scale_by_learning_rate
from functional_optim.rules.sign import scale_by_sign
from functional_optim.rules.sm3 import scale_by_sm3
from functional_optim.rules.sophia import scale_by_sophia
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
        *_l2(weight_decay),
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
        *_l2(weight_decay),
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
    links = [*_l2(weight_decay), scale_by_adamax(betas, eps, state_dtype=state_dtype), scale_by_learning_rate(lr)]
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
        *_l2(weight_decay),
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
    links = [*_l2(weight_decay), scale_by_adadelta(rho, eps, state_dtype=state_dtype), scale_by_learning_rate(lr)]
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
        *_l2(weight_decay),
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
        *_l2(weight_decay),
        scale_by_asgd(lr, lambd, alpha),
        negate(),
        average_iterates(t0, state_dtype=state_dtype),
    ]
    return chain(*links, name="asgd")


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


def _l2(weight_decay: float | None) -> list[Transform]:
    return [] if weight_decay is None else [add_decayed_weights(weight_decay)]


def _decayed(rule: Transform, weight_decay: float | None, decoupled: bool) -> list[Transform]:
    """The rule with its decay, if any: after it if decoupled, else before."""
    return [rule, *_l2(weight_decay)] if decoupled else [*_l2(weight_decay), rule]
