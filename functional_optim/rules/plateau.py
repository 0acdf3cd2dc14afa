"""Smaller steps when the loss stands still.

    f̄ ← mean of the last n losses, every n steps:
    f̄ < (1 − rtol) f* − atol        better:   f* ← f̄, count ← 0
    otherwise                        count ← count + 1; at the patience: s ← max(φ s, s_min), count ← 0, then wait
    u ← s u

After `torch.optim.lr_scheduler.ReduceLROnPlateau`, as a link of a chain.
"""

import math

import torch

from functional_optim.hparams import NON_NEGATIVE, Hparam, require_count
from functional_optim.transform import numbered


@numbered(
    hparams={
        "factor": Hparam(0.1, "(0, 1)"),
        "rtol": Hparam(1e-4, "[0, 1]"),
        "atol": Hparam(0.0, NON_NEGATIVE),
        "min_scale": Hparam(0.0, NON_NEGATIVE),
    },
    shared={
        "plateau_scale": 1.0,
        "best_value": math.inf,
        "mean_value": 0.0,
        "value_count": 0.0,
        "plateau_count": 0.0,
        "cooldown_count": 0.0,
    },
    each=(),
    extra=("value",),
)
def reduce_on_plateau(hp, s, *, patience: int = 10, cooldown: int = 0, accumulation_size: int = 1):
    """Scale updates by a factor that falls whenever the loss has stopped falling.

    It needs the loss: `update(grads, state, params, value=loss)`; behind the adapter, `step(closure)` or `step(value=loss)`.

    Args:
        factor: φ, what the scale is multiplied with, in (0, 1).
        rtol, atol: by how much, relative and absolute, a loss must be below the best one to count as better.
        min_scale: the scale's lower bound, at least 0.
        patience: how many means in a row may be no better, at least 0.
        cooldown: how many means are then ignored, at least 0.
        accumulation_size: how many losses make a mean, at least 1; more for the losses of small batches.

    State, () float64: `plateau_scale`, `best_value`, `mean_value` of `value_count` losses, `plateau_count`, `cooldown_count`.

    As `optax.contrib.reduce_on_plateau`; torch's `ReduceLROnPlateau(threshold_mode="rel")` waits one loss longer.

    >>> tx = reduce_on_plateau(factor=0.5, patience=2)
    >>> state = tx.init_state(torch.tensor(0.0))
    >>> for loss in (3.0, 2.0, 2.0, 2.0):
    ...     update, state = tx.update(torch.tensor(1.0), state, value=loss)
    >>> update
    tensor(0.5000)
    """
    patience = require_count("patience", patience, 0)
    cooldown = require_count("cooldown", cooldown, 0)
    accumulation_size = require_count("accumulation_size", accumulation_size, 1)

    def finish(sums):
        n = s["value_count"] + 1
        mean = s["mean_value"] + (hp["value"] - s["mean_value"]) / n
        full = n >= accumulation_size
        better = full & (mean < (1 - hp["rtol"]) * s["best_value"] - hp["atol"])
        bad = torch.where(better, 0.0, s["plateau_count"] + 1)
        waiting = s["cooldown_count"] > 0
        reached = full & ~waiting & (bad >= patience)
        scale = torch.where(reached, (s["plateau_scale"] * hp["factor"]).clamp(min=hp["min_scale"]), s["plateau_scale"])
        return {
            "plateau_scale": scale,
            "best_value": torch.where(better, mean, s["best_value"]),
            "mean_value": torch.where(full, 0.0, mean),
            "value_count": torch.where(full, 0.0, n),
            "plateau_count": torch.where(full, torch.where(waiting | reached, 0.0, bad), s["plateau_count"]),
            "cooldown_count": torch.where(
                reached, float(cooldown), torch.where(full & waiting, s["cooldown_count"] - 1, s["cooldown_count"])
            ),
        }

    def rule(new, u, p):
        return new["plateau_scale"] * u

    return None, finish, rule
