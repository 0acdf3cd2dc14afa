"""The two transforms that need no thought, for places that want a transform: leave the update, or make it 0.

u ← u        u ← 0
"""

import torch

from functional_optim.transform import elementwise


@elementwise()
def identity(hp):
    """Return updates as they came. As `optax.identity`."""
    del hp

    def rule(u, p):
        return u

    return rule


@elementwise()
def set_to_zero(hp):
    """Return updates of 0, whatever came, NaN included: the parameters stay as they are. As `optax.set_to_zero`."""
    del hp

    def rule(u, p):
        return torch.zeros_like(u)

    return rule
