"""`torch.optim.Adamax`, by a transform."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from functional_optim.optimizers import adamax
from functional_optim.transform import Transform

from .base import TorchClass, is_on, signed


class Adamax(TorchClass):
    """`functional_optim.adamax` with the signature, the parameter groups and the state of `torch.optim.Adamax`.

    Every option may differ between groups.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        rounding: str = "nearest",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, defaults, rounding)

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """`adamax` with the links that this group's numbers call for."""
        return self.rounded(_adamax(is_on(group["weight_decay"]), group["maximize"]))


@functools.cache
def _adamax(decay: bool, maximize: bool) -> Transform:
    return signed(adamax(weight_decay=0.0 if decay else None), maximize)
