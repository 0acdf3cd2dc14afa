"""What a slot is stored as, where that is less than the rule computes with.

A codec stands between a slot and its rule: the rule gets the decoded slot, and what it returns is encoded. No rule knows of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from functional_optim.numerics import Scalar

# Kinds of slots that may be coded: averages of either sign; averages of what is never negative, by the root of which is divided.
SIGNED, POSITIVE = "signed", "positive"


class Codec(ABC):
    """How a slot is stored."""

    parts: ClassVar[tuple[str, ...]] = ("",)
    """The endings of the names under which the parts of what is stored are found in the state."""

    by_place: ClassVar[bool] = False
    """Whether what is stored depends on the place of a tensor among those of its shape."""

    @abstractmethod
    def takes(self, x: Tensor) -> bool:
        """Whether a parameter's slots are coded; else they are stored as they are, and there are no further parts."""

    @abstractmethod
    def encode(self, x: Tensor, kind: str, t: Scalar, number: int, before: int = 0, place: int = 0) -> tuple[Tensor, ...]:
        """The parts of what is stored for a real tensor.

        Args:
            x: the slot, whose derivatives end here.
            kind: SIGNED or POSITIVE.
            t: the step.
            number: of the slot among those of its rule.
            before: how many elements of the tensor come before these, if they are a part of one.
            place: how many tensors of its shape come before this one, where that is of use: `by_place`.
        """

    def may_be_cut(self, shape: Sequence[int], dim: int, pieces: int) -> bool:
        """Whether a tensor of this shape, cut along this dimension into so many pieces, is stored as what is stored of the
        pieces, each by itself, cut along the same dimension."""
        del shape, dim, pieces
        return False

    def shapes(self, shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Those of the parts of what is stored for a real tensor of this shape."""
        return (tuple(shape),)

    def may_have_made(self, stored: Sequence[Tensor], shape: Sequence[int]) -> bool:
        """Whether this may be what it has stored of a real tensor of this shape."""
        return tuple(tuple(part.shape) for part in stored) == self.shapes(shape)

    def zeros(self, shape: Sequence[int], kind: str, device: torch.device) -> tuple[Tensor, ...]:
        """What is stored for zeros of this shape."""
        return self.encode(torch.zeros(tuple(shape), device=device), kind, 0, 0)

    @abstractmethod
    def decode(self, stored: Sequence[Tensor], kind: str, shape: Sequence[int]) -> Tensor:
        """The slot, in float32."""

    @property
    @abstractmethod
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Those of a slot that is coded; none of them is that of a slot which is not."""

    @property
    def stretch(self) -> int:
        """How many elements, counted from the first, may be encoded apart from the others; 0 if all must be at once."""
        return 0

    def empty(self, device: torch.device) -> tuple[Tensor, ...]:
        """What is stored in the place of further parts where a slot is not coded."""
        del device
        return ()
