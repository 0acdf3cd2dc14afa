"""BFGS: a quasi-Newton direction from all steps so far.

    s = x⁺ − x,  y = g⁺ − g,  ρ = 1 / yᵀs
    H ← (1 − ρ s yᵀ) H (1 − ρ y sᵀ) + ρ s sᵀ                       before the first, H = yᵀs / yᵀy
    d ← −H g

Nocedal & Wright 2006, Numerical Optimization, Algorithm 6.1, (6.17) and (6.20).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from functional_optim.numerics import cond, dot
from functional_optim.searches.scalars import Flag, pick, ratio
from functional_optim.solvers.descent import Direction, Point
from functional_optim.solvers.problem import Problem


class Inverse(NamedTuple):
    """H, and whether anything has been learnt."""

    h: Tensor
    learnt: Flag


@dataclass(frozen=True)
class BFGSDescent:
    """The direction of BFGS, which keeps a matrix of n² numbers."""

    def init(self, problem: Problem, point: Point) -> Inverse:
        """The identity."""
        return Inverse(torch.eye(point.g.numel(), dtype=point.g.dtype, device=point.g.device), problem.flag(False))

    def direction(self, problem: Problem, memory: Inverse, point: Point) -> Direction:
        """−H g, to be tried at full length; the first is the gradient, whose length says nothing."""
        t = pick(memory.learnt, problem.scalar(1.0), problem.scalar(0.0))
        return Direction(-_times(memory.h, point.g), t, memory)

    def remember(self, problem: Problem, memory: Inverse, before: Point, after: Point) -> Inverse:
        """The matrix after a step; a step whose curvature is not positive teaches nothing."""
        s, y = after.x - before.x, after.g - before.g
        ys, yy = dot(y, s), dot(y, y)
        product, square = problem.read(ys, yy)

        def learn() -> Inverse:
            h = cond(memory.learnt, lambda: memory.h, lambda: ratio(ys, yy) * memory.h)
            rho, hy = ratio(torch.ones_like(ys), ys), _times(h, y)
            crossed = torch.outer(s, hy)
            h = h - rho * (crossed + crossed.T) + rho * (1 + rho * dot(y, hy)) * torch.outer(s, s)
            return Inverse(h, problem.flag(True))

        return cond(product > torch.finfo(s.dtype).eps * square, learn, lambda: memory)


def _times(h: Tensor, x: Tensor) -> Tensor:
    """A matrix times a vector, under `vmap` as of each pair."""
    return (h * x).sum(-1)
