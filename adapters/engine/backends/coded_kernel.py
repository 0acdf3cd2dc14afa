"""Rules with coded slots as one kernel: it decodes a block, steps, and encodes it, in place.

Within is what `kernels` compiles for the rules without codes, between the codec's own decoder and encoder. A row is a block. Its
scale has to be known before it is encoded; the compiler puts the loop that finds it and the one that needs it inside one loop
over rows, with the new slots of a row between them. It does so where all loops have the same two lengths and nothing is written
that is also read. Hence three things below: rows of parameters may lie apart, so that they are not taken for one long row; codes
are written to what passes for other tensors; and scales are returned. A kernel is tried before it is used.
"""

import dataclasses
from collections.abc import Callable, Sequence
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

# How many blocks there are, and how far apart those of the parameter are, as the tracer is told; no constants have these values.
TYPICAL_ROWS, TYPICAL_STRIDE = 2053, 4099

# How many a kernel is tried on.
TRIED_ROWS = 37

LOW = torch.bfloat16, torch.float16

_kernels: dict[Any, "CodedKernel"] = {}


@dataclass(frozen=True, eq=False)
class CodedKernel:
    """A compiled run of links with coded slots.

    Attributes:
        prologue: the scalars of the links without codes to the kernel's numbers.
        compiled: `[rows, numbers, starts, u, p, *places, *stored, *codes, stride] -> scales`, of whole blocks as rows, those of p
            so far apart; writes p and codes.
        places: for the rounding of each slot.
        block: how many elements are one.
        dtype: of the numbers.
        forms: of the links, kept for the cache.
    """

    prologue: Prologue
    compiled: Any
    places: Sequence[Tensor]
    block: int
    dtype: torch.dtype
    forms: Sequence[Any]

    def vector(self, scalars: Sequence[Any], device: torch.device) -> Tensor:
        """The numbers."""
        return vector_of(numbers_of(self.prologue, trees.leaves(list(scalars))), self.dtype, device)

    def starts(self, links: Sequence[Link], scalars: Sequence[Any]) -> Tensor:
        """Where the rounding of each slot is in its turn, in this step."""
        found = [offset(t[0], number) for link, (_, t, _) in zip(links, scalars, strict=True) for _, _, number in _slots_of(link)]
        return torch.tensor([int(x) for x in found], dtype=torch.int32, device="cpu")

    def __call__(self, vector: Tensor, starts: Tensor, u: Tensor, p: Tensor, stored: Sequence[Tensor]) -> None:
        """Step whole blocks: an update and a parameter that are dense, and what is stored of the slots."""
        u, p = u.view(-1, self.block), p.view(-1, self.block)
        stored = [x.view(len(p), -1) if i % 2 == 0 else x.view(-1) for i, x in enumerate(stored)]
        scales = self.compiled([len(p), vector, starts, u, p, *self.places, *stored, *stored[::2], self.block])
        for old, new in zip(stored[1::2], scales, strict=True):
            old.copy_(new)


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
    slots = [kept for link in links for kept in _slots_of(link)]
    (block,) = {codec.block for codec, _, _ in slots}
    known = Dtypes(dtypes[0], dtypes[1], (torch.float32,) * len(slots))
    body = body_of(trace(plain(links), plain_scalars(links, scalars), known, asks=False))

    count, host = len(slots), torch.device("cpu")

    def run(rows: Any, vector: Tensor, starts: Tensor, u: Tensor, p: Tensor, *given: Any) -> list[Tensor]:
        del rows
        places, old, targets = given[:count], given[count : 3 * count], given[3 * count : 4 * count]
        decoded = [codec.decode_rows(old[2 * i], old[2 * i + 1], kind) for i, (codec, kind, _) in enumerate(slots)]
        new_u, *new = body.run(vector, u, p, *decoded)
        new_p = (widened(p) + new_u).to(p.dtype)
        encoded = [
            codec.encode_rows(x, kind, starts[i], places[i])
            for i, (x, (codec, kind, _)) in enumerate(zip(new, slots, strict=True))
        ]
        p.copy_(new_p)
        for target, (codes, _) in zip(targets, encoded, strict=True):
            target.copy_(codes)
        return [scale for _, scale in encoded]

    def inputs(rows: Any, stride: Any) -> list[Any]:
        def zeros(*shape: Any, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=host)

        sizes = [block * codec.bits // 8 for codec, _, _ in slots]
        codes = [zeros(rows, size, dtype=dtype) for size, dtype in zip(sizes, stored[::2], strict=True)]
        parts = [part for each in codes for part in (each, zeros(rows, dtype=torch.float32))]
        vector, u = zeros(max(len(body.prologue.outputs), 1), dtype=known.scalars), zeros(rows, block, dtype=dtypes[0])
        p = torch.empty_strided((rows, block), (stride, 1), dtype=dtypes[1], device=host)
        starts, places = zeros(count, dtype=torch.int32), [zeros(block, dtype=torch.int32) for _ in slots]
        return [rows, vector, starts, u, p, *places, *parts, *map(torch.empty_like, codes), stride]

    def traced() -> inductor.Traced:
        mode = torch_internals.FakeTensorMode(shape_env=torch_internals.ShapeEnv())
        rows, stride = symbol(mode, TYPICAL_ROWS), symbol(mode, TYPICAL_STRIDE)
        with mode:
            made = inputs(rows, stride)
            graph = torch_internals.make_fx(run, decomposition_table=torch_internals.select_decomp_table())(*made)
        return graph, made, mode

    compiled = inductor.lowered(traced, SETTINGS, is_kernel=True)
    places = [codec.places(kind, host) for codec, kind, _ in slots]
    kernel = CodedKernel(body.prologue, compiled, places, block, known.scalars, [link.form for link in links])
    _try_out(kernel, run, inputs, kernel.vector(plain_scalars(links, scalars), host))
    return kernel


def _try_out(kernel: CodedKernel, run: Callable[..., Any], inputs: Callable[..., list[Any]], vector: Tensor) -> None:
    """Raise RuntimeError unless a kernel computes what its own operations do, on some blocks."""
    generator = torch.Generator("cpu").manual_seed(0)
    made = inputs(TRIED_ROWS, kernel.block)
    made[1], count = vector, len(kernel.places)
    end = 5 + 3 * count  # places, and what is stored
    for x in made[3:5] + made[5 + count : end]:
        drawn = torch.rand(x.shape, generator=generator, device="cpu")
        x.copy_(drawn + 0.5 if x.ndim == 1 else drawn - 0.5 if x.is_floating_point() else drawn * 100)
    made[5 : 5 + count] = kernel.places
    found, expected = ([x.clone() if isinstance(x, Tensor) else x for x in made] for _ in range(2))
    for own in (found, expected):
        own[end:-1] = own[5 + count : end : 2]
    scales = [list(kernel.compiled(list(found))), run(*expected)]
    for x, y in [(found[4], expected[4]), *zip(*scales, strict=True)]:
        if not torch.allclose(x, y, rtol=1e-2 if x.dtype in LOW else 1e-4, atol=1e-6):
            raise RuntimeError("the compiled step in codes computes something else.")
    for x, y in zip(found[end:-1], expected[end:-1], strict=True):
        if (x != y).double().mean() > 0.01:  # Rounding before the codes may differ.
            raise RuntimeError("the compiled step in codes makes other codes.")


def _slots_of(link: Link) -> list[tuple[Blockwise, str, int]]:
    """Of each slot of a link's rule, all of which are coded: its codec, the kind of codes, and its number."""
    coding = link.form.coding
    if coding is None:
        return []
    codec = coding.codec
    assert isinstance(codec, Blockwise)
    return [(codec, kind, i) for i, (_, kind, _) in enumerate(coding.slots) if kind]
