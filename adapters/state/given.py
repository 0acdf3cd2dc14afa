"""What an optimizer is given as parameters, as a list; or else what to give it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from functional_optim.transform import Transform


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
