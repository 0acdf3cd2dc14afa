"""Coded slots on their way in and out of checkpoints: any optimizer loads what any other keeps, in codes or not.

What is coded in a checkpoint is decoded, and what this optimizer keeps in codes is encoded again; codes that were made by the
same codec are the same afterwards.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from functional_optim.codecs import Blockwise, codec_of
from functional_optim.form import Path, nested
from functional_optim.transform import Transform

SCALE = Blockwise.parts[1]

# By the name of a slot, what makes its parts of a tensor, by their names.
Encoders = Mapping[str, Callable[[Tensor], dict[str, Tensor]]]


def decoded(slots: Mapping[str, Any], p: Tensor) -> dict[str, Any]:
    """The slots of a parameter in a checkpoint, without codes."""
    found = dict(slots)
    for name in slots:
        codes, scale = slots[name], slots.get(name + SCALE)
        if isinstance(codes, Tensor) and isinstance(scale, Tensor):
            del found[name + SCALE]
            if scale.numel() and codes.dtype in (torch.int8, torch.uint8):
                shape = (*p.shape, 2) if p.is_complex() else p.shape
                codec, kind = codec_of(codes, scale, torch.Size(shape).numel())
                reals = codec.decode((codes, scale), kind, shape)
                found[name] = torch.view_as_complex(reals) if p.is_complex() else reals
    return found


def encoders(transform: Transform, names: Mapping[Path, str], start: Mapping[str, Tensor], *, is_sharded: bool) -> Encoders:
    """Of the slots that a parameter keeps in codes, under these names; it would start with this state. One that is spread over
    processes keeps them as they are, and further parts empty.
    """
    found: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {}
    for path, form in nested(transform):
        coding = getattr(form, "coding", None)
        if coding is None:
            continue
        for number, (slot, kind, _) in enumerate(coding.slots):
            name = names.get((*path, slot))
            if name is None or not coding.is_coded(kind, start[name]):
                continue
            own = [names[(*path, slot + ending)] for ending in coding.codec.parts]

            def encode(x: Tensor, codec=coding.codec, kind=kind, number=number, own=own) -> dict[str, Tensor]:
                if is_sharded:
                    return dict(zip(own, (x, *codec.empty(x.device)), strict=True))
                reals = torch.view_as_real(x) if x.is_complex() else x
                return dict(zip(own, codec.encode(reals, kind, 0, number), strict=True))

            found[name] = encode
    return found


def encoded(slots: Mapping[str, Any], encoders: Encoders) -> dict[str, Any]:
    """The slots of a parameter as it keeps them."""
    found = dict(slots)
    for name, encode in encoders.items():
        if isinstance(slots.get(name), Tensor):
            found.update(encode(slots[name]))
    return found


def scales_of(names: Iterable[str]) -> set[str]:
    """Those that are scales of others."""
    known = set(names)
    return {name for name in known if name.endswith(SCALE) and name.removesuffix(SCALE) in known}
