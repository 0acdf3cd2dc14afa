"""Updates of zero.

u ← 0
"""

import torch

from functional_optim.transform import elementwise


@elementwise()
def freeze(hp):
    """Zero all updates, whatever they are: the parameters stay as they are. A branch of `partition`, most often.

    It keeps no state. As `optax.set_to_zero`.

    >>> freeze().update(torch.tensor([3.0, float("nan")]), {})[0]
    tensor([0., 0.])
    """

    def rule(u, p):
        return torch.zeros_like(u)

    return rule
