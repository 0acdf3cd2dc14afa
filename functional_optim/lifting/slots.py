"""How what a rule keeps starts: a tensor like the parameter, one number for each leaf, or a seed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim.hparams import HParams
from functional_optim.numerics import double, real

SlotInit: TypeAlias = Callable[[Tensor, HParams], Tensor]


def zeros(p: Tensor, hp: HParams) -> Tensor:
    """A slot's usual start: zeros like the parameter."""
    del hp
    return torch.zeros_like(p, requires_grad=False)


def copied(p: Tensor, hp: HParams) -> Tensor:
    """A slot that starts as the parameter: a tensor of its own, so that no engine has to find out whether the two are one."""
    del hp
    return p.clone()


def filled(name: str) -> SlotInit:
    """A slot that starts at the value of a hyper-parameter, in both parts of a complex number."""

    def start(p: Tensor, hp: HParams) -> Tensor:
        slot = (torch.zeros_like(real(p), requires_grad=False) + hp[name]).to(p.dtype.to_real())
        return torch.view_as_complex(slot) if p.is_complex() else slot

    return start


@dataclass(frozen=True)
class OneNumber:
    """A slot that holds a single number for each leaf, whatever the leaf's shape: a () tensor of float64, real.

    It belongs to a leaf as the slots of its shape do: behind the adapter, a parameter that sits out a step keeps its number.

    Args:
        value: the first value, of the hyper-parameters.
    """

    value: Callable[[HParams], Any]

    def __call__(self, p: Tensor, hp: HParams) -> Tensor:
        """The first value, on the leaf's device; times 1 it is a tensor of its own, where it is a hyper-parameter."""
        return double(self.value(hp), p.device).to(p.device) * 1.0


@dataclass(frozen=True)
class Seed:
    """The start of a shared value that is a seed of random numbers: the hyper-parameter of this name.

    Where several rules of a transform have one, each but the first gets another number made of its own, so that two branches, or
    two links, don't draw the same; see `Transform.first_state`.
    """

    name: str

    def __call__(self, hp: HParams) -> Any:
        """The number given."""
        return hp[self.name]
