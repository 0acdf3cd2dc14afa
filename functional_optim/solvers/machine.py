"""Descent along lines as one flat machine, of which each tick is one evaluation.

    searching       the search is told value and slope at x + t d, and names the next t, or is over
    stepping        where it is over: the descent learns from the step and names the next d
    ended           nothing changes any more

With bounds, a line is bent to stay within them, and directions leave out what a bound is in the way of (Bertsekas 1982, Projected
Newton methods for optimization problems with simple constraints, https://doi.org/10.1137/0320018).

On the host only what a tick needs is computed. Under `vmap` both are, and for each problem of the batch what its phase asks
for is chosen: so every problem is in a phase of its own, and none waits for the search of another.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functional_optim.numerics import Scalar, cond, dot
from functional_optim.searches.scalars import Flag, along, is_finite, least, negate, pick, ratio
from functional_optim.searches.search import Search
from functional_optim.solvers.descent import Descent, Point
from functional_optim.solvers.problem import Problem

GOING, CONVERGED, BUDGET, NO_PROGRESS, NOT_FINITE, STOPPED = range(6)
WHY = {
    GOING: "still going",
    CONVERGED: "converged: no component of the gradient is larger than tol",
    BUDGET: "out of budget: max_steps or max_evals is reached",
    NO_PROGRESS: "no progress: no step lowers the value any more, in this precision",
    NOT_FINITE: "not finite: the value or the gradient at the start is infinite or NaN",
    STOPPED: "stopped: the callback returned True",
}


# Close to a minimum the gradient can still shrink where the value, in its precision, can't: by so many steps at most in vain.
STALLS = 5

# How many units in the last place values at two points of a line may differ by from rounding alone.
ROUNDING = 10


class Budget(NamedTuple):
    """When to end: the largest component of the gradient that counts as 0, and how many steps and evaluations."""

    tol: Scalar
    steps: int
    evals: int


class State(NamedTuple):
    """The machine between two evaluations.

    Attributes:
        at: the point that the line begins at.
        kept: the best on it so far; `at` itself where `moved` does not hold.
        best: the best of all, but for rounding: it is the point whose gradient counts as 0, once there is one.
        moved: whether the search has kept a point.
        d: the direction.
        slope: of the value along it, where the line begins.
        line: the search's state.
        memory: the descent's.
        steepest: whether `d` is the steepest descent for want of anything better.
        status: one of those above.
        steps, evals: how many.
        least: the smallest gradient, by its largest component, of the points where a line began since the best was found.
        stalls: how many steps in a row have made neither the value lower nor the gradient smaller than any of these.
    """

    at: Point
    kept: Point
    best: Point
    moved: Flag
    d: Tensor
    slope: Scalar
    line: Any
    memory: Any
    steepest: Flag
    status: Any
    steps: Any
    evals: Any
    least: Scalar
    stalls: Any


class Machine(NamedTuple):
    """A problem, with the search and the descent that solve it."""

    problem: Problem
    descent: Descent
    search: Search
    budget: Budget

    def start(self) -> State:
        """The state after the first evaluation."""
        problem = self.problem
        x = problem.projected(problem.start)
        point, _ = self._point(x, torch.zeros_like(x))
        memory = self.descent.init(problem, point)
        none, zero, far = problem.flag(False), problem.count(0), problem.scalar(math.inf)
        state = State(point, point, point, none, -point.g, far, None, memory, none, zero, zero, zero + 1, far, zero)
        return self._line(state, none)

    def tick(self, state: State) -> State:
        """One evaluation further; of what has ended, nothing that is seen."""
        going = state.status == GOING
        x = along(state.at.x, state.line.t, state.d)
        trial, slope = self._point(x, state.d)
        heard = self.search.told(state.line, self._resolved(state, trial.f, slope), slope)
        keep, over = heard.keep & is_finite(trial.f) & going, heard.done & going
        lower = keep & (trial.f < state.best.f)
        state = state._replace(
            kept=cond(keep, lambda: trial, lambda: state.kept),
            best=cond(lower, lambda: trial, lambda: state.best),
            least=pick(lower, self.problem.scalar(math.inf), state.least),
            moved=state.moved | keep,
            line=cond(going, lambda: heard.state, lambda: state.line),
            evals=state.evals + pick(going, 1, 0),
        )
        state = state._replace(memory=self._taught(state, over))
        state = cond(over, lambda: self._searched(state), lambda: state)
        spent = (state.status == GOING) & (state.evals >= self.budget.evals)
        return state._replace(status=pick(spent, self.problem.count(BUDGET), state.status))

    def _taught(self, state: State, over: Flag) -> Any:
        """The memory, which learns from the step of a search that is over; of a search that failed, or went the steepest way for
        want of anything better, it is begun anew.

        It is large, so it is chosen once, apart from what else the end of a search brings.
        """
        problem, moved = self.problem, state.moved
        anew = over & (state.steepest | negate(moved))
        memory = cond(anew, lambda: self._forgotten(state), lambda: state.memory)
        return cond(over & moved, lambda: self.descent.remember(problem, memory, state.at, state.kept), lambda: memory)

    def _forgotten(self, state: State) -> Any:
        forget = getattr(self.descent, "forget", None)
        return forget(self.problem, state.memory, state.at) if forget else self.descent.init(self.problem, state.at)

    def _searched(self, state: State) -> State:
        """The search is over: a step, or else a new start by the steepest descent."""
        moved = state.moved
        stepped = state._replace(at=state.kept, steps=state.steps + pick(moved, 1, 0))
        new = self._line(stepped, negate(moved))
        vain = (new.status == GOING) & ((negate(moved) & state.steepest) | (new.stalls >= STALLS))
        return new._replace(status=pick(vain, self.problem.count(NO_PROGRESS), new.status))

    def _line(self, state: State, steepest: Flag) -> State:
        """A new line from `state.at`, unless it is where to end."""
        problem, at = self.problem, state.at
        free = problem.free(at.x, at.g)
        at = at if free is None else at._replace(g=at.g * free)
        towards = self.descent.direction(problem, state.memory, at)
        towards = towards if free is None else towards._replace(d=towards.d * free)
        slope, size, largest = problem.read(dot(towards.d, at.g), torch.linalg.vector_norm(at.g), at.g.abs().max())
        steepest = steepest | negate(is_finite(slope) & (slope < 0))
        t = pick(steepest | (towards.t == 0), ratio(1.0, pick(size > 1, size, problem.scalar(1.0))), towards.t)
        d = cond(steepest, lambda: -at.g, lambda: towards.d)
        slope = pick(steepest, -size * size, slope)
        finite = is_finite(at.f) & is_finite(largest)
        ended = pick(
            largest <= self.budget.tol, CONVERGED, pick(state.steps >= self.budget.steps, self.problem.count(BUDGET), GOING)
        )
        return state._replace(
            kept=state.at,
            best=cond(largest <= self.budget.tol, lambda: state.at, lambda: state.best),
            moved=problem.flag(False),
            d=d,
            slope=slope,
            line=self.search.start(t, at.f, slope),
            memory=towards.memory,
            steepest=steepest,
            status=pick(finite, ended, self.problem.count(NOT_FINITE)),
            least=least(largest, state.least),
            stalls=pick(largest < state.least, self.problem.count(0), state.stalls + 1),
        )

    def _resolved(self, state: State, f: Scalar, slope: Scalar) -> Scalar:
        """The value at the trial point as the search is told it: where it is the line's first but for rounding, by the slopes,
        f ≈ f₀ + t (s₀ + s) / 2, which keep their digits. So Hager and Zhang (2005, section 4) have their approximate condition.
        """
        noise = ROUNDING * torch.finfo(state.d.dtype).eps * abs(state.at.f)
        change = 0.5 * state.line.t * (state.slope + pick(is_finite(slope), slope, 0.0))
        return pick((abs(f - state.at.f) <= noise) & (abs(change) <= noise), state.at.f + change, f)

    def _point(self, x: Tensor, d: Tensor) -> tuple[Point, Scalar]:
        """The evaluation at a point of the line, or where a bound bends it; and the slope there."""
        inside = self.problem.projected(x)
        d = d if inside is x else torch.where(inside == x, d, 0.0)
        f, g, aux = self.problem.evaluate(inside)
        x = inside
        value, slope = self.problem.read(f, dot(g, d))
        return Point(x, value, g, aux), slope
