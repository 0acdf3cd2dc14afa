"""The trust ratio of LARS and LAMB: each tensor moves in proportion to its own norm.

    u ← u · c ‖p‖ / (‖u‖ + ε)        u where ‖p‖ or ‖u‖ is 0; clipped: at most u

You, Gitman & Ginsburg 2017, Large Batch Training of Convolutional Networks, https://arxiv.org/abs/1708.03888
You et al. 2020, Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, https://arxiv.org/abs/1904.00962
"""

import torch

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.numerics import sqrt
from functional_optim.transform import numbered


@numbered(
    hparams={
        "min_norm": Hparam(0.0, NON_NEGATIVE),
        "trust_coefficient": Hparam(1.0, NON_NEGATIVE),
        "eps": Hparam(0.0, NON_NEGATIVE),
    }
)
def scale_by_trust_ratio(hp, numbers, *, trust_clip: bool = False):
    """Give each tensor's update the length of its parameter: `u · c ‖p‖ / (‖u‖ + ε)`; unscaled where a norm is 0.

    A () parameter is a tensor too: its update becomes ±c |p|. Biases and gains are usually spared.

    Args:
        min_norm: the least that either norm counts as, at least 0.
        trust_coefficient: c, at least 0.
        eps: ε, at least 0, in units of ‖u‖.
        trust_clip: let no update grow: a ratio above 1 counts as 1.

    Raises:
        ValueError: `update` was called without params.

    Source: You et al. 2017, https://arxiv.org/abs/1708.03888; You et al. 2020, https://arxiv.org/abs/1904.00962.
    As `optax.scale_by_trust_ratio`; derivatives at a norm of 0 are finite.
    """

    def terms(u, p):
        return p * p, u * u

    def finish(sums):
        p_norm, u_norm = (sqrt(square).clamp(min=hp["min_norm"]) for square in sums.own)
        zero = (p_norm == 0) | (u_norm == 0)
        # The division is made safe before the choice: a derivative takes both branches.
        ratio = hp["trust_coefficient"] * p_norm / torch.where(zero, 1.0, u_norm + hp["eps"])
        ratio = torch.where(zero, 1.0, ratio)
        return {"ratio": ratio.clamp(max=1.0) if trust_clip else ratio}

    def rule(new, u, p):
        return new["ratio"] * u

    return terms, finish, rule
