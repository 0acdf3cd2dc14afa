"""Adam-mini: Adam with one second moment for a whole block of elements.

    m ← β₁ m + (1 − β₁) g
    v ← β₂ v + (1 − β₂) mean(g²)                  one number per block, the mean over the block
    u ← m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε)

Zhang et al. 2024, Adam-mini: Use Fewer Learning Rates To Gain More, https://arxiv.org/abs/2406.16793
"""

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import bias_correction, sqrt
from functional_optim.transform import per_tensor


def blocks_of(p, blocks):
    """The tensor's elements as (blocks, elements): equal parts along its first dimension."""
    count = 1 if p.ndim < 2 else blocks or p.shape[0]
    if p.ndim > 1 and p.shape[0] % count:
        raise ValueError(f"blocks = {blocks}: a parameter of shape {tuple(p.shape)} has no {count} equal parts along dimension 0.")
    return p.reshape(count, -1)


@per_tensor(
    slots={
        "exp_avg": lambda p, hp: p.new_zeros(p.shape),
        "exp_avg_sq": lambda p, hp: p.new_zeros(len(p)),
    },
    hparams={"betas": Hparam((0.9, 0.999), FRACTION), "eps": Hparam(1e-8, NON_NEGATIVE)},
)
def scale_by_adam_mini(hp, t, *, blocks=1):
    """x"""
