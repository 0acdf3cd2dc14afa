"""Dion: a part of low rank of the momentum, orthogonalised; the rest stays in it.

    M ← M + G
    P ← the orthogonal factor of M Q            Q (columns, r): that of the step before, one power iteration
    R ← Mᵀ P
    M ← M − (1 − μ) P Rᵀ                        what the step has not used is kept
    Q ← R, each column divided by its norm + ε
    u ← √(rows / columns) P Qᵀ

Ahn et al. 2025, Dion: Distributed Orthonormalized Updates, https://arxiv.org/abs/2504.05295
"""

import functools
import math

from torch import Tensor

from functional_optim.decompositions import orthogonal_factor
from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam, HParams, validate_number
from functional_optim.lifting import Leafwise, widened, zeros
from functional_optim.numerics import sqrt
from functional_optim.philox import normal
from functional_optim.recipe import recorded
from functional_optim.rules.newton_schulz import require_matrix
from functional_optim.rules.noise import SEEDS
from functional_optim.rules.shape import aspect
from functional_optim.transform import Transform


@recorded
def scale_by_dion(momentum: float = 0.95, dion_eps: float = 1e-8, seed: float = 0, *, rank_fraction: float = 1.0) -> Transform:
    """Replace each matrix by nearly the closest orthogonal one to a part of low rank of its momentum, which follows the largest
    singular vectors by a step of the power iteration at each step.

    A tensor of more than two dimensions is the matrix of its first dimension by all others together. Matrices of equal shapes
    are iterated together.

    Args:
        momentum: μ, in [0, 1): what stays of the part that a step uses. Of the rest all stays.
        dion_eps: ε, at least 0, in units of the momentum's singular values.
        seed: a whole number up to 2⁵³, of the first Q, read by `init_state`. Matrices of as many columns start from one Q.
        rank_fraction: r as a share of the smaller dimension, in (0, 1], rounded up.

    State: `momentum_buffer` (M), like the parameters; `Q` (columns, r), in at least float32.

    Raises:
        ValueError: rank_fraction not in (0, 1]; or, by `init_state`, a parameter of fewer than two dimensions.

    Derivatives are those of the orthogonal factor: there are none where M Q lacks full rank, unless it is 0.

    Source: Ahn et al. 2025, https://arxiv.org/abs/2504.05295, algorithm 1, whose program for several devices finds P by a
    Cholesky decomposition of a random sketch. Neither torch nor optax has it.

    >>> import torch
    >>> tx = scale_by_dion()
    >>> g = torch.tensor([[3.0, 0.0], [0.0, -0.1]])
    >>> state = tx.init_state(g)
    >>> for _ in range(30):
    ...     update, state = tx.update(g, state)
    >>> update.abs().round(decimals=4)
    tensor([[1., 0.],
            [0., 1.]])
    """
    validate_number("rank_fraction", rank_fraction, "(0, 1]")
    form = Leafwise(
        name="scale_by_dion",
        scalars=_dion,
        slots={"momentum_buffer": zeros, "Q": functools.partial(_first_basis, share=rank_fraction)},
        coded={"momentum_buffer": "signed"},
        counts=False,
        elementwise=False,
        batched=True,
        least_dims=2,
    )
    values = {"momentum": (momentum, FRACTION), "dion_eps": (dion_eps, NON_NEGATIVE), "seed": (seed, SEEDS)}
    return Transform.of(form, {name: Hparam(*value) for name, value in values.items()}, "scale_by_dion")


def _first_basis(p: Tensor, hp: HParams, *, share: float) -> Tensor:
    require_matrix("scale_by_dion", p.shape)
    rows, columns = p.shape[0], math.prod(p.shape[1:])
    drawn = normal((columns, math.ceil(share * min(rows, columns))), hp["seed"], 0, 0, p.device)
    return drawn.to(widened(p.detach()).dtype)


def _dion(hp):
    mu = hp["momentum"]

    def rule(g, p, m, q):
        m = m + g
        x = m.flatten(2)
        left = orthogonal_factor(x @ q)
        right = x.mT @ left
        x = x - (1 - mu) * left @ right.mT
        q = right / (sqrt((right * right).sum(1, keepdim=True)) + hp["dion_eps"])
        u = aspect(x) * left @ q.mT
        return u.reshape(g.shape), x.reshape(g.shape), q

    return rule
