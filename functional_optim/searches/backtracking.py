"""Two plain searches: shorten the step until the value has decreased enough, and take the step as it comes.

    sufficient decrease     φ(t) ≤ φ(0) + c₁ t φ'(0)

Armijo 1966, https://doi.org/10.2140/pjm.1966.16.1; Nocedal & Wright 2006, Numerical Optimization, Algorithm 3.1 and (3.57).
"""

from dataclasses import dataclass
from typing import NamedTuple

from functional_optim.numerics import Scalar
from functional_optim.recipe import explained
from functional_optim.searches.scalars import Knot, is_finite, pick, ratio, within
from functional_optim.searches.search import Heard


class Trial(NamedTuple):
    """A search under way: the next length, the point at 0, and how many lengths have been tried."""

    t: Scalar
    origin: Knot
    trials: Scalar


@explained
@dataclass(frozen=True)
class backtracking:
    """Shorten the step until the value has decreased enough.

    The next length is the minimum of the parabola through φ(0), φ'(0) and the last trial, held to [shrink t, t / 2]; after an
    evaluation that is not finite, `shrink` t.

    Args:
        decrease: c₁, in (0, 1).
        shrink: the smallest factor of one trial, in (0, 1/2].
        max_evals: how many trials.

    Source: Nocedal & Wright 2006, Algorithm 3.1.
    """

    decrease: float = 1e-4
    shrink: float = 0.1
    max_evals: int = 30

    def start(self, t: Scalar, f: Scalar, slope: Scalar) -> Trial:
        """The given length."""
        return Trial(t, Knot(0.0 * t, f, slope), 0.0 * t)

    def told(self, state: Trial, f: Scalar, slope: Scalar) -> Heard:
        """Enough, or a shorter step."""
        t, origin = state.t, state.origin
        finite = is_finite(f) & is_finite(slope)
        height = pick(finite, f, origin.f)
        enough = finite & (height <= origin.f + self.decrease * t * origin.slope)
        lowest = -0.5 * t * ratio(origin.slope * t, height - origin.f - origin.slope * t)
        shorter = pick(finite, within(lowest, self.shrink * t, 0.5 * t), self.shrink * t)
        new = state._replace(t=pick(enough, t, shorter), trials=state.trials + 1)
        return Heard(new, enough, enough | (new.trials >= self.max_evals))


@dataclass(frozen=True)
class fixed:
    """No search: the step as the descent proposes it, wherever that leads. A step to what is not finite is shortened.

    Args:
        shrink: the factor after an evaluation that is not finite.
        max_evals: how many trials.
    """

    shrink: float = 0.1
    max_evals: int = 10

    def start(self, t: Scalar, f: Scalar, slope: Scalar) -> Trial:
        """The given length."""
        return Trial(t, Knot(0.0 * t, f, slope), 0.0 * t)

    def told(self, state: Trial, f: Scalar, slope: Scalar) -> Heard:
        """Done, if this is a number."""
        finite = is_finite(f) & is_finite(slope)
        new = state._replace(t=pick(finite, state.t, self.shrink * state.t), trials=state.trials + 1)
        return Heard(new, finite, finite | (new.trials >= self.max_evals))
