"""From one value to another: constant, linear, polynomial, cosine, exponential."""

from dataclasses import KW_ONLY, dataclass

from functional_optim.hparams import ANY
from functional_optim.numerics import Scalar, double, floor, power, where
from functional_optim.recipe import explained
from functional_optim.schedules.parts import LENGTH, SHAPES, between, check, like, progress


@explained
@dataclass(frozen=True)
class constant:
    """The same `value` at every step. As `optax.constant_schedule`.

    >>> constant(0.1)(1000)
    0.1
    """

    value: Scalar

    def __post_init__(self) -> None:
        check(self, value=ANY)

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        return like(double(step), self.value)


@explained
@dataclass(frozen=True)
class linear:
    """From `start` in a straight line to `end`, reached after `steps` > 0, and held.

    From 0 up it is a warm-up. As `optax.linear_schedule`; `torch.optim.lr_scheduler.LinearLR`, which takes factors.

    >>> [linear(0.0, 1.0, 4)(step) for step in (0, 1, 4, 99)]
    [0.0, 0.25, 1.0, 1.0]
    """

    start: Scalar
    end: Scalar
    steps: Scalar

    def __post_init__(self) -> None:
        check(self, start=ANY, end=ANY, steps=LENGTH)

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        return between(self.start, self.end, 1 - progress(double(step), 0, self.steps))


@explained
@dataclass(frozen=True)
class polynomial:
    """From `start` to `end` in `steps` > 0, as `end + (start − end) (1 − step/steps)^power`, and held; `power` > 0.

    As `optax.polynomial_schedule`; `torch.optim.lr_scheduler.PolynomialLR`, whose end is 0.

    >>> [polynomial(1.0, 0.0, 4, power=2)(step) for step in (0, 2, 4, 99)]
    [1.0, 0.25, 0.0, 0.0]
    """

    start: Scalar
    end: Scalar
    steps: Scalar
    power: Scalar

    def __post_init__(self) -> None:
        check(self, start=ANY, end=ANY, steps=LENGTH, power=LENGTH)

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        return between(self.start, self.end, power(1 - progress(double(step), 0, self.steps), self.power))


@explained
@dataclass(frozen=True)
class cosine:
    """From `start` along half a cosine to `end`, reached after `steps` > 0, and held; `exponent` > 0.

    With x = step/steps it is `end + (start − end) ((1 + cos πx)/2)^exponent`.

    As `optax.cosine_decay_schedule` with alpha = end/start; `torch.optim.lr_scheduler.CosineAnnealingLR`, which rises again.

    Source: Loshchilov & Hutter 2017, SGDR, https://arxiv.org/abs/1608.03983.

    >>> [round(cosine(1.0, 0.2, 4)(step), 3) for step in (0, 1, 2, 3, 4, 99)]
    [1.0, 0.883, 0.6, 0.317, 0.2, 0.2]
    """

    start: Scalar
    end: Scalar
    steps: Scalar
    exponent: Scalar = 1.0

    def __post_init__(self) -> None:
        check(self, start=ANY, end=ANY, steps=LENGTH, exponent=LENGTH)

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        left = SHAPES["cosine"](progress(double(step), 0, self.steps))
        return between(self.start, self.end, power(left, self.exponent))


@explained
@dataclass(frozen=True)
class exponential:
    """`start · rate^(step/steps)`: multiplied by `rate` > 0 every `steps` > 0 steps.

    Args:
        end: where given, decay (rate < 1) stops there from above, growth from below.
        staircase: jump every `steps` steps instead of gliding.

    As `optax.exponential_decay`; `torch.optim.lr_scheduler.ExponentialLR`, and `StepLR` with `staircase=True`.

    >>> [exponential(8.0, 0.5, 10, staircase=True)(step) for step in (0, 9, 10, 35)]
    [8.0, 8.0, 4.0, 1.0]
    """

    start: Scalar
    rate: Scalar
    steps: Scalar = 1
    end: Scalar | None = None
    _: KW_ONLY
    staircase: bool = False

    def __post_init__(self) -> None:
        check(self, start=ANY, rate=LENGTH, steps=LENGTH)
        if self.end is not None:
            check(self, end=ANY)

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        periods = double(step) / self.steps
        periods = floor(periods) if self.staircase else periods
        value = self.start * power(self.rate, periods)
        if self.end is None:
            return value
        is_beyond = where(self.rate < 1, self.end - value, value - self.end) > 0
        # What is not chosen may be infinite, and must not reach the derivative.
        return where(is_beyond, self.end, self.start * power(self.rate, where(is_beyond, 0.0, periods)))
