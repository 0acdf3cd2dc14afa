"""Schedule-free averaging: the place of a learning-rate schedule is taken by an average of the iterates.

    z ← z + u                                      u the update of any optimizer, from the gradient at y
    c ← w / Σ w,  w = (largest η so far)ʳ           r = 2
    x ← (1 − c) x + c z                            x = (y − (1 − β) z) / β is not stored
    y ← β x + (1 − β) z                            the parameters

Defazio et al. 2024, The Road Less Scheduled, https://arxiv.org/abs/2405.15682
"""

import torch
from torch import Tensor

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.lifting import OneNumber, copied
from functional_optim.numerics import double
from functional_optim.transform import numbered


def average(y: Tensor, z: Tensor, beta: Tensor, *_: Tensor) -> Tensor:
    """x, of which y and z are made."""
    return (y - (1 - beta) * z) / beta


@numbered(
    slots={"z": copied},
    own={
        "beta": OneNumber(lambda hp: hp["momentum"]),
        "lr_max": OneNumber(lambda hp: 0.0),
        "weight_sum": OneNumber(lambda hp: 0.0),
    },
    hparams={
        "lr": Hparam(1e-3, NON_NEGATIVE),
        "momentum": Hparam(0.9, "(0, 1]"),
        "weight_lr_power": Hparam(2.0, NON_NEGATIVE),
    },
    evaluated_at=average,
)
def schedule_free_average(hp, numbers):
    """The last link of a schedule-free optimizer: see `schedule_free`, which puts it there.

    Args:
        lr: η, at least 0, that of the updates that come in.
        momentum: β, in (0, 1]: how close to the average the gradient is taken.
        weight_lr_power: r, at least 0; with 0 all iterates weigh the same.
        state_dtype: dtype of `z`; the parameter's by default.

    State: `z`, the iterates without averaging, like the parameters; `beta` (the β that y was made with), `lr_max` and
    `weight_sum`, () float64 tensors for each parameter.

    Raises:
        ValueError: `update` was called without params.

    Source: Defazio et al. 2024, https://arxiv.org/abs/2405.15682.
    """

    def finish(sums):
        lr_max = numbers["lr_max"].clamp(min=double(hp["lr"]))
        weight = lr_max ** hp["weight_lr_power"]
        weight_sum = numbers["weight_sum"] + weight
        c = weight / torch.where(weight_sum == 0, 1.0, weight_sum)
        return {"beta": 0 * weight + hp["momentum"], "lr_max": lr_max, "weight_sum": weight_sum, "c": c}

    def rule(new, u, y, z):
        x, beta, c = average(y, z, numbers["beta"]), new["beta"], new["c"]
        z = z + u
        x = (1 - c) * x + c * z
        return beta * x + (1 - beta) * z - y, z

    return None, finish, rule
