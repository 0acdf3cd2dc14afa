"""Compiled kernels: one for each structure of rules, dtypes and device, whatever the tensors' sizes and the numbers.

`compile_fx_inner` is the compiler below `torch.compile`: a call to what it returns costs 5 µs, where the guards of
`torch.compile` cost 25 to 50. There is nothing to guard: lengths are symbols, numbers are inputs, and the key holds the rest.
On the host it usually returns a single function, which is called `direct`ly.
"""

import functools
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functional_optim import inductor, torch_internals, trees
from functional_optim.lifting import Leafwise, widened
from functional_optim.numerics import LOW

from ..lengths import Lengths
from ..memory import flat
from ..program import FUNCTIONS
from ..prologue import Prologue
from ..route import Link, structure_of
from ..stages import Dtypes, Ending
from ..stand_ins import Node, Number
from ..trace import Traced, ordered, trace
from .inductor_call import Direct, direct
from .trial import try_out

# Follow torch.set_num_threads at run time, and trust the shapes and strides that this package itself arranges.
SETTINGS = {"cpp.dynamic_threads": True, "size_asserts": False, "alignment_asserts": False}

# What a sum is over is read twice, where stretches of it end; it is computed twice, too, however long that takes, and not stored.
UNSTORED = {"realize_reads_threshold": 1 << 20, "realize_opcount_threshold": 1 << 20}

# Any length but 0 and 1, which the tracer would take for constants; odd, or half of it might pass for exactly half. The compiler
# reads it as "large: use all threads".
TYPICAL_LENGTH = (1 << 20) + 7

# A compiled kernel may count elements in 32 bits; longer tensors are cut.
LONGEST = 1 << 30

FLOATS = frozenset({float})

_kernels: dict[Any, "Kernel"] = {}


@dataclass(frozen=True, eq=False)
class Kernel:
    """A compiled run of links.

    Attributes:
        prologue: scalars to the numbers that `compiled` takes as one vector.
        compiled: `[length, vector, u, p, *slots[, out]] -> sums`, of 1-D tensors; writes where its ending says.
        direct: the same for columns of tensors, where there is such a function.
        dtype: of the vector.
        device: of the vector and all tensors.
        forms: of the links; keeps what the cache knows by its `id` alive, and no parameter.
    """

    prologue: Prologue
    compiled: Any
    direct: Direct | None
    dtype: torch.dtype
    device: torch.device
    forms: Sequence[Leafwise]

    def vector(self, scalars: Sequence[Any]) -> Tensor | Sequence[Tensor]:
        """What the prologue makes of these scalars, on the device; without waiting for it. One for each row, if some are."""
        numbers = numbers_of(self.prologue, scalars)
        vector = vector_of(numbers, self.dtype, self.device)
        return vector.unbind() if vector.ndim > 1 else vector

    def __call__(self, vector: Tensor | Sequence[Tensor], columns: Sequence[Sequence[Tensor]], lengths: Lengths) -> list[Tensor]:
        """Run over every row of some columns: tensors that are not empty, dense, and alike in the order of their elements.

        Args:
            vector: what `vector` returned.
            columns: updates, parameters, each slot, what arrived before, and, with an ending that needs one, targets.
            lengths: of the rows.

        Returns:
            The sums over each row.
        """
        if self.direct:
            return self.direct(vector, columns, lengths)
        vectors = repeat(vector) if isinstance(vector, Tensor) else vector
        rows = [
            [self.compiled([piece[0].numel(), own, *piece]) for piece in _pieces(row)]
            for own, row in zip(vectors, zip(*columns, strict=True), strict=False)
        ]
        sums = [[torch.stack(column).sum() for column in zip(*pieces, strict=True)] for pieces in rows]
        return [torch.stack(column) for column in zip(*sums, strict=True)]


class Request(NamedTuple):
    """What a kernel is made of.

    Attributes:
        links, ending: what it runs, and does with the results.
        dtypes, device: of the tensors that it gets.
        scalars: such as it will get; it is tried with them.
    """

    links: Sequence[Link]
    ending: Ending
    dtypes: Dtypes
    device: torch.device
    scalars: Sequence[Any]

    @property
    def key(self) -> Any:
        """What kernels differ by."""
        return structure_of(self.links), self.ending, self.dtypes, self.device, trees.flatten(list(self.scalars))[1]

    def traced(self) -> Traced:
        """What it computes."""
        return trace(self.links, self.scalars, self.dtypes, total=self.ending is Ending.TOTAL, asks=False)


def kernels_for(requests: Sequence[Request]) -> list[Kernel]:
    """The kernels of these structures, those that are new compiled together; shared by all optimizers."""
    with inductor.lock:
        new = {key: request for request in requests if (key := request.key) not in _kernels}
        if new:
            bodies = [body_of(request.traced()) for request in new.values()]
            tasks = [
                functools.partial(compile_body, body, request.ending, request.dtypes, request.device)
                for body, request in zip(bodies, new.values(), strict=True)
            ]
            compiled = inductor.together(tasks, are_kernels=True)
            _kernels.update(zip(new, map(_tried, bodies, compiled, new.values()), strict=True))
        return [_kernels[request.key] for request in requests]


def _tried(body: "Body", compiled: Any, request: Request) -> Kernel:
    links, ending, dtypes, device, scalars = request
    inputs = 1 + len(dtypes.all) + len(ending.targets(dtypes))
    forms = [link.form for link in links]
    kernel = Kernel(body.prologue, compiled, direct(compiled, inputs), dtypes.scalars, device, forms)
    vector = kernel.vector(trees.leaves(list(scalars)))
    assert isinstance(vector, Tensor)
    try_out(kernel, vector, links, ending, dtypes, scalars)
    return kernel


@dataclass(frozen=True)
class Body:
    """What is compiled: the work per element, given the numbers of a step.

    Attributes:
        prologue: the scalars of the links to these numbers.
        run: `(vector, u, p, *slots, *further)`, the numbers in one 1-D tensor, to the results of what was traced.
        kept: the places of the slots that stay as they are.
    """

    prologue: Prologue
    run: Callable[..., list[Tensor]]
    kept: frozenset[int]


def body_of(traced: Traced) -> Body:
    """What was traced, as a function of tensors."""
    nodes = ordered(traced.results, traced.inputs)
    arguments = [x for node in nodes for x in (*node.args, *node.options.values()) if isinstance(x, Number)]
    numbers = {x.place: x for x in arguments}

    def run(vector: Tensor, *tensors: Tensor) -> list[Tensor]:
        seen = [x if keeps else widened(x) for x, keeps in zip(tensors, traced.kept, strict=True)]
        values: dict[Any, Tensor] = dict(zip(traced.inputs, seen, strict=True))
        for i, (place, number) in enumerate(numbers.items()):
            values[place] = vector[i] != 0 if number.is_bool else vector[i]

        def value(x: Any) -> Any:
            return values[x] if isinstance(x, Node) else values[x.place] if isinstance(x, Number) else x

        for node in nodes:
            options = {name: value(x) for name, x in node.options.items()}
            function = COMPILED.get(node.op) or FUNCTIONS[node.op]
            values[node] = function(*map(value, node.args), **options)
        return [values[node] for node in traced.results]

    slots = zip(traced.results[1:], traced.inputs[2:], strict=False)
    kept = frozenset(i for i, (new, old) in enumerate(slots) if new is old)
    return Body(traced.tape.prologue(list(numbers)), run, kept)


def between(x: Tensor, y: Tensor, weight: Any) -> Tensor:
    """`torch.lerp`, which the compiler does not take with a number out of a tensor."""
    return x + weight * (y - x)


def converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another dtype; in one of low precision, its numbers as float32: a compiler may leave out a conversion there and
    back, by which rules round, but not arithmetic with bits.
    """
    if dtype not in LOW or x.dtype != torch.float32:
        return x.to(dtype)
    dropped = 16 if dtype == torch.bfloat16 else 13
    bits = x.view(torch.int32)
    # To nearest, and of two that are as near to the even one.
    even = (bits + ((1 << (dropped - 1)) - 1) + ((bits >> dropped) & 1)) & -(1 << dropped)
    found = torch.where(x.isfinite(), even.view(torch.float32), x)
    if dtype == torch.float16:
        found = torch.where(x.abs() < 2.0**-14, (x * 2.0**24).round() * 2.0**-24, found)
        found = torch.where(found.abs() > torch.finfo(dtype).max, found * torch.inf, found)
    return found


# What is another function in a kernel.
COMPILED: Mapping[str, Callable[..., Tensor]] = {"lerp": between, "to": converted}


def compile_body(body: Body, ending: Ending, dtypes: Dtypes, device: torch.device) -> Any:
    """Compile the body of a traced run, with its writes in place."""
    count, end = len(dtypes.all), 2 + len(dtypes.slots)

    def run(length: Any, vector: Tensor, *tensors: Tensor) -> list[Tensor]:
        del length  # An input of its own, since a compiler need not look for it in the tensors' shapes.
        results = body.run(vector, *tensors[:count])
        if ending is Ending.TOTAL:
            return [_total(result, alone=len(results) == 1) for result in results]
        # A result may be an input, a slot that moves up one place say; times 1 it is a value of its own, which no write below
        # can change. (The compiler would drop a `clone`.)
        results = [result * 1 for result in ending.outcome(results[0], results[1:], *tensors[1:end])]
        for place, result in zip(ending.written(dtypes), results, strict=True):
            if place - 2 not in body.kept:
                tensors[place].copy_(result)
        return []

    def traced_writes() -> inductor.Traced:
        mode = torch_internals.FakeTensorMode(shape_env=torch_internals.ShapeEnv())
        tensors = _fake_tensors(mode, dtypes, device)
        with mode:
            tensors += [torch.empty_like(tensors[0], dtype=dtype) for dtype in ending.targets(dtypes)]
            vector = torch.empty(max(len(body.prologue.outputs), 1), dtype=dtypes.scalars, device=device)
            inputs = [tensors[0].shape[0], vector, *tensors]
            decompositions = torch_internals.select_decomp_table()
            graph = torch_internals.make_fx(run, decomposition_table=decompositions)(*inputs)
        return graph, inputs, mode

    return inductor.lowered(traced_writes, SETTINGS | (UNSTORED if ending is Ending.TOTAL else {}), is_kernel=True)


def _fake_tensors(mode: Any, dtypes: Dtypes, device: torch.device) -> list[Tensor]:
    """Update, parameter and slots of one leaf: 1-D, all of one length that is a symbol."""
    length = symbol(mode, TYPICAL_LENGTH)
    with mode:
        return [torch.empty(length, dtype=dtype, device=device) for dtype in dtypes.all]


def symbol(mode: Any, typical: int) -> Any:
    """A length that may be any; what the tracer takes it for is this."""
    dynamic = torch_internals.StatelessSymbolicContext(dynamic_sizes=[torch_internals.DimDynamic.DYNAMIC])
    return mode.from_tensor(torch.empty(typical, device="meta"), symbolic_context=dynamic).shape[0]


def _pieces(row: Sequence[Tensor]) -> Iterable[Sequence[Tensor]]:
    return zip(*(flat(x).split(LONGEST) for x in row), strict=True)


def _total(x: Tensor, *, alone: bool) -> Tensor:
    """The sum, in float64, which takes no longer; a float32 sum of 40 million squares is off in the fourth digit."""
    if x.device.type != "cpu" or not alone:  # What several sums share would be stored before it was taken in halves.
        return x.sum(dtype=torch.float64)
    # Each processor reads two stretches side by side a tenth faster than one.
    half = x.shape[0] // 2
    halves = x[: 2 * half].view(2, half).sum(0, dtype=torch.float64).sum()
    is_odd = torch.scalar_tensor(x.shape[0] - 2 * half, device=x.device) > 0
    return halves + torch.where(is_odd, x[-1].double(), 0.0)


def numbers_of(prologue: Prologue, scalars: Sequence[Any]) -> list[Any]:
    """What a kernel takes, of the scalars of its links; it asks for no answers, which might be others."""
    numbers = prologue(scalars)
    assert numbers is not None
    return numbers


def vector_of(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor on a device, without waiting for it; of several rows, where some are columns."""
    if FLOATS.issuperset(map(type, values)):
        return _sent_numbers(values or [0.0], dtype, device)
    by_row = {i: value for i, value in enumerate(values) if isinstance(value, Tensor) and value.ndim}
    if by_row:
        common = vector_of([0.0 if i in by_row else value for i, value in enumerate(values)], dtype, device)
        columns = torch.stack(list(by_row.values())).to(dtype)
        table = common.repeat(columns.shape[1], 1)
        table[:, list(by_row)] = columns.t().to(table.device)
        return table
    vector = _sent_numbers([0.0 if isinstance(value, Tensor) else value for value in values], dtype, device)
    on_device = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
    if on_device:
        parts = list(vector.unbind())
        for i in on_device:
            parts[i] = values[i].to(device=device, dtype=dtype, non_blocking=True)
        vector = torch.stack(parts)
    return vector


def _sent_numbers(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    # `torch.tensor` takes four times as long.
    vector = torch.frombuffer(array("d" if dtype == torch.float64 else "f", values), dtype=dtype)
    return vector if device.type == "cpu" else sent(vector, device)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on a device, for which nobody waits."""
    return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)
