"""Rules with coded slots as one kernel: it decodes a stretch of blocks, steps, and encodes, in place.

Within is what `kernels` compiles for the rules without codes, between the codec's own decoder and encoder. A row of a view is a
block; what has to be known of a whole block, its scale, makes the compiler keep new slots of a stretch, which are in the cache.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import inductor, torch_internals, trees
from functional_optim.codecs import Blockwise, offset
from functional_optim.lifting import widened
from functional_optim.transform import Transform

from ..prologue import Prologue
from ..route import Link, structure_of
from ..stages import Dtypes
from ..trace import trace
from .kernels import SETTINGS, body_of, numbers_of, symbol, vector_of

# Blocks of a stretch, as the tracer is told; no length that a constant might have.
TYPICAL_ROWS = 2053

_kernels: dict[Any, "CodedKernel"] = {}


@dataclass(frozen=True, eq=False)
class CodedKernel:
    """A compiled run of links with coded slots.

    Attributes:
        prologue: the scalars of the links without codes to the kernel's numbers.
        compiled: `[rows, numbers, starts, u, p, *stored]`, of 1-D tensors of whole blocks; writes where they are.
        dtype: of the numbers.
        forms: of the links, kept for the cache.
    """

    prologue: Prologue
    compiled: Any
    dtype: torch.dtype
    forms: Sequence[Any]

    def vector(self, scalars: Sequence[Any], device: torch.device) -> Tensor:
        """The numbers."""
        return vector_of(numbers_of(self.prologue, trees.leaves(list(scalars))), self.dtype, device)

    def starts(self, links: Sequence[Link], scalars: Sequence[Any]) -> Tensor:
        """Where the rounding of each slot is in its turn, in this step."""
        found = [
            offset(t[0], number) if codec else 0.0
            for link, (_, t, _) in zip(links, scalars, strict=True)
            for codec, _, number, _ in _slots_of(link)
        ]
        return torch.tensor([float(x) for x in found], dtype=torch.float32, device="cpu")


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
    links: Sequence[Link], stored: Sequence[torch.dtype], dtypes: tuple[torch.dtype, torch.dtype], scalars: Sequence[Any]
) -> CodedKernel:
    """The kernel of some elementwise links, for host tensors whose coded slots are in codes, compiled at its first use.

    Args:
        links: in order; what they do with the parameter is the end of the step.
        stored: the dtypes of all that is stored.
        dtypes: of the update and the parameter.
        scalars: such as it will get, of each link.
    """
    key = (structure_of(links), tuple(stored), dtypes, trees.flatten(list(scalars))[1])
    with inductor.lock:
        if key not in _kernels:
            _kernels[key] = _compiled(links, stored, dtypes, scalars)
        return _kernels[key]


def _compiled(links: Sequence[Link], stored: Sequence[torch.dtype], dtypes: Any, scalars: Sequence[Any]) -> CodedKernel:
    inner, slots = plain(links), [kept for link in links for kept in _slots_of(link)]
    (block,) = {codec.block for codec, *_ in slots if codec}
    parts, wide = iter(stored), []
    for codec, _, _, count in slots:
        own = [next(parts) for _ in range(count)]
        wide.append(torch.float32 if codec else own[0])
    known = Dtypes(dtypes[0], dtypes[1], tuple(wide))
    body = body_of(trace(inner, plain_scalars(links, scalars), known, asks=False))

    def run(rows: Any, vector: Tensor, starts: Tensor, u: Tensor, p: Tensor, *given: Tensor) -> list[Tensor]:
        del rows
        left, old = iter(given), []
        for codec, kind, _, count in slots:
            own = [next(left) for _ in range(count)]
            old.append(codec.decode(own, kind, u.shape) if codec else own[0])
        new_u, *new = body.run(vector, u, p, *old)
        left = iter(given)
        for i, (value, (codec, kind, _, count)) in enumerate(zip(new, slots, strict=True)):
            own = [next(left) for _ in range(count)]
            parts = codec.encode_at(value, kind, starts[i]) if codec else [value]
            for target, part in zip(own, parts, strict=True):
                target.copy_(part)
        p.copy_((widened(p) + new_u).to(p.dtype))
        return []

    def traced() -> inductor.Traced:
        mode = torch_internals.FakeTensorMode(shape_env=torch_internals.ShapeEnv())
        rows = symbol(mode, TYPICAL_ROWS)
        with mode:
            tensors = [torch.empty(rows * block, dtype=dtype, device="cpu") for dtype in dtypes]
            left = iter(stored)
            for codec, _, _, _ in slots:
                codes, bits = next(left), codec.bits if codec else 8
                shape = (rows * block,) if bits == 8 else (rows, block // 2)
                tensors.append(torch.empty(shape, dtype=codes, device="cpu"))
                tensors += [torch.empty(rows, dtype=next(left), device="cpu")] if codec else []
            vector = torch.empty(max(len(body.prologue.outputs), 1), dtype=known.scalars, device="cpu")
            starts = torch.empty(len(slots), dtype=torch.float32, device="cpu")
            inputs = [rows, vector, starts, *tensors]
            graph = torch_internals.make_fx(run, decomposition_table=torch_internals.select_decomp_table())(*inputs)
        return graph, inputs, mode

    compiled = inductor.lowered(traced, SETTINGS, is_kernel=True)
    return CodedKernel(body.prologue, compiled, known.scalars, [link.form for link in links])


def _slots_of(link: Link) -> list[tuple[Blockwise | None, str, int, int]]:
    """Of each slot of a link's rule: its codec, if it has one, the kind of codes, its number, and in how many parts it is."""
    coding = link.form.coding
    if coding is None:
        return [(None, "", i, 1) for i in range(len(link.slots))]
    codec = coding.codec
    assert isinstance(codec, Blockwise)
    return [(codec if kind else None, kind or "", i, count) for i, (_, kind, count) in enumerate(coding.slots)]
