"""The exponential moving average of the updates.

m ← β m + (1 − β) u
u ← m / (1 − βᵗ)                  without the correction:  u ← m
"""

import torch

from functional_optim.codecs import Codec
from functional_optim.hparams import FRACTION, Hparam
from functional_optim.numerics import bias_correction
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, elementwise

HPARAMS = {"decay": Hparam(0.9, FRACTION)}


@elementwise(slots=("exp_avg",), coded={"exp_avg": "signed"}, hparams=HPARAMS, name="ema")
def _corrected(hp, t):
    b, c = hp["decay"], bias_correction(hp["decay"], t)

    def rule(u, p, m):
        m = b * m + (1 - b) * u
        return m / c, m

    return rule


@elementwise(slots=("exp_avg",), coded={"exp_avg": "signed"}, hparams=HPARAMS, name="ema")
def _uncorrected(hp):
    b = hp["decay"]

    def rule(u, p, m):
        m = b * m + (1 - b) * u
        return m, m

    return rule


@recorded
def ema(decay: float = 0.9, *, debias: bool = True, state_dtype: torch.dtype | Codec | None = None) -> Transform:
    """Replace updates by their exponential moving average: `m ← β m + (1 − β) u`.

    Args:
        decay: β, in [0, 1).
        debias: divide by `1 − βᵗ`, the weight that has gathered since the start at 0.
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

    State: `exp_avg` (m), like the parameters; with `debias`, `step` () int64.

    As `optax.ema`. `trace(momentum)` is the sum that this is the average of.

    >>> import torch
    >>> tx = ema(decay=0.5)
    >>> update, state = tx.update(torch.tensor(2.0), tx.init_state(torch.zeros(())))
    >>> update, state = tx.update(torch.tensor(8.0), state)
    >>> update
    tensor(6.)
    """
    return (_corrected if debias else _uncorrected)(decay, state_dtype=state_dtype)
