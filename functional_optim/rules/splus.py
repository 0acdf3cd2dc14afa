"""SPlus: the sign of the momentum in the eigenbasis of the gradients' second moments.

    M ← β₁ M + (1 − β₁) G
    u ← Qᴸ sign(Qᴸᵀ M Qᴿ) Qᴿᵀ
    L ← β₂ L + (1 − β₂) G Gᵀ  and  R ← β₂ R + (1 − β₂) Gᵀ G
    Qᴸ, Qᴿ ← the eigenvectors of L and R                at the first step, and every k-th

    and, as a link of its own:  u ← 2 / (rows + columns) u of a matrix, c u of others

Frans, Levine & Abbeel 2025, A Stable Whitening Optimizer for Efficient Neural Network Training, https://arxiv.org/abs/2506.07254
"""

import torch

from functional_optim.decompositions import eigh
from functional_optim.dimensions import added_gram, per_dimension, sides, square_zeros, turned
from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam, require_count
from functional_optim.lifting import Leafwise, zeros
from functional_optim.numerics import cond, is_due, mixed
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, per_tensor


@recorded
def scale_by_splus(
    betas: tuple[float, float] = (0.9, 0.999),
    inverse_offset: float = 0,
    *,
    inverse_every: int = 100,
    max_dim: int = 10_000,
) -> Transform:
    """Take the sign of the momentum in the eigenbasis of the gradients' second moments along rows and columns.

    Vectors, scalars, and tensors of more than two dimensions, get the sign of the momentum.

    Args:
        betas: decay of the momentum and of the second moments per step, each in [0, 1).
        inverse_offset: at least 0, rounded to a whole number: how many steps earlier each later basis is found, so that matrices
            take turns; see `rotate`. A hyper-parameter.
        inverse_every: how many steps pass between two bases; the first step finds one, and does without.
        max_dim: the largest dimension that is turned.

    State: `step` () int64; `exp_avg` (M), like the parameters; `GG.0`, `GG.1` (L, R) and `Q.0`, `Q.1` of each leaf, square
    matrices of its dimensions, in at least float32, empty where there are none.

    Derivatives take the bases for constants, as those of `rotate`. The sign of NaN is 0 in torch: after a gradient with NaN the
    momentum stays it, and the parameter stands still. `apply_if_finite(...)` around the chain leaves such a step out.

    Source: Frans et al. 2025, https://arxiv.org/abs/2506.07254. Neither torch nor optax has it.

    >>> tx = scale_by_splus()
    >>> g = torch.tensor([[3.0, -0.1], [0.2, 5.0]])
    >>> tx.update(g, tx.init_state(g))[0]
    tensor([[ 1., -1.],
            [ 1.,  1.]])
    """
    inverse_every = require_count("inverse_every", inverse_every, 1)
    max_dim = require_count("max_dim", max_dim, 0)

    def sizes(shape):
        return sides(shape if len(shape) == 2 else (), 2, max_dim, vectors=False)

    form = Leafwise(
        name="scale_by_splus",
        scalars=_splus,
        slots={
            "exp_avg": zeros,
            **per_dimension("GG", 2, sizes, square_zeros),
            **per_dimension("Q", 2, sizes, torch.eye),
        },
        counts=True,
        elementwise=False,
        options={"every": inverse_every},
        batched=True,
        constants=("Q.0", "Q.1"),
    )
    return Transform.of(
        form,
        {"betas": Hparam(betas, FRACTION), "inverse_offset": Hparam(inverse_offset, NON_NEGATIVE)},
        "scale_by_splus",
    )


def _splus(hp, t, *, every):
    b1, b2 = hp["betas"]

    def rule(g, p, m, *slots):
        ggs, qs = list(slots[:2]), list(slots[2:])
        m = mixed(m, g, 1 - b1)
        u = turned(turned(m, qs).sign(), [q.mT for q in qs])
        ggs = [added_gram(gg, g, i, b2, 1 - b2) for i, gg in enumerate(ggs)]
        known = [gg.detach() for gg in ggs]
        qs = cond((t == 1) | is_due(t, every, hp["inverse_offset"]), lambda: [eigh(gg)[1] for gg in known], lambda: qs)
        return [x.contiguous() for x in (u, m, *ggs, *qs)]

    return rule


@per_tensor(hparams={"nonstandard_constant": Hparam(1e-3, NON_NEGATIVE)}, batched=True)
def scale_by_mean_side(hp, *, max_dim: int = 10_000):
    """Divide the update of a matrix by the mean of its rows' and columns' numbers, and multiply others by a constant: SPlus's
    factors, by which learning rates carry over between widths.

    Args:
        nonstandard_constant: c, at least 0: of vectors, scalars, tensors of more dimensions, and matrices with a dimension larger
            than `max_dim`.
        max_dim: the largest dimension of a matrix that is one.

    Source: Frans et al. 2025, https://arxiv.org/abs/2506.07254. Neither torch nor optax has it.
    """
    max_dim = require_count("max_dim", max_dim, 0)

    def rule(u, p):
        is_matrix = u.ndim == 3 and max(u.shape[1:]) <= max_dim
        return (2 / max(1, sum(u.shape[1:])) if is_matrix else hp["nonstandard_constant"]) * u

    return rule
