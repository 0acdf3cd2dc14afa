"""The text of a kernel for GPUs: one launch for all tensors of some columns, by tables of their addresses and lengths.

Each program of a launch takes a stretch of one tensor. Addresses out of a table carry no alignment, and without it a compiler
reads numbers one by one; so there are two loops: over whole blocks, where all addresses of a row are multiples of 16 bytes, and,
masked, over the rest.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..prologue import NotElementwise, Prologue
from ..stages import Dtypes, Ending
from ..stand_ins import BOOLEAN, Node
from ..trace import Traced
from .forms import LIBRARY, LIBRARY_OF_TWO, OPERATORS, Language, written

# Elements that the threads of a program take at a time, two vectors of four float32 each; and those of a stretch.
BLOCK = 1 << 10
STRETCH = 8 * BLOCK

# What an address has to be a multiple of for the widest loads and stores, in bytes.
ALIGNED = 16

TYPES = {torch.float64: "tl.float64", torch.float32: "tl.float32", torch.bfloat16: "tl.bfloat16", torch.float16: "tl.float16"}

NAN = "tl.PropagateNan.ALL"
INFINITE = 'float("inf")'

# By torch's names, with `{T}` for the dtype of everything. Division and roots are rounded as torch rounds them.
FORMS: Mapping[str, str] = {
    **OPERATORS,
    **{name: f"libdevice.{name}({{0}})" for name in (*LIBRARY, "erfinv")},
    **{name: f"libdevice.{name}({{0}}, {{1}})" for name in LIBRARY_OF_TWO},
    "abs": "tl.abs({0})",
    "clamp_max": f"tl.minimum({{0}}, {{1}}, propagate_nan={NAN})",
    "clamp_min": f"tl.maximum({{0}}, {{1}}, propagate_nan={NAN})",
    "div": "divide({0}, {1})",
    "isfinite": f"tl.abs({{0}}) < {INFINITE}",
    "isinf": f"tl.abs({{0}}) == {INFINITE}",
    "maximum": f"tl.maximum({{0}}, {{1}}, propagate_nan={NAN})",
    "minimum": f"tl.minimum({{0}}, {{1}}, propagate_nan={NAN})",
    "ones_like": "tl.zeros_like({0}) + 1",
    "reciprocal": "divide(tl.full((), 1.0, {T}), {0})",
    "relu": f"tl.maximum({{0}}, tl.full((), 0.0, {{T}}), propagate_nan={NAN})",
    "round": "libdevice.rint({0})",
    "rsqrt": "divide(tl.full((), 1.0, {T}), root({0}))",
    "sigmoid": "divide(tl.full((), 1.0, {T}), 1 + libdevice.exp(-{0}))",
    "sign": "({0} > 0).to({T}) - ({0} < 0).to({T})",
    "signbit": "libdevice.copysign(tl.full((), 1.0, {T}), {0}) < 0",
    "sqrt": "root({0})",
    "where": "tl.where({0}, {1}, {2})",
    "zeros_like": "tl.zeros_like({0})",
}

# What errors call them.
KERNELS = "kernels for GPUs"

HELPERS = {
    "tl.float32": ("tl.div_rn(a, b)", "tl.sqrt_rn(x)"),
    "tl.float64": ("a / b", "tl.sqrt(x)"),
}


@dataclass(frozen=True, eq=False)
class Text:
    """The text of a kernel.

    Attributes:
        source: defines `kernel(table, stretches, numbers, stride[, sums])`.
        prologue: the scalars of the links to what `numbers` holds.
        columns: the dtypes of the columns in the table.
        dtype: of the numbers.
        sums: how many sums it stores, one of each for every program.
    """

    source: str
    prologue: Prologue
    columns: Sequence[torch.dtype]
    dtype: torch.dtype
    sums: int


def text_of(traced: Traced, ending: Ending, dtypes: Dtypes) -> Text:
    """The kernel of what was traced.

    Raises:
        NotElementwise: there is no form for an operation.
    """
    computed, inputs = TYPES[dtypes.scalars], traced.inputs
    results, places = _results(traced, ending, dtypes)
    columns = [*dtypes.all, *ending.targets(dtypes)]
    lines, names, numbers = written(_triton(computed), inputs, results)
    values = ", ".join([f"v{i}" for i in range(len(inputs))] + list(numbers.values()))
    returned = ", ".join(names[node] for node in results)
    sums = len(results) if ending is Ending.TOTAL else 0
    divide, root = HELPERS[computed]
    source = [
        *_function("divide(a, b)", [f"return {divide}"]),
        *_function("root(x)", [f"return {root}"]),
        *_function(f"body({values})", [*lines, f"return {returned}"]),
        *_function(
            f"kernel(table, stretches, numbers, stride{', sums' if sums else ''})",
            _kernel(columns, len(inputs), places, list(numbers.values()), values, sums, computed),
            options='(do_not_specialize=["stride"])',
        ),
    ]
    return Text("\n".join(source) + "\n", traced.tape.prologue(list(numbers)), columns, dtypes.scalars, sums)


def _function(head: str, lines: Iterable[str], options: str = "") -> Iterator[str]:
    yield from (f"@triton.jit{options}", f"def {head}:", *(f"    {line}" for line in lines), "", "")


def _results(traced: Traced, ending: Ending, dtypes: Dtypes) -> tuple[list[Node], list[int]]:
    """What is computed, and the columns where it goes; a slot that stays as it is is not written."""
    if ending is Ending.TOTAL:
        return traced.results, []
    u, *slots = traced.results
    if ending in (Ending.STEP, Ending.NEW_STEP):
        u = Node("add", (traced.inputs[1], u))
    results = [u] if ending is Ending.PEEK else slots if ending in (Ending.STORE, Ending.NEW_STORE) else [u, *slots]
    pairs = list(zip(results, ending.written(dtypes), strict=True))
    pairs = [(node, place) for node, place in pairs if place >= len(traced.inputs) or node is not traced.inputs[place]]
    return [node for node, _ in pairs], [place for _, place in pairs]


def _triton(computed: str) -> Language:
    """Triton's language, with everything computed in this dtype."""

    def constant(x: float) -> str:
        return f"tl.full((), {_constant(x)}, {computed})"

    def converted(node: Node, x: str) -> str:
        source, dtype = node.args
        if dtype not in TYPES:
            raise NotElementwise(f"a rule converts to {dtype}, which {KERNELS} don't know")
        narrows = source.wide and source.op not in BOOLEAN and TYPES[dtype] != computed
        return f"{x}.to({TYPES[dtype]}).to({computed})" if narrows else f"{x}.to({computed})"

    return Language(KERNELS, FORMS, computed, "{0}.to({T})", constant, converted, lambda node, name, x: f"{name} = {x}")


def _constant(x: float) -> str:
    x = float(x)
    return repr(x) if math.isfinite(x) else f'float("{x}")'


def _kernel(
    columns: Sequence[torch.dtype],
    inputs: int,
    written: Sequence[int],
    numbers: Sequence[str],
    values: str,
    sums: int,
    computed: str,
) -> Iterator[str]:
    """The lines of the kernel itself."""
    count = len(columns)
    yield "program = tl.program_id(0)"
    yield "row = tl.load(stretches + 2 * program)"
    yield f"first = tl.load(stretches + 2 * program + 1).to(tl.int64) * {STRETCH}"
    yield f"entry = table + row * {count + 2}"
    yield f"end = tl.minimum(tl.load(entry + {count}) - first, {STRETCH}).to(tl.int32)"
    for i, name in enumerate(numbers):
        yield f"{name} = tl.load(numbers + row * stride + {i})"
    for i, dtype in enumerate(columns):
        yield f"a{i} = tl.load(entry + {i}).to(tl.pointer_type({TYPES[dtype]}))"
    for i in range(sums):
        yield f"s{i} = tl.zeros(({BLOCK},), tl.float64)"
    yield f"whole = tl.where(tl.load(entry + {count + 1}) != 0, end // {BLOCK} * {BLOCK}, 0)"
    for masked in (False, True):
        yield f"for start in range({'whole, end' if masked else '0, whole'}, {BLOCK}):"
        yield f"    at = start + tl.arange(0, {BLOCK})"
        mask = ", mask=at < end" if masked else ""
        for i in range(count):
            address = f"a{i}" if masked else f"tl.multiple_of(a{i}, {ALIGNED})"
            yield f"    c{i} = {address} + first + at"
        for i in range(inputs):
            yield f"    v{i} = tl.load(c{i}{mask}{', other=0.0' if masked else ''}).to({computed})"
        results = [f"o{i}" for i in range(sums or len(written))]
        if results:
            yield f"    {', '.join(results)} = body({values})"
        for name, place in zip(results, written, strict=False):
            yield f"    tl.store(c{place}, {name}.to({TYPES[columns[place]]}){mask})"
        for i in range(sums):
            term = f"tl.where(at < end, o{i}, 0.0)" if masked else f"o{i}"
            yield f"    s{i} += {term}.to(tl.float64)"
    for i in range(sums):
        yield f"tl.store(sums + {i} * tl.num_programs(0) + program, tl.sum(s{i}))"
