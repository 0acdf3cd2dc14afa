"""The text of a kernel for rules with coded slots, in C++: block after block is decoded, stepped, and encoded, in place.

A block's scale has to be known before it is encoded. So new slots of the last few blocks lie in a buffer in between, which is
small enough for the fastest cache. Beside each part of a block that is stepped, a part of one is encoded whose largest number was
found before: while the processor divides and takes roots it has time for that. Largest numbers are found lane by lane, as whole
numbers, which compare as the floats do, with NaN above all, and at a third of the cost. Loops are plain ones, of which compilers
make the processor's vectors; nothing is included that takes long to read.

Compiled by Inductor, it was three loops, each of which read its numbers, and divided for its scale, anew for every vector.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from functional_optim.codecs import BLOCK, LANES, POSITIVE
from functional_optim.numerics import LOW

from ..prologue import NotElementwise, Prologue
from ..stages import Dtypes
from ..stand_ins import Node
from ..trace import Traced
from .cpp_codes import (
    BEHIND,
    RING,
    TYPES,
    WIDTH,
    Kept,
    Slot,
    codes_of,
    decoding,
    encoding,
    finished,
    functions,
    head,
    raised,
    scaled,
)
from .forms import LIBRARY, LIBRARY_OF_TWO, OPERATORS, Language, written

# Of so many elements is a tile, which a thread takes at once, but of no fewer blocks than FEWEST: it steps the first ones alone.
# Blocks that are longer than LONGEST have no place on a stack.
TILE, FEWEST, LONGEST = 1 << 13, 8, 1 << 13

# How many elements are taken for a block where none is in codes.
PLAIN = 128

# Bytes of a line of the cache, and how many elements before they are stepped memory is asked for them: by itself the processor
# asks too late, since a tile is read and written by turns. Of 8 bits it saves AdamW an eighth of its time.
LINE, AHEAD = 64, 384

# From so many elements on, threads share the work.
SHARED = 1 << 15

# How compilers are to treat a kernel: roots of what is negative are NaN, without a note, and nobody asks what comparisons of NaN
# leave behind, which of several makes jumps; a product and a sum may be rounded once.
FLAGS = ("-fno-math-errno", "-fno-trapping-math", "-ftree-loop-vectorize", "-ffp-contract=fast")

# Compilers take it of some processors that vectors of half the width do better. Of these loops the wide ones take a fifth less.
WIDE = "-mprefer-vector-width=512"

# By torch's names.
FORMS: Mapping[str, str] = {
    **OPERATORS,
    **{name: f"std::{name}({{0}})" for name in LIBRARY},
    **{name: f"std::{name}({{0}}, {{1}})" for name in LIBRARY_OF_TWO},
    "abs": "std::fabs({0})",
    "clamp_max": "smaller({0}, {1})",
    "clamp_min": "larger({0}, {1})",
    "div": "{0} / {1}",
    "isfinite": "std::fabs({0}) < INFINITY",
    "isinf": "std::fabs({0}) == INFINITY",
    "maximum": "larger({0}, {1})",
    "minimum": "smaller({0}, {1})",
    "ones_like": "T(1)",
    "reciprocal": "T(1) / {0}",
    "relu": "larger({0}, T(0))",
    "round": "std::nearbyint({0})",
    "rsqrt": "T(1) / std::sqrt({0})",
    "sigmoid": "T(1) / (T(1) + std::exp(-{0}))",
    "sign": "T({0} > 0) - T({0} < 0)",
    "signbit": "std::copysign(T(1), {0}) < 0",
    "sqrt": "std::sqrt({0})",
    "where": "{0} ? {1} : {2}",
    "zeros_like": "T(0)",
}

# Asks memory for so many numbers.
ASKED = f"""
template <int count, typename Number> inline void asked(const Number* x) {{
    for (int i = 0; i < count; i += {LINE} / int(sizeof(Number))) __builtin_prefetch(x + i);
}}
"""

# What calls `leaf` for each.
KERNEL = """
extern "C" void kernel(int64_t leaves, const int64_t* table) {{
    for (const int64_t* own = table; own < table + leaves * {width}; own += {width})
        leaf(own[0], reinterpret_cast<T*>(own[1]), reinterpret_cast<int32_t*>(own[2]), reinterpret_cast<void* const*>(own + 3));
}}
"""


@dataclass(frozen=True)
class Text:
    """The text of a kernel.

    Attributes:
        source: defines `kernel(leaves, table)`, of how many leaves there are, and of whole numbers for each: of how many elements
            it is; the addresses of the numbers, and of where roundings start; of u, p, and of each slot, or of its codes, scales,
            and what the place of an element adds to its rounding.
        prologue: the scalars of the links to what `numbers` holds.
    """

    source: str
    prologue: Prologue


def text_of(traced: Traced, dtypes: Dtypes, slots: Sequence[Slot | Kept]) -> Text:
    """The kernel of what was traced, with slots in codes of one length of blocks, or none.

    Raises:
        NotElementwise: there is no form for an operation.
    """
    block = block_of(slots)
    if block > LONGEST:
        raise NotElementwise(f"blocks of {block} elements are too long for a kernel")
    operations, names, numbers = written(CPP, traced.inputs, traced.results)
    rule = [*operations, *_stored([names[node] for node in traced.results], slots)]
    lines = [head(dtypes.scalars), ASKED, *(functions(k, slot) for k, slot in _coded(slots))]
    lines += [
        *_tile(dtypes, slots, rule, list(numbers.values())),
        "",
        *_leaf(dtypes, slots),
        KERNEL.format(width=3 + _width(slots)),
    ]
    return Text("\n".join(lines), traced.tape.prologue(list(numbers)))


def flags() -> tuple[str, ...]:
    """How the compiler is to treat a kernel, on this processor."""
    return (*FLAGS, WIDE) if torch.backends.cpu.get_cpu_capability() == "AVX512" else FLAGS


def block_of(slots: Sequence[Slot | Kept]) -> int:
    """The length of the blocks."""
    return next((slot.codec.block for slot in slots if isinstance(slot, Slot)), PLAIN)


def _stored(results: Sequence[str], slots: Sequence[Slot | Kept]) -> Iterator[str]:
    """A line for each result, by the names that they have."""
    u, *new = results
    yield f"p[i] = v1 + {u};"
    for k, (slot, name) in enumerate(zip(slots, new, strict=True)):
        if isinstance(slot, Kept):
            yield f"s{k}[i] = {name if slot.dtype in TYPES else f'int32_t({name})'};"
            continue
        yield f"s{k}[i] = {f'std::fabs({name})' if slot.kind == POSITIVE else name};"
        yield raised(k, slot, f"largest{k}[lane]")


def _converted(node: Node, x: str) -> str:
    """What a conversion makes of a value, which goes on in the type of all."""
    dtype = node.args[1]
    if dtype not in TYPES:
        raise NotElementwise(f"a rule converts to {dtype}, which {CPP.kernels} don't know")
    is_low = dtype in LOW
    return f"{TYPES[dtype]}::rounded({x})" if is_low else f"T({TYPES[dtype]}({x}))"


def _constant(x: float) -> str:
    x = float(x)
    return f"T({x!r})" if math.isfinite(x) else "T(NAN)" if x != x else f"T({'-' if x < 0 else ''}INFINITY)"


def _line(node: Node, name: str, expression: str) -> str:
    kind = "T" if node.wide or node.op == "to" else "bool"
    return f"const {kind} {name} = {expression};"


CPP = Language("kernels for coded slots", FORMS, "T", "T({0})", _constant, _converted, _line)


def _tile(dtypes: Dtypes, slots: Sequence[Slot | Kept], rule: Sequence[str], numbers: Sequence[str]) -> Iterator[str]:
    """The function that steps some blocks, and with each encodes one that was stepped before.

    Before the first are none: what is encoded then goes nowhere, since a loop without conditions is faster.
    """
    block, columns, coded = block_of(slots), _columns(slots), _coded(slots)
    width = min(block, WIDTH)
    taken = "int64_t first, int64_t last, int length, const T* numbers, const int32_t* starts, void* const* columns"
    yield f"static void tile({taken}) {{"
    for i, name in enumerate(numbers):
        yield f"    const T {name} = numbers[{i}];"
    for k, slot in coded:
        yield f"    alignas(64) float buffer{k}[{RING * block}] = {{}};"
        yield f"    {slot.type} nowhere{k}[{block * slot.codec.bits // 8}];"
        yield f"    float* const scales{k} = static_cast<float*>(columns[{columns[k] + 1}]);"
        yield f"    float factors{k}[{_rows(block)}];"
        yield from (f"    {line}" for line in scaled(k, slot))
    yield "    for (int64_t row = first; row < last; row++) {"
    yield f"        const int64_t done = row - {BEHIND};"
    yield "        const bool is_early = done < first;"
    yield "        const int64_t known = is_early ? row : done;"
    yield from (f"        {line}" for line in _begun(dtypes, slots))
    for turn, (k, slot) in enumerate(coded):
        yield f"        {slot.type}* __restrict found{k} = is_early ? nowhere{k} : {codes_of(columns[k], slot, 'done')};"
        yield from (f"        {line}" for line in finished(k, turn, columns[k], slot))
    yield f"        for (int start = 0; start < {block}; start += {width}) {{"
    yield from (f"            {line}" for line in _stepping(slots, rule, width))
    for k, slot in coded:
        yield from (f"            {line}" for line in encoding(k, slot))
    yield "        }"
    yield from (f"        {line}" for line in _scales(slots))
    yield "    }"
    yield f"    for (int64_t done = last - first < {BEHIND} ? first : last - {BEHIND}; done < last; done++) {{"
    yield "        const int64_t known = done;"
    for turn, (k, slot) in enumerate(coded):
        yield f"        {slot.type}* __restrict found{k} = {codes_of(columns[k], slot, 'done')};"
        yield from (f"        {line}" for line in finished(k, turn, columns[k], slot))
        yield f"        for (int start = 0; start < {block}; start += {width}) {{"
        yield from (f"            {line}" for line in encoding(k, slot))
        yield "        }"
    yield "    }"
    yield "}"


def _begun(dtypes: Dtypes, slots: Sequence[Slot | Kept]) -> Iterator[str]:
    """The lines that say where the numbers of a block are, and decode it."""
    block, columns = block_of(slots), _columns(slots)
    kept = [(f"s{k}", columns[k], slot.type) for k, slot in enumerate(slots) if isinstance(slot, Kept)]
    for name, column, kind in [("u", 0, TYPES[dtypes.update]), ("p", 1, TYPES[dtypes.param]), *kept]:
        yield f"{kind}* __restrict {name} = static_cast<{kind}*>(columns[{column}]) + row * {block};"
    for k, slot in _coded(slots):
        yield from decoding(k, columns[k], slot)


def _stepping(slots: Sequence[Slot | Kept], rule: Sequence[str], width: int) -> Iterator[str]:
    """The lines that step a part of a block."""
    yield from _asking(slots, width)
    yield f"for (int part = start; part < start + {width}; part += {LANES}) {{"
    yield "    #pragma omp simd"
    yield f"    for (int lane = 0; lane < {LANES}; lane++) {{"
    yield "        const int i = part + lane;"
    yield "        const T v0 = u[i], v1 = p[i];"
    for k, slot in enumerate(slots):  # Vectors go from bytes to floats by way of whole numbers.
        is_whole = isinstance(slot, Kept) and slot.dtype not in TYPES
        yield f"        const T v{k + 2} = {f'int32_t(s{k}[i])' if is_whole else f's{k}[i]'};"
    yield from (f"        {line}" for line in rule)
    yield "    }"
    yield "}"


def _scales(slots: Sequence[Slot | Kept]) -> Iterator[str]:
    """The lines that write the scales of a block that was stepped."""
    block, coded = block_of(slots), _coded(slots)
    yield f"if (length < {block}) {{"  # What a rule makes of zeros that fill up a block is none of the parameter's.
    for k, slot in coded:
        yield f"    for (int lane = 0; lane < {LANES}; lane++) largest{k}[lane] = 0;"
        yield f"    for (int i = length; i < {block}; i++) s{k}[i] = 0;"
        yield f"    for (int i = 0; i < length; i++) {raised(k, slot, f'largest{k}[0]')}"
    yield "}"
    for k, _ in coded:
        yield f"scales{k}[row] = bits<float>(overall(largest{k}));"


def _leaf(dtypes: Dtypes, slots: Sequence[Slot | Kept]) -> Iterator[str]:
    """The function that steps all blocks of a leaf."""
    block = block_of(slots)
    rows = _rows(block)
    yield "static void leaf(int64_t count, const T* numbers, const int32_t* starts, void* const* columns) {"
    yield f"    const int64_t rows = count / {block}, rest = count % {block};"
    yield f"    #pragma omp parallel for if (count >= {SHARED})"
    yield f"    for (int64_t first = 0; first < rows; first += {rows})"
    yield f"        tile(first, first + {rows} < rows ? first + {rows} : rows, {block}, numbers, starts, columns);"
    yield from (f"    {line}" for line in _last(dtypes, slots))
    yield "}"


def _rows(block: int) -> int:
    """How many blocks are a tile."""
    return max(TILE // block, FEWEST)


def _coded(slots: Sequence[Slot | Kept]) -> list[tuple[int, Slot]]:
    """Those in codes, and which ones they are."""
    return [(k, slot) for k, slot in enumerate(slots) if isinstance(slot, Slot)]


def _asking(slots: Sequence[Slot | Kept], width: int) -> Iterator[str]:
    """The lines that ask memory for what is stepped later on."""
    yield f"asked<{width}>(u + start + {AHEAD});"
    yield f"asked<{width}>(p + start + {AHEAD});"
    for k, slot in enumerate(slots):
        if isinstance(slot, Kept):
            yield f"asked<{width}>(s{k} + start + {AHEAD});"
        else:
            each = 8 // slot.codec.bits
            yield f"asked<{width // each}>(codes{k} + (start + {AHEAD}) / {each});"


def _last(dtypes: Dtypes, slots: Sequence[Slot | Kept]) -> Iterator[str]:
    """The lines for the last block, which is filled up with zeros; codes of 4 bits are stored filled up."""
    block, rows = block_of(slots), list(zip(_columns(slots), slots, strict=True))
    cut = {0: TYPES[dtypes.update], 1: TYPES[dtypes.param]}
    cut |= {column: slot.type for column, slot in rows if isinstance(slot, Kept) or slot.codec.bits == 8}
    turns = [f"int32_t(starts[{turn}] + rows * {BLOCK})" for turn, _ in enumerate(_coded(slots))]
    yield "if (rest == 0) return;"
    yield f"const int32_t turns[] = {{{', '.join(turns or '0')}}};"
    for i, kind in cut.items():
        yield f"{kind}* const all{i} = static_cast<{kind}*>(columns[{i}]) + rows * {block};"
        yield f"{kind} full{i}[{block}] = {{}};"
        yield f"std::memcpy(full{i}, all{i}, rest * sizeof({kind}));"
    own = ["full0", "full1"]
    for column, slot in rows:
        own.append(f"full{column}" if column in cut else f"static_cast<uint8_t*>(columns[{column}]) + rows * {block // 2}")
        own += [f"static_cast<float*>(columns[{column + 1}]) + rows", f"columns[{column + 2}]"] * isinstance(slot, Slot)
    yield f"void* const last[] = {{{', '.join(own)}}};"
    yield "tile(0, 1, rest, numbers, turns, last);"
    yield from (f"std::memcpy(all{i}, full{i}, rest * sizeof({kind}));" for i, kind in cut.items() if i)


def _columns(slots: Sequence[Slot | Kept]) -> list[int]:
    """Which column is the first one of each slot."""
    return [_width(slots[:k]) for k in range(len(slots))]


def _width(slots: Sequence[Slot | Kept]) -> int:
    """How many columns u, p and these slots are."""
    return 2 + sum(3 if isinstance(slot, Slot) else 1 for slot in slots)
