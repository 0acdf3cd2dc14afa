"""Scaling of updates: by a factor, by a schedule, by minus the learning rate, by −1, and by inverse time.

u ← c u        u ← s(t − 1) u        u ← −η u        u ← −u        u ← u / (1 + (t − 1) γ)
"""

from collections.abc import Callable

from functional_optim.hparams import ANY, NON_NEGATIVE, Hparam
from functional_optim.numerics import Scalar, double
from functional_optim.transform import elementwise


@elementwise(hparams={"factor": Hparam(1.0, ANY)})
def scale(hp):
    """Multiply updates by `factor`, any finite number. As `optax.scale(step_size)`."""

    def rule(u, p):
        return hp["factor"] * u

    return rule


@elementwise()
def scale_by_schedule(hp, t, *, schedule: Callable[[Scalar], Scalar]):
    """Multiply updates by `schedule(step)`, where the first update sees step 0.

    The schedule is a factor beside the learning rate, not in its place: `lr` stays a hyper-parameter that can be swept
    or set per group, and every one of its values gets the same warm-up.

    Args:
        schedule: a pure function of the step, a Python number or a () float64 tensor, to a factor.

    State: `step` () int64.

    As `optax.scale_by_schedule`, which has the same first step; `torch.optim.lr_scheduler.LambdaLR` with the same function.

    >>> import torch
    >>> tx = scale_by_schedule(lambda step: 1 / (1 + step))
    >>> state = tx.init_state(torch.zeros(()))
    >>> for _ in range(2):
    ...     update, state = tx.update(torch.tensor(1.0), state)
    >>> update
    tensor(0.5000)
    """
    if not callable(schedule):
        raise TypeError(
            f"schedule = {schedule!r} of scale_by_schedule: expected a function of the step; for a number, scale({schedule!r})."
        )
    factor = schedule(double(t - 1))

    def rule(u, p):
        return factor * u

    return rule


@elementwise(hparams={"lr": Hparam(1e-3, NON_NEGATIVE)})
def scale_by_learning_rate(hp):
    """Multiply updates by `−lr`, which turns their sign.

    It is the one place where the sign turns, so that updates are added to the parameters.

    Args:
        lr: the learning rate, at least 0.

    As `optax.scale_by_learning_rate`.
    """

    def rule(u, p):
        return -hp["lr"] * u

    return rule


@elementwise()
def negate(hp):
    """Turn the sign: first in a chain to maximize, last to descend by a rule that brings its own step size (Rprop, ASGD).

    As `optax.scale(-1.0)`; torch's `maximize=True`.
    """

    def rule(u, p):
        return -u

    return rule


@elementwise(hparams={"lr_decay": Hparam(0.0, NON_NEGATIVE)})
def scale_by_inverse_time(hp, t):
    """Divide updates by `1 + (t − 1) γ`: the first one stays, and they halve by step `1 + 1/γ`.

    Args:
        lr_decay: γ, per step, at least 0.

    State: `step` () int64.

    As `lr_decay` of `torch.optim.Adagrad`; `optax.scale_by_schedule` of such a function.

    >>> import torch
    >>> tx = scale_by_inverse_time(lr_decay=1.0)
    >>> state = tx.init_state(torch.zeros(()))
    >>> for _ in range(4):
    ...     update, state = tx.update(torch.tensor(1.0), state)
    >>> update
    tensor(0.2500)
    """
    factor = 1 / (1 + double(t - 1) * hp["lr_decay"])

    def rule(u, p):
        return factor * u

    return rule
