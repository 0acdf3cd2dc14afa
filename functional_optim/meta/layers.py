"""Layers of `torch.nn` that torch differentiates or batches wrongly, or not at all, as others that it has right.

    normalisation   a(x) w + b, with a(x) from torch: of layer, batch and instance norm with weights, the derivatives of a
                    gradient are wrong where a `vmap` lies between the two (seen in torch 2.13 and 2.14)
    attention       softmax(q kᵀ/√d) v, by this formula where it is batched or differentiated more than once, in reverse mode:
                    the kernels that keep no matrix of weights have neither rule
    recurrence      step by step, where torch would call a kernel for the whole sequence, which has no batching rule

Every call of torch within `composing` is looked at: it is all the same who makes it, a module of torch's or a user's function.
"""

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from functional_optim import torch_internals
from functional_optim.meta.packing import pack
from functional_optim.meta.recurrence import gru_cell, lstm_cell, one_step, refuse_packed, relu_cell, tanh_cell, whole_sequence
from functional_optim.trees import Tree

_composing: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


def composing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, within which layers are what the module's docstring says."""
    is_inlined = torch.compiler.is_compiling()
    if not is_inlined and inspect.isfunction(function) and function in _composing:
        return function

    @functools.wraps(function)
    def composes(*args: Any, **kwargs: Any) -> Any:
        with _Composed((args, kwargs)):
            return function(*args, **kwargs)

    if not is_inlined:
        _composing.add(composes)
    return composes


class _Composed(TorchFunctionMode):
    """Calls of torch go to `_OWN`.

    Attributes:
        given: the arguments of the function that makes them.
    """

    def __init__(self, given: Tree) -> None:
        super().__init__()
        self.given = given

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = _OWN.get(func)
        if own is None:
            return func(*args, **(kwargs or {}))
        return own(self.given, *args, **(kwargs or {}))


# --- Under which transforms of torch.func ----------------------------------------------------------------------------------


def _is_batched() -> bool:
    """Or differentiated in forward mode, or compiled."""
    return torch_internals.is_traced() or not {"Vmap", "Jvp"}.isdisjoint(torch_internals.transforms())


def _is_differentiated_twice(given: Tree) -> bool:
    """Whether second derivatives are taken of what is computed of this."""
    return torch_internals.transforms().count("Grad") + any(map(torch_internals.is_of_backward, pack(given)[0])) > 1


# --- Normalisation -----------------------------------------------------------------------------------------------------------


def _affine_apart(normalise: Callable[..., Tensor], place: int, channels: bool) -> Callable[..., Tensor]:
    """`normalise`, whose weight and bias are its arguments at `place` and the next, with these applied to what it returns.

    They belong to the last axes, or to the `channels`, the second axis.
    """

    def apart(given: Tree, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = [x, *args]
        scale = _taken(found, place, kwargs, "weight"), _taken(found, place + 1, kwargs, "bias")
        weight, bias = (w.reshape(-1, *(1,) * (x.ndim - 2)) if channels and isinstance(w, Tensor) else w for w in scale)
        y = normalise(*found, **kwargs)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    return apart


def _taken(args: list[Any], place: int, kwargs: dict[str, Any], name: str) -> Any:
    """An argument, in whose stead None is left."""
    if place < len(args):
        value, args[place] = args[place], None
        return value
    return kwargs.pop(name, None)


# --- Attention ---------------------------------------------------------------------------------------------------------------


def _by_formula(attend: Callable[..., Any]) -> Callable[..., Any]:
    def attention(given: Tree, *args: Any, **kwargs: Any) -> Any:
        if not (_is_batched() or _is_differentiated_twice(given)):
            return attend(*args, **kwargs)
        with sdpa_kernel(SDPBackend.MATH):
            return attend(*args, **kwargs)

    return attention


# --- Recurrence --------------------------------------------------------------------------------------------------------------


def _by_steps(kernel: Callable[..., Any], steps: Callable[..., Any]) -> Callable[..., Any]:
    def recurrent(given: Tree, *args: Any, **kwargs: Any) -> Any:
        return (steps if _is_batched() else kernel)(*args, **kwargs)

    return recurrent


_OWN: dict[Any, Callable[..., Any]] = {
    F.layer_norm: _affine_apart(F.layer_norm, 2, channels=False),
    torch.layer_norm: _affine_apart(torch.layer_norm, 2, channels=False),
    F.batch_norm: _affine_apart(F.batch_norm, 3, channels=True),
    torch.batch_norm: _affine_apart(torch.batch_norm, 1, channels=True),
    F.instance_norm: _affine_apart(F.instance_norm, 3, channels=True),
    torch.instance_norm: _affine_apart(torch.instance_norm, 1, channels=True),
    F.scaled_dot_product_attention: _by_formula(F.scaled_dot_product_attention),
    F.multi_head_attention_forward: _by_formula(F.multi_head_attention_forward),
}
_CELLS = {"lstm": lstm_cell, "gru": gru_cell, "rnn_tanh": tanh_cell, "rnn_relu": relu_cell}
_RECURRENT = {
    **{name: whole_sequence(cell) for name, cell in _CELLS.items()},
    **{f"{name}_cell": one_step(cell) for name, cell in _CELLS.items()},
    "_pack_padded_sequence": refuse_packed,
}
_OWN |= {getattr(torch, name): _by_steps(getattr(torch, name), own) for name, own in _RECURRENT.items()}
