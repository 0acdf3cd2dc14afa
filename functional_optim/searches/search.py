"""What a search along a line is: it proposes lengths, is told value and slope there, and says what to keep and when to stop.

    start(t, f, slope)          the first length to try, and what is known at 0
    told(state, f, slope)       the value and slope at the length `state.t`, and with that the next

A search holds no point and calls nothing, so any number of them can be in different phases, and each evaluation is one step of
whoever drives it.
"""

from typing import Any, NamedTuple, Protocol

from functional_optim.numerics import Scalar
from functional_optim.searches.scalars import Flag


class Heard(NamedTuple):
    """What a search says to a trial point: whether to stop there, and where to look next.

    Attributes:
        state: with the next length to try, `state.t`.
        keep: whether the point just evaluated is the best to go on from, until another is.
        done: whether the search is over: the step goes to the last point that was kept. Where none was, it has failed.
    """

    state: Any
    keep: Flag
    done: Flag


class Search(Protocol):
    """The part of a method that chooses the length: an interface. One's own is a class with these two methods."""

    def start(self, t: Scalar, f: Scalar, slope: Scalar) -> Any:
        """A search that begins with the length t, from a point with this value and this slope, below 0."""
        ...

    def told(self, state: Any, f: Scalar, slope: Scalar) -> Heard:
        """What comes of the value and slope at `state.t`; either may be infinite or NaN."""
        ...
