"""Coded slots on their way in and out of checkpoints: any optimizer loads what any other keeps, in codes or not.

What is coded in a checkpoint is decoded, and what this optimizer keeps in codes is encoded again; but codes that were made by the
same codec are taken as they are. All may be spread over processes, or whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim.codecs import Blockwise, Codec, codec_of
from functional_optim.coding import decoded_by, encoded_by, reals_of
from functional_optim.form import Path, nested
from functional_optim.numerics import LOW
from functional_optim.sharded import is_sharded, spread_as, whole
from functional_optim.transform import Transform

SCALE = Blockwise.parts[1]


def decoded(slots: Mapping[str, Any], p: Tensor) -> dict[str, Any]:
    """The slots of a parameter in a checkpoint, without codes; complex ones in place of the pairs that a codec made of them."""
    found = dict(slots)
    for name in slots:
        codes, scale = slots[name], slots.get(name + SCALE)
        if isinstance(codes, Tensor) and isinstance(scale, Tensor):
            del found[name + SCALE]
            if scale.numel() and codes.dtype in (torch.int8, torch.uint8):
                shape = reals_of(p)
                codec, kind = codec_of(codes, scale, shape)
                reals = decoded_by(codec, (codes, scale), kind, shape)
                found[name] = torch.view_as_complex(reals) if p.is_complex() else reals
        elif isinstance(codes, Tensor) and p.is_complex() and codes.dtype in LOW and tuple(codes.shape) == reals_of(p):
            found[name] = torch.view_as_complex(codes.float())
    return found


def at_least(x: Any, dtype: torch.dtype | None) -> Any:
    """A slot saved in 16 bits in no less than this dtype: a rule that keeps more goes on in its own precision."""
    if not isinstance(x, Tensor) or x.dtype not in LOW or dtype is None or not dtype.is_floating_point:
        return x
    return x.to(torch.promote_types(x.dtype, dtype))


@dataclass(frozen=True)
class Encoder:
    """What makes that which is stored of a slot of some parameter, for a rule with codes.

    Attributes:
        codec: of the rule.
        kind: of the codes.
        number: of the slot among those of the rule.
        names: of all that is stored of it.
        like: the parameter.
        is_on: whether its slots are in codes.
    """

    codec: Codec
    kind: str
    number: int
    names: Sequence[str]
    like: Tensor
    is_on: bool

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """What is stored of a slot; the slot itself, of a parameter that has none in codes."""
        codec, p = self.codec, self.like
        if not self.is_on:
            return dict(zip(self.names, (x, *codec.empty(x.device)), strict=True))
        reals = torch.view_as_real(x) if x.is_complex() else x
        return dict(zip(self.names, encoded_by(codec, reals, self.kind, 0, self.number, like=p), strict=True))

    def taken(self, parts: Sequence[Any]) -> dict[str, Tensor]:
        """What is stored in a checkpoint, if that is what would be stored here; else nothing."""
        codec, p = self.codec, self.like
        if not isinstance(codec, Blockwise) or not self.is_on or not all(isinstance(x, Tensor) for x in parts):
            return {}
        shape = reals_of(p)
        if tuple(tuple(x.shape) for x in parts) != codec.shapes(shape):
            return {}
        codes, scale = parts
        # The length of the blocks is that of the codec, by the shapes, or makes no difference.
        found, kind = codec_of(codes, scale, shape)
        if (found.bits, kind) != (codec.bits, self.kind):
            return {}
        return {name: spread_as(x, p) if is_sharded(p) else whole(x) for name, x in zip(self.names, parts, strict=True)}


# By the name of a slot that may be in codes.
Encoders: TypeAlias = Mapping[str, Encoder]


def encoders(transform: Transform, names: Mapping[Path, str], start: Mapping[str, Tensor], p: Tensor) -> Encoders:
    """Of the slots that a parameter may keep in codes, under these names; if it were not spread, it would start so."""
    found: dict[str, Encoder] = {}
    for path, form in nested(transform):
        coding = getattr(form, "coding", None)
        if coding is None:
            continue
        for number, (slot, kind, _) in enumerate(coding.slots):
            name = names.get((*path, slot))
            if name is not None and kind is not None:
                own = [names[(*path, slot + ending)] for ending in coding.codec.parts]
                is_on = coding.is_coded(kind, start[name]) and coding.takes(p)
                found[name] = Encoder(coding.codec, kind, number, own, p, is_on)
    return found


def encoded(slots: Mapping[str, Any], stored: Mapping[str, Sequence[Any]], encoders: Encoders) -> dict[str, Any]:
    """The slots of a parameter as it keeps them.

    Args:
        slots: without codes.
        stored: of some, what the checkpoint has in codes.
        encoders: of those that it may keep in codes.
    """
    found = dict(slots)
    for name, encode in encoders.items():
        if isinstance(slots.get(name), Tensor):
            found.update(encode.taken(stored.get(name, ())) or encode(slots[name]))
    return found


def scales_of(names: Iterable[str]) -> set[str]:
    """Those that are scales of others."""
    known = set(names)
    return {name for name in known if name.endswith(SCALE) and name.removesuffix(SCALE) in known}
