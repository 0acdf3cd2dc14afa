"""Codes of a few bits, beside a scale for each block of elements.

Within a block values differ by orders of magnitude, and what an update is made of is their ratio, m / √v. So codes are small
floats: a few bits of an exponent and of a mantissa, and of x is stored what a float32 of a little more than it has there,

    s      the largest |x| of the block, which has the largest code
    y      |x| / s (1 − δ) + δ, from δ to 1: steps are in proportion to |x|, and even below δ s
    code   the first bits of y, counted from those of δ, after adding u of their last one; u in (0, 1)
    x      ± s (y − δ) / (1 − δ), of the y with these bits; code 0 is 0

Rounding to the nearest code would lose whatever changes a slot by less than half a step, such as 1 − β₂ = 1/1000 of v. So u is
not 1/2: it changes from step to step by the golden ratio, modulo 1, and starts elsewhere for each element. Then a code moves on
as often as it should, as with random numbers, but evenly: the error of a slow average stays near one step of its code. It is
arithmetic with the step and the place of an element, the same on any machine, in any batch and for any number of threads.

It is done on the bits of floats: no logarithm and no table, and what compilers make of it is as wide as vectors are.

Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, https://arxiv.org/abs/2110.02861 (blocks; other codes)
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from functional_optim.codecs.codec import POSITIVE, SIGNED, Codec
from functional_optim.hparams import require_count
from functional_optim.numerics import Scalar, double
from functional_optim.torch_internals import is_at_hand

# Irrational numbers whose multiples, modulo 1, lie evenly: from step to step, and from element to element. And how far a slot is
# from the one before it: not far, modulo 1, so that m and v are rounded up and down together, and m / √v is less often too long.
STEP, ELEMENT, SLOT = 0.6180339887498949, 0.7548776662466927, 0.9

# u in this many steps; in these, the next irrational number, from block to block; after how many blocks they begin again, so that
# engines can begin in between.
STEP_BITS, BLOCK, PERIOD = 13, 4668, 2048
STEPS = 1 << STEP_BITS

# Elements of a block after which u is the first one's again: kernels compute it once, for as many as the widest vectors hold.
LANES = 16

# 1 in float32, as a whole number; its digits; its sign, and all but that.
ONE, DIGITS, SIGN, SIZE = 0x3F800000, 23, -(1 << 31), (1 << 31) - 1

# Added to scales: smaller ones would let codes stand for numbers below float32's normal ones.
SMALLEST = 2.0**-90

# No scale, nor what it is multiplied by, is larger: blocks near the end of float32 decode to a little less than they hold.
LARGEST = torch.finfo(torch.float32).max

# Digits of codes, after the first: in 8 bits they are an eighth of a power of 2 apart and reach over 16 powers of 2, or if they
# are positive over 32, as many as the squares of 16. In 4 bits they would reach further without digits, but steps of a whole
# power of 2 add up to updates ten times as long as they should be. With one more, averages of squares would not reach far enough:
# AdamW would learn more slowly.
MANTISSA = {(8, SIGNED): 3, (8, POSITIVE): 3, (4, SIGNED): 1, (4, POSITIVE): 2}


@dataclass(frozen=True)
class Blockwise(Codec):
    """Slots of 8 or 4 bits an element, with a scale in float32 for each block of elements.

    AdamW's two slots take 2.06 bytes a parameter in 8 bits, and 1.06 in 4, where float32 takes 8. In 8 bits neighbouring codes
    are an eighth of a power of 2 apart; in 4 half of one, a quarter if they are never negative, and what is far smaller than the
    largest number of its block is 0 or a step, by turns. Over the steps the errors cancel. Derivatives end at the codes: those of
    an update are the rule's at the decoded state. What is positive never decodes to 0, and a block with a number that is not
    finite decodes to NaN.

        fo.scale_by_adam(state_dtype=fo.Blockwise(bits=8))
        fo.quantized(tx, bits=8)                             # every rule of a chain

    Args:
        bits: 8 or 4.
        block: how many elements, in the order of the tensor's rows, share a scale: a power of 2, at least 16.
        min_size: slots of parameters with fewer elements stay float32; so do those of a `DTensor` whose cuts may fall within a
            block, see `quantized`.

    State: of a slot `exp_avg`, the codes under that name, int8 (uint8 if the slot is never negative) in the shape of the
    parameter; and `exp_avg.scale`, float32, of the parameter's shape (…, k, l, …) up to where k l … is a multiple of `block`, and
    as many as there are blocks in that: of (30, 256) with blocks of 128 it is (30, 2). Where blocks go across rows, it is
    (blocks,). In 4 bits codes are two in a byte, in the shape of the scales with block / 2 behind it.

    Raises:
        TypeError: a number is no whole one.
        ValueError: `bits` is neither, or `block` is no power of 2 from 16 up.

    Source: blocks by Dettmers et al. 2022, https://arxiv.org/abs/2110.02861. bitsandbytes and torchao search a table of codes and
    round to the nearest; neither torch nor optax has a counterpart.

    >>> import torch
    >>> codec = Blockwise(block=16, min_size=1)
    >>> stored = codec.encode(torch.tensor([1.0, -1e-3, 0.0]), "signed", 1, 0)
    >>> codec.decode(stored, "signed", (3,))
    tensor([ 1.0000e+00, -9.5941e-04,  0.0000e+00])
    """

    bits: int = 8
    block: int = 128
    min_size: int = 256
    parts: ClassVar[tuple[str, ...]] = ("", ".scale")

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", require_count("bits of Blockwise", self.bits, 0))
        if self.bits not in (4, 8):
            raise ValueError(f"bits = {self.bits!r} of Blockwise: expected 8 or 4.")
        object.__setattr__(self, "block", require_count("block of Blockwise", self.block, 16))
        if self.block & (self.block - 1):
            raise ValueError(f"block = {self.block} of Blockwise: expected a power of 2, such as 128.")
        object.__setattr__(self, "min_size", require_count("min_size of Blockwise", self.min_size, 0))

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
        return (torch.empty(0, device=device),)

    def encode(self, x: Tensor, kind: str, t: Scalar, number: int, before: int = 0, place: int = 0) -> tuple[Tensor, ...]:
        """Codes and scales."""
        del place
        start = offset(t, number) + before // self.block % PERIOD * BLOCK
        codes, scale = self.encode_rows(self._rows(x.detach().float()), kind, start, self.places(kind, x.device))
        shapes = self.shapes(x.shape)
        return codes.reshape(-1)[: math.prod(shapes[0])].reshape(shapes[0]), scale.reshape(shapes[1])

    def may_be_cut(self, shape: Sequence[int], dim: int, pieces: int) -> bool:
        """Where all cuts fall between blocks; and not only in a world of some size, but for the dimension that blocks end."""
        rows = self._rows_of(shape)
        if dim != rows or not rows:
            return dim < rows
        return not shape[dim] % pieces and not math.prod(shape[dim:]) // pieces % self.block

    def shapes(self, shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Those of codes and scales."""
        rows = self._rows_of(shape)
        scales = (*shape[:rows], -(-math.prod(shape[rows:]) // self.block))
        return tuple(shape) if self.bits == 8 else (*scales, self.block // 2), scales

    def may_have_made(self, stored: Sequence[Tensor], shape: Sequence[int]) -> bool:
        """By the shapes; where these don't tell 4 bits from 8, by values that are at hand. Zeros are the same in both."""
        codes, scale = stored
        if not super().may_have_made(stored, shape):
            return False
        tells = len(shape) != 2 or shape[0] != 1 or tuple(codes.shape) != tuple(shape)  # See `codec_of`.
        if tells or not (is_at_hand(codes) and is_at_hand(scale) and scale.any()):
            return True
        return codec_of(codes, scale, shape)[0].bits == self.bits

    def zeros(self, shape: Sequence[int], kind: str, device: torch.device) -> tuple[Tensor, ...]:
        """Made as they are: a slot is not in float32 at any time."""
        codes, scales = self.shapes(shape)
        dtype = torch.uint8 if kind == POSITIVE else torch.int8
        return torch.zeros(codes, dtype=dtype, device=device), torch.zeros(scales, device=device)

    def decode(self, stored: Sequence[Tensor], kind: str, shape: Sequence[int]) -> Tensor:
        """The numbers that the codes stand for."""
        codes, scale = stored
        found, own = (codes.numel(), scale.numel()), tuple(map(math.prod, self.shapes(shape)))
        if found != own:
            raise ValueError(
                f"{found[0]} codes and {found[1]} scales, where {self!r} has {own[0]} and {own[1]}: another codec made this "
                "state."
            )
        rows = codes.reshape(-1, self.block // 2) if self.bits == 4 else self._rows(codes)
        if not math.prod(shape) % self.block:
            return self.decode_rows(rows, scale.reshape(-1), kind).reshape(tuple(shape))
        # Of a loop that reads scales at place // block, Inductor makes one over whole blocks, and what is behind them is never
        # written (CppScheduling.try_loop_split). It leaves a shift as it is.
        place = torch.arange(math.prod(shape), dtype=torch.int32, device=scale.device)
        factors = self._factors(scale.reshape(-1), kind).index_select(0, place >> self.block.bit_length() - 1)
        return (self._sizes(rows, kind).reshape(-1)[: len(place)] * factors).reshape(tuple(shape))

    def places(self, kind: str, device: torch.device) -> Tensor:
        """What the place of an element in its block adds to u, in units of a float32's last bit."""
        turns = torch.arange(self.block, dtype=torch.float32, device=device) % LANES * ELEMENT % 1 * STEPS
        return turns.to(torch.int32) * (1 << self.format(kind)[1] - STEP_BITS)

    def encode_rows(self, rows: Tensor, kind: str, start: Any, places: Tensor) -> tuple[Tensor, Tensor]:
        """The codes and scales of whole blocks, in float32."""
        largest, dropped, bits, least = self.format(kind)
        scale, whole = rows.abs().amax(1), rows.view(torch.int32)
        y = (whole & SIZE).view(torch.float32) * ((1 - least) / _rounded(scale)).unsqueeze(1) + least
        codes = ((y.view(torch.int32) + _even(rows, start, places, dropped)) >> dropped) - (bits >> dropped)
        if kind == SIGNED:
            codes = codes | ((whole >> (32 - self.bits)) & (largest + 1))
        else:  # What is positive does not become 0.
            codes = torch.maximum(codes, (whole & SIZE).clamp(max=1))
        if self.bits == 4:
            low, high = codes.chunk(2, dim=1)
            codes = low | (high << 4)
        return codes.to(torch.uint8 if kind == POSITIVE else torch.int8), scale

    def decode_rows(self, codes: Tensor, scale: Tensor, kind: str) -> Tensor:
        """The numbers of whole blocks."""
        return self._sizes(codes, kind) * self._factors(scale, kind).unsqueeze(1)

    def format(self, kind: str) -> tuple[int, int, int, float]:
        """Of a kind: the largest code; how many bits of a float32 have no place in codes; and δ, as bits and as a number."""
        largest, dropped = (1 << self.bits - (kind == SIGNED)) - 1, DIGITS - MANTISSA[self.bits, kind]
        bits = ONE - (largest << dropped)
        return largest, dropped, bits, _float_of(bits)

    def _sizes(self, codes: Tensor, kind: str) -> Tensor:
        """± (y − δ) of the codes of whole blocks."""
        largest, dropped, bits, least = self.format(kind)
        whole = codes.to(torch.int32)
        if self.bits == 4:
            whole = torch.cat([whole & 15, (whole >> 4) & 15], dim=1)
        size = (((whole & largest) << dropped) + bits).view(torch.float32) - least
        if kind == SIGNED:
            size = (size.view(torch.int32) | ((whole << (32 - self.bits)) & SIGN)).view(torch.float32)
        return size

    def _factors(self, scale: Tensor, kind: str) -> Tensor:
        """s / (1 − δ) of each block."""
        least = self.format(kind)[3]
        return (_rounded(scale) * (1 / (1 - least))).clamp(max=LARGEST)

    def _rows_of(self, shape: Sequence[int]) -> int:
        """How many dimensions stand before the last ones that are whole blocks; 0 where blocks go across rows."""
        return max([0, *(i for i in range(len(shape)) if not math.prod(shape[i:]) % self.block)])  # Dynamo knows no `default`.

    def _rows(self, x: Tensor) -> Tensor:
        """Blocks as rows, the last one filled with zeros."""
        flat = x.reshape(-1)
        missing = -flat.shape[0] % self.block
        return (torch.nn.functional.pad(flat, (0, missing)) if missing else flat).view(-1, self.block)


def codec_of(codes: Tensor, scale: Tensor, shape: Sequence[int]) -> tuple[Blockwise, str]:
    """What made these codes of a real tensor of this shape, and their kind.

    Of 8 bits and a single block it is one that the tensor fits into: longer ones have the same codes. Shapes tell 8 bits from 4,
    but for half a block in the shape (1, n): there 4 bits have left the upper half of each byte empty, and 8 have not.

    Raises:
        ValueError: they are not those of such a tensor.
    """
    kind, found = SIGNED if codes.dtype == torch.int8 else POSITIVE, (tuple(codes.shape), tuple(scale.shape))
    least = 1 << max(-(-math.prod(shape) // max(scale.numel(), 1)) - 1, 15).bit_length()
    half = codes.shape[-1] if codes.ndim else 0
    # A dimension of 1 before a whole block is one of the scales' too; in half of one it is not.
    tried = [(8, least), (8, 2 * least), *([(4, 2 * half)] if half >= 8 and not half & (half - 1) else [])]
    fitting = {bits: codec for bits, block in tried if (codec := Blockwise(bits, block, 1)).shapes(shape) == found}
    if not fitting:
        raise ValueError(
            f"{codes.numel()} codes and {scale.numel()} scales of shapes {found[0]} and {found[1]}, are not those of a parameter "
            f"of shape {tuple(shape)}."
        )
    if len(fitting) > 1:
        is_upper_empty = not (codes.to(torch.int32) & -16).any()
        return fitting[4 if is_upper_empty else 8], kind
    return next(iter(fitting.values())), kind


def offset(t: Any, number: int) -> Any:
    """Where a step and a slot are in their turns, in steps of u; int32 where it is a tensor."""
    found = (double(t) * STEP + number * SLOT) % 1 * STEPS
    return found.to(torch.int32) if isinstance(found, Tensor) else int(found)


def _even(rows: Tensor, start: Any, places: Tensor, dropped: int) -> Tensor:
    """u of each element, in units of a float32's last bit: half a step and more from 0 and 1, so that what a code stands for has
    that code again."""
    column = torch.arange(rows.shape[0], dtype=torch.int32, device=rows.device).unsqueeze(1)
    phase = (((column * BLOCK + start) & (STEPS - 1)) * 2 + 1) << (dropped - STEP_BITS - 1)
    return (phase + places) & ((1 << dropped) - 1)


def _rounded(scale: Tensor) -> Tensor:
    """Scales without their last digits, which decoding may change; NaN for what is not finite.

    Of what is not finite the scale itself tells: a kernel's NaN may have all bits, of which adding makes 0.
    """
    found = ((scale.view(torch.int32) + 4) & -8).view(torch.float32)
    return (found + SMALLEST).clamp(max=LARGEST) + (scale - scale)


def _float_of(bits: int) -> float:
    return struct.unpack("f", struct.pack("i", bits))[0]
