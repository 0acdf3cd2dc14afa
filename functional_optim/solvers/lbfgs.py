"""The descent of L-BFGS, by the two loops of `functional_optim.rules.lbfgs`: of one vector, and pairs that grow as they come."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from functional_optim.rules.lbfgs import two_loops
from functional_optim.searches.scalars import Flag, choose, pick, ratio
from functional_optim.solvers.descent import Direction, Point
from functional_optim.solvers.problem import Problem


class Pair(NamedTuple):
    """A step, the change of the gradient along it, and the inverse of their product; of none, zeros."""

    s: Tensor
    y: Tensor
    rho: Tensor


class Memory(NamedTuple):
    """The pairs, oldest first; γ; and whether anything has been learnt."""

    pairs: tuple[Pair, ...]
    gamma: Tensor
    learnt: Flag


@dataclass(frozen=True)
class LBFGSDescent:
    """The direction of L-BFGS, with so many pairs; `lbfgs` is this with its search."""

    history_size: int = 10

    def init(self, problem: Problem, point: Point) -> Memory:
        """No pairs; where values can't be read, as many of zeros as there will be, which change nothing."""
        none = torch.zeros_like(point.g)
        zero = point.g.new_zeros(())
        pairs = () if problem.on_host else (Pair(none, none, zero),) * self.history_size
        return Memory(pairs, zero + 1, problem.flag(False))

    def direction(self, problem: Problem, memory: Memory, point: Point) -> Direction:
        """By the two loops, to be tried at full length; the first is the gradient, whose length says nothing."""
        t = pick(memory.learnt, problem.scalar(1.0), problem.scalar(0.0))
        return Direction(-two_loops(memory.pairs, memory.gamma, point.g), t, memory)

    def remember(self, problem: Problem, memory: Memory, before: Point, after: Point) -> Memory:
        """One pair more, and the oldest less."""
        s, y = after.x - before.x, after.g - before.g
        ys, yy = y.dot(s), y.dot(y)
        product, square = problem.read(ys, yy)
        useful = product > torch.finfo(s.dtype).eps * square
        pairs = (*memory.pairs, Pair(s, y, ratio(1.0, ys)))[-self.history_size :]
        return choose(useful, lambda: Memory(pairs, ratio(ys, yy), problem.flag(True)), lambda: memory)
