"""What a descent is: from the points so far, the direction to search along next.

init(problem, point)                        what is remembered before the first step
direction(problem, memory, point)           where to go, and how long the first trial is
remember(memory, before, after)             what a step teaches
"""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from functional_optim.numerics import Scalar
from functional_optim.solvers.problem import Problem


class Point(NamedTuple):
    """A point at which the objective was evaluated, with its value and slope.

    Attributes:
        x: the parameters, as one vector.
        f: the value.
        g: the gradient.
        aux: what the objective returned beside its value: its tensors.
    """

    x: Tensor
    f: Scalar
    g: Tensor
    aux: Any


class Direction(NamedTuple):
    """The direction that a descent proposes, and how far to try first.

    Attributes:
        d: the direction.
        t: the length to try first, in units of d; 0 where nothing is known: then one unit of length, or d if that is shorter.
        memory: the descent's own.
    """

    d: Tensor
    t: Scalar
    memory: Any


class Descent(Protocol):
    """The part of a method that chooses the direction: an interface.

    One's own is a class with these methods; the memory is a tree of tensors. If it has `forget(problem, memory, point)` as well,
    that is called in the place of `init` after the start, and may leave alone what it need not overwrite.
    """

    def init(self, problem: Problem, point: Point) -> Any:
        """What is remembered before the first step, and after a search that has failed."""
        ...

    def direction(self, problem: Problem, memory: Any, point: Point) -> Direction:
        """Where to go from here. Where it does not lead down, the steepest descent is taken instead."""
        ...

    def remember(self, problem: Problem, memory: Any, before: Point, after: Point) -> Any:
        """The memory after a step."""
        ...
