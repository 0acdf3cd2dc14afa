"""Codecs: what a slot is stored as, where that is less than the rule computes with.

A codec stands between a slot and its rule: the rule gets the decoded slot, and what it returns is encoded. No rule knows of it.

`Blockwise` stores codes beside a scale for each block of elements. Within a block values differ by orders of magnitude, and what
an update is made of is their ratio, m / √v; so codes lie at equal ratios, and not at equal distances:

    s      the largest |x| of the block, in bfloat16
    L(y)   log₂ y, linear between powers of 2: the bits of a float, read as a whole number
    code   ⌊k L(|x| / s) + c + u⌋        c: the largest code, which stands for s;  u in (0, 1)
    x      ± s L⁻¹((code − c) / k)       code 0 is 0

Rounding to the nearest code would lose whatever changes a slot by less than half a step, such as 1 − β₂ = 1/1000 of v. So u is
not 1/2: it changes from step to step by the golden ratio, modulo 1, and starts elsewhere for each element. Then a code moves on
as often as it should, as with random numbers, but evenly: the error of a slow average stays near one step of its code. It is
arithmetic with the step and the place of an element, the same on any machine, in any batch and for any number of threads.

Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, https://arxiv.org/abs/2110.02861 (blocks; other codes)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from functional_optim.hparams import require_count
from functional_optim.numerics import Scalar, double, round_stochastically
from functional_optim.philox import words

# Kinds of slots that may be coded: averages of either sign; averages of what is never negative, by the root of which is divided.
SIGNED, POSITIVE = "signed", "positive"

# Irrational numbers whose multiples, modulo 1, lie evenly: from step to step, from element to element, from block to block.
STEP, ELEMENT, BLOCK, SLOT = 0.6180339887498949, 0.7548776662466927, 0.5698402909980532, 0.3819660112501051

# Blocks after which they start again, so that float32 holds their places, and engines can begin in between.
PERIOD = 2048

# 1 in float32, as a whole number, and one power of 2 there.
ONE, OCTAVE = 0x3F800000, 1 << 23

# Smaller scales would let codes stand for numbers below float32's normal ones.
SMALLEST = 2.0**-94

# Largest codes, and codes for each power of 2: in 8 bits these reach over 18 powers of 2, or if they are positive over 32, as
# many as the squares of 16; in 4 bits, over 7 and 15.
LEVELS = {(8, SIGNED): 127, (8, POSITIVE): 255, (4, SIGNED): 7, (4, POSITIVE): 15}
PER_OCTAVE = {(8, SIGNED): 7, (8, POSITIVE): 8, (4, SIGNED): 1, (4, POSITIVE): 1}


class Codec(ABC):
    """How a slot is stored."""

    parts: ClassVar[tuple[str, ...]] = ("",)
    """The endings of the names under which the parts of what is stored are found in the state."""

    @abstractmethod
    def takes(self, x: Tensor) -> bool:
        """Whether a parameter's slots are coded; else they are stored as they are, and there are no further parts."""

    @abstractmethod
    def encode(self, x: Tensor, kind: str, t: Scalar, number: int) -> tuple[Tensor, ...]:
        """The parts of what is stored for a real tensor.

        Args:
            x: the slot, whose derivatives end here.
            kind: SIGNED or POSITIVE.
            t: the step.
            number: of the slot among those of its rule.
        """

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


@dataclass(frozen=True)
class Blockwise(Codec):
    """Slots of 8 or 4 bits an element, with a scale of two bytes for each block of elements.

    AdamW's two slots take 2.06 bytes a parameter in 8 bits, and 1.06 in 4, where float32 takes 8. In 8 bits neighbouring codes
    are an eighth of a power of 2 apart, in 4 a power of 2. Over the steps the errors cancel. Derivatives end at the codes: those
    of an update are the rule's at the decoded state. What is positive never decodes to 0, and a block with a number that is not
    finite decodes to NaN.

        fo.scale_by_adam(state_dtype=fo.Blockwise(bits=8))
        fo.quantized(tx, bits=8)                             # every rule of a chain

    Args:
        bits: 8 or 4.
        block: how many elements, in the order of the tensor's rows, share a scale: a power of 2, at least 16.
        min_size: slots of parameters with fewer elements stay float32.

    State: of a slot `exp_avg`, the codes under that name, int8 (uint8 if the slot is never negative) in the shape of the
    parameter, or in 4 bits, two in a byte, of shape (blocks, block / 2); and `exp_avg.scale`, bfloat16 of shape (blocks,).

    Raises:
        ValueError: `bits` is neither, or `block` is no power of 2 from 16 up.

    Source: blocks by Dettmers et al. 2022, https://arxiv.org/abs/2110.02861. bitsandbytes and torchao search a table of codes and
    round to the nearest; neither torch nor optax has a counterpart.

    >>> import torch
    >>> codec = Blockwise(block=16, min_size=1)
    >>> stored = codec.encode(torch.tensor([1.0, -1e-3, 0.0]), "signed", 1, 0)
    >>> codec.decode(stored, "signed", (3,))
    tensor([ 1.0000e+00, -9.7656e-04,  0.0000e+00])
    """

    bits: int = 8
    block: int = 64
    min_size: int = 256
    parts: ClassVar[tuple[str, ...]] = ("", ".scale")

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or isinstance(self.bits, bool):
            raise ValueError(f"bits = {self.bits!r} of Blockwise: expected 8 or 4.")
        require_count("block of Blockwise", self.block, 16)
        if self.block & (self.block - 1):
            raise ValueError(f"block = {self.block} of Blockwise: expected a power of 2, such as 64.")
        require_count("min_size of Blockwise", self.min_size, 0)

    def takes(self, x: Tensor) -> bool:
        """From `min_size` elements up."""
        return x.numel() >= max(self.min_size, 1)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Whole numbers."""
        return torch.int8, torch.uint8

    @property
    def stretch(self) -> int:
        """After so many blocks u is the first one's again."""
        return PERIOD * self.block

    def empty(self, device: torch.device) -> tuple[Tensor, ...]:
        """No scale."""
        return (torch.empty(0, dtype=torch.bfloat16, device=device),)

    def encode(self, x: Tensor, kind: str, t: Scalar, number: int) -> tuple[Tensor, ...]:
        """Codes and scales."""
        return self.encode_at(x, kind, offset(t, number))

    def zeros(self, shape: Sequence[int], kind: str, device: torch.device) -> tuple[Tensor, ...]:
        """Made as they are: a slot is not in float32 at any time."""
        count = -(-math.prod(shape) // self.block)
        size = tuple(shape) if self.bits == 8 else (count, self.block // 2)
        # In 4 bits a signed 0 is 8, of which two make 8 + 16 · 8, or as an int8 that − 256.
        zero = -120 if self.bits == 4 and kind == SIGNED else 0
        codes = torch.full(size, zero, dtype=torch.uint8 if kind == POSITIVE else torch.int8, device=device)
        return codes, torch.full((count,), SMALLEST, dtype=torch.bfloat16, device=device)

    def encode_at(self, x: Tensor, kind: str, start: Any) -> tuple[Tensor, ...]:
        """The same, of what `offset` returned."""
        rows = self._rows(x.detach().float())
        size, phase = rows.abs(), _phase(rows, start)
        scale = _scale(size.amax(1, keepdim=True), phase)
        codes = self._codes(size * scale.reciprocal(), size, kind, _even(rows, phase))
        return self._packed(codes if kind == POSITIVE else codes * rows.sign(), kind, x.shape), scale.squeeze(1).bfloat16()

    def decode(self, stored: Sequence[Tensor], kind: str, shape: Sequence[int]) -> Tensor:
        """The numbers that the codes stand for."""
        codes, scale = stored
        signed = self._unpacked(codes, kind)
        if signed.shape[0] != scale.shape[0]:
            raise ValueError(f"{scale.shape[0]} scales, where {self!r} has {signed.shape[0]}: another codec made this state.")
        levels, per_octave = LEVELS[self.bits, kind], PER_OCTAVE[self.bits, kind]
        bits = ((signed.abs() - levels) * (OCTAVE / per_octave)).round().to(torch.int32) + ONE
        rows = bits.view(torch.float32) * signed.sign() * scale.float().unsqueeze(1)
        return rows.reshape(-1)[: math.prod(shape)].reshape(tuple(shape))

    def _codes(self, y: Tensor, size: Tensor, kind: str, u: Tensor) -> Tensor:
        """Of numbers up to 1, which `size` is in other units."""
        levels, per_octave = LEVELS[self.bits, kind], PER_OCTAVE[self.bits, kind]
        codes = ((y.view(torch.int32) - ONE).float() * (per_octave / OCTAVE) + (u + levels)).floor()
        # The largest number of a block is its scale, to rounding: were it given another code, scales would not stay.
        codes = torch.where(y > 1 - 2**-7, float(levels), codes)
        if kind == POSITIVE:
            return torch.where(size > 0, codes.clamp(1, levels), 0.0)
        return codes.clamp(0, levels)

    def _rows(self, x: Tensor) -> Tensor:
        """Blocks as rows, the last one filled with zeros."""
        flat = x.reshape(-1)
        missing = -flat.shape[0] % self.block
        return (torch.nn.functional.pad(flat, (0, missing)) if missing else flat).view(-1, self.block)

    def _packed(self, codes: Tensor, kind: str, shape: Sequence[int]) -> Tensor:
        if self.bits == 8:
            return codes.to(torch.uint8 if kind == POSITIVE else torch.int8).reshape(-1)[: math.prod(shape)].reshape(tuple(shape))
        low, high = (codes if kind == POSITIVE else codes + 8).chunk(2, dim=1)
        both = (low + 16 * high).to(torch.uint8)
        return both if kind == POSITIVE else both.view(torch.int8)

    def _unpacked(self, codes: Tensor, kind: str) -> Tensor:
        if self.bits == 8:
            return self._rows(codes).float()
        codes = codes.view(torch.uint8)
        both = torch.cat([codes & 15, codes >> 4], dim=1).float()
        return both if kind == POSITIVE else both - 8


@dataclass(frozen=True)
class Stochastic(Codec):
    """Slots in bfloat16 or float16, rounded up or down at random so that the mean is right.

    Rounded to nearest, a bfloat16 average of β = 0.999 stands still: what a step adds is below half of its last digit. The random
    numbers are the library's Philox: a function of the step, the slot and the place of the element, the same in every run.

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

    def __post_init__(self) -> None:
        if self.dtype not in (torch.bfloat16, torch.float16):
            raise TypeError(f"dtype = {self.dtype!r} of Stochastic: expected torch.bfloat16 or torch.float16.")

    def takes(self, x: Tensor) -> bool:
        """Any."""
        return x.numel() > 0

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """That one; what is not coded has at least float32."""
        return (self.dtype,)

    def encode(self, x: Tensor, kind: str, t: Scalar, number: int) -> tuple[Tensor, ...]:
        """Rounded."""
        x = x.detach().float()
        rounded = round_stochastically(x, self.dtype, noise=words(x.shape, number, t, 0, x.device))
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


def codec_of(codes: Tensor, scale: Tensor, count: int) -> tuple[Blockwise, str]:
    """What made these codes of so many numbers, and their kind.

    Raises:
        ValueError: they are not those of so many numbers.
    """
    is_whole, rows = codes.numel() == count, scale.numel()
    blocks = (2**i for i in range(4, 64) if -(-count // 2**i) == rows) if is_whole else (2 * codes.numel() // rows,)
    block = next(iter(blocks), 0)
    if block < 16 or block & (block - 1) or -(-count // block) != rows:
        raise ValueError(f"{codes.numel()} codes and {rows} scales are not those of a parameter of {count} numbers.")
    return Blockwise(8 if is_whole else 4, block, 1), SIGNED if codes.dtype == torch.int8 else POSITIVE


def _phase(rows: Tensor, start: Any) -> Tensor:
    """Where each element of some blocks is in its turn, modulo 1, before its own place in the block is added: a column."""
    place = torch.arange(rows.shape[0], dtype=torch.float32, device=rows.device).unsqueeze(1)
    return _fraction(place / PERIOD) * (PERIOD * BLOCK) + start


def offset(t: Any, number: int) -> Any:
    """Where a step and a slot are in their turns, in [0, 1); in float32 where it is a tensor."""
    found = (double(t) * STEP + number * SLOT) % 1
    return found.float() if isinstance(found, Tensor) else found


def _even(rows: Tensor, phase: Tensor) -> Tensor:
    """u of each element: in (0, 1), and so far from both that a code which stands for a number exactly is its code again."""
    place = torch.arange(rows.shape[1], dtype=torch.float32, device=rows.device) * ELEMENT
    return _fraction(phase + place) * (1 - 2**-9) + 2**-10


def _fraction(x: Tensor) -> Tensor:
    """x modulo 1; compilers divide for `%`."""
    return x - x.floor()


def _scale(largest: Tensor, phase: Tensor) -> Tensor:
    """bfloat16's two neighbours in turn, as a float32; NaN for what is not finite."""
    carry = (_fraction(phase) * 65535).to(torch.int32)
    rounded = ((largest.view(torch.int32) + carry) & -65536).view(torch.float32)
    return torch.where(rounded.isfinite(), rounded.clamp(min=SMALLEST), torch.nan)
