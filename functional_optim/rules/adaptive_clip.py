"""Adaptive gradient clipping: each unit's gradient is at most a share of the unit's weights.

    g ← g · min(1, λ max(‖p‖, ε) / ‖g‖)           norms of each unit: row of a matrix, filter of a convolution

Brock, De, Smith & Simonyan 2021, High-Performance Large-Scale Image Recognition Without Normalization,
https://arxiv.org/abs/2102.06171
"""

import torch

from functional_optim.hparams import NON_NEGATIVE, POSITIVE, Hparam
from functional_optim.numerics import sqrt
from functional_optim.transform import per_tensor


def _unit_norms(x):
    """The norm of each unit, in a shape that broadcasts: over all axes but the first; of a vector, over all of it."""
    square = x * x
    return sqrt(square.sum(tuple(range(1, x.ndim)), keepdim=True) if x.ndim > 1 else square.sum())


@per_tensor(hparams={"clipping": Hparam(1e-2, POSITIVE), "eps": Hparam(1e-3, NON_NEGATIVE)})
def adaptive_grad_clip(hp):
    """Scale each unit's gradient so that its norm is at most `λ max(‖p‖, ε)`, where ‖p‖ is the norm of the unit's weights.

    A unit is what belongs to one output. torch keeps weights as (outputs, inputs, …): the norms run over all axes but the first.
    A vector or a () tensor is one unit.

    Args:
        clipping: λ, greater than 0; infinity clips nothing.
        eps: ε, at least 0, in units of ‖p‖: what a unit with smaller weights counts as, so that zeros can move.

    Raises:
        ValueError: `update` was called without params.

    Source: Brock et al. 2021, https://arxiv.org/abs/2102.06171. As `optax.adaptive_grad_clip`, which takes weights as
    (inputs, outputs): there the last axis tells the units apart.
    """

    def rule(g, p):
        bound = hp["clipping"] * _unit_norms(p).clamp(min=hp["eps"])
        norm = _unit_norms(g)
        above = norm > bound
        return torch.where(above, g * (bound / torch.where(above, norm, 1.0)), g)

    return rule
