"""The search of Hager and Zhang, whose conditions hold to the last digits that a value has.

    Wolfe               φ(t) ≤ φ(0) + δ t φ'(0)                and φ'(t) ≥ σ φ'(0)
    approximate Wolfe   φ(t) ≤ φ(0) + ε |φ(0)|,  (2δ − 1) φ'(0) ≥ φ'(t) ≥ σ φ'(0)

    bracket     t ← 5 t until φ' ≥ 0, or φ is too high
    secant²     c from the slopes at both ends; a second from the end that it replaced, and what was there before
    middle      where the interval has not shrunk by a third
    squeeze     where φ falls but is too high at the far end: halve until φ' ≥ 0

Hager & Zhang 2005, A new conjugate gradient method with guaranteed descent and an efficient line search,
https://doi.org/10.1137/030601880: T1, T2, L0 to L3, B0 to B3, U0 to U3, S1 to S4. The bracket begins at the last point that was
low, where B2 begins at 0. An evaluation that is not finite is one that falls and is too high.
"""

from dataclasses import dataclass
from typing import NamedTuple

from functional_optim.numerics import Scalar, cond
from functional_optim.recipe import explained
from functional_optim.searches.scalars import Flag, Knot, is_finite, negate, pick, ratio
from functional_optim.searches.search import Heard

BRACKET, FIRST, SECOND, MIDDLE = 0.0, 1.0, 2.0, 3.0


class Secants(NamedTuple):
    """A search under way.

    Attributes:
        t: the next length.
        origin: the point at 0.
        a, b: the ends of the interval: φ' < 0 and φ is low at a, and φ' ≥ 0 at b.
        before_a, before_b: the ends when this round of secants began.
        stage: what the next length is.
        squeezing: whether φ falls at b and is too high there, until an end with φ' ≥ 0 is found.
        lowest: the least value of a point that was kept.
        trials: how many there have been.
    """

    t: Scalar
    origin: Knot
    a: Knot
    b: Knot
    before_a: Knot
    before_b: Knot
    stage: Scalar
    squeezing: Flag
    lowest: Scalar
    trials: Scalar


@explained
@dataclass(frozen=True)
class hager_zhang:
    """Search for the Wolfe conditions, exact or approximate, by the method of Hager and Zhang.

    Close to a minimum, where values differ by rounding alone, it still goes by the slopes.

    Args:
        decrease: δ, in (0, 1/2).
        curvature: σ, in [δ, 1).
        noise: ε, how much of the value may be rounding.
        expansion: the factor while nothing is bracketed.
        shrinkage: γ, in (0, 1): by so much two secants have to shrink the interval.
        max_evals: how many trials.

    Source: Hager & Zhang 2005, https://doi.org/10.1137/030601880, whose numbers are the defaults.
    """

    decrease: float = 0.1
    curvature: float = 0.9
    noise: float = 1e-6
    expansion: float = 5.0
    shrinkage: float = 0.66
    max_evals: int = 30

    def start(self, t: Scalar, f: Scalar, slope: Scalar) -> Secants:
        """No interval yet."""
        origin, zero = Knot(0.0 * t, f, slope), 0.0 * t
        none = slope > 0  # False, of the kind that the numbers are.
        return Secants(t, origin, origin, origin, origin, origin, zero + BRACKET, none, f + zero, zero)

    def told(self, state: Secants, f: Scalar, slope: Scalar) -> Heard:
        """A smaller interval, or a longer step."""
        finite, origin = is_finite(f) & is_finite(slope), state.origin
        trial = Knot(state.t, pick(finite, f, state.lowest), pick(finite, slope, origin.slope))
        high = negate(finite) | (trial.f > origin.f + self.noise * abs(origin.f))
        found = finite & self._holds(origin, trial, high)

        rises = finite & (trial.slope >= 0)
        low = negate(rises) & negate(high)
        a: Knot = cond(low, lambda: trial, lambda: state.a)
        longer = low & (state.stage == BRACKET) & negate(state.squeezing)
        b: Knot = cond(low, lambda: state.b, lambda: trial)
        squeezing = negate(rises) & (high | state.squeezing)
        new = state._replace(a=a, b=b, squeezing=squeezing)
        middle = a.t + 0.5 * (b.t - a.t)

        following: Secants = cond(
            longer,
            lambda: new._replace(t=self.expansion * state.t),
            lambda: cond(squeezing, lambda: new._replace(t=middle), lambda: self._next(new, rises, low, state.squeezing)),
        )
        keep = found | (finite & (trial.f < state.lowest))
        following = following._replace(lowest=pick(keep, trial.f, state.lowest), trials=state.trials + 1)
        closed = negate(longer) & negate(abs(b.t - a.t) > _LEAST * abs(b.t))
        return Heard(following, keep, found | closed | (following.trials >= self.max_evals))

    def _holds(self, origin: Knot, trial: Knot, high: Flag) -> Flag:
        enough = trial.f <= origin.f + self.decrease * trial.t * origin.slope
        flat = negate(high) & (trial.slope <= (2 * self.decrease - 1) * origin.slope)
        return (enough | flat) & (trial.slope >= self.curvature * origin.slope)

    def _next(self, state: Secants, rises: Flag, low: Flag, was_squeezing: Flag) -> Secants:
        """The next length within an interval."""
        a, b, middle = state.a, state.b, state.a.t + 0.5 * (state.b.t - state.a.t)
        replaced: Knot = cond(rises, lambda: state.before_b, lambda: state.before_a)
        second = _secant(replaced, cond(rises, lambda: b, lambda: a))
        is_second = (state.stage == FIRST) & negate(was_squeezing) & (rises | low) & (second > a.t) & (second < b.t)
        within_round = (state.stage == FIRST) | (state.stage == SECOND)
        is_slow = within_round & (b.t - a.t > self.shrinkage * (state.before_b.t - state.before_a.t))
        first = _secant(a, b)
        first = pick((first > a.t) & (first < b.t), first, middle)

        anew = state._replace(t=first, before_a=a, before_b=b, stage=0.0 * first + FIRST)
        halved = state._replace(t=middle, stage=0.0 * first + MIDDLE)
        return cond(
            is_second,
            lambda: state._replace(t=second, stage=0.0 * first + SECOND),
            lambda: cond(is_slow, lambda: halved, lambda: anew),
        )


# An interval that is no larger, beside its far end, holds no length that differs in floating point.
_LEAST = 1e-14


def _secant(p: Knot, q: Knot) -> Scalar:
    """Where the line through both slopes is 0; an end where they are equal."""
    return p.t - ratio(p.slope * (q.t - p.t), q.slope - p.slope)
