"""Made of pieces: steps, knots, and one schedule after another."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from functional_optim.hparams import ANY, validate_number
from functional_optim.numerics import Scalar, double, where
from functional_optim.recipe import explained
from functional_optim.schedules.parts import Schedule, check_pieces, like, require_shape, through


@explained
@dataclass(frozen=True)
class piecewise_constant:
    """`values[0]` before step `boundaries[0]`, `values[1]` from there on, and so on.

    Args:
        values: one more than `boundaries`.
        boundaries: positive and increasing.

    As `torch.optim.lr_scheduler.MultiStepLR` and `optax.piecewise_constant_schedule`, which take factors instead of values.

    >>> [piecewise_constant([0.1, 0.01, 0.001], [30, 60])(step) for step in (0, 29, 30, 60)]
    [0.1, 0.1, 0.01, 0.001]
    """

    values: Sequence[Scalar]
    boundaries: Sequence[Scalar]

    def __post_init__(self) -> None:
        check_pieces(self, "values")
        for i, value in enumerate(self.values):
            validate_number(f"piecewise_constant: values[{i}]", value, ANY)

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        step = double(step)
        value = like(step, self.values[0])
        for boundary, following in zip(self.boundaries, self.values[1:], strict=True):
            value = where(step < boundary, value, following)
        return value


@explained
@dataclass(frozen=True)
class piecewise_interpolate:
    """Through `values[0]` at step 0, `values[1]` at step `boundaries[0]`, and so on; the last value is held.

    Args:
        values: one more than `boundaries`.
        boundaries: positive and increasing.
        shape: of the way between, as in `warmup_stable_decay`.

    As `optax.piecewise_interpolate_schedule`, which takes factors instead of values.

    >>> [piecewise_interpolate([0.0, 1.0, 0.5], [10, 20])(step) for step in (0, 5, 10, 15, 20, 99)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.5]
    """

    values: Sequence[Scalar]
    boundaries: Sequence[Scalar]
    _: KW_ONLY
    shape: str = "linear"

    def __post_init__(self) -> None:
        check_pieces(self, "values")
        require_shape(self.shape)
        for i, value in enumerate(self.values):
            validate_number(f"piecewise_interpolate: values[{i}]", value, ANY)

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        return through(list(zip((0, *self.boundaries), self.values, strict=True)), double(step), self.shape)


@explained
@dataclass(frozen=True)
class join:
    """One schedule after another: each is asked for its own steps only, counted from the boundary where it begins.

    Args:
        schedules: one more than `boundaries`; any functions of the step.
        boundaries: the steps at which the second, third, … schedule takes over; positive and increasing.

    As `optax.join_schedules`; `torch.optim.lr_scheduler.SequentialLR`.

    >>> import functional_optim as fo
    >>> schedule = join([fo.linear(0.0, 1.0, 5), fo.exponential(1.0, 0.5)], [5])
    >>> [schedule(step) for step in (0, 4, 5, 6)]
    [0.0, 0.8, 1.0, 0.5]
    """

    schedules: Sequence[Schedule]
    boundaries: Sequence[Scalar]

    def __post_init__(self) -> None:
        check_pieces(self, "schedules")
        for i, schedule in enumerate(self.schedules):
            if not callable(schedule):
                raise TypeError(
                    f"join: schedules[{i}] = {schedule!r} is no function of the step. Did you mean constant({schedule!r})?"
                )

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        step = double(step)
        # What a schedule says beyond its own steps might be infinite, and poison the derivative of the others.
        values = [schedule(_clamped(step, *own)) for schedule, own in zip(self.schedules, self._windows(), strict=True)]
        value = values[0]
        for boundary, following in zip(self.boundaries, values[1:], strict=True):
            value = where(step < boundary, value, following)
        return value

    def _windows(self) -> list[tuple[Scalar, Scalar | None]]:
        return list(zip((0, *self.boundaries), (*self.boundaries, None), strict=True))


def _clamped(step: Scalar, begin: Scalar, end: Scalar | None) -> Scalar:
    """The step, counted from `begin`, and held at both ends of its window."""
    step = step if end is None else where(step < end, step, end)
    return where(step < begin, 0, step - begin)
