"""Optimizers that treat a matrix as one: by its singular vectors, its rows and columns, or their second moments."""

import torch

from functional_optim.combinators.chain import chain
from functional_optim.combinators.rotate import rotate
from functional_optim.recipe import recorded
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.transform import Transform


@recorded
def soap(
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.95, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    shampoo_beta: float = 0.95,
    *,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10_000,
    precondition_1d: bool = False,
    dims: int = 2,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """SOAP: AdamW in the eigenbasis of the gradients' second moments along rows and columns; see `rotate`.

    Args:
        lr: η, at least 0.
        betas: decay of Adam's two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|, added to the root of the moment before the bias is corrected.
        weight_decay: λ, at least 0, decoupled.
        shampoo_beta: decay of the means of G Gᵀ and Gᵀ G per step, in [0, 1); the authors take β₂.
        precondition_frequency: how many steps pass between two new bases, at least 1.
        max_precond_dim: the largest dimension that is turned.
        precondition_1d: turn vectors, too.
        dims: how many dimensions are turned; see `rotate`. With 4, a convolution's are one each, as in the authors' program.
        state_dtype: dtype of Adam's slots; the parameter's by default. The matrices are in at least float32.

    Source: Vyas et al. 2024, https://arxiv.org/abs/2409.11321. Retraces the authors' program but for its decay, which shrinks the
    parameter after the step, not before, and not in the first step; and but for a convolution, if `dims` is not 4.
    """
    adam = scale_by_adam(betas, eps, optimized_update=True, state_dtype=state_dtype)
    return chain(
        rotate(
            adam,
            shampoo_beta,
            precondition_frequency=precondition_frequency,
            max_precond_dim=max_precond_dim,
            precondition_1d=precondition_1d,
            dims=dims,
        ),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
        name="soap",
    )
