"""Numbers and codes in C++: their types, and the lines that decode a block, find its largest numbers, and encode it.

What the codes are, and why, says `codecs`. Slots are counted by `k`; of slot k, `columns` holds codes, scales and places from
`column` on, and `buffer<k>` a few blocks in floats.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from functional_optim.codecs import BLOCK, LANES, LARGEST, POSITIVE, SMALLEST, STEP_BITS, STEPS, Blockwise

# Elements that are stepped, or encoded, at a time: the bytes of the widest vectors.
WIDTH = 64

TYPES = {torch.float64: "double", torch.float32: "float", torch.bfloat16: "BFloat16", torch.float16: "Half"}

# A block is encoded so many blocks after it was stepped: until then a processor would wait for the largest of its numbers. The
# buffer of a slot holds so many blocks.
BEHIND, RING = 2, 4

# Those of slots that are stored as they are, also.
STORED = {**TYPES, torch.int8: "int8_t", torch.uint8: "uint8_t"}

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

// The largest of what lanes have found.
inline int32_t overall(const int32_t* lanes) {{
    int32_t found = 0;
    #pragma omp simd reduction(max : found)
    for (int i = 0; i < {lanes}; i++) found = found > lanes[i] ? found : lanes[i];
    return found;
}}

// A scale without its last digits, as Blockwise has it, and what is multiplied by to decode.
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


def head(dtype: torch.dtype) -> str:
    """What comes before every kernel that computes in this dtype."""
    return HEAD.format(T=TYPES[dtype], smallest=SMALLEST, largest=LARGEST, lanes=LANES)


def functions(i: int, slot: Slot) -> str:
    """To and from the codes of a slot."""
    largest, dropped, bits, least = slot.codec.format(slot.kind)
    parts = POSITIVE_PARTS if slot.kind == POSITIVE else SIGNED_PARTS
    shift = 32 - slot.codec.bits
    code = "code" if slot.codec.bits == 8 else f"(code << {shift})"  # What is read as a whole number has its sign already.
    chosen = {name: text.format(shift=shift, sign=largest + 1, signed_code=code) for name, text in parts.items()}
    return CODE.format(i=i, largest=largest, dropped=dropped, bits=bits, least=repr(least), **chosen)


def scaled(k: int, slot: Slot) -> Iterator[str]:
    """The lines that say by what the codes of each block of a tile are multiplied: of many at once, by vectors."""
    yield "#pragma omp simd"
    yield "for (int i = 0; i < last - first; i++)"
    yield f"    factors{k}[i] = bounded(plain(scales{k}[first + i]) * {1 / (1 - slot.codec.format(slot.kind)[3])!r}f);"


def decoding(k: int, column: int, slot: Slot) -> Iterator[str]:
    """The lines that decode one block into the buffer."""
    block = slot.codec.block
    yield f"const float scale{k} = factors{k}[row - first];"
    yield f"const {slot.type}* __restrict codes{k} = {codes_of(column, slot, 'row')};"
    yield f"float* __restrict s{k} = buffer{k} + row % {RING} * {block};"
    yield f"int32_t largest{k}[{LANES}] = {{}};"
    yield "#pragma omp simd"
    if slot.codec.bits == 4:
        yield f"for (int i = 0; i < {block // 2}; i++) {{"
        yield f"    s{k}[i] = decoded{k}(codes{k}[i] & 15, scale{k});"
        yield f"    s{k}[i + {block // 2}] = decoded{k}((codes{k}[i] >> 4) & 15, scale{k});"
        yield "}"
    else:
        yield f"for (int i = 0; i < {block}; i++) s{k}[i] = decoded{k}(codes{k}[i], scale{k});"


def raised(k: int, slot: Slot, largest: str) -> str:
    """The largest number of a slot, after one more."""
    size = f"bits<int32_t>(s{k}[i]){'' if slot.kind == POSITIVE else ' & INT32_MAX'}"
    return f"{{ const int32_t size = {size}; {largest} = {largest} > size ? {largest} : size; }}"


def finished(k: int, turn: int, column: int, slot: Slot) -> Iterator[str]:
    """The lines that prepare to encode a block: where its numbers are, by what they are divided, and what is added to them, which
    is the same for the first few again and again."""
    _, dropped, first, least = slot.codec.format(slot.kind)
    every = " = ".join(f"added{k}[i + {start}]" for start in range(0, WIDTH, LANES))
    yield f"const float* __restrict done{k} = buffer{k} + (done + {RING}) % {RING} * {slot.codec.block};"
    yield f"const float factor{k} = 1.f / plain(scales{k}[known]) * {1 - least!r}f;"
    yield f"const int32_t turn{k} = (int32_t(uint32_t(done) * {BLOCK}u + uint32_t(starts[{turn}])) & {STEPS - 1}) * 2 + 1;"
    yield f"const int32_t* places{k} = static_cast<int32_t*>(columns[{column + 2}]);"
    yield f"int32_t added{k}[{WIDTH}];"
    yield f"for (int i = 0; i < {LANES}; i++)"
    yield f"    {every} = (((turn{k} << {dropped - STEP_BITS - 1}) + places{k}[i]) & {(1 << dropped) - 1}) - {first};"


def encoding(k: int, slot: Slot) -> Iterator[str]:
    """The lines that write the codes of a part of a block: of 4 bits twice as many, of every other part."""
    bits, half, added = slot.codec.bits, slot.codec.block // 2, f"factor{k}, added{k}"
    width = min(WIDTH, slot.codec.block * bits // 8)
    is_turn = f"if (start % {2 * WIDTH} == {k % 2 * WIDTH})" if bits == 4 and half >= WIDTH else ""
    yield f"{is_turn} {{"
    yield f"    const int at = {f'start / {2 * WIDTH} * {WIDTH}' if bits == 4 else 'start'};"
    yield "    #pragma omp simd"
    yield f"    for (int i = 0; i < {width}; i++)"
    high = f" | encoded{k}(done{k}[at + i + {half}], {added}[i + {half % LANES}]) << 4" if bits == 4 else ""
    yield f"        found{k}[at + i] = encoded{k}(done{k}[at + i], {added}[i]){high};"
    yield "}"


def codes_of(column: int, slot: Slot, row: str) -> str:
    """Where the codes of a block are."""
    return f"static_cast<{slot.type}*>(columns[{column}]) + {row} * {slot.codec.block * slot.codec.bits // 8}"
