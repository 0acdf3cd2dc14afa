"""The derivatives of a minimum from the equation that it solves, ∂f/∂x = 0, by `functional_optim.meta.custom_root`.

x*(θ) = argmin f(x, θ)      ⇒       ∂²f/∂x² · dx*/dθ = −∂²f/∂x∂θ
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from functional_optim.numerics import double
from functional_optim.solvers.problem import Problem
from functional_optim.trees import Tree

Solve: TypeAlias = Callable[[Callable[[Tree], Tree], Tree], Tree]


class _Found(Protocol):
    """What a solver returns, a NamedTuple."""

    @property
    def params(self) -> Tree: ...
    def _replace(self, **fields: Any) -> Any: ...


Found = TypeVar("Found", bound=_Found)


def implicitly(solver: Callable[[Problem], Found], problem: Problem, solve: Solve) -> Found:
    """What the solver finds, whose parameters depend on the arguments as the minimum does, and value and `aux` with them."""
    from functional_optim.meta.implicit import custom_root
    from functional_optim.meta.remat import require_constant_closure

    require_constant_closure(problem.residuals or problem.fn)
    found: list[Found] = []

    def at(tensors: Sequence[Tensor], args: tuple[Any, ...]) -> Problem:
        return replace(problem, args=args, leaves=problem.with_trained(tensors))

    def optimality(tensors: Sequence[Tensor], *args: Any) -> Tree:
        return torch.func.grad(lambda tensors: at(tensors, args).returned(tensors)[0])(list(tensors))

    @custom_root(optimality, solve=solve)
    def minimum(tensors: Sequence[Tensor], *args: Any) -> Tree:
        found[:] = [solver(at(tensors, args))]
        return problem.trained_of(found[0].params)

    tensors = minimum([problem.leaves[i] for i in problem.trained], *problem.args)
    f, aux = problem.returned(tensors)
    moving = {"params": problem.filled(tensors), "value": double(f), "aux": aux}
    return found[0]._replace(**moving)
