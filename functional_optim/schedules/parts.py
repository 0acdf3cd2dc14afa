"""What schedules are made of: shapes, shares of a way, and the checks of their arguments."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from torch import Tensor

from functional_optim.hparams import validate_number
from functional_optim.numerics import Scalar, cos, double, power, where

Schedule: TypeAlias = Callable[[Scalar], Scalar]

LENGTH = "(0, inf)"

# How much of the first value is left after a share x of the way to the second one.
SHAPES: dict[str, Callable[[Scalar], Scalar]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + cos(math.pi * x)) / 2,
    "sqrt": lambda x: 1 - power(x, 0.5),
    "square": lambda x: 1 - x * x,
}


def like(step: Scalar, value: Scalar) -> Scalar:
    """The value, as a tensor if the step is one."""
    return double(value, step.device) if isinstance(step, Tensor) else value


def progress(step: Scalar, begin: Scalar, length: Scalar) -> Scalar:
    """The share of the way from `begin` to `begin + length` that lies behind: 0 before, 1 after; the length may be 0."""
    inside = (step - begin) / where(length > 0, length, 1.0)
    return where(step < begin + length, where(step < begin, 0.0, inside), 1.0)


def between(a: Scalar, b: Scalar, left: Scalar) -> Scalar:
    """The value with a share `left` of a, the rest of b; exactly a at 1 and b at 0."""
    return left * a + (1 - left) * b


def through(knots: Sequence[tuple[Scalar, Scalar]], step: Scalar, shape: str) -> Scalar:
    """The value at `step` on the way through points (step, value), of which the last is held."""
    value = like(step, knots[0][1])
    for (begin, a), (end, b) in pairwise(knots):
        value = where(step < begin, value, between(a, b, SHAPES[shape](progress(step, begin, end - begin))))
    return value


def known(*values: Any) -> bool:
    """Whether these can be compared: they are numbers, for tensors are never read."""
    return not any(isinstance(value, Tensor) for value in values)


def check(schedule: Any, **ranges: str) -> None:
    """Raise unless each of these arguments is a number in its range, or a () tensor."""
    for name, interval in ranges.items():
        validate_number(f"{type(schedule).__name__}: {name}", getattr(schedule, name), interval)


def check_pieces(schedule: Any, name: str) -> None:
    """Make tuples of the pieces and their boundaries, and raise unless they fit."""
    owner = type(schedule).__name__
    for field in (name, "boundaries"):
        given = getattr(schedule, field)
        if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
            raise TypeError(
                f"{owner}: {field} = {given!r} is a {type(given).__name__}: expected a sequence, "
                f"{owner}({name}=[first, second, third], boundaries=[10, 20]), of the {name} around these steps."
            )
        object.__setattr__(schedule, field, tuple(given))
    pieces, boundaries = getattr(schedule, name), schedule.boundaries
    if len(pieces) != len(boundaries) + 1:
        raise ValueError(
            f"{owner} got {len(pieces)} {name} and {len(boundaries)} boundaries: expected one boundary between each two {name}."
        )
    for i, boundary in enumerate(boundaries):
        validate_number(f"{owner}: boundaries[{i}]", boundary, LENGTH)
    if any(known(a, b) and a >= b for a, b in pairwise(boundaries)):
        raise ValueError(f"{owner}: boundaries = {boundaries} are not increasing.")


def require_shape(shape: str) -> None:
    """Raise ValueError unless it is one of `SHAPES`."""
    if shape not in SHAPES:
        raise ValueError(f"shape = {shape!r} is unknown: choose one of {', '.join(map(repr, SHAPES))}.")
