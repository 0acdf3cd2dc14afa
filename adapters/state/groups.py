"""A parameter group as hyper-parameters: the numbers in it as a transform takes them."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from functional_optim.hparams import ANY, Hparam, PerLeaf, complete
from functional_optim.intervals import contains
from functional_optim.transform import Transform


def defaults_of(transform: Transform, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a group that gives these: complete, its tensors as they are.

    Raises:
        TypeError, ValueError: one of them is unknown or unfit.
    """
    numbers = transform.complete(_checked(transform, hparams))
    return {name: hparams[name] if isinstance(hparams.get(name), Tensor) else value for name, value in numbers.items()}


def hparams_of(transform: Transform, group: Mapping[str, Any]) -> dict[str, Any]:
    """The complete hyper-parameters of a group; a tensor of one element is a number, whatever its shape.

    Raises:
        TypeError, ValueError: one of them is unfit.
    """
    return transform.complete(_given(transform, group))


def lenient_hparams_of(transform: Transform, group: Mapping[str, Any], names: Collection[str]) -> tuple[dict[str, Any], set[str]]:
    """As `hparams_of`, but numbers of these names may be anything finite; and the names of those that are out of their ranges.

    The latter are tensors, which nobody looks at.
    """
    bounds = transform.declared
    unbounded = {name: dataclasses.replace(hparam, range=ANY) if name in names else hparam for name, hparam in bounds.items()}
    hparams = complete(unbounded, _given(transform, group), transform.refusal)
    odd = {name for name in names if name in hparams and not _is_within(hparams[name], bounds[name])}
    return {name: _unseen(value) if name in odd else value for name, value in hparams.items()}, odd


def _given(transform: Transform, group: Mapping[str, Any]) -> dict[str, Any]:
    return _checked(transform, {name: group[name] for name in transform.declared if name in group})


def _checked(transform: Transform, values: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: _number(value) for name, value in values.items()}
    for name, value in numbers.items():
        if isinstance(value, PerLeaf):
            raise TypeError(
                f"{name} is a PerLeaf, but an optimizer has groups: parameters with a value of their own are one, "
                f"{{'params': [...], {name!r}: ...}}."
            )
        is_single = name in transform.declared and not isinstance(transform.declared[name].default, tuple)
        if is_single and isinstance(value, Tensor) and value.ndim:
            raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}: expected one element. Groups may differ in it.")
    return numbers


def _number(value: Any) -> Any:
    """A tensor of one element as a () tensor, in a pair too: a view, so that what is written into it arrives."""
    if isinstance(value, tuple | list):
        return tuple(map(_number, value)) if isinstance(value, tuple) else [*map(_number, value)]
    return value.reshape(()) if isinstance(value, Tensor) and value.ndim and value.numel() == 1 else value


def _is_within(value: Any, hparam: Hparam) -> bool:
    numbers = value if isinstance(hparam.default, tuple) else (value,)
    return all(isinstance(x, Tensor) or contains(range_, x) for x, range_ in zip(numbers, hparam.ranges, strict=True))


def _unseen(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_unseen, value))
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")
