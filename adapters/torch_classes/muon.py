"""`torch.optim.Muon`, by a transform."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from functional_optim.combinators.chain import chain
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.muon import scale_by_muon
from functional_optim.rules.newton_schulz import COEFFICIENTS
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.transform import Transform

from .base import TorchClass, is_on


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
        return self.rounded(
            _muon(is_on(group["weight_decay"]), group["nesterov"] or False, group["ns_steps"], group["adjust_lr_fn"])
        )


@functools.cache
def _muon(decay: bool, nesterov: bool, ns_steps: int, adjust_lr_fn: str | None) -> Transform:
    rule = scale_by_muon(nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn, ns_dtype=torch.bfloat16)
    return chain(rule, *([add_decayed_weights(0.0)] if decay else []), scale_by_learning_rate(), name="muon")
