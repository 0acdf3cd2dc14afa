"""Searches along a line, each by itself: lengths beside those of the paper's own loops, and where nothing is to be found."""

import math

import pytest
import torch
from problems import rosenbrock, vector

import functional_optim as fo
from functional_optim import solvers
from functional_optim.searches import scalars
from functional_optim.solvers.minimize import METHODS


def wavy(t):
    return 0.1 * t**2 - t + 0.15 * math.sin(5 * t), 0.2 * t - 1 + 0.75 * math.cos(5 * t)


def quartic(t):
    return (t - 3) ** 4 - 81, 4 * (t - 3) ** 3


def far(t):
    return -t / (t * t + 2e4), (t * t - 2e4) / (t * t + 2e4) ** 2


def logarithmic(t):
    """Infinite at 4 and NaN beyond."""
    return (-t - math.log(4 - t), -1 + 1 / (4 - t)) if t < 4 else (math.inf, math.nan) if t == 4 else (math.nan, math.nan)


LINES = [wavy, quartic, far, logarithmic]


def tried(search, line, first, slope_at_0):
    """The lengths that a search asks for, and the one that it settles on."""
    state, lengths, kept, done = search.start(first, line(0.0)[0], slope_at_0), [], None, False
    while not done:
        lengths.append(state.t)
        state, keep, done = search.told(state, *line(state.t))
        kept = lengths[-1] if keep else kept
    return lengths, kept


class Found(Exception):
    """The conditions hold."""


def by_the_paper(line, first, delta=0.1, sigma=0.9, epsilon=1e-6, rho=5.0, gamma=0.66):
    """Hager & Zhang 2005, section 4, line by line, where a bracket begins at the last low point."""
    lengths, (f0, s0) = [], line(0.0)
    bound = f0 + epsilon * abs(f0)

    def look(t):
        lengths.append(t)
        f, s = line(t)
        if not (math.isfinite(f) and math.isfinite(s)):
            return math.inf, -1.0
        if s >= sigma * s0 and (f - f0 <= delta * t * s0 or (f <= bound and (2 * delta - 1) * s0 >= s)):
            raise Found
        return f, s

    def halve(a, b):
        while True:
            d = 0.5 * (a + b)
            f, s = look(d)
            if s >= 0:
                return a, d
            a, b = (d, b) if f <= bound else (a, d)

    def update(a, b, c):
        if not a < c < b:
            return a, b
        f, s = look(c)
        if s >= 0:
            return a, c
        return (c, b) if f <= bound else halve(a, c)

    def secant(a, b):
        sa, sb = line(a)[1], line(b)[1]
        return (a * sb - b * sa) / (sb - sa)

    def secant2(a, b):
        c = secant(a, b)
        low, high = update(a, b, c)
        other = secant(b, high) if c == high else secant(a, low) if c == low else None
        return (low, high) if other is None else update(low, high, other)

    def bracket(c):
        low = 0.0
        while True:
            f, s = look(c)
            if s >= 0:
                return low, c
            if f > bound:
                return halve(low, c)
            low, c = c, rho * c

    try:
        a, b = bracket(first)
        while True:
            low, high = secant2(a, b)
            a, b = update(low, high, 0.5 * (low + high)) if high - low > gamma * (b - a) else (low, high)
    except Found:
        return lengths


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("first", [0.01, 0.7, 3.0, 60.0])
@pytest.mark.parametrize("sigma", [0.9, 0.101])
def test_hager_and_zhangs_lengths_are_those_of_the_paper(line, first, sigma):
    lengths, kept = tried(solvers.hager_zhang(curvature=sigma, max_evals=100), line, first, line(0.0)[1])
    expected = by_the_paper(line, first, sigma=sigma)
    assert lengths == pytest.approx(expected, rel=1e-9)
    assert kept == lengths[-1]


SEARCHES = [solvers.zoom(), solvers.strong_wolfe(), solvers.hager_zhang(), solvers.backtracking(), solvers.fixed()]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_search_ends_where_nothing_is_finite(search, value):
    lengths, kept = tried(search, lambda t: (0.0 if t == 0 else value, value), 1.0, -1.0)
    assert kept is None and lengths[-1] < 1e-7 and len(lengths) <= 31


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_ends_where_there_is_no_minimum(search):
    lengths, kept = tried(search, lambda t: (-t, -1.0), 1.0, -1.0)
    assert kept == max(lengths) and len(lengths) <= 31


@pytest.mark.parametrize("search", SEARCHES[:4])
@pytest.mark.parametrize("descent", ["lbfgs", "bfgs", "nonlinear_cg"])
def test_any_search_goes_with_any_descent(search, descent):
    if descent == "nonlinear_cg" and search == solvers.backtracking():
        search = solvers.zoom(curvature=0.01)  # Its first lengths are those of the steps before, which have to be long enough.
    method = solvers.Method(METHODS[descent]().descent, search)
    found = fo.minimize(rosenbrock, vector(-1.2, 1), method=method, max_steps=2000)
    assert found.converged
    torch.testing.assert_close(found.params, vector(1, 1), rtol=0, atol=1e-5)


class EveryThird:
    """A search of one's own: the best of three lengths."""

    def start(self, t, f, slope):
        return fo.solvers.backtracking().start(t, f, slope)

    def told(self, state, f, slope):
        new = state._replace(t=state.t / 3, trials=state.trials + 1, origin=state.origin._replace(f=min(state.origin.f, f)))
        return solvers.Heard(new, f < state.origin.f, new.trials >= 3)


def test_either_can_be_ones_own():
    weights = vector(1, 3)

    class Scaled:
        """A descent of one's own: by the diagonal of the Hessian."""

        def init(self, problem, point):
            return ()

        def direction(self, problem, memory, point):
            return solvers.Direction(-point.g / (2 * weights), problem.scalar(1.0), memory)

        def remember(self, problem, memory, before, after):
            return memory

    found = fo.minimize(lambda x: (weights * (x - 1) ** 2).sum(), vector(4, -3), method=solvers.Method(Scaled(), EveryThird()))
    assert found.converged and int(found.steps) == 1 and int(found.evaluations) == 4


def test_a_root_is_to_the_last_digit_what_it_is_in_a_batch():
    """Of these numbers torch's root is not always that of `math.sqrt`, where it takes it from Intel's library."""
    numbers = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert [scalars.root(x) for x in numbers.tolist()] == torch.vmap(scalars.root)(numbers).tolist()
