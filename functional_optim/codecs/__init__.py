"""Codecs: what a slot is stored as, where that is less than the rule computes with."""

from functional_optim.codecs.blockwise import (
    BLOCK,
    LANES,
    LARGEST,
    MANTISSA,
    PERIOD,
    SMALLEST,
    STEP_BITS,
    STEPS,
    Blockwise,
    codec_of,
    offset,
)
from functional_optim.codecs.codec import POSITIVE, SIGNED, Codec
from functional_optim.codecs.stochastic import Stochastic

__all__ = [
    "BLOCK",
    "LANES",
    "LARGEST",
    "MANTISSA",
    "PERIOD",
    "POSITIVE",
    "SIGNED",
    "SMALLEST",
    "STEPS",
    "STEP_BITS",
    "Blockwise",
    "Codec",
    "Stochastic",
    "codec_of",
    "offset",
]
