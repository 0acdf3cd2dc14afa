"""Shampoo: a preconditioner for each dimension.

    Lᵢ ← β₂ Lᵢ + (1 − β₂) Gᵢ Gᵢᵀ            Gᵢ: G as the matrix of dimension i by all others;  β₂ = 1:  Lᵢ ← Lᵢ + Gᵢ Gᵢᵀ
    Rᵢ ← (Lᵢ / (1 − β₂ᵗ) + ε I)^(−1/2k)     of k dimensions, now and then: for a matrix fourth roots
    M ← β₁ M + (1 − β₁) G
    u ← M / (1 − β₁ᵗ) ×₁ R₁ ×₂ R₂ …         for a matrix R₁ M̂ R₂

Gupta, Koren & Singer 2018, Shampoo: Preconditioned Stochastic Tensor Optimization, https://arxiv.org/abs/1802.09568
Shi et al. 2023, A Distributed Data-Parallel PyTorch Implementation of the Distributed Shampoo Optimizer,
https://arxiv.org/abs/2309.06497
"""

import torch

from functional_optim.decompositions import eigh
from functional_optim.dimensions import added_gram, folded, per_dimension, sides, square_zeros, turned
from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam, require_count
from functional_optim.lifting import Leafwise, zeros
from functional_optim.numerics import bias_correction, cond, is_due, mixed, where
from functional_optim.recipe import recorded
from functional_optim.transform import Transform


@recorded
def scale_by_shampoo(
    betas: tuple[float, float] = (0.9, 1.0),
    epsilon: float = 1e-12,
    precondition_offset: float = 0,
    *,
    precondition_frequency: int = 1,
    max_preconditioner_dim: int = 1024,
    dims: int = 2,
    root: int | None = None,
) -> Transform:
    """Multiply the momentum, along each dimension, by an inverse root of the second moment of the gradients' slices.

    Args:
        betas: decay of the momentum and of the second moments per step, each in [0, 1); the second may be 1, for sums.
        epsilon: ε, at least 0, in units of g²: what is added to the eigenvalues of the second moments.
        precondition_offset: at least 0, rounded to a whole number: how many steps earlier roots are computed, so that matrices
            take turns; see `rotate`. A hyper-parameter. None is computed before step `precondition_frequency`.
        precondition_frequency: how many steps pass between two computations of the roots. Until the first, they are I.
        max_preconditioner_dim: larger dimensions have no preconditioner.
        dims: how many dimensions have one each; of a tensor with more, the last ones are taken together as one.
        root: the inverse root that is taken; by default twice the number of the tensor's dimensions that have a preconditioner.

    State: `step` () int64; `exp_avg` (M), like the parameters; `factors.0`, … (Lᵢ) and `roots.0`, … (Rᵢ), square matrices of a
    leaf's dimensions, in at least float32, empty for dimensions that are left out.

    Derivatives take the roots for constants: they have none where two eigenvalues are equal. In the pure function, with a step
    that is batched, traced or on a GPU, they are computed at each step, and thrown away in between.

    Source: Gupta et al. 2018, https://arxiv.org/abs/1802.09568; Shi et al. 2023, https://arxiv.org/abs/2309.06497, whose program
    cuts large dimensions into blocks, and in its first steps uses another rule. Its grafting is `graft(scale_by_shampoo(), ...)`.

    >>> tx = scale_by_shampoo(betas=(0.0, 1.0))
    >>> g = torch.tensor([[4.0, 0.0], [0.0, -0.1]])
    >>> tx.update(g, tx.init_state(g))[0].round(decimals=3)
    tensor([[ 1.,  0.],
            [ 0., -1.]])
    """
    precondition_frequency = require_count("precondition_frequency", precondition_frequency, 1)
    max_preconditioner_dim = require_count("max_preconditioner_dim", max_preconditioner_dim, 1)
    dims = require_count("dims", dims, 1)
    if root is not None:
        root = require_count("root", root, 1)

    form = Leafwise(
        name="scale_by_shampoo",
        scalars=_shampoo,
        slots=_slots(dims, max_preconditioner_dim),
        counts=True,
        elementwise=False,
        options={"every": precondition_frequency, "dims": dims, "order": root},
        batched=True,
        constants=tuple(f"roots.{i}" for i in range(dims)),
    )
    return Transform.of(form, _declared(betas, epsilon, precondition_offset), "scale_by_shampoo")


def _declared(betas, epsilon, offset):
    numbers = {"epsilon": epsilon, "precondition_offset": offset}
    return {"betas": Hparam(betas, (FRACTION, "[0, 1]")), **{name: Hparam(x, NON_NEGATIVE) for name, x in numbers.items()}}


def _slots(dims, largest):
    def sizes(shape):
        return sides(shape or (1,), dims, largest, vectors=True)

    return {
        "exp_avg": zeros,
        **per_dimension("factors", dims, sizes, square_zeros),
        **per_dimension("roots", dims, sizes, torch.eye),
    }


def _shampoo(hp, t, *, every, dims, order):
    b1, b2 = hp["betas"]
    c1, c2 = bias_correction(b1, t), where(b2 < 1, bias_correction(b2, t), 1.0)
    share = where(b2 < 1, 1 - b2, 1.0)
    # A root of fewer gradients is as large as epsilon lets it be along what they have not reached.
    due = is_due(t, every, hp["precondition_offset"]) & (t >= every)

    def rule(g, p, m, *slots):
        shape = (g.shape[0], *folded(tuple(g.shape[1:]) or (1,), dims))
        m = mixed(m, g, 1 - b1)
        ls, rs = list(slots[:dims]), list(slots[dims:])
        ls = [added_gram(x, g.reshape(shape), i, b2, share) for i, x in enumerate(ls)]
        kept = sum(x.shape[-1] > 0 for x in ls)
        power = 1 / (order or 2 * kept or 1)
        rs = cond(due, lambda: [_root((x / c2).detach(), hp["epsilon"], power) for x in ls], lambda: rs)
        u = turned((m / c1).reshape(shape), rs).reshape(g.shape)
        return [x.contiguous() for x in (u, m, *ls, *rs)]

    return rule


def _root(x, epsilon, power):
    """Of each of a stack of symmetric matrices, an inverse root."""
    if not x.shape[-1]:
        return x
    values, q = eigh(x)
    values = values - values[:, :1].clamp(max=0.0) + epsilon
    return (q * values.unsqueeze(1) ** -power) @ q.mT
