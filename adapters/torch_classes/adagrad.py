"""`torch.optim.Adagrad`, by a transform."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from functional_optim.optimizers import adagrad
from functional_optim.transform import Transform

from .base import TorchClass, is_on, signed


class Adagrad(TorchClass):
    """`functional_optim.adagrad` with the signature, the parameter groups and the state of `torch.optim.Adagrad`.

    Every option may differ between groups. A parameter gets its state at its first step, not at once.

    Raises:
        ValueError: a number out of range.
    """

    takes_sparse = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        rounding: str = "nearest",
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, rounding)

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """`adagrad` with the links that this group's numbers call for."""
        return self.rounded(_adagrad(is_on(group["weight_decay"]), group["maximize"]))

    def share_memory(self) -> None:
        """Put every parameter's `sum` into memory that processes share, as torch does: for Hogwild's training."""
        self.init_state()
        for slots in self.state.values():
            slots["sum"].share_memory_()


@functools.cache
def _adagrad(decay: bool, maximize: bool) -> Transform:
    return signed(adagrad(weight_decay=0.0 if decay else None), maximize)
