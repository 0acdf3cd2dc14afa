"""Optimizers that keep moments of a projection of each matrix in place of the matrix's."""

import torch

from functional_optim.combinators.chain import chain
from functional_optim.combinators.project import project
from functional_optim.recipe import recorded
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.bias_correction import scale_by_bias_correction
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.transform import Transform


def _chained(name: str, projected: Transform, betas: tuple[float, float], weight_decay: float, lr: float) -> Transform:
    links = projected, scale_by_bias_correction(betas), add_decayed_weights(weight_decay), scale_by_learning_rate(lr)
    return chain(*links, name=name)


@recorded
def galore(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    scale: float = 0.25,
    *,
    rank: int = 128,
    update_proj_gap: int = 200,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """GaLore: AdamW on the gradient's first singular directions, the same ones for some hundred steps; see `project`.

    Args:
        lr: η, at least 0; the authors' language models have 0.01.
        betas: decay of Adam's two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|, added to the root of the moment before the bias is corrected.
        weight_decay: λ, at least 0, decoupled.
        scale: of the updates of matrices, at least 0.
        rank: of the projection.
        update_proj_gap: how many steps pass between two projections.
        state_dtype: dtype of Adam's slots; the parameter's by default.

    Source: Zhao et al. 2024, https://arxiv.org/abs/2403.03507. Retraces galore_torch's `GaLoreAdamW` with proj_type="std", but
    for its decay, which shrinks the parameter after the step.
    """
    adam = scale_by_adam(betas, eps, debias=False, state_dtype=state_dtype)
    return _chained("galore", project(adam, scale, rank=rank, update_proj_gap=update_proj_gap), betas, weight_decay, lr)


@recorded
def apollo(
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    max_growth: float = 1.01,
    seed: float = 0,
    *,
    rank: int = 256,
    update_proj_gap: int = 200,
    scale_type: str = "channel",
    proj: str = "random",
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """APOLLO: gradients scaled, column by column, as AdamW scales their random projection; see `project`.

    APOLLO-Mini, with as little state as SGD, is `apollo(scale=128.0, rank=1, scale_type="tensor")`.

    Args:
        lr: η, at least 0.
        betas: decay of Adam's two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|, added to the root of the moment before the bias is corrected.
        weight_decay: λ, at least 0, decoupled.
        scale: matrices' updates are multiplied by its root; at least 0.
        max_growth: how much longer the update of a matrix may be than in the step before.
        seed: a whole number up to 2⁵³, of the projections.
        rank: of the projection.
        update_proj_gap: how many steps pass between two projections.
        scale_type: "channel", a factor for each column, or row of a tall matrix; "tensor", one for each matrix.
        proj: "random", or "svd" as in GaLore.
        state_dtype: dtype of Adam's slots; the parameter's by default.

    Source: Zhu et al. 2024, https://arxiv.org/abs/2412.05270. Retraces apollo_torch's `APOLLOAdamW` with scale_front=True, given
    its projections, but for its decay, which shrinks the parameter after the step.
    """
    if scale_type not in ("channel", "tensor"):
        raise ValueError(f"scale_type = {scale_type!r}: expected one of 'channel', 'tensor'.")
    adam = scale_by_adam(betas, eps, debias=False, state_dtype=state_dtype)
    projected = project(adam, scale, max_growth, seed, rank=rank, update_proj_gap=update_proj_gap, proj=proj, way=scale_type)
    return _chained("apollo", projected, betas, weight_decay, lr)


@recorded
def fira(
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    max_growth: float = 1.01,
    *,
    rank: int = 128,
    update_proj_gap: int = 200,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Fira: GaLore, and with it what its projection leaves of the gradient, scaled alike; see `project`.

    Args:
        lr: η, at least 0.
        betas: decay of Adam's two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|, added to the root of the moment before the bias is corrected.
        weight_decay: λ, at least 0, decoupled.
        scale: of the update in the projection, at least 0; the authors' `alpha`.
        max_growth: how much longer the rest of a matrix's update may be than in the step before.
        rank: of the projection.
        update_proj_gap: how many steps pass between two projections.
        state_dtype: dtype of Adam's slots; the parameter's by default.

    Source: Chen et al. 2024, https://arxiv.org/abs/2410.01623. Retraces the authors' `FiraAdamW` with proj_type="std" and
    alpha=1, but for its decay, which shrinks the parameter after the step.
    """
    adam = scale_by_adam(betas, eps, debias=False, state_dtype=state_dtype)
    projected = project(adam, scale, max_growth, rank=rank, update_proj_gap=update_proj_gap, way="rest")
    return _chained("fira", projected, betas, weight_decay, lr)
