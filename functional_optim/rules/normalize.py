"""Normalising the update by its norm over all parameters.

    u ← s u / (‖u‖ + ε)               ‖u‖ over all parameters

Hazan, Levy & Shalev-Shwartz 2015, Beyond Convexity: Stochastic Quasi-Convex Optimization, https://arxiv.org/abs/1507.02030
"""

from functional_optim.hparams import ANY, POSITIVE, Hparam
from functional_optim.numerics import sqrt
from functional_optim.reductions import SumOver
from functional_optim.transform import elementwise


def _square(u, p):
    return u * u


@elementwise(hparams={"scale_factor": Hparam(1.0, ANY), "eps": Hparam(1e-6, POSITIVE)}, reduce=SumOver(_square, finish=sqrt))
def normalize_by_update_norm(hp, norm):
    """Give the whole update the norm `scale_factor`: `s u / (‖u‖ + ε)`.

    The norm spans every leaf; behind the adapter, every parameter group.

    Args:
        scale_factor: s, the norm that the update gets.
        eps: ε, greater than 0, in units of ‖u‖.

    Source: Hazan et al. 2015, https://arxiv.org/abs/1507.02030. As `optax.normalize_by_update_norm`.

    >>> import torch
    >>> normalize_by_update_norm(scale_factor=5.0).update(torch.tensor([0.3, 0.4]), {})[0]
    tensor([3.0000, 4.0000])
    """
    factor = hp["scale_factor"] / (norm + hp["eps"])

    def rule(u, p):
        return factor * u

    return rule
