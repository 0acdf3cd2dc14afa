"""Adam-mini: Adam with one second moment for a whole block of elements.

    m ← β₁ m + (1 − β₁) g
    v ← β₂ v + (1 − β₂) mean(g²)                  one number per block, the mean over the block
    u ← m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε)

Zhang et al. 2024, Adam-mini: Use Fewer Learning Rates To Gain More, https://arxiv.org/abs/2406.16793

A block is a tensor, or an equal part of its rows.
"""

import math

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import bias_correction, sqrt
from functional_optim.transform import per_tensor


def _rows(p):
    return p.shape[:1] if p.ndim > 1 else ()


def _row_means(g, blocks):
    """The mean square of each row's block, one number per row."""
    rows = math.prod(_rows(g))
    count = 1 if g.ndim < 2 else rows if blocks is None else blocks
    if count < 1 or rows % count:
        raise ValueError(
            f"blocks={blocks}: a parameter of shape {tuple(g.shape)} has {rows} rows, which do not make {blocks} equal blocks."
        )
    means = (g * g).reshape(count, -1).mean(1)
    return means.repeat_interleave(rows // count).reshape(_rows(g))


@per_tensor(
    slots={"exp_avg": lambda p, hp: p.new_zeros(p.shape), "exp_avg_sq": lambda p, hp: p.new_zeros(_rows(p))},
    coded={"exp_avg": "signed"},
    hparams={"betas": Hparam((0.9, 0.999), FRACTION), "eps": Hparam(1e-8, NON_NEGATIVE)},
)
def scale_by_adam_mini(hp, t, *, blocks: int | None = 1):
    """Adam's step with one second moment per block: half of Adam's memory.

    The paper's blocks are those of the Hessian. In a transformer: one per head in queries and keys (`blocks=heads`), else one per
    row (`blocks=None`), which is a token in the embedding and in the output layer, and a neuron elsewhere. A vector is one block.

    Args:
        betas: decay of m and of v per step, each in [0, 1).
        eps: at least 0, in units of |g|.
        blocks: into how many equal blocks the rows (dimension 0) of a parameter are split; None for one block per row.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Raises:
        ValueError: the rows of a parameter cannot be split into so many equal blocks.

    State: `step` () int64; `exp_avg` (m), like the parameters; `exp_avg_sq` (v), a number per row, () for a vector.

    Source: Zhang et al. 2024, https://arxiv.org/abs/2406.16793. The authors' program knows parameters by their names: there
    embeddings and the output layer have a moment per element, as in `adamw`, and what is called a norm has no decay. Neither
    torch nor optax has a counterpart.
    """
    b1, b2 = hp["betas"]
    c1, c2 = bias_correction(b1, t), bias_correction(b2, t)

    def rule(g, p, m, v):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * _row_means(g, blocks)
        scale = sqrt(v / c2) + hp["eps"]
        return m / c1 / scale.reshape(scale.shape + (1,) * (g.ndim - scale.ndim)), m, v

    return rule
