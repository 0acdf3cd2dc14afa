"""Classes with the names and signatures of torch.optim's, each a sentence about which transform a group gets.

`fused=True` steps with compiled kernels, see `OptimizerAdapter`. `foreach` is accepted, and kept in the groups, so that code and
checkpoints written for torch work: it asks for another execution of the same arithmetic. `capturable` keeps the counts on the
device.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from functional_optim.combinators.chain import chain
from functional_optim.optimizers import adam, adamw, sgd
from functional_optim.transform import Transform, elementwise

from .torch_optimizer import TransformOptimizer


class SGD(TransformOptimizer):
    """`functional_optim.sgd` with the signature, the parameter groups and the state of `torch.optim.SGD`.

    Every option may differ between groups. A parameter gets a momentum buffer when its group first has a momentum.

    Raises:
        ValueError: a number out of range, Nesterov without momentum or with dampening, or `differentiable=True`.
    """

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
        super().__init__(params, defaults)

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """`sgd` with the links that this group's numbers call for."""
        _refuse_differentiable(group)
        if group["nesterov"] and group["dampening"] != 0:
            raise ValueError(f"nesterov=True needs dampening=0, but got dampening={group['dampening']}.")
        return _sgd(_is_on(group["momentum"]), _is_on(group["weight_decay"]), group["nesterov"], group["maximize"])


class Adam(TransformOptimizer):
    """`functional_optim.adam` with the signature, the parameter groups and the state of `torch.optim.Adam`.

    Every option may differ between groups.

    Raises:
        ValueError: a number out of range, or `differentiable=True`.
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
        super().__init__(params, defaults)

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """`adam` or `adamw` with the links that this group's numbers call for."""
        _refuse_differentiable(group)
        return _adam(group["decoupled_weight_decay"], _is_on(group["weight_decay"]), group["amsgrad"], group["maximize"])


class AdamW(Adam):
    """`functional_optim.adamw` with the signature, the parameter groups and the state of `torch.optim.AdamW`.

    Every option may differ between groups.

    Raises:
        ValueError: a number out of range, or `differentiable=True`.
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
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A checkpoint of Adam, which says False, doesn't make Adam of this.
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


def _is_on(number: Any) -> bool:
    """Whether a number does anything; a tensor always might."""
    return isinstance(number, Tensor) or number != 0


def _refuse_differentiable(group: Mapping[str, Any]) -> None:
    if group["differentiable"]:
        raise ValueError(
            "differentiable=True: to differentiate through steps, use the transform itself (functional_optim.sgd, adam, adamw); "
            "an optimizer object writes its parameters in place."
        )


@functools.cache
def _sgd(momentum: bool, decay: bool, nesterov: bool, maximize: bool) -> Transform:
    tx = sgd(momentum=0.0 if momentum else None, weight_decay=0.0 if decay else None, nesterov=nesterov)
    return _signed(tx, maximize)


@functools.cache
def _adam(decoupled: bool, decay: bool, amsgrad: bool, maximize: bool) -> Transform:
    if decoupled:
        return _signed(adamw(amsgrad=amsgrad), maximize)
    return _signed(adam(weight_decay=0.0 if decay else None, amsgrad=amsgrad), maximize)


def _signed(transform: Transform, maximize: bool) -> Transform:
    return chain(_negated(), transform) if maximize else transform


@elementwise()
def _negated(hp):
    def rule(g, p):
        return -g

    return rule
