"""Optimizers whose second moments take less memory: one for a row, a column or a block."""

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.optimizers.decays import decay
from functional_optim.recipe import recorded
from functional_optim.rules.adam_mini import scale_by_adam_mini
from functional_optim.rules.came import scale_by_came
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.rules.sm3 import scale_by_sm3
from functional_optim.transform import Transform


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
