"""Classes with the names and signatures of torch.optim's, each a sentence about which transform a group gets.

`fused=True` steps with compiled kernels, see `OptimizerAdapter`. `rounding`, which torch's classes have not, is how parameters of
low precision are rounded, see `with_rounding`. `foreach` is accepted, and kept in the groups, so that code and checkpoints that
were written for torch work: it asks for another execution of the same arithmetic. `capturable` keeps the counts on the device.
`differentiable=True` makes a step part of the graph: of gradients, parameters, slots, and numbers that are tensors. Give it
clones of the parameters, since a leaf can't be written to.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from functional_optim.combinators.chain import chain
from functional_optim.optimizers import adadelta, adafactor, adagrad, adam, adamax, adamw, asgd, nadam, radam, rmsprop, rprop, sgd
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.muon import scale_by_muon
from functional_optim.rules.newton_schulz import COEFFICIENTS
from functional_optim.rules.scale import negate, scale_by_learning_rate
from functional_optim.transform import Transform

from .base import TorchClass, is_on


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
        return self.rounded(_sgd(is_on(group["momentum"]), is_on(group["weight_decay"]), group["nesterov"], group["maximize"]))


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
            _adam(group["decoupled_weight_decay"], is_on(group["weight_decay"]), group["amsgrad"], group["maximize"])
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


class NAdam(TorchClass):
    """`functional_optim.nadam` with the signature, the parameter groups and the state of `torch.optim.NAdam`.

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
        momentum_decay: float = 4e-3,
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
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, rounding)

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """`nadam` with the links that this group's numbers call for."""
        return self.rounded(_nadam(is_on(group["weight_decay"]), group["decoupled_weight_decay"], group["maximize"]))


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
        return self.rounded(_radam(is_on(group["weight_decay"]), group["decoupled_weight_decay"], group["maximize"]))


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
            _rmsprop(is_on(group["momentum"]), is_on(group["weight_decay"]), group["centered"], group["maximize"])
        )


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


class Adafactor(TorchClass):
    """`functional_optim.adafactor` with the signature, the parameter groups and the state of `torch.optim.Adafactor`.

    Every option may differ between groups. `eps[0] = None` is the machine epsilon of the parameter's dtype, of at least float32.
    The slots that a parameter does without are there, and empty; a checkpoint lacks them.

    Raises:
        ValueError: a number out of range.
        RuntimeError: at a step, for a complex parameter.
    """

    takes_complex = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        rounding: str = "nearest",
    ) -> None:
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
        }
        super().__init__(params, defaults, rounding)

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """`adafactor` with the links that this group's numbers call for, and its ε, a pair in the group and two numbers there."""
        if group["d"] < 1:
            raise ValueError(f"d = {group['d']} is outside [1, inf).")
        eps1, eps2 = group["eps"]
        return self.rounded(_adafactor(eps1, eps2, is_on(group["weight_decay"]), group["maximize"]))

    def has_slot(self, name: str, p: Tensor) -> bool:
        """Whether torch's class keeps this slot: those of the factors of a matrix, or that of a vector."""
        unused = ("variance",) if p.ndim > 1 else ("row_var", "col_var")
        return super().has_slot(name, p) and name not in unused


class Muon(TorchClass):
    """`scale_by_muon` with AdamW's decay, and the signature, the parameter groups and the state of `torch.optim.Muon`.

    For matrices only; `functional_optim.muon` gives the other parameters to AdamW, and takes those of more dimensions. As torch,
    it iterates in bfloat16.

    Raises:
        ValueError: a parameter that is not 2D, a number out of range, or an unknown `adjust_lr_fn`.
        RuntimeError: at a step, for a complex parameter.
    """

    takes_complex = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        rounding: str = "nearest",
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, defaults, rounding)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of matrices."""
        super().add_param_group(param_group)
        wrong = [tuple(p.shape) for p in self.param_groups[-1]["params"] if p.ndim != 2]
        if wrong:
            self.param_groups.pop()
            raise ValueError(
                f"param_groups[{len(self.param_groups)}]: Muon takes 2D parameters only, but got one of shape {wrong[0]}. "
                "functional_optim.muon takes them all."
            )

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """Muon, decay and learning rate; the decay is left out where it is 0."""
        return self.rounded(_muon(is_on(group["weight_decay"]), group["nesterov"], group["ns_steps"], group["adjust_lr_fn"]))


@functools.cache
def _sgd(momentum: bool, decay: bool, nesterov: bool, maximize: bool) -> Transform:
    tx = sgd(momentum=0.0 if momentum else None, weight_decay=0.0 if decay else None, nesterov=nesterov)
    return _signed(tx, maximize)


@functools.cache
def _adam(decoupled: bool, decay: bool, amsgrad: bool, maximize: bool) -> Transform:
    if decoupled:
        return _signed(adamw(amsgrad=amsgrad), maximize)
    return _signed(adam(weight_decay=0.0 if decay else None, amsgrad=amsgrad), maximize)


@functools.cache
def _nadam(decay: bool, decoupled: bool, maximize: bool) -> Transform:
    return _signed(nadam(weight_decay=0.0 if decay else None, decoupled_weight_decay=decoupled), maximize)


@functools.cache
def _radam(decay: bool, decoupled: bool, maximize: bool) -> Transform:
    return _signed(radam(weight_decay=0.0 if decay else None, decoupled_weight_decay=decoupled), maximize)


@functools.cache
def _adamax(decay: bool, maximize: bool) -> Transform:
    return _signed(adamax(weight_decay=0.0 if decay else None), maximize)


@functools.cache
def _adagrad(decay: bool, maximize: bool) -> Transform:
    return _signed(adagrad(weight_decay=0.0 if decay else None), maximize)


@functools.cache
def _adadelta(decay: bool, maximize: bool) -> Transform:
    return _signed(adadelta(weight_decay=0.0 if decay else None), maximize)


@functools.cache
def _rmsprop(momentum: bool, decay: bool, centered: bool, maximize: bool) -> Transform:
    tx = rmsprop(weight_decay=0.0 if decay else None, momentum=0.0 if momentum else None, centered=centered)
    return _signed(tx, maximize)


@functools.cache
def _rprop(maximize: bool) -> Transform:
    return _signed(rprop(), maximize)


@functools.cache
def _asgd(decay: bool, maximize: bool) -> Transform:
    return _signed(asgd(weight_decay=0.0 if decay else None), maximize)


@functools.cache
def _adafactor(eps1: float | None, eps2: float, decay: bool, maximize: bool) -> Transform:
    return _signed(adafactor(eps1=eps1, eps2=eps2, weight_decay=0.0 if decay else None), maximize)


@functools.cache
def _muon(decay: bool, nesterov: bool, ns_steps: int, adjust_lr_fn: str | None) -> Transform:
    rule = scale_by_muon(nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn, ns_dtype=torch.bfloat16)
    return chain(rule, *([add_decayed_weights(0.0)] if decay else []), scale_by_learning_rate(), name="muon")


def _signed(transform: Transform, maximize: bool) -> Transform:
    return chain(negate(), transform) if maximize else transform
