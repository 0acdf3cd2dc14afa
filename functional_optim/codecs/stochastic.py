"""Slots in two bytes, rounded at random."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from functional_optim.codecs.codec import POSITIVE, Codec
from functional_optim.numerics import LOW, Scalar, round_stochastically
from functional_optim.philox import words


@dataclass(frozen=True)
class Stochastic(Codec):
    """Slots in bfloat16 or float16, rounded up or down at random so that the mean is right.

    Rounded to nearest, a bfloat16 average of β = 0.999 stands still: what a step adds is below half of its last digit. The random
    numbers are the library's Philox: a function of the step, the slot, the place of the element, and that of the tensor among
    those of its shape that have a gradient; the same in every run. They are no function of the rule: two rules of a chain round
    the first slots of a tensor with the same numbers. A slot that does not start at zeros is rounded alike in all tensors then.

    Args:
        dtype: of the slots.

    State: the slots, in that dtype. In float16 no average of squares lies between 0 and 6e-8: what is below becomes that, and
    steps shorter; gradients of 1e-3 have smaller squares, and want bfloat16.

    Raises:
        TypeError: the dtype is neither torch.bfloat16 nor torch.float16.

    Neither torch nor optax has a counterpart; optax's `mu_dtype` rounds to nearest.

    >>> Stochastic()
    Stochastic(dtype=torch.bfloat16)
    """

    dtype: torch.dtype = torch.bfloat16
    by_place: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.dtype not in LOW:
            raise TypeError(f"dtype = {self.dtype!r} of Stochastic: expected torch.bfloat16 or torch.float16.")

    def takes(self, x: Tensor) -> bool:
        """Any."""
        return x.numel() > 0

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """That one; what is not coded has at least float32."""
        return (self.dtype,)

    def encode(self, x: Tensor, kind: str, t: Scalar, number: int, before: int = 0, place: int = 0) -> tuple[Tensor, ...]:
        """Rounded."""
        del before  # What may be cut, it does not say.
        x = x.detach().float()
        rounded = round_stochastically(x, self.dtype, noise=words(x.shape, number, t, place, x.device))
        if kind == POSITIVE:  # What is divided by must not become 0.
            rounded = torch.where((x > 0) & (rounded == 0), _least(self.dtype), rounded)
        return (rounded,)

    def decode(self, stored: Sequence[Tensor], kind: str, shape: Sequence[int]) -> Tensor:
        """As it is."""
        return stored[0].float()


def _least(dtype: torch.dtype) -> float:
    """The smallest number above 0."""
    limits = torch.finfo(dtype)
    return limits.smallest_normal * limits.eps
