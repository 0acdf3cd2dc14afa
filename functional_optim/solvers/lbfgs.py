"""The descent of L-BFGS, by the two loops of `functional_optim.rules.lbfgs`: of one vector, and pairs that grow as they come."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from functional_optim.numerics import cond, dot
from functional_optim.rules.lbfgs import two_loops
from functional_optim.searches.scalars import Flag, pick, ratio
from functional_optim.solvers.descent import Direction, Point
from functional_optim.solvers.problem import Problem


class Memory(NamedTuple):
    """What the last steps have taught.

    Attributes:
        steps, changes: the steps and the changes of the gradient along them, a row each, oldest first; of none, zeros.
        rho: the inverses of their products.
        gamma: γ.
        learnt: whether there are any.
    """

    steps: Tensor
    changes: Tensor
    rho: Tensor
    gamma: Tensor
    learnt: Flag


@dataclass(frozen=True)
class LBFGSDescent:
    """The direction of L-BFGS, with so many pairs; `lbfgs` is this with its search."""

    history_size: int = 10

    def init(self, problem: Problem, point: Point) -> Memory:
        """No pairs; where values can't be read, as many of zeros as there will be, which change nothing."""
        count = 0 if problem.on_host else self.history_size
        none = point.g.new_zeros((count, point.g.numel()))
        return Memory(none, none, point.g.new_zeros(count), point.g.new_ones(()), problem.flag(False))

    def direction(self, problem: Problem, memory: Memory, point: Point) -> Direction:
        """By the two loops, to be tried at full length; the first is the gradient, whose length says nothing."""
        t = pick(memory.learnt, problem.scalar(1.0), problem.scalar(0.0))
        pairs = list(zip(memory.steps.unbind(), memory.changes.unbind(), memory.rho.unbind(), strict=True))
        return Direction(-two_loops(pairs, memory.gamma, point.g, dot), t, memory)

    def remember(self, problem: Problem, memory: Memory, before: Point, after: Point) -> Memory:
        """One pair more, and the oldest less."""
        s, y = after.x - before.x, after.g - before.g
        ys, yy = dot(y, s), dot(y, y)
        product, square = problem.read(ys, yy)
        useful = product > torch.finfo(s.dtype).eps * square

        def learn() -> Memory:
            rows = [(memory.steps, s), (memory.changes, y), (memory.rho, ratio(1.0, ys))]
            steps, changes, rho = (torch.cat([old, new[None]])[-self.history_size :] for old, new in rows)
            return Memory(steps, changes, rho, ratio(ys, yy), problem.flag(True))

        return cond(useful, learn, lambda: memory)
