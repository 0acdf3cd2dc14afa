"""Weight decay as an object that an optimizer of the template's kind calls: three flavours, and room for others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class WeightDecay:
    """Pulls parameters towards 0; an optimizer calls it in `step_param`, before it uses the gradient.

        grad = self.weight_decay(param, grad, group)

    With λ and η the `weight_decay` and the `lr` of the group:

        weight_decouple, not absolute    p ← p − η λ p      (AdamW)
        weight_decouple, absolute        p ← p − λ p
        not weight_decouple              g ← g + λ p        (L2 regularisation)

    The decoupled flavours write the parameter and return the gradient as it is; the last returns a new gradient.

    For another penalty override the call; no optimizer has to know of it.

    >>> class L1(WeightDecay):
    ...     def __call__(self, param, grad, group):
    ...         return grad + group["weight_decay"] * param.sign()

    Args:
        weight_decay: λ, at least 0; the default of the groups.
        weight_decouple: whether the decay goes past the optimizer's averages.
        absolute: whether a decoupled decay is independent of the learning rate.

    Raises:
        ValueError: a negative λ.
    """

    weight_decay: float = 0.0
    weight_decouple: bool = True
    absolute: bool = False

    def __post_init__(self) -> None:
        if not self.weight_decay >= 0:
            raise ValueError(f"Invalid weight_decay value: {self.weight_decay}")

    def defaults(self) -> dict[str, Any]:
        """What an optimizer adds to its defaults, so that every group has a λ of its own."""
        return {"weight_decay": self.weight_decay}

    def __call__(self, param: Tensor, grad: Tensor, group: Mapping[str, Any]) -> Tensor:
        """The gradient to go on with; a decoupled decay is written to the parameter at once."""
        decay = group["weight_decay"]
        if not isinstance(decay, Tensor) and decay == 0:
            return grad
        if not self.weight_decouple:
            return grad + decay * param.data
        param.data.mul_(1 - (decay if self.absolute else group["lr"] * decay))
        return grad
