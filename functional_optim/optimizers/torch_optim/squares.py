"""torch.optim's optimizers that divide by the root of sums or averages of squared gradients, without Adam's corrections."""

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.combinators.rename import rename_hparams
from functional_optim.optimizers.decays import decay
from functional_optim.recipe import recorded
from functional_optim.rules.adadelta import scale_by_adadelta
from functional_optim.rules.adafactor import scale_by_factored_rms, scale_by_relative_step
from functional_optim.rules.adagrad import scale_by_rss
from functional_optim.rules.clip import clip_by_block_rms
from functional_optim.rules.momentum import trace
from functional_optim.rules.param_scale import scale_by_param_block_rms
from functional_optim.rules.rms import scale_by_rms, scale_by_stddev
from functional_optim.rules.scale import scale_by_inverse_time, scale_by_learning_rate
from functional_optim.transform import Transform


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
