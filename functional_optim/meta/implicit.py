"""Implicit differentiation: the derivative of a solution from the equation it solves, not from how it was found.

    F(x*(θ), θ) = 0     ⇒     ∂F/∂x · dx*/dθ = −∂F/∂θ

    reverse mode:   solve (∂F/∂x)ᵀ u = x̄,  then  θ̄ = −(∂F/∂θ)ᵀ u
    forward mode:   solve  ∂F/∂x  ẋ = −∂F/∂θ θ̇

Lorraine, Vicol & Duvenaud 2020, Optimizing Millions of Hyperparameters by Implicit Differentiation, https://arxiv.org/abs/1911.02590
Blondel et al. 2022, Efficient and Modular Implicit Differentiation, https://arxiv.org/abs/2105.15183
Rajeswaran et al. 2019, Meta-Learning with Implicit Gradients, https://arxiv.org/abs/1909.04630

Each of the two linear systems is itself such an equation, in u or ẋ, so it gets its derivative in the same way: to every order.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.meta.layers import composing
from functional_optim.meta.packing import detached, is_smooth, pack
from functional_optim.meta.remat import along, back, require_constant_closure, require_function, under_autocast_of_now
from functional_optim.meta.solvers import Solve, normal_cg
from functional_optim.recipe import answering
from functional_optim.torch_internals import is_traced
from functional_optim.trees import Tree

Solver: TypeAlias = Callable[..., Tree]
Tensors: TypeAlias = tuple[Tensor, ...]


@answering
def custom_root(optimality: Callable[..., Tree], *, solve: Solve = normal_cg) -> Callable[[Solver], Solver]:
    """Give a solver the derivatives of what it solves: decorate `solver(init, *args) -> x` with `F(x, *args) = 0`.

    The solver may do anything, and is not differentiated. Its result depends on `args`, tree by tree, as the root of F does; on
    `init` not at all. How exact the derivative is, is how exact the root and `solve` are. It works in reverse and in forward
    mode, any number of times, and under `vmap`.

    Args:
        optimality: `F(x, *args)`, trees of tensors like x; for the minimum of a loss, its gradient `torch.func.grad(loss)`.
            Whatever is to be differentiated or batched must be an argument.
        solve: `(matvec, b) -> x`, how to solve with ∂F/∂x and its transpose: `normal_cg` (any), `cg` (F a gradient, at a
            minimum), `gmres`, `neumann`, `dense`, with `functools.partial` for their options.

    Raises:
        TypeError: `optimality` or `solve` is no function.
        ValueError: F does not return trees like x, or closes over a tensor that is being differentiated (its closure and globals
            are searched, and those of functions that it calls from the same file; no attributes of objects or modules).

    Source: Blondel et al. 2022, https://arxiv.org/abs/2105.15183. As `jaxopt.implicit_diff.custom_root` and
    `torchopt.diff.implicit.custom_root`.

    >>> def ridge(x, penalty):  # ½ (x − 6)² + ½ penalty x²
    ...     return 0.5 * (x - 6) ** 2 + 0.5 * penalty * x**2
    >>> @custom_root(torch.func.grad(ridge))
    ... def minimum(init, penalty):
    ...     return 6 / (1 + penalty)
    >>> torch.func.grad(minimum, 1)(torch.tensor(0.0), torch.tensor(1.0))  # −6 / (1 + penalty)²
    tensor(-1.5000)
    """
    require_function(optimality, "custom_root")
    if not callable(solve):
        raise TypeError(f"solve = {solve!r}: expected a function (matvec, b) -> x, such as fo.meta.cg.")

    def decorate(solver: Solver) -> Solver:
        @functools.wraps(solver)
        def differentiable(init: Tree, *args: Tree) -> Tree:
            if not is_traced():
                require_constant_closure(optimality)
            return _attached(optimality, solve, detached(solver(detached(init), *detached(args))), args)

        return differentiable

    return decorate


@answering
def custom_fixed_point(function: Callable[..., Tree], *, solve: Solve = normal_cg) -> Callable[[Solver], Solver]:
    """`custom_root` for a fixed point, `T(x, *args) = x`: of an iteration, or of a step of training.

    Args:
        function: `T(x, *args)`, trees of tensors like x.
        solve: how to solve with `1 − ∂T/∂x` and its transpose. `neumann` is iterating T's derivative.

    Source: Blondel et al. 2022, https://arxiv.org/abs/2105.15183; Bai, Kolter & Koltun 2019, https://arxiv.org/abs/1909.01377.

    >>> @custom_fixed_point(lambda x, a: 0.5 * (x + a / x))
    ... def root_of(init, a):
    ...     return a.sqrt()
    >>> torch.func.grad(root_of, 1)(torch.tensor(1.0), torch.tensor(4.0))
    tensor(0.2500)
    """
    require_function(function, "custom_fixed_point")

    @functools.wraps(function)
    def residual(x: Tree, *args: Tree) -> Tree:
        return trees.map_leaves(lambda a, b: a - b, x, function(x, *args))

    return custom_root(residual, solve=solve)


def _attached(optimality: Callable[..., Tree], solve: Solve, x: Tree, args: tuple[Tree, ...]) -> Tree:
    """The same x, whose derivatives in `args` are those of the root of `optimality`."""
    xs, rebuild_x = pack(x)
    values, rebuild_args = pack(args)
    condition = under_autocast_of_now(composing(optimality), [*xs, *values])

    def residual(xs: Sequence[Tensor], values: Sequence[Tensor]) -> Tensors:
        returned = pack(condition(rebuild_x(xs), *rebuild_args(values)))[0]
        if [r.shape for r in returned] != [x.shape for x in xs]:
            raise ValueError(
                f"the optimality condition returned shapes {[tuple(r.shape) for r in returned]} for a solution of shapes "
                f"{[tuple(x.shape) for x in xs]}: it needs one equation per unknown."
            )
        return tuple(returned)

    return rebuild_x(_Root.apply(residual, solve, len(xs), *xs, *values))


class _Root(torch.autograd.Function):
    """The first `count` tensors, as the root of `residual` in them at the others."""

    generate_vmap_rule = True

    @staticmethod
    def forward(residual: Callable[..., Tensors], solve: Solve, count: int, *tensors: Tensor) -> Tensors:
        del residual, solve
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.residual, ctx.solve, ctx.count, *_ = inputs
        # the outputs, not the inputs: the second derivative comes from how they depend on the rest
        ctx.save_for_backward(*output, *inputs[3 + len(output) :])
        ctx.save_for_forward(*output, *inputs[3 + len(output) :])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        count, run = ctx.count, _of_one_list(ctx.residual, ctx.count)
        xs, values = ctx.saved_tensors[:count], ctx.saved_tensors[count:]

        def transposed(us: Tensors, at: Tensors) -> Tensors:
            """(∂F/∂x)ᵀ u."""
            return back(run, at, range(count), us)

        def equation(us: Tensors, at: Tensors) -> Tensors:
            return tuple(a - b for a, b in zip(transposed(us, at[count:]), at[:count], strict=True))

        us = _solved(ctx.solve, transposed, equation, cotangents, (*xs, *values))
        moving = [count + i for i, x in enumerate(values) if is_smooth(x) and ctx.needs_input_grad[3 + count + i]]
        slopes = back(run, (*xs, *values), moving, [-u for u in us]) if moving else ()
        pulled = dict(zip(moving, slopes, strict=True))
        return None, None, None, *(pulled.get(i) for i in range(count + len(values)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensors:
        count, run = ctx.count, _of_one_list(ctx.residual, ctx.count)
        xs, values = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        moving = [count + i for i, tangent in enumerate(tangents[3 + count :]) if tangent is not None]

        drift = along(lambda *at: tuple(-r for r in run(*at)), (*xs, *values), moving, [tangents[3 + i] for i in moving])

        def straight(ts: Tensors, at: Tensors) -> Tensors:
            """∂F/∂x t."""
            return along(run, at, range(count), ts)

        def equation(ts: Tensors, at: Tensors) -> Tensors:
            return tuple(a - b for a, b in zip(straight(ts, at[count:]), at[:count], strict=True))

        return _solved(ctx.solve, straight, equation, drift, (*xs, *values))


def _solved(solve: Solve, product: Callable[..., Tensors], equation: Callable[..., Tensors], b: Tensors, at: Tensors) -> Tensors:
    """The solution of `product(x, at) = b`, itself differentiable in b and `at` as the root of `equation`."""
    fixed_b, fixed_at = detached(b), detached(at)
    solution = detached(solve(lambda xs: product(xs, fixed_at), fixed_b))
    return _Root.apply(equation, solve, len(b), *solution, *b, *at)


def _of_one_list(residual: Callable[..., Tensors], count: int) -> Callable[..., Tensors]:
    """A condition on unknowns and other tensors as a function of all of them, in this order."""
    return lambda *at: residual(at[:count], at[count:])
