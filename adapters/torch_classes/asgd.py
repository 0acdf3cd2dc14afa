"""`torch.optim.ASGD`, by a transform."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from functional_optim.optimizers import asgd
from functional_optim.transform import Transform

from .base import TorchClass, is_on, signed


class ASGD(TorchClass):
    """`functional_optim.asgd` with the signature, the parameter groups and the state of `torch.optim.ASGD`.

    Every option may differ between groups.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        rounding: str = "nearest",
    ) -> None:
        defaults = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, defaults, rounding)

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """`asgd` with the links that this group's numbers call for."""
        return self.rounded(_asgd(is_on(group["weight_decay"]), group["maximize"]))


@functools.cache
def _asgd(decay: bool, maximize: bool) -> Transform:
    return signed(asgd(weight_decay=0.0 if decay else None), maximize)
