"""Schedules: pure functions of the step, a Python number or a () tensor; the first update sees step 0."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from functional_optim.numerics import Scalar, cos, double, where

Schedule: TypeAlias = Callable[[Scalar], Scalar]


def warmup_cosine(peak: Scalar = 1.0, warmup_steps: int = 0, total_steps: int = 1, end: Scalar = 0.0) -> Schedule:
    """Rise linearly from 0 to `peak` in `warmup_steps`, then fall along half a cosine to `end` at `total_steps`, and stay there.

    Args:
        peak: the value at step `warmup_steps`.
        warmup_steps: length of the rise, at least 0.
        total_steps: when `end` is reached; greater than `warmup_steps`.
        end: the final value.

    Raises:
        ValueError: the steps are not in order.

    Source: Loshchilov & Hutter 2017, SGDR, https://arxiv.org/abs/1608.03983. As `optax.warmup_cosine_decay_schedule` from 0.

    >>> schedule = warmup_cosine(peak=2.0, warmup_steps=4, total_steps=12)
    >>> [round(schedule(step), 3) for step in (0, 2, 4, 8, 12, 99)]
    [0.0, 1.0, 2.0, 1.0, 0.0, 0.0]
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps = {warmup_steps} must lie in [0, total_steps), and total_steps is {total_steps}.")
    return WarmupCosine(peak, warmup_steps, total_steps, end)


@dataclass(frozen=True)
class WarmupCosine:
    """What `warmup_cosine` returns: a value, so that equal schedules are equal, print as they were written, and pickle."""

    peak: Scalar
    warmup_steps: int
    total_steps: int
    end: Scalar

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        step = double(step)
        rising = self.peak * step / max(self.warmup_steps, 1)
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        falling = self.end + (self.peak - self.end) * (1 + cos(math.pi * where(progress < 1, progress, 1.0))) / 2
        return where(step < self.warmup_steps, rising, falling)
