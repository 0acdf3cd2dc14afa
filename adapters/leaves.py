"""Parameters behind an optimizer: the key that each is called by, and its gradient."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim.lifting import widened

from .state.layout import Key, Params
from .state.names import keys_of

Group: TypeAlias = dict[str, Any]
Numbered: TypeAlias = tuple[int, Group]


@dataclass(frozen=True)
class Leaf:
    """A parameter with a gradient: the key that errors call it by, the tensor, and its group."""

    key: Key
    param: Tensor
    group: Group


def leaves_of(groups: Iterable[Numbered], others: Collection[Key] = ()) -> list[Leaf]:
    """The parameters that have a gradient, and those called `others`."""
    return [
        Leaf(key, p, group) for index, group in groups for key, p in keys_of(index, group) if p.grad is not None or key in others
    ]


def stepped_of(params: Params) -> dict[Key, Tensor]:
    """Those of these parameters that are stepped, as it stands: not what is frozen and has no gradient."""
    return {key: p for key, p in params.items() if p.requires_grad or p.grad is not None}


def full_gradient(p: Tensor) -> Tensor | None:
    """The gradient in at least float32 and the parameter's precision: a transform returns updates in the precision of the
    gradients, and they are to be rounded no sooner than the parameter."""
    g = p.grad
    if g is None or g.is_complex() != p.is_complex() or not (g.is_floating_point() or g.is_complex()):
        return g  # What is unfit is for the transform to refuse.
    return widened(g.to(torch.promote_types(g.dtype, p.dtype)))


def multiplied(grad: Tensor | None, factor: float) -> Tensor | None:
    """A gradient, unscaled."""
    return grad if grad is None or factor == 1 else widened(grad) * factor
