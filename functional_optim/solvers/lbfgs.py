"""The descent of L-BFGS, by the two loops of `functional_optim.rules.lbfgs`: of one vector, and pairs that grow as they come."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functional_optim import numerics
from functional_optim.numerics import Scalar, cond, dot
from functional_optim.rules.lbfgs import two_loops
from functional_optim.searches.scalars import Flag, along, pick, ratio
from functional_optim.solvers.descent import Direction, Point
from functional_optim.solvers.problem import Problem


class Memory(NamedTuple):
    """What the last steps have taught.

    Attributes:
        steps, changes: the steps and the changes of the gradient along them, oldest first: lists on the host, else rows, zeros
            for those that there are none of yet.
        rho: the inverses of their products, a list of numbers on the host, else a tensor; of what is no pair, 0.
        gamma: γ.
        learnt: whether there are any.
    """

    steps: Any
    changes: Any
    rho: Any
    gamma: Scalar
    learnt: Flag


@dataclass(frozen=True)
class LBFGSDescent:
    """The direction of L-BFGS, with so many pairs; `lbfgs` is this with its search."""

    history_size: int = 10

    def init(self, problem: Problem, point: Point) -> Memory:
        """No pairs; where values can't be read, as many of zeros as there will be, which change nothing."""
        if problem.on_host:
            return Memory([], [], [], 1.0, False)
        none = point.g.new_zeros((self.history_size, point.g.numel()))
        rho = numerics.double(point.g.new_zeros(self.history_size))
        return Memory(none, none, rho, problem.scalar(1.0), problem.flag(False))

    def forget(self, problem: Problem, memory: Memory, point: Point) -> Memory:
        """No pairs any more: where they can't be dropped, a ρ of 0 is enough, and they need not be overwritten."""
        anew = self.init(problem, point)
        return anew if problem.on_host else anew._replace(steps=memory.steps, changes=memory.changes)

    def direction(self, problem: Problem, memory: Memory, point: Point) -> Direction:
        """By the two loops, to be tried at full length; the first is the gradient, whose length says nothing."""
        t = pick(memory.learnt, problem.scalar(1.0), problem.scalar(0.0))
        pairs = list(zip(memory.steps, memory.changes, memory.rho, strict=True))

        def product(x: Tensor, y: Tensor) -> Scalar:
            return float(dot(x, y)) if problem.on_host else numerics.double(dot(x, y))

        return Direction(-two_loops(pairs, memory.gamma, point.g, product, _scaled, along), t, memory)

    def remember(self, problem: Problem, memory: Memory, before: Point, after: Point) -> Memory:
        """One pair more, and the oldest less."""
        s, y = after.x - before.x, after.g - before.g
        product, square = problem.read(dot(y, s), dot(y, y))
        useful = product > torch.finfo(s.dtype).eps * square

        def learn() -> Memory:
            rho, gamma = ratio(1.0, product), ratio(product, square)
            push = self._appended if problem.on_host else _pushed
            steps, changes = push(memory.steps, s), push(memory.changes, y)
            return Memory(steps, changes, push(memory.rho, rho), gamma, problem.flag(True))

        return cond(useful, learn, lambda: memory)

    def _appended(self, rows: list[Any], new: Any) -> list[Any]:
        return [*rows, new][-self.history_size :]


def _pushed(rows: Tensor, new: Any) -> Tensor:
    """Rows without the first and with a new last, chosen: of a concatenation the compiler would make a copy to choose from."""
    place, last = torch.arange(len(rows), device=rows.device), len(rows) - 1
    shifted = rows.index_select(0, (place + 1).clamp(max=last))
    return torch.where((place == last).reshape(-1, *(1,) * (rows.ndim - 1)), new, shifted)


def _scaled(c: Scalar, x: Tensor) -> Tensor:
    return (c.to(x.dtype) if isinstance(c, Tensor) else c) * x
