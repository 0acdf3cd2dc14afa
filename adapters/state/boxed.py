"""Tensors of a checkpoint on their way past torch, which would cast them to the parameter's dtype."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from functional_optim.sharded import placed_as

from ..evaluation import without_trained
from .loading import adopted_state, require_same_parameters, require_state_dict, warn_of_another_order, with_own_meaning_of_lr

if TYPE_CHECKING:
    from ..transform_optimizer import TransformOptimizer


@dataclass(frozen=True)
class _Boxed:
    """A tensor of a checkpoint on its way past torch's cast."""

    value: Tensor


def checked_and_boxed(
    optimizer: "TransformOptimizer", state_dict: dict[str, Any], trained: dict[Tensor, Tensor]
) -> dict[str, Any]:
    """The last hook before torch loads: refuse what can't be right, and hide the tensors from torch.

    torch casts every tensor it finds in the state to the parameter's dtype. What it can't look into, it leaves alone.
    Parameters that are no state are put into `trained`.
    """
    require_state_dict(state_dict)
    require_same_parameters(optimizer, state_dict)
    state_dict, found = without_trained(optimizer, state_dict)
    trained.update(found)
    state_dict = with_own_meaning_of_lr(optimizer, state_dict)
    state = {
        p: {name: _boxed(name, value) for name, value in slots.items()}
        for p, slots in adopted_state(optimizer, state_dict).items()
    }
    warn_of_another_order(optimizer, state_dict)
    return {**state_dict, "state": state}


def _boxed(name: str, value: Any) -> Any:
    """A tensor or number in a form that torch does not look into: dense, and a count of one element as a () tensor."""
    if isinstance(value, int | float):
        return _Boxed(torch.tensor(float(value), device="cpu"))
    if not isinstance(value, Tensor):
        return value
    is_count = name.split(".")[-1] == "step" and value.numel() == 1
    return _Boxed(value.reshape(()) if is_count else value.to_dense() if value.layout == torch.sparse_coo else value)


def open_boxes(slots: dict[str, Any], p: Tensor, *, capturable: bool) -> None:
    """Put back, as copies, what `checked_and_boxed` hid of the slots of a parameter: counts on the host, unless `capturable`."""
    for name, value in slots.items():
        if isinstance(value, _Boxed):
            on_host = name.split(".")[-1] == "step" and not capturable
            opened = value.value.to(torch.device("cpu") if on_host else p.device, copy=True)
            slots[name] = opened if on_host else placed_as(opened, p)
