"""The search of Moré and Thuente for the strong Wolfe conditions.

    sufficient decrease     φ(t) ≤ φ(0) + c₁ t φ'(0)
    curvature               |φ'(t)| ≤ −c₂ φ'(0)

It keeps an interval whose better end x has the lowest value so far, and whose other end y lies where φ rises from there. The next
length is the minimum of a cubic or quadratic through what is known, held within the interval; where that does not shrink by a
third in two trials, its middle.

Moré & Thuente 1994, Line search algorithms with guaranteed sufficient decrease, https://doi.org/10.1145/192115.192132; of their
program (MINPACK-2's dcsrch and dcstep), which L-BFGS-B runs as well, it takes the lengths. An evaluation that is not finite is
the far end of the interval, at height ∞.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from functional_optim.numerics import Scalar, cond
from functional_optim.recipe import explained
from functional_optim.searches.scalars import (
    Flag,
    Knot,
    cubic,
    greatest,
    is_finite,
    least,
    negate,
    pick,
    ratio,
    sign,
    within,
)
from functional_optim.searches.search import Heard


class Interval(NamedTuple):
    """A search under way.

    Attributes:
        t: the next length.
        origin: the point at 0.
        low: the best end of the interval.
        high: its other end.
        bracketed: whether a minimum lies in between.
        descending: whether no point has yet had both sufficient decrease and a slope upwards.
        shortest, longest: the bounds of the next length.
        width, before: of the interval, one and two trials ago.
        trials: how many there have been.
    """

    t: Scalar
    origin: Knot
    low: Knot
    high: Knot
    bracketed: Flag
    descending: Flag
    shortest: Scalar
    longest: Scalar
    width: Scalar
    before: Scalar
    trials: Scalar


@explained
@dataclass(frozen=True)
class zoom:
    """Search for the strong Wolfe conditions, by the method of Moré and Thuente.

    Args:
        decrease: c₁, in (0, 1/2).
        curvature: c₂, in (c₁, 1): 0.9 for quasi-Newton directions, 0.1 for conjugate gradients.
        precision: stop once the interval is this small, beside its far end.
        max_evals: how many trials.

    Source: Moré & Thuente 1994, https://doi.org/10.1145/192115.192132. The default numbers are those of SciPy's L-BFGS-B.
    """

    decrease: float = 1e-3
    curvature: float = 0.9
    precision: float = 0.1
    max_evals: int = 20

    def start(self, t: Scalar, f: Scalar, slope: Scalar) -> Interval:
        """No interval yet."""
        origin, zero = Knot(0.0 * t, f, slope), 0.0 * t
        none = slope == math.inf  # False, of the kind that the numbers are.
        return Interval(t, origin, origin, origin, none, negate(none), zero, 5 * t, _FAR + zero, 2 * _FAR + zero, zero)

    def told(self, state: Interval, f: Scalar, slope: Scalar) -> Heard:
        """A smaller interval, or a longer step."""
        finite = is_finite(f) & is_finite(slope)
        trial = Knot(state.t, pick(finite, f, math.inf), pick(finite, slope, 0.0))
        new, keep, done = cond(
            finite,
            lambda: self._told(state, Knot(state.t, pick(finite, f, state.low.f), trial.slope)),
            lambda: self._refused(state, trial),
        )
        exhausted = new.trials >= self.max_evals
        return Heard(new, keep, done | exhausted)

    def _refused(self, state: Interval, trial: Knot) -> tuple[Interval, Flag, Flag]:
        """The evaluation was not finite: a point of infinite height."""
        gap = trial.t - state.low.t
        no = state.t != state.t
        new = state._replace(
            t=state.low.t + 0.1 * gap,
            high=trial,
            bracketed=negate(no),
            shortest=least(state.low.t, trial.t),
            longest=greatest(state.low.t, trial.t),
            before=abs(gap),
            width=abs(gap),
            trials=state.trials + 1,
        )
        return new, no, no

    def _told(self, state: Interval, trial: Knot) -> tuple[Interval, Flag, Flag]:
        t, origin = state.t, state.origin
        wanted = self.decrease * origin.slope
        bound = origin.f + t * wanted
        enough = trial.f <= bound
        descending = state.descending & negate(enough & (trial.slope >= 0))
        found = enough & (abs(trial.slope) <= -self.curvature * origin.slope)
        if found is True:  # On the host nobody asks for what would come next.
            return state, found, found
        # Where φ has not decreased enough though it is the lowest, its distance from the bound is what should decrease.
        tilt = pick(descending & (trial.f <= state.low.f) & negate(enough), wanted, 0.0)
        step = _improved(_tilted(state.low, tilt), _tilted(state.high, tilt), _tilted(trial, tilt), state)
        low, high = _tilted(step.low, -tilt), _tilted(step.high, -tilt)

        gap = abs(high.t - low.t)
        slow = step.bracketed & (gap >= 0.66 * state.before)
        next_t = pick(slow, low.t + 0.5 * (high.t - low.t), step.t)
        shortest = pick(step.bracketed, least(low.t, high.t), next_t + 1.1 * (next_t - low.t))
        longest = pick(step.bracketed, greatest(low.t, high.t), next_t + 4 * (next_t - low.t))
        stuck = step.bracketed & ((next_t <= shortest) | (next_t >= longest) | (longest - shortest <= self.precision * longest))
        new = state._replace(
            t=next_t,
            low=low,
            high=high,
            bracketed=step.bracketed,
            descending=descending,
            shortest=shortest,
            longest=longest,
            before=pick(step.bracketed, state.width, state.before),
            width=pick(step.bracketed, gap, state.width),
            trials=state.trials + 1,
        )
        return new, found | step.moved, found | stuck


_FAR = 1e10


class _Improved(NamedTuple):
    """The interval and the next length, before they are held to bounds."""

    t: Scalar
    low: Knot
    high: Knot
    bracketed: Flag
    moved: Flag


def _improved(low: Knot, high: Knot, trial: Knot, state: Interval) -> _Improved:
    """The safeguarded step: four cases, by what the trial's value and slope say.

    1   higher              a minimum lies between: the cubic's, or between it and the quadratic's
    2   slope turned        a minimum lies between: the farther of the cubic's and the secant's
    3   slope flatter       the cubic's if it goes that way, and the secant's: the nearer in an interval, else the farther
    4   slope not flatter   towards the other end, or as far as is allowed
    """
    higher = trial.f > low.f
    turned = negate(higher) & (trial.slope * sign(low.slope) < 0)
    flatter = negate(higher) & negate(turned) & (abs(trial.slope) < abs(low.slope))
    ahead = trial.t > low.t
    far = pick(ahead, state.longest, state.shortest)

    base: Knot = cond(higher, lambda: low, lambda: trial)
    other: Knot = cond(higher, lambda: trial, lambda: cond(turned | flatter, lambda: low, lambda: high))
    by_cubic, r, radicand = cubic(base, other)
    quadratic = low.t + 0.5 * ratio(low.slope, ratio(low.f - trial.f, trial.t - low.t) + low.slope) * (trial.t - low.t)
    secant = trial.t + ratio(trial.slope, trial.slope - low.slope) * (low.t - trial.t)

    nearer = abs(by_cubic - low.t) < abs(quadratic - low.t)
    first = pick(nearer, by_cubic, by_cubic + 0.5 * (quadratic - by_cubic))

    is_farther = abs(by_cubic - trial.t) > abs(secant - trial.t)
    second = pick(is_farther, by_cubic, secant)

    limited = pick((r < 0) & (radicand > 0), by_cubic, far)
    is_nearer = abs(limited - trial.t) < abs(secant - trial.t)
    inside = pick(is_nearer, limited, secant)
    towards = trial.t + 0.66 * (high.t - trial.t)
    inside = pick(ahead, least(towards, inside), greatest(towards, inside))
    outside = within(pick(is_nearer, secant, limited), state.shortest, state.longest)
    third = pick(state.bracketed, inside, outside)

    fourth = pick(state.bracketed, by_cubic, far)

    t = pick(higher, first, pick(turned, second, pick(flatter, third, fourth)))
    bracketed = state.bracketed | higher | turned
    new_high = cond(higher, lambda: trial, lambda: cond(turned, lambda: low, lambda: high))
    new_low = cond(higher, lambda: low, lambda: trial)
    middle = new_low.t + 0.5 * (new_high.t - new_low.t)
    return _Improved(pick(is_finite(t), t, middle), new_low, new_high, bracketed, negate(higher))


def _tilted(knot: Knot, tilt: Scalar) -> Knot:
    """The point less a line through the origin."""
    return Knot(knot.t, knot.f - knot.t * tilt, knot.slope - tilt)
