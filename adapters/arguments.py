"""What an optimizer is made of, looked at: errors and warnings for what is often given in its place."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from functional_optim.combinators.innermost import innermost
from functional_optim.hints import MEANT
from functional_optim.transform import Transform, require_transform

from . import user
from .leaves import Group


def given_params(params: Any) -> list[Any]:
    """Tensors, pairs of names and tensors, or groups, as a list.

    Raises:
        TypeError: what is often given in the place of parameters.
        ValueError: there are none.
    """
    if isinstance(params, torch.nn.Module):
        raise TypeError(f"params is a module, a {type(params).__name__}: pass model.named_parameters().")
    if isinstance(params, Transform):
        raise TypeError("params is a Transform: parameters come first, OptimizerAdapter(model.named_parameters(), transform).")
    if isinstance(params, Tensor):
        raise TypeError("params is a tensor: the parameters of an optimizer are an iterable of Tensors or dicts, such as [p].")
    if isinstance(params, Mapping):
        raise TypeError(f"params is a mapping, a {type(params).__name__}: pass its items(), pairs of names and tensors.")
    if callable(params) and not isinstance(params, Iterable):
        raise TypeError(f"params is a function, {getattr(params, '__name__', params)!r}: call it.")
    if isinstance(params, set | frozenset):
        raise TypeError(
            "params is a set, whose order changes from run to run, while checkpoints number the parameters: pass a list."
        )
    if not isinstance(params, Iterable):
        raise TypeError(f"params is {params!r}: pass model.named_parameters(), a list of tensors, or groups.")
    found = list(params)
    if not found:
        raise ValueError(
            "optimizer got an empty parameter list. What model.parameters() returns gives its tensors once: call it for each "
            "optimizer anew, and not where it has been listed or looped over before."
        )
    return found


def require_work(transform: Any) -> None:
    """Raise TypeError for what is no transform, ValueError for one that does nothing."""
    require_transform(transform, "OptimizerAdapter(params, transform)")
    if not innermost(transform):
        raise ValueError(
            "the transform is an empty chain: it would add the raw gradients to the parameters. "
            "Give it links, the last of them scale_by_learning_rate()."
        )


def warn_of_misspellings(index: int, group: Group, known: Mapping[str, Any]) -> None:
    """Warn of keys of a group that look like hyper-parameters, and are none."""
    for name in group.keys() - known.keys() - {"params", "param_names"}:
        meant = [word for word in MEANT.get(name, ()) if word in known and isinstance(group[name], int | float)]
        close = meant or difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.85)
        if close:
            user.warn(
                f"param_groups[{index}] has a key {name!r}, which is no hyper-parameter and changes nothing. "
                f"Did you mean {close[0]!r}?"
            )
