"""What rules ask for that look elsewhere than where they stand: `evaluate(params) -> (value, grads, aux)`.

    value       the loss there, a number or a () tensor
    grads       its gradient there, a tree like `params`; None for what has none
    aux         what else was computed; None for nothing

An optimizer makes one of a closure, `unroll` of its loss, and `fo.meta.evaluate_of` of any loss. Older names are `value_fn`, the
loss alone, and `grad_fn`, the gradient alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.trees import Tree

Evaluate: TypeAlias = Callable[[Tree], tuple[Any, Tree, Any]]

# How to give what `update` may be asked for beside numbers and trees like the gradients.
WAYS = {
    "value": "behind an optimizer, step(value=...), or step(closure) with a closure that returns it",
    "evaluate": (
        "which is fo.meta.evaluate_of(loss) of a loss(params); behind an optimizer, step(closure) with a closure that clears the "
        "gradients, computes the loss and its gradients, and returns the loss"
    ),
}


class LossAt(NamedTuple):
    """What `evaluate` returns."""

    value: Any
    grads: Tree
    aux: Any


def missing(name: str, asks: str) -> ValueError:
    """The error for what a transform needs, and `update` was not given."""
    way = WAYS.get(name, f"behind an optimizer, step({name}=...)")
    return ValueError(f"{asks} needs {name!r}: pass it by keyword, update(grads, state, params, {name}=...); {way}.")


def evaluate_in(extra: Mapping[str, Any], asks: str) -> Callable[[Tree], LossAt]:
    """The `evaluate` in what `update` was given.

    Raises:
        ValueError: there is none.
    """
    if "evaluate" not in extra:
        raise missing("evaluate", asks)
    return lambda params: evaluated_at(extra["evaluate"], params)


def evaluated_at(evaluate: Evaluate, params: Tree) -> LossAt:
    """What an `evaluate` of anybody's returns.

    Raises:
        TypeError: no triple.
    """
    found: Any = evaluate(params)
    if not (isinstance(found, tuple) and len(found) == 3):
        what = f"a tuple of {len(found)}" if isinstance(found, tuple) else f"a {type(found).__name__}"
        raise TypeError(f"evaluate(params) returned {what}: expected (value, grads, aux), with aux = None for nothing.")
    return LossAt(*found)


def gradients_in(extra: Mapping[str, Any], params: Tree, like: Tree, asks: str) -> Tree:
    """The gradients elsewhere, by `evaluate` or an older name of it; None where `like` is, or where there is none.

    Raises:
        ValueError: none of the names is there.
    """
    if "evaluate" not in extra and "grad_fn" in extra:
        return extra["grad_fn"](params)
    if "evaluate" not in extra and "value_fn" in extra:
        return _slopes(extra["value_fn"], params, like)
    return evaluate_in(extra, asks)(params).grads


def _slopes(value_fn: Callable[[Tree], Any], params: Tree, like: Tree) -> Tree:
    """The gradient of a function in those parameters that have a gradient; the others may be integers or None."""
    leaves, spec = trees.flatten(params)
    moving = [i for i, u in enumerate(trees.leaves(like)) if u is not None]

    def value(some: list[Tensor]) -> Any:
        moved = dict(zip(moving, some, strict=True))
        return value_fn(trees.unflatten(spec, [moved.get(i, x) for i, x in enumerate(leaves)]))

    found = dict(zip(moving, torch.func.grad(value)([leaves[i] for i in moving]), strict=True)) if moving else {}
    return trees.unflatten(spec, [found.get(i) for i in range(len(leaves))])
