"""Nonlinear conjugate gradients: the gradient, and a part of the direction before.

    d⁺ ← −g⁺ + β d,   y = g⁺ − g

    FR      β = g⁺ᵀg⁺ / gᵀg
    PR+     β = max(0, g⁺ᵀy / gᵀg)
    DY      β = g⁺ᵀg⁺ / dᵀy
    HZ      β = max(−1 / (‖d‖ min(0.01, ‖g‖)),  (y − 2 d yᵀy / dᵀy)ᵀ g⁺ / dᵀy)

Fletcher & Reeves 1964, https://doi.org/10.1093/comjnl/7.2.149; Polak & Ribière 1969; Gilbert & Nocedal 1992,
https://doi.org/10.1137/0802003; Dai & Yuan 1999, https://doi.org/10.1137/S1052623497318992;
Hager & Zhang 2005, https://doi.org/10.1137/030601880. The first length is that which would decrease as much as the step before.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from functional_optim import numerics
from functional_optim.numerics import dot
from functional_optim.searches.scalars import ratio
from functional_optim.solvers.descent import Direction, Point
from functional_optim.solvers.problem import Problem

BETAS = ("FR", "PR+", "HZ", "DY")


class Course(NamedTuple):
    """The direction to take, and the length to try; 0 where nothing is known."""

    d: Tensor
    t: Tensor


@dataclass(frozen=True)
class ConjugateDescent:
    """The direction of nonlinear conjugate gradients, with one of four β."""

    beta: str = "PR+"

    def init(self, problem: Problem, point: Point) -> Course:
        """The steepest descent."""
        del problem
        return Course(-point.g, point.g.new_zeros(()))

    def direction(self, problem: Problem, memory: Course, point: Point) -> Direction:
        """What has been remembered."""
        del point
        (t,) = problem.read(memory.t)
        return Direction(memory.d, t, memory)

    def remember(self, problem: Problem, memory: Course, before: Point, after: Point) -> Course:
        """The next direction."""
        del problem
        d = after.g.neg() + self._beta(memory.d, before.g, after.g) * memory.d
        length = ratio(dot(after.x - before.x, memory.d), dot(memory.d, memory.d))
        t = length * ratio(dot(memory.d, before.g), dot(d, after.g))
        return Course(d, t.clamp(min=0.0))

    def _beta(self, d: Tensor, old: Tensor, new: Tensor) -> Tensor:
        y = new - old
        dy = dot(d, y)
        if self.beta == "FR":
            return ratio(dot(new, new), dot(old, old))
        if self.beta == "PR+":
            return ratio(dot(new, y), dot(old, old)).clamp(min=0.0)
        if self.beta == "DY":
            return ratio(dot(new, new), dy)
        floor = -1 / (numerics.norm(d) * numerics.norm(old).clamp(max=0.01)).clamp(min=1e-30)
        return ratio(dot(y, new) - 2 * ratio(dot(y, y), dy) * dot(d, new), dy).maximum(floor)
