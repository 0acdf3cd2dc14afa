"""`torch.optim.Rprop`, by a transform."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from functional_optim.optimizers import rprop
from functional_optim.transform import Transform

from .base import TorchClass, signed


class Rprop(TorchClass):
    """`functional_optim.rprop` with the signature, the parameter groups and the state of `torch.optim.Rprop`.

    Every option may differ between groups. As in torch `lr` is the step size of each parameter's first step; after it, what a
    scheduler or a person writes there does nothing to that parameter.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        rounding: str = "nearest",
    ) -> None:
        defaults = {
            "lr": lr,
            "etas": etas,
            "step_sizes": step_sizes,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, rounding)

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """`rprop` with the links that this group's numbers call for."""
        return self.rounded(_rprop(group["maximize"]))


@functools.cache
def _rprop(maximize: bool) -> Transform:
    return signed(rprop(), maximize)
