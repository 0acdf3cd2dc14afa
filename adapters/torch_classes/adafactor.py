"""`torch.optim.Adafactor`, by a transform."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from functional_optim.optimizers import adafactor
from functional_optim.transform import Transform

from .base import TorchClass, is_on, signed


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


@functools.cache
def _adafactor(eps1: float | None, eps2: float, decay: bool, maximize: bool) -> Transform:
    return signed(adafactor(eps1=eps1, eps2=eps2, weight_decay=0.0 if decay else None), maximize)
