"""Layers of `torch.nn` that torch differentiates or batches wrongly, or not at all, as others that it has right.

    normalisation   (x − μ)/√(σ² + ε) w + b, by this formula where it is differentiated more than once: of layer, batch and
                    instance norm, torch's third derivatives are wrong, those of a forward derivative, and those of a gradient
                    where a `vmap` lies between the two (seen in torch 2.13)
    attention       softmax(q kᵀ/√d) v, by this formula where it is batched or differentiated more than once, in reverse mode:
                    the kernels that keep no matrix of weights have neither rule
    recurrence      step by step, where torch would call a kernel for the whole sequence, which has no batching rule

    losses          mean squares and others in forward mode, and linear algebra; see `formulas`

Every call of torch within `composing` is looked at: it is all the same who makes it, a module of torch's or a user's function.
"""

import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from functional_optim import torch_internals
from functional_optim.lifting import widened
from functional_optim.meta import formulas
from functional_optim.meta.packing import pack
from functional_optim.meta.recurrence import CELLS, one_step, refuse_packed, whole_sequence
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


def _is_batched(given: Tree = ()) -> bool:
    """Or differentiated in forward mode, or compiled."""
    return torch_internals.is_traced() or not {"Vmap", "Jvp"}.isdisjoint(torch_internals.transforms())


def _is_mapped(given: Tree) -> bool:
    return "Vmap" in torch_internals.transforms()


def _is_pushed(given: Tree) -> bool:
    """Whether forward derivatives are taken."""
    return "Jvp" in torch_internals.transforms()


def _is_differentiated_twice(given: Tree) -> bool:
    """Whether second derivatives are taken of what is computed of this."""
    levels = torch_internals.transforms()
    return levels.count("Grad") + levels.count("Jvp") + any(map(torch_internals.is_of_backward, pack(given)[0])) > 1


def _is_pushed_or_twice(given: Tree) -> bool:
    return _is_pushed(given) or _is_differentiated_twice(given)


def _is_pushed_or_twice_or_of_statistics(given: Tree) -> bool:
    """Or derivatives are taken of running statistics, of which torch has none."""
    _, args, kwargs = given
    statistics = (*args[1:3], kwargs.get("running_mean"), kwargs.get("running_var"))
    return _is_pushed_or_twice(given) or any(isinstance(x, Tensor) and torch_internals.is_tracked(x) for x in statistics)


def _is_pushed_and_twice(given: Tree) -> bool:
    return _is_pushed(given) and _is_differentiated_twice(given)


def _where(needed: Callable[[Tree], bool], formula: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """The formula where it is needed, of what is given to the function that calls this and to this itself; else torch's own."""

    def either(given: Tree, *args: Any, **kwargs: Any) -> Any:
        return (formula if needed((given, args, kwargs)) else own)(*args, **kwargs)

    return either


# --- Normalisation -----------------------------------------------------------------------------------------------------------


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enable: bool = True
) -> Tensor:
    del cudnn_enable
    return _normalised(input, range(-len(normalized_shape), 0), weight, bias, eps)


def _batch_norm(
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    weight, bias = (_of_channels(w, input) for w in (weight, bias))
    if not training:
        moments = _of_channels(running_mean, input), _of_channels(running_var, input)
        return _normalised(input, (), weight, bias, eps, moments)
    if running_mean is not None or input.numel() == input.shape[1]:  # To be written to; or torch has something to say.
        F.batch_norm(input.detach(), running_mean, running_var, None, None, True, momentum, eps)
    return _normalised(input, (0, *range(2, input.ndim)), weight, bias, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None or input[0, 0].numel() == 1:
        F.instance_norm(input.detach(), running_mean, running_var, None, None, True, momentum, eps)
    return _normalised(input, range(2, input.ndim), _of_channels(weight, input), _of_channels(bias, input), eps)


def _as_torch_orders(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The formula with the arguments of `torch.batch_norm` and `torch.instance_norm`."""

    def ordered(
        input: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, statistics: bool, *rest: Any, **options: Any
    ) -> Tensor:
        options.pop("cudnn_enabled", None)
        return formula(input, running_mean, running_var, weight, bias, statistics, *rest[:2], **options)

    return ordered


def _of_channels(values: Any, x: Tensor) -> Any:
    """One number for each channel, the second axis."""
    return None if values is None else values.reshape(-1, *(1,) * (x.ndim - 2))


def _normalised(x: Tensor, axes: Sequence[int], weight: Any, bias: Any, eps: float, moments: Any = None) -> Tensor:
    """(x − μ)/√(σ² + ε) w + b, with the moments over these axes, or with those given."""
    wide = widened(x)
    mean, variance = moments or torch.var_mean(wide, tuple(axes), correction=0, keepdim=True)[::-1]
    y = (wide - mean) * (variance + eps).rsqrt()
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).to(x.dtype)


class Statistics(TorchFunctionMode):
    """Running statistics that norm layers in training would write go into `new`, and are not written: a pure function's.

    Attributes:
        new: the statistics after the call, by the identity of the tensors that they were in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.new: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (F.batch_norm, F.instance_norm):
            return func(*args, **(kwargs or {}))
        given = inspect.signature(func).bind(*args, **(kwargs or {}))
        given.apply_defaults()
        options = given.arguments
        mean, var = options["running_mean"], options["running_var"]
        if options.get("training", options.get("use_input_stats")) and mean is not None:
            given_input: Tensor = options["input"]
            x = widened(given_input)
            momentum, axes = options["momentum"], (0, *range(2, x.ndim)) if func is F.batch_norm else tuple(range(2, x.ndim))
            moments = torch.var_mean(x, axes, correction=1)
            if func is F.instance_norm:
                moments = [moment.mean(0) for moment in moments]
            for old, moment in zip((var, mean), moments, strict=True):
                self.new[id(old)] = ((1 - momentum) * self.new.get(id(old), old) + momentum * moment).to(old.dtype)
            options["running_mean"] = options["running_var"] = None
        return func(*given.args, **given.kwargs)


# --- Attention ---------------------------------------------------------------------------------------------------------------


def _by_formula(attend: Callable[..., Any]) -> Callable[..., Any]:
    def attention(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return attend(*args, **kwargs)

    return attention


def _is_batched_or_twice(given: Tree) -> bool:
    return _is_batched() or _is_differentiated_twice(given)


# --- What is called in whose stead -------------------------------------------------------------------------------------------

# Functions of torch; when they are wrong, or have no rule; and what is called then.
_FORMULAS: list[tuple[tuple[Any, ...], Callable[[Tree], bool], Callable[..., Any]]] = [
    ((F.layer_norm, torch.layer_norm), _is_pushed_or_twice, _layer_norm),
    ((F.batch_norm,), _is_pushed_or_twice_or_of_statistics, _batch_norm),
    ((torch.batch_norm,), _is_pushed_or_twice, _as_torch_orders(_batch_norm)),
    ((F.instance_norm,), _is_pushed_or_twice_or_of_statistics, _instance_norm),
    ((torch.instance_norm,), _is_pushed_or_twice, _as_torch_orders(_instance_norm)),
    ((F.scaled_dot_product_attention,), _is_batched_or_twice, _by_formula(F.scaled_dot_product_attention)),
    ((F.multi_head_attention_forward,), _is_batched_or_twice, _by_formula(F.multi_head_attention_forward)),
    ((F.mse_loss,), _is_batched, formulas.mse_loss),
    ((F.huber_loss,), _is_batched, formulas.huber_loss),
    ((F.soft_margin_loss,), _is_batched, formulas.soft_margin_loss),
    ((F.gaussian_nll_loss,), _is_mapped, formulas.gaussian_nll_loss),
    ((F.glu,), _is_pushed_and_twice, formulas.glu),
    ((torch.linalg.solve,), _is_pushed_and_twice, formulas.solve),
    ((torch.linalg.det, torch.det, Tensor.det), _is_pushed_and_twice, formulas.det),
    ((torch.linalg.slogdet, torch.slogdet, Tensor.slogdet), _is_pushed_and_twice, formulas.slogdet),
    ((torch.logdet, Tensor.logdet), _is_pushed_and_twice, formulas.logdet),
]
_RECURRENT = {
    **{name: whole_sequence(cell) for name, cell in CELLS.items()},
    **{f"{name}_cell": one_step(cell) for name, cell in CELLS.items()},
    "_pack_padded_sequence": refuse_packed,
}
_FORMULAS += [((getattr(torch, name),), _is_batched, own) for name, own in _RECURRENT.items()]
_OWN = {own: _where(needed, formula, own) for owns, needed, formula in _FORMULAS for own in owns}
