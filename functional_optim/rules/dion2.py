"""Dion2: some rows of the momentum, or some columns, orthogonalised; the others wait.

    M ← M + G
    S ← the rows of M with the largest ‖·‖₁, a share of all       of a tall matrix: columns
    u ← √(rows / columns) P D Qᵀ in the rows S, else 0            of M in S = P Σ Qᵀ, by Newton and Schulz's iteration, D near 1
    M ← δ M in the rows S

Ahn et al. 2025, Dion2: A Simple Method to Shrink Matrix in Muon, https://arxiv.org/abs/2512.16928
"""

import math

import torch

from functional_optim.codecs import Codec
from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam, validate_number
from functional_optim.recipe import recorded
from functional_optim.rules.newton_schulz import Schedule, margin_of, matrix_zeros, orthogonalized, require_schedule, schedule_of
from functional_optim.rules.shape import aspect
from functional_optim.transform import Transform, per_tensor


@per_tensor(
    slots={"momentum_buffer": matrix_zeros("scale_by_dion2")},
    coded={"momentum_buffer": "signed"},
    hparams={"ef_decay": Hparam(0.95, FRACTION), "ns_eps": Hparam(1e-8, NON_NEGATIVE)},
    batched=True,
    least_dims=2,
    name="scale_by_dion2",
)
def _scale_by_dion2(hp, *, fraction, coefficients, ns_steps, ns_dtype):
    schedule, margin = schedule_of(coefficients), margin_of(coefficients)

    def rule(g, p, m):
        x = (m + g).flatten(2)
        dim = 1 if x.shape[1] <= x.shape[2] else 2
        count = math.ceil(fraction * x.shape[dim])
        chosen = x.abs().sum(3 - dim).topk(count, sorted=False)[1]
        index = chosen.unsqueeze(3 - dim).expand(*(count if d == dim else n for d, n in enumerate(x.shape)))
        part = x.gather(dim, index)
        u = orthogonalized(part, schedule, hp["ns_eps"], ns_steps, ns_dtype, margin)
        u = torch.zeros_like(x).scatter(dim, index, aspect(x) * u)
        return u.reshape(g.shape), x.scatter(dim, index, hp["ef_decay"] * part).reshape(g.shape)

    return rule


@recorded
def scale_by_dion2(
    ef_decay: float = 0.95,
    ns_eps: float = 1e-8,
    *,
    fraction: float = 0.25,
    coefficients: str | Schedule = "polar_express",
    ns_steps: int = 5,
    ns_dtype: torch.dtype | None = None,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Orthogonalise a share of the momentum's rows, those with the largest sums of magnitudes, and leave the others for later.

    Of a matrix with more rows than columns it is a share of the columns. A tensor of more than two dimensions is the matrix of
    its first dimension by all others together. Matrices of equal shapes are iterated together.

    Args:
        ef_decay: δ, in [0, 1): what stays in the momentum of the rows that a step uses. Of the others all stays.
        ns_eps: at least 0, in units of the norm of the chosen rows.
        fraction: the share of rows or columns, in (0, 1], rounded up.
        coefficients, ns_steps, ns_dtype: see `orthogonalize`.
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

    State: `momentum_buffer` (M), like the parameters.

    Raises:
        ValueError: fraction not in (0, 1], unknown coefficients, ns_steps not in [0, 100); or, by `init_state`, a parameter of
            fewer than two dimensions.

    Source: Ahn et al. 2025, https://arxiv.org/abs/2512.16928. Neither torch nor optax has it.

    >>> tx = scale_by_dion2(fraction=0.5)
    >>> g = torch.tensor([[3.0, 0.0], [0.0, -0.1]])
    >>> tx.update(g, tx.init_state(g))[0].round()
    tensor([[1., 0.],
            [0., 0.]])
    """
    validate_number("fraction", fraction, "(0, 1]")
    ns_steps = require_schedule(coefficients, ns_steps, ns_dtype)
    return _scale_by_dion2(fraction, coefficients, ns_steps, ns_dtype, ef_decay, ns_eps, state_dtype=state_dtype)
