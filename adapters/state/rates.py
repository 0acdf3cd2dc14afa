"""What `lr` is in the groups of an optimizer: a learning rate, or, where the chain has no single one, a factor of all.

Then `group["lr_is_factor"]` is there and True.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from functional_optim.combinators.lr_factor import LR_FACTOR, has_own_schedule, has_rates, is_used, with_lr_factor
from functional_optim.transform import Transform

from .. import user
from .groups import hparams_of


@dataclass(frozen=True)
class Rates:
    """What the groups of an optimizer mean by `lr`.

    Attributes:
        given: the transform that the optimizer was made with.
        transform: the one that steps the groups: the same, or with a factor.
        factor: what that calls the factor; "" where `lr` is the rate.
    """

    given: Transform
    transform: Transform
    factor: str = ""

    @property
    def defaults(self) -> dict[str, Any]:
        """The entries of a group that tell of a factor."""
        return {"lr": 1.0, "lr_is_factor": True} if self.factor else {}

    def entry(self, name: str) -> str:
        """What a hyper-parameter is called in a group; "" for a rate that `lr` is a factor of, which groups don't hold."""
        if self.factor and name in (self.factor, "lr"):
            return "lr" if name == self.factor else ""
        return name

    def hparams_of(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The complete hyper-parameters of a group.

        Raises:
            TypeError, ValueError: one of them is unfit.
        """
        entries = {name: self.entry(name) for name in self.transform.declared}
        return hparams_of(self.transform, {name: group[entry] for name, entry in entries.items() if entry in group})


def rates_of(transform: Transform, hparams: Mapping[str, Any], params: Any) -> Rates:
    """What `lr` is to a transform: the rate where it needs one, or is given one, here or in a group."""
    given = [hparams, *(group for group in params if isinstance(group, Mapping))]
    hparam = transform.declared.get("lr")
    if hparam is not None and (not hparam.optional or any("lr" in group for group in given)):
        return Rates(transform, transform)
    # A factor that it has already is the user's, who may have given it a schedule.
    names = itertools.chain([LR_FACTOR], (f"{LR_FACTOR}_{i}" for i in itertools.count(1)))
    factor = next(name for name in names if not is_used(name, transform))
    return Rates(transform, with_lr_factor(transform, name=factor) if has_rates(transform) else transform, factor)


class Watch:
    """Warns, once, where something drives a factor that does nothing, or not what it seems to."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._first: list[Any] = []
        self.is_over = not rates.factor

    def admit(self, group: Mapping[str, Any]) -> None:
        """One group more."""
        self._first += [] if self.is_over else [group["lr"]]

    def look(self, index: int, group: Mapping[str, Any]) -> None:
        """Warn if the factor of this group is another than at first."""
        if not self.is_over and _differ(group["lr"], self._first[index]):
            self.is_over = True
            problem = self._problem()
            if problem:
                user.warn(f"param_groups[{index}]: something drives lr, which is {group['lr']} now; {problem}")

    def _problem(self) -> str:
        if self._rates.factor not in self._rates.transform.declared:
            return "the chain has no learning rate that it could be a factor of, so that it changes nothing."
        if not has_own_schedule(self._rates.given):
            return ""
        return (
            "it is a factor of a learning rate that follows a schedule of its own, so that the two multiply. For the chain's "
            "schedule alone, let the factor be 1: take no scheduler, or one that is constant, lr_scheduler_type='constant' "
            "for Hugging Face's Trainer, LambdaLR(optimizer, lambda step: 1.0) elsewhere. For the scheduler alone, take a "
            "chain without scheduled() and scale_by_schedule()."
        )


def _differ(a: Any, b: Any) -> bool:
    """Whether these are different numbers; a tensor is not read."""
    return a is not b and not isinstance(a, Tensor) and not isinstance(b, Tensor) and a != b
