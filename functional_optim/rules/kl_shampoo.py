"""KL-Shampoo: second moments along rows and columns that whiten together, and the momentum divided by their roots.

    M ← β₁ M + (1 − β₁) G
    u ← Qᴸ (Qᴸᵀ M Qᴿ / √(dᴸ dᴿᵀ)) Qᴿᵀ                 dᴸ = diag(Qᴸᵀ L Qᴸ), dᴿ alike
    L ← β L + (1 − β) G Qᴿ Dᴿ⁻¹ Qᴿᵀ Gᵀ / n             R alike; both start at δ I
    Qᴸ ← qr(L Qᴸ)                                     now and then, the columns by falling qᵀ L q

Lin et al. 2025, Understanding and Improving Shampoo and SOAP via Kullback-Leibler Minimization, https://arxiv.org/abs/2509.03378
"""

import torch

from functional_optim.dimensions import (
    folded,
    followed,
    per_dimension,
    roots_along,
    sides,
    turned,
    whitened,
    whitened_gram,
)
from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam, require_count, validate_number
from functional_optim.lifting import Leafwise
from functional_optim.numerics import cond, is_due
from functional_optim.recipe import recorded
from functional_optim.rules.newton_schulz import matrix_zeros
from functional_optim.transform import Transform


@recorded
def scale_by_kl_shampoo(
    betas: tuple[float, float] = (0.9, 0.95),
    kl_eps: float = 1e-8,
    precondition_offset: float = 0,
    *,
    precondition_frequency: int = 2,
    max_precond_dim: int = 2048,
    init_factor: float = 0.1,
    dims: int = 2,
) -> Transform:
    """Divide the momentum by the roots of second moments along rows and columns, each of gradients whitened along the other.

    Args:
        betas: decay of the momentum and of the second moments per step, each in [0, 1).
        kl_eps: the least eigenvalue that is divided by, at least 0.
        precondition_offset: at least 0, rounded to a whole number: how many steps earlier bases are found, so that matrices take
            turns; see `rotate`. A hyper-parameter.
        precondition_frequency: how many steps pass between two bases, at least 1. Eigenvalues are new at each step.
        max_precond_dim: larger dimensions are left as they are.
        init_factor: δ, greater than 0, in units of |g|: moments start at δ I.
        dims: how many dimensions have a moment each; of a tensor with more, the last ones are taken together as one.

    State: `step` () int64; `exp_avg` (M), like the parameters; `GG.0`, `GG.1`, … (L, R) and `Q.0`, `Q.1`, … of each leaf, square
    matrices of its dimensions, in at least float32, empty for dimensions that are left out.

    Derivatives take the bases for constants, as those of `rotate`.

    Raises:
        ValueError: by `init_state`, for a parameter of fewer than two dimensions.

    Source: Lin et al. 2025, https://arxiv.org/abs/2509.03378. The authors' program starts from the first gradient's bases, and
    keeps means of the eigenvalues, at most 4000^½; HeavyBall's, whose numbers these are, corrects the moments' start, adds noise
    to gradients, and makes the two moments of one size after each step. Neither torch nor optax has it.

    >>> tx = scale_by_kl_shampoo((0.0, 0.95), init_factor=4.0)
    >>> g = torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    >>> tx.update(g, tx.init_state(g))[0]
    tensor([[ 0.2500,  0.0000],
            [ 0.0000, -0.5000]])
    """
    precondition_frequency = require_count("precondition_frequency", precondition_frequency, 1)
    max_precond_dim = require_count("max_precond_dim", max_precond_dim, 0)
    dims = require_count("dims", dims, 2)
    validate_number("init_factor", init_factor, "(0, inf)")

    def sizes(shape):
        return sides(shape, dims, max_precond_dim, vectors=False)

    def start(size, **options):
        return init_factor * torch.eye(size, **options)

    form = Leafwise(
        name="scale_by_kl_shampoo",
        scalars=_kl_shampoo,
        slots={
            "exp_avg": matrix_zeros("scale_by_kl_shampoo"),
            **per_dimension("GG", dims, sizes, start),
            **per_dimension("Q", dims, sizes, torch.eye),
        },
        counts=True,
        elementwise=False,
        options={"every": precondition_frequency, "dims": dims},
        batched=True,
        least_dims=2,
        constants=tuple(f"Q.{i}" for i in range(dims)),
    )
    return Transform.of(form, _declared(betas, kl_eps, precondition_offset), "scale_by_kl_shampoo")


def _declared(betas, kl_eps, offset):
    numbers = {"kl_eps": kl_eps, "precondition_offset": offset}
    return {"betas": Hparam(betas, FRACTION), **{name: Hparam(value, NON_NEGATIVE) for name, value in numbers.items()}}


def _kl_shampoo(hp, t, *, every, dims):
    b1, b2 = hp["betas"]

    def rule(g, p, m, *slots):
        shape = (g.shape[0], *folded(g.shape[1:], dims))
        ggs, qs = list(slots[:dims]), list(slots[dims:])
        m = b1 * m + (1 - b1) * g
        roots = roots_along(ggs, qs, hp["kl_eps"])
        u = turned(whitened(turned(m.reshape(shape), qs), roots), [q.mT for q in qs])
        x = g.reshape(shape)
        ggs = [b2 * gg + (1 - b2) * whitened_gram(x, i, qs, roots) if gg.shape[-1] else gg for i, gg in enumerate(ggs)]
        known = [gg.detach() for gg in ggs]
        qs = cond(is_due(t, every, hp["precondition_offset"]), lambda: followed(known, qs)[0], lambda: qs)
        return [y.contiguous() for y in (u.reshape(g.shape), m, *ggs, *qs)]

    return rule
