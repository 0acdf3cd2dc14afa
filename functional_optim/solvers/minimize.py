"""`minimize`: a local minimum of a function of a tree of tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functional_optim import hints, torch_internals, trees
from functional_optim.hparams import require_count
from functional_optim.recipe import answering
from functional_optim.searches.more_thuente import zoom
from functional_optim.searches.scalars import pick
from functional_optim.searches.search import Search
from functional_optim.solvers.bfgs import BFGSDescent
from functional_optim.solvers.bounds import bounded
from functional_optim.solvers.compiled import compiled_run
from functional_optim.solvers.descent import Descent
from functional_optim.solvers.implicit import Solve, implicitly
from functional_optim.solvers.lbfgs import LBFGSDescent
from functional_optim.solvers.machine import BUDGET, CONVERGED, GOING, STOPPED, WHY, Budget, Machine
from functional_optim.solvers.newton import NewtonDescent
from functional_optim.solvers.nonlinear_cg import BETAS, ConjugateDescent
from functional_optim.solvers.problem import Problem, problem_of
from functional_optim.trees import Tree


class Minimum(NamedTuple):
    """What a solver found: tensors, so that it goes through `torch.vmap`.

    Attributes:
        params: the best point of all that were kept.
        value: the objective there, in float64.
        grads: its gradient there, a tree like the parameters.
        aux: what the objective returned beside its value there; () without `has_aux`.
        status: why it ended, as a number; `why` says it in words.
        steps: how many steps were taken.
        evaluations: how often value and gradient were computed.
    """

    params: Tree
    value: Tensor
    grads: Tree
    aux: Tree
    status: Tensor
    steps: Tensor
    evaluations: Tensor

    @property
    def converged(self) -> Tensor:
        """Whether the gradient is 0 to the tolerance."""
        return self.status == CONVERGED

    @property
    def why(self) -> Any:
        """Why it ended, a sentence; of a batch, a list of them."""
        return _in_words(self.status)

    def __getattr__(self, name: str) -> Any:
        known = (*self._fields, "converged", "why")
        advice = "" if name.startswith("_") else f"; it has {', '.join(known)}.{hints.hint(name, known)}"
        raise AttributeError(f"a Minimum has no {name!r}{advice}")


@dataclass(frozen=True)
class Method:
    """A method for `minimize`: a descent, which chooses the direction, and a search along it, which chooses the length."""

    descent: Descent
    search: Search


@answering
def lbfgs(history_size: int = 10, search: Search | None = None) -> Method:
    """L-BFGS with the search of Moré and Thuente, or another.

    Args:
        history_size: how many pairs of steps and changes of the gradient are kept, at least 1.
        search: how far to go.

    Source: Liu & Nocedal 1989, https://doi.org/10.1007/BF01589116.

    >>> lbfgs(history_size=5).descent
    LBFGSDescent(history_size=5)
    """
    history_size = require_count("history_size", history_size, 1)
    return Method(LBFGSDescent(history_size), _search(search))


@answering
def bfgs(search: Search | None = None) -> Method:
    """BFGS with the search of Moré and Thuente, or another: of few variables, since it keeps a square matrix.

    Args:
        search: how far to go.

    Source: Nocedal & Wright 2006, Algorithm 6.1.

    >>> minimize(lambda x: ((x - 3) ** 2).sum(), torch.zeros(2), method=bfgs()).params
    tensor([3., 3.])
    """
    return Method(BFGSDescent(), _search(search))


@answering
def nonlinear_cg(beta: str = "PR+", search: Search | None = None) -> Method:
    """Nonlinear conjugate gradients with the search of Moré and Thuente, made more exact, or another: it keeps one vector.

    Args:
        beta: "FR" (Fletcher & Reeves), "PR+" (Polak & Ribière, not below 0), "HZ" (Hager & Zhang) or "DY" (Dai & Yuan).
        search: how far to go: one that lengthens a step too, since the first length is taken from the step before. Hager and
            Zhang's program has `hager_zhang()`.

    Source: Nocedal & Wright 2006, section 5.2; Hager & Zhang 2005, https://doi.org/10.1137/030601880.

    >>> minimize(lambda x: ((x - 3) ** 2).sum(), torch.zeros(2), method=nonlinear_cg("HZ")).params.round(decimals=3)
    tensor([3., 3.])
    """
    if beta not in BETAS:
        raise ValueError(f"beta = {beta!r}: expected {', '.join(map(repr, BETAS))}.")
    return Method(ConjugateDescent(beta), _search(search, zoom(decrease=1e-4, curvature=0.1)))


@answering
def newton_cg(max_products: int = 100, search: Search | None = None) -> Method:
    """Newton's method with the search of Moré and Thuente, or another: directions by conjugate gradients, without the matrix.

    A product with the Hessian costs some two gradients; `evaluations` does not count them.

    Args:
        max_products: at most so many products a direction, and at most twice the number of variables.
        search: how far to go.

    Source: Dembo & Steihaug 1983, https://doi.org/10.1007/BF02592055; Nocedal & Wright 2006, Algorithm 7.1.

    >>> minimize(lambda x: ((x - 3) ** 4).sum(), torch.zeros(2), method=newton_cg(), tol=1e-4).params.round(decimals=1)
    tensor([3., 3.])
    """
    max_products = require_count("max_products", max_products, 1)
    return Method(NewtonDescent(max_products), _search(search))


def _search(given: Any, otherwise: Search | None = None) -> Search:
    """A search that is given, or the usual one.

    Raises:
        TypeError: it is none.
    """
    if given is None:
        return otherwise or zoom()
    if isinstance(given, type) or not (hasattr(given, "start") and hasattr(given, "told")):
        raise TypeError(f"search = {given!r}: expected a search, such as fo.solvers.zoom() or fo.solvers.strong_wolfe().")
    return given


METHODS: Mapping[str, Callable[[], Method]] = {
    "lbfgs": lbfgs,
    "bfgs": bfgs,
    "nonlinear_cg": nonlinear_cg,
    "newton_cg": newton_cg,
}


@answering
def minimize(
    fn: Callable[..., Any],
    params: Tree,
    args: tuple[Any, ...] = (),
    *,
    method: str | Method = "lbfgs",
    tol: float = 1e-6,
    max_steps: int = 1000,
    max_evals: int | None = None,
    has_aux: bool = False,
    bounds: tuple[Any, Any] | None = None,
    implicit: bool | Solve = False,
    callback: Callable[[Minimum], Any] | None = None,
) -> Minimum:
    """A local minimum of a function, from where you start.

        found = fo.minimize(loss, params, (x, y))
        found.params, found.value, found.why

    On the host it ends as soon as it is done. Under `torch.vmap` it is one flat machine, each tick of which is one evaluation,
    and each problem of the batch is in a phase of its own; it ends when all are done, and what has ended stays as it is. Inside
    `fo.meta.compiled` it is a loop of `max_evals` ticks, of which one is compiled: no more is compiled for more of them, and the
    loop ends soon after all are done; but where derivatives are taken through it, it takes all.

        torch.vmap(lambda p: fo.minimize(rosenbrock, p, max_steps=60).params)(starts)

    Args:
        fn: `(params, *args) -> value`, a real () tensor; with `has_aux`, `-> (value, aux)`. Of a module, with the parameters to
            start at: `fo.meta.from_module(module, criterion)`.
        params: where to start, a tree of tensors: of any shapes, and mixed dtypes, complex ones included. The work is done in the
            precision that all fit into. Integer tensors and None are left as they are.
        args: what `fn` takes after the parameters. What derivatives are taken of should be here.
        method: "lbfgs", "bfgs", "nonlinear_cg", "newton_cg", or a value such as `fo.solvers.lbfgs(history_size=20)`.
        tol: a gradient none of whose components is larger counts as 0; components that a bound is in the way of don't count.
        max_steps: at most so many steps.
        max_evals: at most so many evaluations of value and gradient; by default 2 · `max_steps`.
        has_aux: whether `fn` returns a tree of tensors beside its value.
        bounds: (lower, upper), each None, a number, or a tree like `params` of these and tensors. Steps are projected.
        implicit: take derivatives of the minimum from the equation that it solves, ∂fn/∂params = 0, by `fo.meta.custom_root`:
            they are those in `args`, and as exact as the minimum; what `fn` reads from elsewhere, an attribute of an object say,
            counts as a constant. The linear system is solved by conjugate gradients, or by what
            you give here, such as `fo.meta.dense`. Else derivatives go through the steps: under `torch.func`'s transforms, and in
            `backward` where `args` holds a tensor that requires gradients.
        callback: called on the host after each step with what has been found so far; if it returns True, that is the end. A
            progress bar is one:

                def show(found):
                    bar.update()
                    bar.set_postfix(value=float(found.value))

                with tqdm(total=1000) as bar:
                    fo.minimize(loss, params, max_steps=1000, callback=show)

    An evaluation that is infinite or NaN makes the step shorter. The result says why it ended: converged, out of budget, no
    progress, or not finite at the start; it is the best point that was reached, whatever the reason.

    Raises:
        TypeError: `fn` is no function, `args` no tuple, a leaf of `params` not a tensor, or a count no whole number.
        ValueError: an unknown method, a count or tolerance out of range, bounds that can't be, or `fn` does not return a real ()
            tensor.

    Source: Nocedal & Wright 2006, Numerical Optimization. As `scipy.optimize.minimize` and `optimistix.minimise`; here `tol` is
    one of the gradient alone.

    >>> def rosenbrock(x):
    ...     return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    >>> found = minimize(rosenbrock, torch.tensor([-1.2, 1.0], dtype=torch.float64))
    >>> found.params.round(decimals=4), found.why
    (tensor([1., 1.], dtype=torch.float64), 'converged: no component of the gradient is larger than tol')
    """
    chosen = method_of(method, METHODS, Method)
    budget = budget_of(tol, max_steps, max_evals)
    problem = bounded(problem_of(fn, params, args, has_aux, constant=bool(implicit)), bounds, implicit=implicit)
    require_callback(callback, problem)

    def solve(problem: Problem) -> Minimum:
        return outcome(problem, run(Machine(problem, chosen.descent, chosen.search, budget), callback))

    return implicitly(solve, problem, by_cg if implicit is True else implicit) if implicit else solve(problem)


def budget_of(tol: float, max_steps: int, max_evals: int | None) -> Budget:
    """When to end; numbers out of range are a ValueError."""
    max_steps = require_count("max_steps", max_steps, 1)
    evals = 2 * max_steps if max_evals is None else require_count("max_evals", max_evals, 1)
    if not isinstance(tol, int | float | Tensor):
        raise TypeError(f"tol = {tol!r}: expected a number, the largest component of a gradient that counts as 0.")
    if isinstance(tol, int | float) and not tol >= 0:
        raise ValueError(f"tol = {tol!r}: expected a number that is not negative.")
    return Budget(tol, max_steps, evals)


def require_callback(callback: Any, problem: Problem) -> None:
    """Raise TypeError unless it is a function or None, and ValueError where it can't be called."""
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is a {type(callback).__name__}: expected a function of what has been found so far.")
    if callback is not None and not problem.on_host:
        raise ValueError("a callback is for the host: under torch.func's transforms and inside compiled code there is none.")


def run(machine: Any, callback: Callable[[Minimum], Any] | None) -> Any:
    """All ticks: until it has ended, where that can be seen."""
    state = machine.start()
    if machine.budget.evals == 1:
        return state._replace(status=pick(state.status == GOING, machine.problem.count(BUDGET), state.status))
    if machine.problem.on_host:
        steps = 0
        while state.status == GOING:
            state = machine.tick(state)
            if callback is not None and state.steps > steps:
                steps = state.steps
                if callback(outcome(machine.problem, state)) is True:
                    return state._replace(status=machine.problem.count(STOPPED))
        return state
    if torch_internals.is_traced():
        return compiled_run(machine, state)
    for _ in range(machine.budget.evals - 1):
        if _have_ended(state.status):
            break
        state = machine.tick(state)
    return state


def _have_ended(status: Tensor) -> bool:
    """Whether no problem of the batch is going on; never where that can't be seen."""
    is_wrapped, unwrapped = map(torch_internals.get, ("is_functorch_wrapped_tensor", "get_unwrapped"))
    if is_wrapped is None or unwrapped is None:
        return False
    while is_wrapped(status):
        status = unwrapped(status)
    return not bool((status == GOING).any())


def outcome(problem: Problem, state: Any) -> Minimum:
    """What a state has come to."""
    best = state.best
    device = best.x.device

    def tensor(number: Any, dtype: torch.dtype) -> Tensor:
        return number if isinstance(number, Tensor) else torch.tensor(number, dtype=dtype, device=device)

    counts = [tensor(x, torch.int64) for x in (state.status, state.steps, state.evals)]
    return Minimum(problem.tree(best.x), tensor(best.f, torch.float64), problem.gradients(best.g), best.aux, *counts)


def by_cg(matvec: Callable[[Tree], Tree], b: Tree) -> Tree:
    """The solution of a symmetric, positive definite system."""
    from functional_optim.meta.solvers import cg

    size = sum(x.numel() for x in trees.leaves(b))
    return cg(matvec, b, steps=min(2 * size, 200), tol=1e-10)


def method_of(given: Any, methods: Mapping[str, Callable[[], Any]], kind: Any) -> Any:
    """A method that is given as itself, of some kind, or by its name among these."""
    if isinstance(given, kind):
        return given
    names = ", ".join(map(repr, methods))
    if not isinstance(given, str):
        call = f" Did you mean to call it, {given.__name__}()?" if callable(given) and hasattr(given, "__name__") else ""
        raise TypeError(f"method is a {type(given).__name__}: expected one of {names}, or a method of fo.solvers.{call}")
    if given not in methods:
        raise ValueError(f"method = {given!r}: expected one of {names}.{hints.hint(given, methods)}")
    return methods[given]()


def _in_words(status: Tensor) -> Any:
    return WHY[int(status)] if status.ndim == 0 else [_in_words(x) for x in status]
