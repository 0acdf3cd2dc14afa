"""`torch.optim.Adadelta`, by a transform."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from functional_optim.optimizers import adadelta
from functional_optim.transform import Transform

from .base import TorchClass, is_on, signed


class Adadelta(TorchClass):
    """`functional_optim.adadelta` with the signature, the parameter groups and the state of `torch.optim.Adadelta`.

    Every option may differ between groups.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        rounding: str = "nearest",
    ) -> None:
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "capturable": capturable,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, rounding)

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """`adadelta` with the links that this group's numbers call for."""
        return self.rounded(_adadelta(is_on(group["weight_decay"]), group["maximize"]))


@functools.cache
def _adadelta(decay: bool, maximize: bool) -> Transform:
    return signed(adadelta(weight_decay=0.0 if decay else None), maximize)
