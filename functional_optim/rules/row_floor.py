"""A floor under the ratio of a row's update to the row.

    u ← u max(1, r ‖p‖ / ‖u‖)          ‖·‖ of each row

As in entries of the optimization track of the speed-runs of NanoGPT, where it keeps rows moving whose updates are small.
"""

import torch
from torch import Tensor

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.numerics import sqrt
from functional_optim.transform import per_tensor


@per_tensor(hparams={"min_ratio": Hparam(0.1, NON_NEGATIVE)}, batched=True)
def row_floor(hp):
    """Lengthen the update of each row of a matrix to at least `r` times the length of the row itself: `u max(1, r ‖p‖ / ‖u‖)`.

    A row is all that belongs to one index of the first dimension: a neuron's weights. It goes before the learning rate, of which
    the ratio is then a multiple. Each element of a vector is a row of its own; an update of 0 stays 0.

    Args:
        min_ratio: r, at least 0.

    Raises:
        ValueError: `update` was called without params.

    Source: entries of modded-nanogpt's optimization track of 2026. Neither torch nor optax has it.

    >>> p, u = torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([[0.1, 0.0], [7.0, 0.0]])
    >>> row_floor(min_ratio=0.5).update(u, {}, p)[0]
    tensor([[2.5000, 0.0000],
            [7.0000, 0.0000]])
    """

    def rule(u, p):
        length = _row_lengths(u)
        ratio = hp["min_ratio"] * _row_lengths(p) / torch.where(length == 0, 1.0, length)
        return u * ratio.clamp(min=1.0)

    return rule


def _row_lengths(x: Tensor) -> Tensor:
    others = tuple(range(2, x.ndim))
    return sqrt((x * x).sum(others, keepdim=True) if others else x * x)
