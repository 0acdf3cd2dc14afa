"""`torch.nn.Module`s as losses of a parameter tree."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor, nn

from functional_optim.meta.layers import Statistics, composing
from functional_optim.recipe import answering

# By name.
Tensors: TypeAlias = dict[str, Tensor]


@overload
def from_module(
    module: nn.Module, criterion: Callable[..., Tensor], *, carry: Literal[False] = False
) -> tuple[Callable[..., Tensor], Tensors]: ...
@overload
def from_module(
    module: nn.Module, criterion: Callable[..., Tensor], *, carry: Literal[True]
) -> tuple[Callable[..., tuple[Tensor, Tensors]], Tensors, Tensors]: ...
@answering
def from_module(module: nn.Module, criterion: Callable[..., Tensor], *, carry: bool = False) -> Any:
    """A module and a criterion as a loss `(params, *inputs, target) -> criterion(module(*inputs), target)`, and its first params.

        loss, params = fo.meta.from_module(model, torch.nn.functional.cross_entropy)
        trained = fo.meta.unroll(loss, fo.adam(), steps=5)(params, {"lr": 0.01}, (x, y)).params
        model.load_state_dict(trained, strict=False)

    Buffers are the module's own at the time of the call, or those given as `buffers=` (for stacked models); what the module
    writes to them is forgotten. With `carry`, they are an argument and a result, the running statistics of a batch norm too:

        loss, params, buffers = fo.meta.from_module(model, cross_entropy, carry=True)
        inner = fo.meta.unroll(loss, fo.adam(), steps=5, has_carry=True)
        trained = inner(params, {"lr": 0.01}, (x, y), carry=buffers)  # trained.params, trained.carry
        evaluate, *_ = fo.meta.from_module(copy.deepcopy(model).eval(), cross_entropy)
        evaluate(trained.params, x, y, buffers=trained.carry)

    Args:
        module: called through `torch.func.functional_call`; nothing in it is changed.
        criterion: `(output, target) -> loss`, a () tensor.
        carry: make the loss `(params, buffers, *inputs, target) -> (value, new buffers)`. Derivatives go through running
            statistics, as through all that is computed; where torch takes them for constants, detach them.

    Returns:
        The loss, and the module's parameters by name, as constants that share its memory; with `carry`, its buffers, too.

    Raises:
        TypeError: `module` is none.
        ValueError: when the loss is called, and a normalisation layer of the module would update its running statistics, without
            `carry`.

    Dropout wants a key: `keyed(loss)`. Without one it needs `torch.vmap(..., randomness="different")`, and does not go with
    `remat` or `compiled`.

    Where torch has no rule for the derivative or the batch of a layer, or a wrong one, the layer is computed of others, here and
    in every loss of `unroll`, to rounding the same: layer, batch and instance norm by their formula, where derivatives of
    derivatives are taken, attention by its formula, which keeps the matrix of weights, LSTM, GRU and RNN step by step.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"from_module(module, criterion): module is a {type(module).__name__}: expected a torch.nn.Module.")

    def value(params: Tensors, buffers: Tensors, batch: tuple[Any, ...]) -> Tensor:
        *inputs, target = batch
        return criterion(torch.func.functional_call(module, (params, buffers), tuple(inputs)), target)

    @composing
    def loss(params: Tensors, *batch: Any, buffers: Tensors | None = None) -> Tensor:
        _require_no_running_statistics(module)
        return value(params, _copies(dict(module.named_buffers()) if buffers is None else buffers), batch)

    @composing
    def carrying(params: Tensors, buffers: Tensors, *batch: Any) -> tuple[Tensor, Tensors]:
        own = _copies(buffers)
        with Statistics() as statistics:
            found = value(params, own, batch)
        return found, {name: statistics.new.get(id(x), x) for name, x in own.items()}

    params = {name: p.detach() for name, p in module.named_parameters()}
    return (carrying, params, _copies(dict(module.named_buffers()))) if carry else (loss, params)


def _copies(buffers: Tensors) -> Tensors:
    return {name: x.clone() for name, x in buffers.items()}


def _require_no_running_statistics(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if layer.training and getattr(layer, "track_running_stats", False) and getattr(layer, "running_mean", None) is not None:
            raise ValueError(
                f"{name or 'the module'} ({type(layer).__name__}) is in training mode and would write its running statistics, "
                "which a pure function can't. Pass carry=True, which makes them an argument and a result, or call module.eval() "
                "to normalise with the statistics it has, "
                "torch.func.replace_all_batch_norm_modules_(module) to normalise each batch by its own, or use GroupNorm."
            )
