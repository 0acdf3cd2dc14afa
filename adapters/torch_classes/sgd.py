"""`torch.optim.SGD`, by a transform."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from functional_optim.optimizers import sgd
from functional_optim.transform import Transform

from .base import TorchClass, is_on, signed


class SGD(TorchClass):
    """`functional_optim.sgd` with the signature, the parameter groups and the state of `torch.optim.SGD`.

    Every option may differ between groups. A parameter gets a momentum buffer when its group first has a momentum.

    Raises:
        ValueError: a number out of range, Nesterov without momentum or with dampening.
    """

    counts = False
    takes_sparse = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        rounding: str = "nearest",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, rounding)

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """`sgd` with the links that this group's numbers call for."""
        if group["nesterov"] and group["dampening"] != 0:
            raise ValueError(f"nesterov=True needs dampening=0, but got dampening={group['dampening']}.")
        return self.rounded(
            _sgd(is_on(group["momentum"]), is_on(group["weight_decay"]), group["nesterov"] or False, group["maximize"])
        )


@functools.cache
def _sgd(momentum: bool, decay: bool, nesterov: bool, maximize: bool) -> Transform:
    tx = sgd(momentum=0.0 if momentum else None, weight_decay=0.0 if decay else None, nesterov=nesterov)
    return signed(tx, maximize)
