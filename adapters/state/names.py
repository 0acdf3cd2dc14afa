"""What parameters are called: by the optimizer that was given names, by a model, or by their places."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .layout import Key

Group: TypeAlias = dict[str, Any]


def keys_of(index: int, group: Group) -> Iterator[tuple[Key, Tensor]]:
    """The parameters of a group, with what a transform and its errors call them."""
    names = group.get("param_names") or [None] * len(group["params"])
    for i, (name, p) in enumerate(zip(names, group["params"], strict=True)):
        yield Key(index, i, name), p


def names_of(optimizer: torch.optim.Optimizer, model: torch.nn.Module | None = None) -> dict[Tensor, str]:
    """The name of every parameter of the optimizer: the model's, where one is given, or those it was made with.

    Raises:
        ValueError: a parameter has no name, or two have the same.
    """
    known = {} if model is None else {p: name for name, p in model.named_parameters()}
    advice = "pass model=, or make the optimizer with names" if model is None else f"it is not in the {type(model).__name__}"
    names = {}
    for index, group in enumerate(optimizer.param_groups):
        own = group.get("param_names", [None] * len(group["params"])) if model is None else map(known.get, group["params"])
        for i, (p, name) in enumerate(zip(group["params"], own, strict=True)):
            if name is None:
                raise ValueError(f"parameter {i} of param_groups[{index}] has no name: {advice}.")
            names[p] = name
    if len(set(names.values())) != len(names):
        twice = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise ValueError(f"two parameters of the optimizer are called {twice!r}: pass a model that holds them all as model=.")
    return names
