"""`torch.optim.RMSprop`, by a transform."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from functional_optim.optimizers import rmsprop
from functional_optim.transform import Transform

from .base import TorchClass, is_on, signed


class RMSprop(TorchClass):
    """`functional_optim.rmsprop` with the signature, the parameter groups and the state of `torch.optim.RMSprop`.

    Every option may differ between groups. A parameter gets a momentum buffer when its group first asks for one; where `centered`
    is switched on in mid-training, its averages start afresh, with a warning.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: str = "nearest",
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, rounding)

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """`rmsprop` with the links that this group's numbers call for."""
        return self.rounded(
            _rmsprop(is_on(group["momentum"]), is_on(group["weight_decay"]), group["centered"] or False, group["maximize"])
        )


@functools.cache
def _rmsprop(momentum: bool, decay: bool, centered: bool, maximize: bool) -> Transform:
    tx = rmsprop(weight_decay=0.0 if decay else None, momentum=0.0 if momentum else None, centered=centered)
    return signed(tx, maximize)
