"""A run of elementwise rules as one graph for one tensor, split into host arithmetic and work per element.

The rules are traced for a 1-D tensor of unknown length, with every scalar (hyper-parameters, step, whole-tree quantities) as a ()
input. What depends on scalars alone is the prologue: a handful of numbers a step, which need no kernel. The rest is the body.
Without the split, a power such as βᵗ would be computed once per element.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from functional_optim import torch_internals, trees
from functional_optim.lifting import widened
from functional_optim.reductions import SumOver

from .links import Link
from .prologue import Prologue
from .stages import Dtypes

aten = torch.ops.aten

# Any length but 0 and 1, which the tracer would take for constants; odd, or half of it might pass for exactly half. The compiler
# reads it as "large: use all threads".
TYPICAL_LENGTH = (1 << 20) + 7


class Ending(Enum):
    """What a kernel does with the last link's result."""

    STEP = "add it to the parameter, and store the slots"
    UPDATE = "write it into a tensor of its own, and store the slots"
    PEEK = "write it into a tensor of its own, and leave the slots"
    STORE = "store the slots"
    TOTAL = "return the sums over what the last link reduces, and write nothing"


TARGETED = (Ending.UPDATE, Ending.PEEK)


@dataclass(frozen=True)
class Traced:
    """The two halves of a traced run. `body(vector, u, p, *slots)` gets the prologue's numbers as one 1-D tensor."""

    prologue: Prologue
    body: Callable[..., list[Tensor]]


def trace(links: Sequence[Link], ending: Ending, dtypes: Dtypes, spec: trees.Spec) -> Traced:
    """Trace the links for one 1-D tensor; `spec` is the structure of their scalars, as `scalars_of` arranges them."""

    def run(scalars: list[Tensor], u: Tensor, p: Tensor, *slots: Tensor) -> list[Tensor]:
        return outputs(links, ending, trees.unflatten(spec, scalars), u, p, slots)

    mode = torch_internals.FakeTensorMode(shape_env=torch_internals.ShapeEnv())
    with mode, torch.no_grad():
        scalars = [torch.empty((), dtype=torch.float64, device="cpu") for _ in range(spec.num_leaves)]
        graph = torch_internals.make_fx(run)(scalars, *fake_tensors(mode, dtypes, torch.device("cpu"))).graph
    return _split(graph, spec.num_leaves)


def reduced_like(link: Link, dtypes: Dtypes) -> Any:
    """A stand-in for what a link reduces to: a tree of the same structure, of ones."""
    with torch_internals.FakeTensorMode():
        tensors = [torch.empty(2, dtype=dtype, device="cpu") for dtype in (dtypes.update, dtypes.param, *dtypes.slots)]
        u, p, *slots = [[widened(x)] for x in tensors]
        assert link.form.reduce is not None
        like = link.form.reduce(u, p, **dict(zip(link.form.slots, slots, strict=True)))
    if any(not isinstance(x, Tensor) or x.ndim for x in trees.leaves(like)):
        raise TypeError(f"{link.form.name} reduces to something else than () tensors")
    return trees.map_leaves(lambda x: 1.0, like)


def fake_tensors(mode: Any, dtypes: Dtypes, device: torch.device) -> list[Tensor]:
    """Update, parameter and slots of one leaf: 1-D, all of one length that is a symbol."""
    dynamic = torch_internals.DimDynamic.DYNAMIC
    symbolic = torch_internals.StatelessSymbolicContext(dynamic_sizes=[dynamic])
    meta = torch.empty(TYPICAL_LENGTH, device="meta")
    length = mode.from_tensor(meta, symbolic_context=symbolic).shape[0]
    with mode:
        return [torch.empty(length, dtype=dtype, device=device) for dtype in (dtypes.update, dtypes.param, *dtypes.slots)]


def outputs(
    links: Sequence[Link], ending: Ending, scalars: list[Any], u: Tensor, p: Tensor, slots: Sequence[Tensor]
) -> list[Tensor]:
    """The rules, one after another, under the dtype policy of `lifting`."""
    stored, new = iter(slots), []
    u, wide = _require(widened(u)), _require(widened(p))
    for i, (link, (hp, t, reduced)) in enumerate(zip(links, scalars, strict=True)):
        own = [next(stored) for _ in link.form.slots]
        opened = [_require(widened(slot)) for slot in own]
        if ending is Ending.TOTAL and i == len(links) - 1:
            assert isinstance(link.form.reduce, SumOver)
            return [*link.form.reduce.terms(u, wide, dict(zip(link.form.slots, opened, strict=True)))]
        results = link.form.rule(hp, *(t or (None,)), *(reduced or (None,)))(u, wide, *opened)
        u_new, *slots_new = (results,) if isinstance(results, Tensor) else results
        u = u_new.to(u.dtype)
        new += [value.to(slot.dtype) for value, slot in zip(slots_new, own, strict=True)]
    if ending is Ending.PEEK:
        return [u]
    if ending is Ending.STORE:
        return new
    return [(wide + u).to(p.dtype) if ending is Ending.STEP else u, *new]


def _split(graph: fx.Graph, scalar_inputs: int) -> Traced:
    inputs = graph.find_nodes(op="placeholder")
    scalars = _scalar_nodes(graph, inputs[:scalar_inputs])
    _simplify(graph, scalars)
    (outputs,) = graph.output_node().args
    assert isinstance(outputs, list | tuple)

    body = [node for node in graph.nodes if node.op == "call_function" and node not in scalars]
    for node in body:
        map_aggregate((node.args, node.kwargs), _require_no_length)
    used = {argument: None for node in (*body, graph.output_node()) for argument in node.all_input_nodes}
    survivors = [node for node in used if node in scalars]

    def run(vector: Tensor, *tensors: Tensor) -> list[Tensor]:
        values = dict(zip(inputs[scalar_inputs:], tensors, strict=True))
        for i, node in enumerate(survivors):
            values[node] = vector[i] != 0 if node.meta["val"].dtype == torch.bool else vector[i]
        for node in body:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            if "device" in kwargs:
                kwargs = {**kwargs, "device": vector.device}
            values[node] = node.target(*args, **kwargs)
        return [values[node] for node in outputs]

    return Traced(Prologue(inputs[:scalar_inputs], [node for node in graph.nodes if node in scalars], survivors), run)


def _require_no_length(argument: Any) -> Any:
    """Raise where a rule has built a tensor of its gradient's length, which the tracer takes for a constant.

    A kernel with that constant in it would write beyond the end of shorter tensors.
    """
    if type(argument) is int and argument == TYPICAL_LENGTH:
        raise TypeError("a rule makes a tensor of its gradient's length; write zeros_like, ones_like, or broadcast")
    return argument


def _scalar_nodes(graph: fx.Graph, inputs: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on scalar inputs only."""
    scalars = set(inputs)
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op == "get_attr" or (
            node.op == "call_function"
            and isinstance(value, Tensor)
            and value.ndim == 0
            and all(argument in scalars for argument in node.all_input_nodes)
        ):
            scalars.add(node)
    return scalars


def _simplify(graph: fx.Graph, scalars: set[fx.Node]) -> None:
    """Multiply by a scalar's reciprocal instead of dividing every element."""
    for node in list(graph.nodes):
        if node.target is aten.div.Tensor and node not in scalars and node.args[1] in scalars:
            with graph.inserting_before(node):
                inverse = graph.call_function(aten.reciprocal.default, (node.args[1],))
                product = graph.call_function(aten.mul.Tensor, (node.args[0], inverse))
            inverse.meta["val"] = torch.empty((), dtype=torch.float64, device="meta")
            scalars.add(inverse)
            node.replace_all_uses_with(product)
    graph.eliminate_dead_code()


def _require(x: Tensor | None) -> Tensor:
    assert x is not None
    return x
