"""`torch.nn.Module`s as losses of a parameter tree."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from functional_optim.meta.layers import composing


def from_module(module: nn.Module, criterion: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """A module and a criterion as a loss `(params, *inputs, target) -> criterion(module(*inputs), target)`, and its first params.

        loss, params = fo.meta.from_module(model, torch.nn.functional.cross_entropy)
        trained = fo.meta.unroll(loss, fo.adam(), steps=5)(params, {"lr": 0.01}, (x, y)).params
        model.load_state_dict(trained, strict=False)

    Buffers are the module's own at the time of the call, or those given as `buffers=` (for stacked models); what the module
    writes to them is forgotten.

    Args:
        module: called through `torch.func.functional_call`; nothing in it is changed.
        criterion: `(output, target) -> loss`, a () tensor.

    Returns:
        The loss, and the module's parameters by name, as constants that share its memory.

    Raises:
        TypeError: `module` is none.
        ValueError: when the loss is called, and a normalisation layer of the module would update its running statistics.

    Dropout needs `torch.vmap(..., randomness="different")`, and does not go with `remat` or `compiled`.

    Where torch has no rule for the derivative or the batch of a layer, or a wrong one, the layer is computed of others, here and
    in every loss of `unroll`, to rounding the same: layer, batch and instance norm by their formula, where derivatives of
    derivatives are taken, attention by its formula, which keeps the matrix of weights, LSTM, GRU and RNN step by step.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"from_module(module, criterion): module is a {type(module).__name__}: expected a torch.nn.Module.")

    @composing
    def loss(params: dict[str, Tensor], *batch: Any, buffers: dict[str, Tensor] | None = None) -> Tensor:
        _require_no_running_statistics(module)
        own = {name: b.clone() for name, b in (dict(module.named_buffers()) if buffers is None else buffers).items()}
        *inputs, target = batch
        return criterion(torch.func.functional_call(module, (params, own), tuple(inputs)), target)

    return loss, {name: p.detach() for name, p in module.named_parameters()}


def _require_no_running_statistics(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if layer.training and getattr(layer, "track_running_stats", False) and getattr(layer, "running_mean", None) is not None:
            raise ValueError(
                f"{name or 'the module'} ({type(layer).__name__}) is in training mode and would write its running statistics, "
                "which a pure function can't. Call module.eval() to normalise with the statistics it has, "
                "torch.func.replace_all_batch_norm_modules_(module) to normalise each batch by its own, or use GroupNorm."
            )
