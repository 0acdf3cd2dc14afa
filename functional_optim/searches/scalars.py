"""Arithmetic of a line search: on the host of Python's numbers, under `vmap` and derivatives of () tensors, by the same formulas.

On the host a quotient by 0 or an overflow raises, and a root of a negative number too; where a tensor is differentiated, the
branch that is not taken must be finite. So neither is written with an operator in this package.
"""

import math
from typing import Any, NamedTuple, TypeAlias, overload

import torch
from torch import Tensor

from functional_optim import numerics, torch_internals, trees
from functional_optim.numerics import Scalar
from functional_optim.trees import Tree

Flag: TypeAlias = bool | Tensor


class Knot(NamedTuple):
    """A point of a line: where, and the value and the slope there."""

    t: Scalar
    f: Scalar
    slope: Scalar


def can_read(tree: Tree, *, constant: bool = False) -> bool:
    """Whether values may be read: nothing is batched or traced, nor are these tensors differentiated.

    Args:
        tree: what is computed with.
        constant: no derivative is taken of what is computed.
    """
    if torch_internals.is_traced() or "Vmap" in torch_internals.transforms():
        return False
    if constant:
        return True
    tracked = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in trees.leaves(tree))
    return not (tracked or torch_internals.transforms() or torch_internals.in_forward_mode())


def pick(condition: Flag, a: Any, b: Any) -> Any:
    """`a` if the condition holds, else `b`; of a flag that is a tensor, a tensor."""
    if not isinstance(condition, Tensor):
        return a if condition else b
    if isinstance(a, Tensor) or isinstance(b, Tensor) or not isinstance(a, float):
        return torch.where(condition, a, b)
    return numerics.where(condition, a, b)


def negate(condition: Flag) -> Flag:
    """Whether it does not hold."""
    return ~condition if isinstance(condition, Tensor) else not condition


@overload
def ratio(a: Tensor, b: Scalar) -> Tensor: ...
@overload
def ratio(a: Scalar, b: Tensor) -> Tensor: ...
@overload
def ratio(a: Scalar, b: Scalar) -> Scalar: ...
def ratio(a: Scalar, b: Scalar) -> Scalar:
    """a / b, and 0 where b is 0, with finite derivatives there."""
    zero = b == 0
    return pick(zero, 0.0, a / pick(zero, 1.0, b))


def root(x: Scalar) -> Scalar:
    """√x, and 0 where x is negative, with slope 0 there."""
    if not isinstance(x, Tensor):
        # By torch, whose last digit is not always that of `math.sqrt`: so a problem by itself is what it is in a batch.
        return float(torch.scalar_tensor(x, dtype=torch.float64, device="cpu").sqrt()) if x > 0 else 0.0
    return numerics.sqrt(x.clamp(min=0.0))


def least(a: Scalar, b: Scalar) -> Scalar:
    """The smaller of two."""
    return pick(a < b, a, b)


def greatest(a: Scalar, b: Scalar) -> Scalar:
    """The larger of two."""
    return pick(a > b, a, b)


def within(x: Scalar, low: Scalar, high: Scalar) -> Scalar:
    """x, or the end of the interval that it is beyond."""
    return greatest(low, least(x, high))


def sign(x: Scalar) -> Scalar:
    """1 with the sign of x; 1 at 0."""
    return pick(x < 0, -1.0, 1.0)


def is_finite(x: Scalar) -> Flag:
    """Whether this is a number, and not infinite."""
    return x.isfinite() if isinstance(x, Tensor) else math.isfinite(x)


def along(x: Tensor, t: Scalar, d: Tensor) -> Tensor:
    """x + t d, in the precision of the direction."""
    return x + (t.to(d.dtype) if isinstance(t, Tensor) else t) * d


def cubic(base: Knot, other: Knot) -> tuple[Scalar, Scalar, Scalar]:
    """The minimum of the cubic through two points with their slopes; from the base, in units of their distance; and its radicand.

        θ = 3 (f − f') / (t' − t) + s + s',   γ = ±√(θ² − s s'),   r = (γ − s + θ) / (2γ − s + s')

    Source: Moré & Thuente 1994, section 4; Nocedal & Wright 2006, (3.59).
    """
    theta = 3 * ratio(base.f - other.f, other.t - base.t) + base.slope + other.slope
    size = greatest(greatest(abs(theta), abs(base.slope)), abs(other.slope))
    a, b, c = ratio(theta, size), ratio(base.slope, size), ratio(other.slope, size)
    radicand = a * a - b * c
    gamma = size * root(radicand) * sign(other.t - base.t)
    r = ratio(gamma - base.slope + theta, gamma - base.slope + gamma + other.slope)
    return base.t + r * (other.t - base.t), r, radicand
