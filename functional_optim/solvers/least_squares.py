"""`least_squares`: the parameters at which residuals are least, by the method of Levenberg and Marquardt.

    (JᵀJ + μ D) p = −Jᵀr                    J = ∂r/∂x,  D the largest diagonal of JᵀJ so far
    ρ = (f(x) − f(x + p)) / ½ pᵀ(μ D p − Jᵀr)
    lower:      x ← x + p,  μ ← μ max(1/3, 1 − (2ρ − 1)³),  ν ← 2
    else:       μ ← μ ν,  ν ← 2 ν

Levenberg 1944; Marquardt 1963, https://doi.org/10.1137/0111030; Moré 1978, https://doi.org/10.1007/BFb0067700: the scaling D;
Nielsen 1999, Damping parameter in Marquardt's method: μ.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functional_optim.numerics import Scalar
from functional_optim.searches.scalars import choose, greatest, is_finite, negate, pick, ratio
from functional_optim.solvers.descent import Point
from functional_optim.solvers.implicit import Solve, implicitly
from functional_optim.solvers.machine import BUDGET, CONVERGED, GOING, NO_PROGRESS, NOT_FINITE, Budget
from functional_optim.solvers.minimize import Minimum, budget_of, by_cg, outcome, run
from functional_optim.solvers.problem import Problem, problem_of
from functional_optim.trees import Tree


class Fit(NamedTuple):
    """The machine between two evaluations: the best point, its matrix JᵀJ, D, μ, ν, and as in `machine`."""

    best: Point
    square: Tensor
    scale: Tensor
    mu: Scalar
    nu: Scalar
    status: Any
    steps: Any
    evals: Any


class LevenbergMarquardt(NamedTuple):
    """A problem of residuals; each tick solves for a step and evaluates residuals and their Jacobian there."""

    problem: Problem
    fn: Callable[..., Tensor]
    budget: Budget

    def start(self) -> Fit:
        """The state after the first evaluation."""
        problem = self.problem
        point, square, largest = self._point(problem.start)
        zero = problem.count(0)
        ended = pick(largest <= self.budget.tol, problem.count(CONVERGED), problem.count(GOING))
        status = pick(is_finite(point.f) & is_finite(largest), ended, problem.count(NOT_FINITE))
        return Fit(point, square, square.diagonal(), problem.scalar(1e-3), problem.scalar(2.0), status, zero, zero + 1)

    def tick(self, state: Fit) -> Fit:
        """One evaluation further; of what has ended, nothing."""
        return choose(state.status == GOING, lambda: self._evaluated(state), lambda: state)

    def _evaluated(self, state: Fit) -> Fit:
        problem, budget, at = self.problem, self.budget, state.best
        damping = state.mu * torch.where(state.scale > 0, state.scale, 1.0)
        damping = damping.to(at.g.dtype)
        step = -torch.linalg.solve_ex(state.square + torch.diag(damping), at.g)[0]
        trial, square, largest = self._point(at.x + step)
        promised, length, size = problem.read(
            0.5 * step.dot(damping * step - at.g), torch.linalg.vector_norm(step), torch.linalg.vector_norm(at.x)
        )
        lower = is_finite(trial.f) & is_finite(largest) & (trial.f < at.f)
        rho = pick(lower, ratio(at.f - trial.f, promised), 0.0)
        flatter = 1 - (2 * rho - 1) * (2 * rho - 1) * (2 * rho - 1)
        steps, evals = state.steps + pick(lower, 1, 0), state.evals + 1
        eps = torch.finfo(at.x.dtype).eps
        vain = negate(length > eps * (size + eps))
        spent = (steps >= budget.steps) | (evals >= budget.evals)
        going = pick(vain, problem.count(NO_PROGRESS), pick(spent, problem.count(BUDGET), problem.count(GOING)))
        return Fit(
            choose(lower, lambda: trial, lambda: at),
            choose(lower, lambda: square, lambda: state.square),
            choose(lower, lambda: state.scale.maximum(square.diagonal()), lambda: state.scale),
            state.mu * pick(lower, greatest(flatter, 1 / 3 + 0.0 * rho), state.nu),
            pick(lower, 0.0 * state.nu + 2, 2 * state.nu),
            pick(lower & (largest <= budget.tol), problem.count(CONVERGED), going),
            steps,
            evals,
        )

    def _point(self, x: Tensor) -> tuple[Point, Tensor, Scalar]:
        """The point, JᵀJ there, and the largest component of the gradient."""

        def residuals(x: Tensor) -> tuple[Tensor, Tensor]:
            r = self.fn(self.problem.tree(x), *self.problem.args).reshape(-1).to(x.dtype)
            return r, r

        jacobian, r = torch.func.jacrev(residuals, has_aux=True)(x)
        g = jacobian.T @ r
        f, largest = self.problem.read(0.5 * r.dot(r), g.abs().max())
        return Point(x, f, g, ()), jacobian.T @ jacobian, largest


def least_squares(
    fn: Callable[..., Tensor],
    params: Tree,
    args: tuple[Any, ...] = (),
    *,
    tol: float = 1e-6,
    max_steps: int = 200,
    max_evals: int | None = None,
    implicit: bool | Solve = False,
    callback: Callable[[Minimum], Any] | None = None,
) -> Minimum:
    """Parameters at which half the sum of squares of residuals, f = ½ Σ r², is least: by Levenberg and Marquardt's method.

    As `minimize`, on the host, under `torch.vmap`, and with the same result, whose `value` is f. It forms the Jacobian, of as
    many rows as there are residuals, and is for few parameters.

    Args:
        fn: `(params, *args) -> r`, a real tensor of residuals, of any shape.
        params, args, tol, max_steps, implicit, callback: see `minimize`.
        max_evals: at most so many evaluations of residuals and Jacobian; by default 2 · `max_steps`.

    Raises:
        TypeError, ValueError: as `minimize`.

    Source: Moré 1978, https://doi.org/10.1007/BFb0067700; Nielsen 1999. As `scipy.optimize.least_squares(method="lm")` and
    `optimistix.least_squares`.

    >>> x = torch.linspace(0, 1, 20)
    >>> found = least_squares(lambda p: p[0] * torch.exp(p[1] * x) - 2 * torch.exp(-3 * x), torch.tensor([1.0, -1.0]))
    >>> found.params.round(decimals=3)
    tensor([ 2., -3.])
    """
    budget = budget_of(tol, max_steps, max_evals)

    def objective(params: Tree, *args: Any) -> Tensor:
        return 0.5 * (fn(params, *args) ** 2).sum()

    problem = problem_of(objective if callable(fn) else fn, params, args, False, constant=bool(implicit))
    if callback is not None and not problem.on_host:
        raise ValueError("a callback is for the host: under torch.func's transforms and inside compiled code there is none.")

    def solve(problem: Problem) -> Minimum:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not problem.on_host):
            return outcome(problem, run(LevenbergMarquardt(problem, fn, budget), callback))

    return implicitly(solve, problem, by_cg if implicit is True else implicit) if implicit else solve(problem)
