"""What a transform is given beside the gradients: of `step(**extra)`, and what a closure tells of the loss elsewhere."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from functional_optim.evaluate import LossAt

from .leaves import Leaf, full_gradient
from .state.layout import Key


def extra_of(leaves: list[Leaf], closure: Callable[[], Any] | None, extra: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, trees by key; of these leaves."""
    found = {name: _by_key(leaves, name, value) for name, value in extra.items()}
    return found if closure is None else {**found, **_elsewhere(leaves, closure)}


def _by_key(leaves: list[Leaf], name: str, value: Any) -> Any:
    """A mapping from parameter to tensor as a tree like the leaves; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    for key in value:
        if not isinstance(key, Tensor):
            raise TypeError(
                f"{name} has the key {key!r}: expected a mapping from parameters, the tensors themselves, to tensors."
            )
    return {leaf.key: value.get(leaf.param) for leaf in leaves}


def _elsewhere(leaves: list[Leaf], closure: Callable[[], Any]) -> dict[str, Any]:
    """What a closure tells of the loss where the parameters have other values: `evaluate`, and the older `grad_fn`."""
    evaluate = functools.partial(_evaluated_at, leaves, closure)
    return {"evaluate": evaluate, "grad_fn": lambda params: evaluate(params).grads}


def _evaluated_at(leaves: list[Leaf], closure: Callable[[], Any], params: Mapping[Key, Tensor]) -> LossAt:
    """The loss, and the gradients that a closure leaves in the parameters, when they have other values; they get theirs back.

    A branch asks for its own parameters; those of others stay where they are.
    """
    kept = [(leaf.param, leaf.param.clone(), leaf.param.grad) for leaf in leaves]
    asked = [leaf for leaf in leaves if leaf.key in params]
    try:
        for leaf in asked:
            leaf.param.copy_(params[leaf.key])
        for leaf in leaves:
            leaf.param.grad = None  # What is kept must not be zeroed, nor added to.
        with torch.enable_grad():
            value = closure()
        value = value.detach() if isinstance(value, Tensor) else value
        return LossAt(value, {leaf.key: full_gradient(leaf.param) for leaf in asked}, None)
    finally:
        for p, value, grad in kept:
            p.copy_(value)
            p.grad = grad
