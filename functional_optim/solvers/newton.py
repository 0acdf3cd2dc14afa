"""Newton's direction without the matrix: conjugate gradients on its products, stopped early.

    H p = −g        p ← 0;  r ← g;  d ← −g
    α ← rᵀr / dᵀHd;  p ← p + α d;  r⁺ ← r + α H d;  d ← −r⁺ + (r⁺ᵀr⁺ / rᵀr) d
    until ‖r‖ ≤ min(½, √‖g‖) ‖g‖

Where dᵀHd is not positive, p is as it was; −g, where that is the first d. H is the Hessian, or JᵀJ of residuals: that is Gauss
and Newton's method.

Dembo & Steihaug 1983, Truncated-Newton algorithms for large-scale unconstrained optimization, https://doi.org/10.1007/BF02592055;
Nocedal & Wright 2006, Algorithm 7.1 and section 10.3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim.numerics import Scalar, cond, dot
from functional_optim.searches.scalars import least, negate, pick, ratio, root
from functional_optim.solvers.descent import Direction, Point
from functional_optim.solvers.problem import Problem

Product: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NewtonDescent:
    """The direction of Newton's method, by products with the Hessian; of Gauss and Newton's, by products with JᵀJ.

    Attributes:
        max_products: at most so many products a direction.
        gauss: whether H is JᵀJ; the problem has residuals then.
    """

    max_products: int = 100
    gauss: bool = False

    def init(self, problem: Problem, point: Point) -> tuple[()]:
        """Nothing is remembered."""
        del problem, point
        return ()

    def direction(self, problem: Problem, memory: Any, point: Point) -> Direction:
        """Newton's step, to be tried at full length."""
        product = problem.gauss_product(point.x) if self.gauss else problem.product(point.x)
        (size,) = problem.read(torch.linalg.vector_norm(point.g))
        p = conjugate(problem, product, point.g, self.max_products, least(problem.scalar(0.5), root(size)))
        return Direction(p, problem.scalar(1.0), memory)

    def remember(self, problem: Problem, memory: Any, before: Point, after: Point) -> Any:
        """Nothing."""
        del problem, before, after
        return memory


def conjugate(problem: Problem, product: Product, g: Tensor, steps: int, tol: Scalar) -> Tensor:
    """An approximate solution p of H p = −g, by at most so many products.

    Args:
        problem: which says whether values may be read: then it ends as soon as it is done.
        tol: the size of what is left, beside that of g.
    """
    p, r, d = torch.zeros_like(g), g, -g
    (square,) = problem.read(dot(g, g))
    goal, going, first = tol * tol * square, square > 0, True
    for _ in range(min(steps, 2 * g.numel())):
        if going is False:
            break
        hd = product(d)
        (curvature,) = problem.read(dot(d, hd))
        positive = curvature > 0
        alpha = ratio(square, pick(positive, curvature, 0.0 * curvature + 1))
        steep = -g if first else p
        next_p = cond(positive, lambda p=p, d=d, alpha=alpha: torch.add(p, _times(alpha, d)), lambda steep=steep: steep)
        next_r = torch.add(r, _times(alpha, hd))
        (next_square,) = problem.read(dot(next_r, next_r))
        p = cond(going, lambda new=next_p: new, lambda old=p: old)
        d = torch.add(-next_r, _times(ratio(next_square, square), d))
        going = going & positive & negate(next_square <= goal)
        r, square, first = next_r, next_square, False
    return p


def _times(c: Scalar, x: Tensor) -> Tensor:
    return (c.to(x.dtype) if isinstance(c, Tensor) else c) * x
