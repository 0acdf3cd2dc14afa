"""`torch.optim.RAdam`, by a transform."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from functional_optim.optimizers import radam
from functional_optim.transform import Transform

from .base import TorchClass, is_on, signed


class RAdam(TorchClass):
    """`functional_optim.radam` with the signature, the parameter groups and the state of `torch.optim.RAdam`.

    Every option may differ between groups.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        rounding: str = "nearest",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, rounding)

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """`radam` with the links that this group's numbers call for."""
        return self.rounded(_radam(is_on(group["weight_decay"]), group["decoupled_weight_decay"] or False, group["maximize"]))


@functools.cache
def _radam(decay: bool, decoupled: bool, maximize: bool) -> Transform:
    return signed(radam(weight_decay=0.0 if decay else None, decoupled_weight_decay=decoupled), maximize)
