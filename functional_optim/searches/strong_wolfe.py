"""The search for the strong Wolfe conditions that torch.optim.LBFGS has: lengthen until a minimum is bracketed, then zoom in.

    bracket     t grows to the minimum of a cubic, held to [t + 0.01 (t − t'), 10 t], until φ rises or its slope turns
    zoom        the minimum of the cubic through the ends; twice too close to an end, 0.1 of the interval away from it

Nocedal & Wright 2006, Numerical Optimization, Algorithms 3.5 and 3.6, as in Schmidt's minFunc, which torch ports.
"""

from dataclasses import dataclass
from typing import NamedTuple

from functional_optim.numerics import Scalar, cond
from functional_optim.recipe import explained
from functional_optim.searches.scalars import Flag, Knot, cubic, greatest, is_finite, least, negate, pick, within
from functional_optim.searches.search import Heard


class Bracket(NamedTuple):
    """A search under way.

    Attributes:
        t: the next length.
        origin: the point at 0.
        low, high: the ends of the interval, the better one first; while there is none, `low` is the trial before.
        zooming: whether there is one.
        close: whether the last trial was close to an end.
        trials: how many there have been.
    """

    t: Scalar
    origin: Knot
    low: Knot
    high: Knot
    zooming: Flag
    close: Flag
    trials: Scalar


@explained
@dataclass(frozen=True)
class strong_wolfe:
    """Search for the strong Wolfe conditions as `torch.optim.LBFGS` does.

    Args:
        decrease: c₁, in (0, 1/2).
        curvature: c₂, in (c₁, 1).
        precision: stop once the interval is shorter than this.
        max_evals: how many trials, after the first.

    Source: Nocedal & Wright 2006, Algorithms 3.5 and 3.6. An evaluation that is not finite is a point of infinite height.
    """

    decrease: float = 1e-4
    curvature: float = 0.9
    precision: float = 1e-9
    max_evals: int = 25

    def start(self, t: Scalar, f: Scalar, slope: Scalar) -> Bracket:
        """No interval yet."""
        origin = Knot(0.0 * t, f, slope)
        none = slope > 0  # False, of the kind that the numbers are.
        return Bracket(t, origin, origin, origin, none, none, 0.0 * t)

    def told(self, state: Bracket, f: Scalar, slope: Scalar) -> Heard:
        """An interval, or a longer step; within an interval, a smaller one."""
        finite = is_finite(f) & is_finite(slope)
        trial = Knot(state.t, pick(finite, f, _HIGH + 0.0 * state.t), pick(finite, slope, 0.0 * state.t))
        before = state.trials
        origin, low = state.origin, state.low
        rises = negate(trial.f <= origin.f + self.decrease * trial.t * origin.slope)
        found = negate(rises) & (abs(trial.slope) <= -self.curvature * origin.slope)

        high_enough = rises | pick(state.zooming, trial.f >= low.f, (before > 1) & (trial.f >= low.f))
        found = found & negate(high_enough)
        brackets = state.zooming | high_enough | found | (trial.slope >= 0)
        better = pick(state.zooming, trial.f < low.f, pick(brackets & negate(found), trial.f < low.f, trial.f == trial.f))

        turned = trial.slope * (state.high.t - low.t) >= 0
        beyond: Knot = cond(high_enough, lambda: trial, lambda: cond(turned, lambda: low, lambda: state.high))
        swapped: Knot = cond(high_enough & better, lambda: low, lambda: beyond)
        first: Knot = cond(better, lambda: low, lambda: trial)
        high: Knot = cond(state.zooming, lambda: swapped, lambda: first)
        low = cond(better, lambda: trial, lambda: low)

        near = brackets & (abs(high.t - low.t) < self.precision)
        longer = _held(state.low, trial, trial.t + 0.01 * (trial.t - state.low.t), 10 * trial.t)
        inner, close = _inside(low, high, state.close)
        new = Bracket(pick(brackets, inner, longer), origin, low, high, brackets, brackets & close, before + 1)
        return Heard(new, better & finite, found | near | (before >= self.max_evals))


_HIGH = float("inf")


def _held(a: Knot, b: Knot, low: Scalar, high: Scalar) -> Scalar:
    """The minimum of the cubic, held to an interval; its middle where there is none, and the end downhill if it is a line."""
    base: Knot = cond(a.t > b.t, lambda: a, lambda: b)
    other: Knot = cond(a.t > b.t, lambda: b, lambda: a)
    t, _, radicand = cubic(base, other)
    inner = pick(is_finite(t) & (radicand >= 0), within(t, low, high), 0.5 * (low + high))
    is_line = (radicand == 0) & (a.slope == b.slope)
    return pick(is_line, pick(a.slope < 0, high, low), inner)


def _inside(low: Knot, high: Knot, close: Flag) -> tuple[Scalar, Flag]:
    """The next length within the interval, and whether it is close to an end."""
    left, right = least(low.t, high.t), greatest(low.t, high.t)
    t = _held(low, high, left, right)
    margin = 0.1 * (right - left)
    at_edge = least(right - t, t - left) < margin
    moves = at_edge & (close | (t >= right) | (t <= left))
    away = pick(abs(t - right) < abs(t - left), right - margin, left + margin)
    return pick(moves, away, t), at_edge & negate(moves)
