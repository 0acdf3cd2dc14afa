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
def freeze(hp):
    """Return updates of 0, whatever came, NaN included: the parameters stay as they are. A branch of `partition`, most often.

    As `optax.set_to_zero`.

    >>> freeze().update(torch.tensor([3.0, float("nan")]), {})[0]
    tensor([0., 0.])
    """
    del hp

    def rule(u, p):
        return torch.zeros_like(u)

    return rule
