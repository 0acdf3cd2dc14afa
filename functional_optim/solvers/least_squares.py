"""`least_squares`: the parameters at which residuals are least, by the method of Levenberg and Marquardt, or Gauss and Newton.

    (JᵀJ + μ D) p = −Jᵀr                    J = ∂r/∂x,  D the largest diagonal of JᵀJ so far
    ρ = (f(x) − f(x + p)) / ½ pᵀ(μ D p − Jᵀr)
    lower:      x ← x + p,  μ ← μ max(1/3, 1 − (2ρ − 1)³),  ν ← 2
    else:       μ ← μ ν,  ν ← 2 ν

Levenberg 1944; Marquardt 1963, https://doi.org/10.1137/0111030; Moré 1978, https://doi.org/10.1007/BFb0067700: the scaling D;
Nielsen 1999, Damping parameter in Marquardt's method: μ.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functional_optim.numerics import Scalar, cond, dot
from functional_optim.recipe import answering
from functional_optim.searches.more_thuente import zoom
from functional_optim.searches.scalars import greatest, is_finite, least, negate, pick, ratio, root
from functional_optim.searches.search import Search
from functional_optim.solvers.bounds import bounded
from functional_optim.solvers.descent import Point
from functional_optim.solvers.implicit import Solve, implicitly
from functional_optim.solvers.machine import BUDGET, CONVERGED, GOING, NO_PROGRESS, NOT_FINITE, Budget, Machine
from functional_optim.solvers.minimize import Minimum, budget_of, by_cg, method_of, outcome, require_callback, run
from functional_optim.solvers.newton import NewtonDescent, conjugate
from functional_optim.solvers.problem import Problem, problem_of, real_residuals
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


@dataclass(frozen=True)
class levenberg_marquardt:
    """Levenberg and Marquardt's method: as far as a quadratic model is to be trusted.

    Args:
        matrix_free: solve for a step by conjugate gradients, with products of the Jacobian, instead of forming it: of many
            parameters. D is 1 then.
        max_products: at most so many products with JᵀJ a step, where it is matrix-free.

    Source: Moré 1978, https://doi.org/10.1007/BFb0067700; Nielsen 1999.
    """

    matrix_free: bool = False
    max_products: int = 100


@dataclass(frozen=True)
class gauss_newton:
    """Gauss and Newton's method along lines, without the matrix: directions by conjugate gradients, of products with JᵀJ.

    Args:
        max_products: at most so many products a direction, and at most twice the number of parameters.
        search: how far to go; by default that of Moré and Thuente.

    Source: Nocedal & Wright 2006, section 10.3.
    """

    max_products: int = 100
    search: Search | None = None


METHODS: dict[str, Any] = {"levenberg_marquardt": levenberg_marquardt, "gauss_newton": gauss_newton}


class Damped(NamedTuple):
    """A problem of residuals; each tick solves for a step and evaluates residuals and their Jacobian there."""

    problem: Problem
    method: levenberg_marquardt
    budget: Budget

    def start(self) -> Fit:
        """The state after the first evaluation."""
        problem = self.problem
        point, square, largest = self._point(problem.projected(problem.start))
        zero = problem.count(0)
        ended = pick(largest <= self.budget.tol, problem.count(CONVERGED), problem.count(GOING))
        status = pick(is_finite(point.f) & is_finite(largest), ended, problem.count(NOT_FINITE))
        scale = torch.ones_like(point.g) if self.method.matrix_free else square.diagonal()
        return Fit(point, square, scale, problem.scalar(1e-3), problem.scalar(2.0), status, zero, zero + 1)

    def tick(self, state: Fit) -> Fit:
        """One evaluation further; of what has ended, nothing."""
        return cond(state.status == GOING, lambda: self._evaluated(state), lambda: state)

    def _evaluated(self, state: Fit) -> Fit:
        problem, budget, at = self.problem, self.budget, state.best
        damping = (state.mu * torch.where(state.scale > 0, state.scale, 1.0)).to(at.g.dtype)
        step = self._step(state, damping)
        trial, square, largest = self._point(problem.projected(at.x + step))
        promised, length, size = problem.read(
            0.5 * dot(step, damping * step - at.g), torch.linalg.vector_norm(step), torch.linalg.vector_norm(at.x)
        )
        lower = is_finite(trial.f) & is_finite(largest) & (trial.f < at.f)
        rho = pick(lower, ratio(at.f - trial.f, promised), 0.0)
        flatter = 1 - (2 * rho - 1) * (2 * rho - 1) * (2 * rho - 1)
        steps, evals = state.steps + pick(lower, 1, 0), state.evals + 1
        eps = torch.finfo(at.x.dtype).eps
        vain = negate(length > eps * (size + eps))
        spent = (steps >= budget.steps) | (evals >= budget.evals)
        going = pick(vain, problem.count(NO_PROGRESS), pick(spent, problem.count(BUDGET), problem.count(GOING)))
        scale = state.scale if self.method.matrix_free else state.scale.maximum(square.diagonal())
        return Fit(
            cond(lower, lambda: trial, lambda: at),
            cond(lower, lambda: square, lambda: state.square),
            cond(lower, lambda: scale, lambda: state.scale),
            state.mu * pick(lower, greatest(flatter, 1 / 3 + 0.0 * rho), state.nu),
            pick(lower, 0.0 * state.nu + 2, 2 * state.nu),
            pick(lower & (largest <= budget.tol), problem.count(CONVERGED), going),
            steps,
            evals,
        )

    def _step(self, state: Fit, damping: Tensor) -> Tensor:
        """The solution of the damped equations, for what no bound is in the way of."""
        problem, at = self.problem, state.best
        free = problem.free(at.x, at.g)
        g, square = at.g, state.square
        if free is not None:
            g = g * free
        if not self.method.matrix_free:
            square = square if free is None else square * torch.outer(free, free)
            return -torch.linalg.solve_ex(square + torch.diag(damping), g)[0]
        product = problem.gauss_product(at.x)

        def damped(v: Tensor) -> Tensor:
            return (product(v) if free is None else free * product(free * v)) + damping * v

        (size,) = problem.read(torch.linalg.vector_norm(g))
        return conjugate(problem, damped, g, self.method.max_products, least(problem.scalar(0.1), root(size)))

    def _point(self, x: Tensor) -> tuple[Point, Tensor, Scalar]:
        """The point, JᵀJ there, and the largest component of the gradient that no bound is in the way of."""
        problem = self.problem
        if self.method.matrix_free:
            f, g, aux = problem.evaluate(x)
            square = x.new_zeros(())
        else:

            def residuals(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tree]]:
                r, aux = problem.residual(x)
                return r, (r, aux)

            jacobian, (r, aux) = torch.func.jacrev(residuals, has_aux=True)(x)
            f, g, square = 0.5 * dot(r, r), jacobian.T @ r, jacobian.T @ jacobian
        free = problem.free(x, g)
        value, largest = problem.read(f, (g if free is None else g * free).abs().max())
        return Point(x, value, g, aux), square, largest


@answering
def least_squares(
    fn: Callable[..., Any],
    params: Tree,
    args: tuple[Any, ...] = (),
    *,
    method: str | levenberg_marquardt | gauss_newton = "levenberg_marquardt",
    tol: float = 1e-6,
    max_steps: int = 200,
    max_evals: int | None = None,
    has_aux: bool = False,
    bounds: tuple[Any, Any] | None = None,
    implicit: bool | Solve = False,
    callback: Callable[[Minimum], Any] | None = None,
) -> Minimum:
    """Parameters at which half the sum of squares of residuals, f = ½ Σ r², is least.

    As `minimize`, on the host, under `torch.vmap`, and with the same result, whose `value` is f. By default it is Levenberg and
    Marquardt's method, which forms the Jacobian, of as many rows as there are residuals, and is for few parameters;
    `method=fo.solvers.levenberg_marquardt(matrix_free=True)` is for many.

    Args:
        fn: `(params, *args) -> r`, a real tensor of residuals, of any shape; with `has_aux`, `-> (r, aux)`.
        method: "levenberg_marquardt", "gauss_newton", or a value of `fo.solvers` by these names.
        params, args, tol, max_steps, has_aux, bounds, implicit, callback: see `minimize`.
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
    method = method_of(method, METHODS, levenberg_marquardt | gauss_newton)
    budget = budget_of(tol, max_steps, max_evals)

    def objective(params: Tree, *args: Any) -> Any:
        r, aux = real_residuals(fn(params, *args), has_aux)
        f = 0.5 * (r**2).sum()
        return (f, aux) if has_aux else f

    problem = problem_of(objective if callable(fn) else fn, params, args, has_aux, constant=bool(implicit))
    problem = bounded(replace(problem, residuals=fn), bounds, implicit=implicit)
    require_callback(callback, problem)

    def solve(problem: Problem) -> Minimum:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not problem.on_host):
            return outcome(problem, run(_machine(problem, method, budget), callback))

    return implicitly(solve, problem, by_cg if implicit is True else implicit) if implicit else solve(problem)


def _machine(problem: Problem, method: Any, budget: Budget) -> Any:
    if isinstance(method, levenberg_marquardt):
        return Damped(problem, method, budget)
    return Machine(problem, NewtonDescent(method.max_products, gauss=True), method.search or zoom(), budget)
