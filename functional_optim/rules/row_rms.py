"""NorMuon's second moment: one number for each row of a matrix, for each neuron that is.

    v ← β₂ v + (1 − β₂) mean(U²)       over each row
    u ← U / (√v + ε)
    u ← u ‖U‖ / (‖u‖ + ε)              the rows' sizes change, that of the whole does not

Li et al. 2025, NorMuon: Making Muon more efficient and scalable, https://arxiv.org/abs/2510.05491
"""

import torch
from torch import Tensor

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam, HParams
from functional_optim.lifting import widened
from functional_optim.numerics import sqrt
from functional_optim.transform import per_tensor


def _a_number_per_row(p: Tensor, hp: HParams) -> Tensor:
    del hp
    return torch.zeros(p.shape[:1], dtype=widened(p.detach()).dtype, device=p.device)


@per_tensor(
    slots={"second_momentum_buffer": _a_number_per_row},
    hparams={"beta2": Hparam(0.95, FRACTION), "row_eps": Hparam(1e-10, NON_NEGATIVE)},
    batched=True,
)
def scale_by_row_rms(hp):
    """Divide each row of a matrix by the root of its mean square over the steps, and keep the norm of the whole.

    A row is all that belongs to one index of the first dimension: a neuron's weights. After `orthogonalize`, whose rows come out
    longer and shorter, it makes neurons learn alike. Each element of a vector is a row of its own.

    Args:
        beta2: β₂, decay of the mean squares per step, in [0, 1).
        row_eps: ε, at least 0, in units of the update.

    State: `second_momentum_buffer` (v), a number for each row, in at least float32.

    Source: Li et al. 2025, https://arxiv.org/abs/2510.05491. Of a convolution the authors' program takes the last dimension for
    its rows. The slots start at 0 and are not corrected for it: the norm that is kept takes a common factor away.

    >>> tx = scale_by_row_rms()
    >>> u = torch.tensor([[3.0, 3.0], [0.1, -0.1]])
    >>> tx.update(u, tx.init_state(u))[0].round(decimals=3)
    tensor([[ 2.1220,  2.1220],
            [ 2.1220, -2.1220]])
    """
    b2, eps = hp["beta2"], hp["row_eps"]

    def rule(u, p, v):
        x = u.flatten(2) if u.ndim > 2 else u.reshape(*u.shape, 1) if u.ndim == 2 else u.reshape(-1, 1, 1)
        v = b2 * v + (1 - b2) * (x * x).mean(-1).reshape(v.shape)
        y = x / (sqrt(v).reshape(*x.shape[:2], 1) + eps)
        size, scaled = (sqrt((z * z).sum((1, 2), keepdim=True)) for z in (x, y))
        return (y * (size / (scaled + eps))).reshape(u.shape), v

    return rule
