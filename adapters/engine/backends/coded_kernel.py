"""Rules with coded slots as one kernel: it decodes a block, steps, and encodes it, in place; see `cpp_code`.

A kernel is tried before it is used, beside what the codec and the rules' own operations do.
"""

import ctypes
import dataclasses
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import inductor, trees
from functional_optim.codecs import Blockwise, offset
from functional_optim.lifting import widened
from functional_optim.numerics import LOW
from functional_optim.transform import Transform

from ..prologue import Prologue
from ..route import Link, stored_of, structure_of
from ..stages import Dtypes
from ..trace import trace
from .cpp_code import block_of, flags, text_of
from .cpp_codes import Kept, Slot
from .kernels import Body, body_of, numbers_of, vector_of

# How many blocks a kernel is tried on.
TRIED_ROWS = 37

_kernels: dict[Any, "CodedKernel"] = {}


@dataclass(frozen=True, eq=False)
class CodedKernel:
    """A compiled run of links with coded slots.

    Attributes:
        prologue: the scalars of the links without codes to the kernel's numbers.
        function: in C++, of the number of leaves, and of a table.
        places: for the rounding of each slot; None for one that is stored as it is.
        counts: in how many parts each slot is stored; of those that are stored as they are the first one holds all.
        block: how many elements are one.
        dtype: of the numbers.
        forms: of the links, kept for the cache.
    """

    prologue: Prologue
    function: Any
    places: Sequence[Tensor | None]
    counts: Sequence[int]
    block: int
    dtype: torch.dtype
    forms: Sequence[Any]

    def numbers(self, links: Sequence[Link], scalars: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """What it takes in a step: the links' numbers, and where the rounding of each slot is in its turn."""
        turns = [(t, i) for link, (_, t, _) in zip(links, scalars, strict=True) for i, _ in enumerate(stored_of(link))]
        found = [offset(t[0], i) for (t, i), places in zip(turns, self.places, strict=True) if places is not None]
        starts = torch.tensor([int(x) for x in found], dtype=torch.int32, device="cpu")
        return self.vector(plain_scalars(links, scalars)), starts

    def vector(self, scalars: Sequence[Any]) -> Tensor:
        """The numbers of links without codes."""
        return vector_of(numbers_of(self.prologue, trees.leaves(list(scalars))), self.dtype, torch.device("cpu"))

    def __call__(self, leaves: Sequence[Sequence[Tensor]]) -> None:
        """Step parameters and what is stored of their slots, in place.

        Args:
            leaves: of each the numbers, where roundings start, u, p, and what is stored; all are dense.
        """
        table = array("q")
        for vector, starts, u, p, *stored in leaves:
            columns, rest = [vector, starts, u, p], iter(stored)
            for places, count in zip(self.places, self.counts, strict=True):
                parts = [next(rest) for _ in range(count)]
                columns += parts[:1] if places is None else [*parts, places]
            table.append(u.numel())
            table.extend([x.data_ptr() for x in columns])
        self.function(len(leaves), table.buffer_info()[0])


def plain(links: Sequence[Link]) -> list[Link]:
    """The same links without codes."""
    return [
        link
        if link.form.coding is None
        else dataclasses.replace(
            link, transform=Transform.of(link.form.coding.inner, link.transform.declared, link.transform.name)
        )
        for link in links
    ]


def plain_scalars(links: Sequence[Link], scalars: Sequence[Any]) -> list[Any]:
    """The scalars of links without codes: those that count for a codec's sake get no step."""
    return [
        (hp, t if link.form.coding is None or link.form.coding.inner.counts else (), reduced)
        for link, (hp, t, reduced) in zip(links, scalars, strict=True)
    ]


def coded_kernel(
    links: Sequence[Link], dtypes: tuple[torch.dtype, torch.dtype], kept: Sequence[torch.dtype | None], scalars: Sequence[Any]
) -> CodedKernel:
    """The kernel of some elementwise links, for host tensors, compiled at its first use.

    Args:
        links: in order; what they do with the parameter is the end of the step.
        dtypes: of the update and the parameter.
        kept: those of the slots that are stored as they are; None for each in codes.
        scalars: such as it will get, of each link.
    """
    key = (structure_of(links), dtypes, tuple(kept), trees.flatten(list(scalars))[1])
    with inductor.lock:
        if key not in _kernels:
            _kernels[key] = _compiled(links, dtypes, kept, scalars)
        return _kernels[key]


def _compiled(
    links: Sequence[Link], dtypes: tuple[torch.dtype, torch.dtype], kept: Sequence[torch.dtype | None], scalars: Sequence[Any]
) -> CodedKernel:
    each, host = [(link, *stored) for link in links for stored in stored_of(link)], torch.device("cpu")
    slots = [Kept(dtype) if dtype else _slot(link, kind) for (link, kind, _), dtype in zip(each, kept, strict=True)]
    stored = tuple(slot.dtype if isinstance(slot, Kept) else torch.float32 for slot in slots)
    known, numbers = Dtypes(*dtypes, stored), plain_scalars(links, scalars)
    traced = trace(plain(links), numbers, known, asks=False)
    text = text_of(traced, known, slots)
    function = inductor.function(text.source, [ctypes.c_int64, ctypes.c_void_p], flags())
    places = [None if isinstance(slot, Kept) else slot.codec.places(slot.kind, host) for slot in slots]
    counts, forms = [count for _, _, count in each], [link.form for link in links]
    kernel = CodedKernel(text.prologue, function, places, counts, block_of(slots), known.scalars, forms)
    _try_out(kernel, body_of(traced), slots, dtypes, numbers)
    return kernel


def _try_out(
    kernel: CodedKernel,
    body: Body,
    slots: Sequence[Slot | Kept],
    dtypes: tuple[torch.dtype, torch.dtype],
    scalars: Sequence[Any],
) -> None:
    """Raise RuntimeError unless a kernel computes what the codec and the links' own operations do, on some blocks."""
    generator = torch.Generator("cpu").manual_seed(0)

    def drawn(shift: float, dtype: torch.dtype) -> Tensor:
        found = torch.rand(TRIED_ROWS, kernel.block, generator=generator, device="cpu") + shift
        return (found if dtype.is_floating_point else found * 100).to(dtype)

    def coded(slot: Slot, x: Tensor, i: int) -> tuple[Tensor, ...]:
        places = kernel.places[i]
        assert places is not None
        return slot.codec.encode_rows(x.float(), slot.kind, starts[turns[i]], places)

    turns = {i: turn for turn, i in enumerate(i for i, slot in enumerate(slots) if isinstance(slot, Slot))}
    starts = torch.arange(len(turns), dtype=torch.int32, device="cpu") * 1000
    u, p = (drawn(-0.5, dtype) for dtype in dtypes)
    empty = torch.empty(0, device="cpu")
    old = [
        (drawn(0.0, slot.dtype), *[empty] * (kernel.counts[i] - 1))
        if isinstance(slot, Kept)
        else coded(slot, drawn(0.5, torch.float32), i)
        for i, slot in enumerate(slots)
    ]
    opened = [
        parts[0] if isinstance(slot, Kept) else slot.codec.decode_rows(*parts[:2], kind=slot.kind)
        for slot, parts in zip(slots, old, strict=True)
    ]
    found, stored = p.clone(), [x.clone() for parts in old for x in parts]
    kernel([(kernel.vector(scalars), starts, u, found, *stored)])
    vector = vector_of(numbers_of(body.prologue, trees.leaves(list(scalars))), kernel.dtype, u.device)
    new_u, *new = body.run(vector, u, p, *opened)
    expected = [(widened(p) + new_u).to(p.dtype)]
    for i, (slot, x) in enumerate(zip(slots, new, strict=True)):
        expected += [x.to(slot.dtype), *old[i][1:]] if isinstance(slot, Kept) else coded(slot, x, i)
    for x, y in zip([found, *stored], expected, strict=True):
        if x.is_floating_point():
            is_same = torch.allclose(x, y, rtol=1e-2 if x.dtype in LOW else 1e-4, atol=1e-6)
        else:  # Rounding before the codes may differ.
            is_same = (x != y).double().mean() <= 0.01
        if not is_same:
            raise RuntimeError("the compiled step in codes computes something else.")


def _slot(link: Link, kind: str | None) -> Slot:
    """How a slot of a link is in codes."""
    coding = link.form.coding
    assert coding is not None and isinstance(coding.codec, Blockwise) and kind is not None
    return Slot(coding.codec, kind)
