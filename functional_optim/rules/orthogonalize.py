"""Orthogonalising matrices.

    u ← P S Qᵀ        of U = P Σ Qᵀ, with S near 1

Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks, https://kellerjordan.github.io/posts/muon/
Amsel et al. 2025, The Polar Express, https://arxiv.org/abs/2505.16932
"""

import torch

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.recipe import recorded
from functional_optim.rules.newton_schulz import (
    Schedule,
    margin_of,
    orthogonalized,
    require_matrix,
    require_schedule,
    schedule_of,
)
from functional_optim.transform import Transform, per_tensor


@per_tensor(hparams={"ns_eps": Hparam(1e-7, NON_NEGATIVE)}, batched=True, least_dims=2, name="orthogonalize")
def _orthogonalize(hp, *, coefficients, ns_steps, ns_dtype):
    def rule(u, p):
        require_matrix("orthogonalize", u.shape[1:])
        x = orthogonalized(u.flatten(2), schedule_of(coefficients), hp["ns_eps"], ns_steps, ns_dtype, margin_of(coefficients))
        return x.reshape(u.shape)

    return rule


@recorded
def orthogonalize(
    coefficients: str | Schedule = "muon", ns_eps: float = 1e-7, *, ns_steps: int = 5, ns_dtype: torch.dtype | None = None
) -> Transform:
    """Replace each matrix by nearly the closest orthogonal one, P Qᵀ of its singular value decomposition P Σ Qᵀ.

    A tensor of more than two dimensions, such as a convolution's, is the matrix of its first dimension by all others together.
    Matrices of equal shapes are iterated together. `chain(trace(0.95, nesterov=True), orthogonalize(), scale_by_shape())` is
    Muon's direction.

    Args:
        coefficients: "muon", "polar_express", "quintic", or the (a, b, c) of each step; beyond the last, it is repeated.
        ns_eps: at least 0, in units of the norm of u: a smaller update is not blown up.
        ns_steps: k, how often to iterate, fewer than 100.
        ns_dtype: round the factors and the results of each product to this dtype; see `scale_by_muon`.

    Raises:
        ValueError: unknown coefficients, ns_steps not in [0, 100); or, by `update`, a tensor of fewer than two dimensions.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; Amsel et al. 2025, https://arxiv.org/abs/2505.16932.
    Neither torch nor optax has it as a link of its own.

    >>> tx = orthogonalize("polar_express")
    >>> tx.update(torch.tensor([[3.0, 0.0], [0.0, -0.1]]), {})[0].round()
    tensor([[ 1.,  0.],
            [ 0., -1.]])
    """
    ns_steps = require_schedule(coefficients, ns_steps, ns_dtype)
    return _orthogonalize(coefficients, ns_steps, ns_dtype, ns_eps)
