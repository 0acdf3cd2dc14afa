"""Optimizers that divide by something else than Adam's average of squares: a deviation, a cautious moment, a Hessian."""

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.optimizers.decays import decayed
from functional_optim.recipe import recorded
from functional_optim.rules.adabelief import scale_by_belief
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.rules.sophia import scale_by_sophia
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
