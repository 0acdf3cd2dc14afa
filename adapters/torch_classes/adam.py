"""`torch.optim.Adam` and `torch.optim.AdamW`, by a transform."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from functional_optim.optimizers import adam, adamw
from functional_optim.transform import Transform

from .base import TorchClass, is_on, signed


class Adam(TorchClass):
    """`functional_optim.adam` with the signature, the parameter groups and the state of `torch.optim.Adam`.

    Every option may differ between groups.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        rounding: str = "nearest",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults, rounding)

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """`adam` or `adamw` with the links that this group's numbers call for."""
        return self.rounded(
            _adam(
                group["decoupled_weight_decay"] or False,
                is_on(group["weight_decay"]),
                group["amsgrad"] or False,
                group["maximize"],
            )
        )


class AdamW(Adam):
    """`functional_optim.adamw` with the signature, the parameter groups and the state of `torch.optim.AdamW`.

    Every option may differ between groups.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        rounding: str = "nearest",
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            rounding=rounding,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A checkpoint of Adam, which says False, doesn't make Adam of this.
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


@functools.cache
def _adam(decoupled: bool, decay: bool, amsgrad: bool, maximize: bool) -> Transform:
    if decoupled:
        return signed(adamw(amsgrad=amsgrad), maximize)
    return signed(adam(weight_decay=0.0 if decay else None, amsgrad=amsgrad), maximize)
