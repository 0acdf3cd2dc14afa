"""The text of a kernel for rules with coded slots, in C++: a tile of blocks at a time is decoded, stepped, and encoded, in place.

A block's scale has to be known before it is encoded. So new slots of a tile, a few blocks, lie in a buffer in between, which is
small enough for the fastest cache; and there are a few blocks so that the processor has something to do while the largest number
of one is found. Largest numbers are found as whole numbers, which compare as the floats do, with NaN above all, and at a third of
the cost. Loops are plain ones, which compilers turn into the processor's vectors; nothing is included that takes long to read.

Compiled by Inductor, it was three loops, each of which read its numbers, and divided for its scale, anew for every vector.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from functional_optim.codecs import BLOCK, LANES, LARGEST, POSITIVE, SMALLEST, STEP_BITS, STEPS, Blockwise

from ..prologue import NotElementwise, Place, Prologue
from ..stages import Dtypes
from ..stand_ins import Node, Number
from ..trace import Traced, ordered
from .forms import LIBRARY, LIBRARY_OF_TWO, OPERATORS, arguments

# Of so many elements is the buffer of a slot, which holds at least a block; longer ones than this have no place on a stack.
TILE, LONGEST = 512, 1 << 14

# Elements that are stepped, or encoded, at a time: the bytes of the widest vectors.
WIDTH = 64

# Bytes of a line of the cache, and how many elements before they are stepped memory is asked for them: by itself the processor
# asks too late, since a tile is read and written by turns. Of 8 bits it saves AdamW an eighth of its time.
LINE, AHEAD = 64, 384

# From so many elements on, threads share the work.
SHARED = 1 << 15

# How compilers are to treat a kernel: roots of what is negative are NaN, without a note, and nobody asks what comparisons of NaN
# leave behind, which of several makes jumps; a product and a sum may be rounded once.
FLAGS = ("-fno-math-errno", "-fno-trapping-math", "-ftree-loop-vectorize", "-ffp-contract=fast")

TYPES = {torch.float64: "double", torch.float32: "float", torch.bfloat16: "BFloat16", torch.float16: "Half"}

# Those of slots that are stored as they are, also.
STORED = {**TYPES, torch.int8: "int8_t", torch.uint8: "uint8_t"}

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

# What comes before every kernel; `T` is what is computed in.
HEAD = """
#include <cmath>
#include <cstdint>
#include <cstring>

using T = {T};
template <typename To, typename From> inline To bits(From x) {{ To y; std::memcpy(&y, &x, sizeof(y)); return y; }}
inline T larger(T a, T b) {{ return (a > b) | (a != a) ? a : b; }}
inline T smaller(T a, T b) {{ return (a < b) | (a != a) ? a : b; }}

// To nearest, and of two that are as near to the even one, with so many bits dropped; what is not finite stays as it is.
inline float rounded(float x, int dropped) {{
    const int32_t whole = bits<int32_t>(x), even = whole + (1 << (dropped - 1)) - 1 + ((whole >> dropped) & 1);
    return std::fabs(x) < INFINITY ? bits<float>(even & -(1 << dropped)) : x;
}}

struct BFloat16 {{
    uint16_t whole;
    static float rounded(float x) {{ return ::rounded(x, 16); }}
    operator float() const {{ return bits<float>(uint32_t(whole) << 16); }}
    void operator=(float x) {{ whole = x == x ? bits<uint32_t>(rounded(x)) >> 16 : 0x7fc0; }}
}};

struct Half {{
    uint16_t whole;
    static float rounded(float x) {{
        const float found = std::fabs(x) < 0x1p-14f ? std::nearbyint(x * 0x1p24f) * 0x1p-24f : ::rounded(x, 13);
        return std::fabs(found) > 65504 ? found * INFINITY : found;
    }}
    operator float() const {{
        const float size = bits<float>((whole & 0x7fff) << 13) * 0x1p112f;
        return std::copysign(size < 65536 ? size : bits<float>((whole & 0x7fff) << 13 | 0x7f800000), whole >> 15 ? -1.f : 1.f);
    }}
    void operator=(float x) {{
        const float size = std::fabs(rounded(x));
        const int32_t found = size < INFINITY ? bits<int32_t>(size * 0x1p-112f) >> 13 : size == size ? 0x7c00 : 0x7e00;
        whole = found | (std::signbit(x) ? 0x8000 : 0);
    }}
}};

// Asks memory for so many numbers.
template <int count, typename Number> inline void asked(const Number* x) {{
    for (int i = 0; i < count; i += {line} / int(sizeof(Number))) __builtin_prefetch(x + i);
}}

// A scale without its last digits, as codecs.py has it, and what is multiplied by to decode.
inline float bounded(float x) {{ return x > {largest}f ? {largest}f : x; }}
inline float plain(float scale) {{
    return bounded(bits<float>((bits<int32_t>(scale) + 4) & -8) + {smallest}f) + (scale - scale);
}}
"""

# To and from the codes of a slot; u is what is added before bits are dropped.
CODE = """
inline float decoded{i}(int32_t code, float scale) {{
    const float size = bits<float>(((code & {largest}) << {dropped}) + {bits}) - {least}f;
    return {signed_size} * scale;
}}
inline int32_t encoded{i}(float x, float scale, int32_t u) {{
    const int32_t whole = bits<int32_t>(x), size = {size};
    const int32_t code = (bits<int32_t>(bits<float>(size) * scale + {least}f) + u) >> {dropped};
    return {finished};
}}
"""

# What calls `leaf` for each.
KERNEL = """
extern "C" void kernel(int64_t leaves, const int64_t* table) {{
    for (const int64_t* own = table; own < table + leaves * {width}; own += {width})
        leaf(own[0], reinterpret_cast<T*>(own[1]), reinterpret_cast<int32_t*>(own[2]), reinterpret_cast<void* const*>(own + 3));
}}
"""
SIGNED_PARTS = {
    "size": "whole & INT32_MAX",
    "signed_size": "bits<float>(bits<int32_t>(size) | ({signed_code} & INT32_MIN))",
    "finished": "code | ((whole >> {shift}) & {sign})",
}
POSITIVE_PARTS = {  # These come without a sign.
    "size": "whole",
    "signed_size": "size",
    "finished": "code > (size < 1 ? size : 1) ? code : (size < 1 ? size : 1)",
}


@dataclass(frozen=True)
class Slot:
    """How a slot is stored."""

    codec: Blockwise
    kind: str

    @property
    def type(self) -> str:
        """Of its codes."""
        return "uint8_t" if self.kind == POSITIVE else "int8_t"


@dataclass(frozen=True)
class Kept:
    """A slot that is stored as it is, a number for each of the parameter's."""

    dtype: torch.dtype

    @property
    def type(self) -> str:
        """Of its numbers."""
        return STORED[self.dtype]


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
    """The kernel of what was traced, with some slots in codes, of one length of blocks.

    Raises:
        NotElementwise: there is no form for an operation.
    """
    block = block_of(slots)
    if block > LONGEST:
        raise NotElementwise(f"blocks of {block} elements are too long for a kernel")
    numbers: dict[Place, str] = {}
    rule = list(_rule(traced, slots, numbers))
    head = HEAD.format(T=TYPES[dtypes.scalars], smallest=SMALLEST, largest=LARGEST, line=LINE)
    codes = "".join(_code(i, slot) for i, slot in enumerate(slots) if isinstance(slot, Slot))
    lines = _kernel(dtypes, slots, rule, list(numbers.values()))
    return Text(head + codes + "\n".join(lines) + "\n", traced.tape.prologue(list(numbers)))


def block_of(slots: Sequence[Slot | Kept]) -> int:
    """The length of the blocks of those in codes, of which there are some."""
    return next(slot.codec.block for slot in slots if isinstance(slot, Slot))


def _code(i: int, slot: Slot) -> str:
    """The functions of a slot."""
    largest, dropped, bits, least = slot.codec.format(slot.kind)
    parts = POSITIVE_PARTS if slot.kind == POSITIVE else SIGNED_PARTS
    shift = 32 - slot.codec.bits
    code = "code" if slot.codec.bits == 8 else f"(code << {shift})"  # What is read as a whole number has its sign already.
    chosen = {name: text.format(shift=shift, sign=largest + 1, signed_code=code) for name, text in parts.items()}
    return CODE.format(i=i, largest=largest, dropped=dropped, bits=bits, least=repr(least), **chosen)


def _rule(traced: Traced, slots: Sequence[Slot | Kept], numbers: dict[Place, str]) -> Iterator[str]:
    """A line for each operation on an element, and one for each result; the numbers that they take get names."""
    names = {node: f"v{i}" for i, node in enumerate(traced.inputs)}

    def value(x: Any, *, as_it_is: bool) -> str:
        if isinstance(x, Node):
            return names[x] if x.wide or as_it_is else f"T({names[x]})"
        if isinstance(x, Number):
            name = numbers.setdefault(x.place, f"n{len(numbers)}")
            return f"({name} != 0)" if x.is_bool else name
        return _constant(x)

    for i, node in enumerate(ordered(traced.results, traced.inputs)):
        names[node] = f"r{i}"
        if node.op == "to":
            yield f"const T r{i} = {_converted(node, names[node.args[0]])};"
        elif node.op not in FORMS or node.options:
            raise NotElementwise(f"a rule uses {node.op!r}, which kernels for coded slots don't know")
        else:
            yield f"const {'T' if node.wide else 'bool'} r{i} = {FORMS[node.op].format(*arguments(node, value))};"
    u, *new = (names[node] for node in traced.results)
    yield f"p[i] = v1 + {u};"
    for k, (slot, name) in enumerate(zip(slots, new, strict=True)):
        if isinstance(slot, Kept):
            yield f"s{k}[i] = {name if slot.dtype in TYPES else f'int32_t({name})'};"
            continue
        yield f"s{k}[i] = {f'std::fabs({name})' if slot.kind == POSITIVE else name};"
        yield _raised(k, slot)


def _raised(k: int, slot: Slot) -> str:
    """The largest number of a slot, after one more."""
    size = f"bits<int32_t>(s{k}[i]){'' if slot.kind == POSITIVE else ' & INT32_MAX'}"
    return f"{{ const int32_t size = {size}; largest{k} = largest{k} > size ? largest{k} : size; }}"


def _converted(node: Node, x: str) -> str:
    """What a conversion makes of a value, which goes on in the type of all."""
    dtype = node.args[1]
    if dtype not in TYPES:
        raise NotElementwise(f"a rule converts to {dtype}, which kernels for coded slots don't know")
    is_low = dtype in (torch.bfloat16, torch.float16)
    return f"{TYPES[dtype]}::rounded({x})" if is_low else f"T({TYPES[dtype]}({x}))"


def _constant(x: float) -> str:
    x = float(x)
    return f"T({x!r})" if math.isfinite(x) else "T(NAN)" if x != x else f"T({'-' if x < 0 else ''}INFINITY)"


def _kernel(dtypes: Dtypes, slots: Sequence[Slot | Kept], rule: Sequence[str], numbers: Sequence[str]) -> Iterator[str]:
    """The lines of the kernel itself."""
    block, columns = block_of(slots), _columns(slots)
    rows, width = max(TILE // block, 1), min(block, WIDTH)
    coded = [(k, slot) for k, slot in enumerate(slots) if isinstance(slot, Slot)]
    kept = [(k, slot) for k, slot in enumerate(slots) if isinstance(slot, Kept)]
    taken = "int64_t first, int64_t last, int length, const T* numbers, const int32_t* starts, void* const* columns"
    yield f"static void tile({taken}) {{"
    for i, name in enumerate(numbers):
        yield f"    const T {name} = numbers[{i}];"
    for k, _ in coded:
        yield f"    alignas(64) float buffer{k}[{rows * block}];"
        yield f"    float* const scales{k} = static_cast<float*>(columns[{columns[k] + 1}]);"
    yield "    for (int64_t row = first; row < last; row++) {"
    own = [("u", 0, TYPES[dtypes.update]), ("p", 1, TYPES[dtypes.param]), *((f"s{k}", columns[k], x.type) for k, x in kept)]
    for name, i, kind in own:
        yield f"        {kind}* __restrict {name} = static_cast<{kind}*>(columns[{i}]) + row * {block};"
    for k, slot in coded:
        least = slot.codec.format(slot.kind)[3]
        yield f"        const float scale{k} = bounded(plain(scales{k}[row]) * {1 / (1 - least)!r}f);"
        yield f"        const {slot.type}* __restrict codes{k} = {_codes(columns[k], slot)};"
        yield f"        float* __restrict s{k} = buffer{k} + (row - first) * {block};"
        yield f"        int32_t largest{k} = 0;"
        yield "        #pragma omp simd"
        if slot.codec.bits == 4:
            yield f"        for (int i = 0; i < {block // 2}; i++) {{"
            yield f"            s{k}[i] = decoded{k}(codes{k}[i] & 15, scale{k});"
            yield f"            s{k}[i + {block // 2}] = decoded{k}((codes{k}[i] >> 4) & 15, scale{k});"
            yield "        }"
        else:
            yield f"        for (int i = 0; i < {block}; i++) s{k}[i] = decoded{k}(codes{k}[i], scale{k});"
    yield f"        for (int start = 0; start < {block}; start += {width}) {{"
    yield from (f"            {line}" for line in _asking(slots, width))
    yield f"            #pragma omp simd reduction(max : {', '.join(f'largest{k}' for k, _ in coded)})"
    yield f"            for (int i = start; i < start + {width}; i++) {{"
    yield "                const T v0 = u[i], v1 = p[i];"
    for k, slot in enumerate(slots):  # Vectors go from bytes to floats by way of whole numbers.
        is_whole = isinstance(slot, Kept) and slot.dtype not in TYPES
        yield f"                const T v{k + 2} = {f'int32_t(s{k}[i])' if is_whole else f's{k}[i]'};"
    yield from (f"                {line}" for line in rule)
    yield "            }"
    yield "        }"
    yield f"        if (length < {block}) {{"  # What a rule makes of zeros that fill up a block is none of the parameter's.
    for k, slot in coded:
        yield f"            largest{k} = 0;"
        yield f"            for (int i = length; i < {block}; i++) s{k}[i] = 0;"
        yield f"            for (int i = 0; i < length; i++) {_raised(k, slot)}"
    yield "        }"
    yield from (f"        scales{k}[row] = bits<float>(largest{k});" for k, _ in coded)
    yield "    }"
    yield "    for (int64_t row = first; row < last; row++) {"
    for turn, (k, slot) in enumerate(coded):
        yield from (f"        {line}" for line in _encoding(k, turn, columns[k], slot))
    yield "    }"
    yield "}"
    yield ""
    yield "static void leaf(int64_t count, const T* numbers, const int32_t* starts, void* const* columns) {"
    yield f"    const int64_t rows = count / {block}, rest = count % {block};"
    yield f"    #pragma omp parallel for if (count >= {SHARED})"
    yield f"    for (int64_t first = 0; first < rows; first += {rows})"
    yield f"        tile(first, first + {rows} < rows ? first + {rows} : rows, {block}, numbers, starts, columns);"
    yield from (f"    {line}" for line in _last(dtypes, slots))
    yield "}"
    yield KERNEL.format(width=3 + columns[-1] + (3 if isinstance(slots[-1], Slot) else 1))


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
    turns = range(sum(isinstance(slot, Slot) for slot in slots))
    yield "if (rest == 0) return;"
    yield f"const int32_t turns[] = {{{', '.join(f'int32_t(starts[{turn}] + rows * {BLOCK})' for turn in turns)}}};"
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
    widths = [3 if isinstance(slot, Slot) else 1 for slot in slots]
    return [2 + sum(widths[:k]) for k in range(len(slots))]


def _codes(column: int, slot: Slot) -> str:
    return f"static_cast<{slot.type}*>(columns[{column}]) + row * {slot.codec.block * slot.codec.bits // 8}"


def _encoding(k: int, turn: int, column: int, slot: Slot) -> Iterator[str]:
    """The lines that write the codes of one block; what is added to each element is that of the first few, again and again."""
    block, bits = slot.codec.block, slot.codec.bits
    _, dropped, first, least = slot.codec.format(slot.kind)
    half = block // 2
    width = min(WIDTH, half if bits == 4 else block)
    yield "{"
    yield f"    const float* __restrict s = buffer{k} + (row - first) * {block};"
    yield f"    {slot.type}* __restrict codes = {_codes(column, slot)};"
    yield f"    const int32_t* places = static_cast<int32_t*>(columns[{column + 2}]);"
    yield f"    const float scale = 1.f / plain(scales{k}[row]) * {1 - least!r}f;"
    yield f"    const int32_t turn = (int32_t(uint32_t(row) * {BLOCK}u + uint32_t(starts[{turn}])) & {STEPS - 1}) * 2 + 1;"
    yield f"    int32_t u[{max(width, LANES)}];"
    every = " = ".join(f"u[i + {turn}]" for turn in range(0, max(width, LANES), LANES))
    yield f"    for (int i = 0; i < {LANES}; i++)"
    yield f"        {every} = (((turn << {dropped - STEP_BITS - 1}) + places[i]) & {(1 << dropped) - 1}) - {first};"
    yield f"    for (int start = 0; start < {block if bits == 8 else half}; start += {width})"
    yield "        #pragma omp simd"
    yield f"        for (int i = 0; i < {width}; i++)"
    low = f"encoded{k}(s[start + i], scale, u[i])"
    high = f" | encoded{k}(s[start + i + {half}], scale, u[i + {half % LANES}]) << 4" if bits == 4 else ""
    yield f"            codes[start + i] = {low}{high};"
    yield "}"
