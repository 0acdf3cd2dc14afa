"""torch.optim's Adam and its family, each a sentence made of `chain`. A link whose number is None is left out."""

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.optimizers.decays import decay, decayed
from functional_optim.recipe import recorded
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.adamax import scale_by_adamax
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.nadam import scale_by_nadam
from functional_optim.rules.radam import scale_by_radam
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.rules.sparse_adam import scale_by_sparse_adam
from functional_optim.transform import Transform


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
