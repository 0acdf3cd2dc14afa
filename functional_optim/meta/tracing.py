"""Functions of tensors as graphs: traced, and split into a forward part and its transpose.

    trace    `make_fx`, through whatever the function differentiates and batches inside
    split    the partitioner of `torch.compile` (Zheng et al., min-cut rematerialisation): what is cheap is computed again

How a graph becomes code: see `parts`, and `rewrites` for what is changed before.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from functional_optim import torch_internals, trees
from functional_optim.meta.nodes import is_boolean, is_view, returned
from functional_optim.meta.packing import is_smooth
from functional_optim.meta.parts import Part, calls, keeping
from functional_optim.meta.rewrites import transpose_factors
from functional_optim.torch_internals import schema_of

Function: TypeAlias = Callable[..., tuple[Tensor, ...]]

aten = torch.ops.aten


def shapes_of(function: Function, like: Sequence[Tensor]) -> list[Tensor]:
    """What a function would return for tensors like these, without elements.

    Raises:
        ValueError: it asks for their values.
    """
    assert torch_internals.active_fake_mode, "which `is_traced` asks for, or it raises"
    with torch_internals.disable_current_modes(), keeping(), _fake_mode():
        try:
            return _with_zeros(lambda function: list(function(*_like(like))), function)
        except torch_internals.asks_for_values() as error:
            asked = getattr(error, "func", error)
            raise ValueError(
                f"the function to compile asks for a value in a tensor ({asked}), which has none while it is compiled. "
                "Choose with torch.where, weigh with a mask, and take x.index_select(0, i) for an index that is a tensor."
            ) from error


def forward_part(
    function: Function, like: Sequence[Tensor], name: str, settings: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Part, list[Tensor]]:
    """A function, for tensors like these, compiled with such settings; and tensors like its results."""
    with torch_internals.disable_current_modes():
        mode = _fake_mode()
        with mode:
            inputs = _like(like)
        graph = _traced(lambda *inputs: list(function(*inputs)), inputs, mode)
        outputs = [node.meta["val"] for node in returned(graph)]
        return Part(graph, mode, name, settings=settings), outputs


def forward_and_transpose(
    function: Function, like: Sequence[Tensor], outputs: Sequence[Tensor], moving: Sequence[int], name: str
) -> tuple[Part, Part]:
    """A function that also returns what its transpose wants, and that: of this and cotangents, one for each smooth result.

    The transpose returns the slopes of the arguments at `moving`. `like` and `outputs` are like the arguments and the results.
    """

    def joint(*both: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        inputs, cotangents = both[: len(like)], both[len(like) :]

        def smooth(*some: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            changed = dict(zip(moving, some, strict=True))
            outputs = function(*(changed.get(i, x) for i, x in enumerate(inputs)))
            return tuple(filter(is_smooth, outputs)), outputs

        _, pull, *aux = torch.func.vjp(smooth, *(inputs[i] for i in moving), has_aux=True)
        (outputs,) = aux
        return list(outputs), [x.contiguous() for x in pull(cotangents)]

    with torch_internals.disable_current_modes():
        mode = _fake_mode()
        with mode:
            given = _like([*like, *filter(is_smooth, outputs)])
        graph = _traced(joint, given, mode)  # which keeps what it calls, until the parts do
        forward, backward = _split(graph, len(like), len(outputs), mode)
        return Part(forward, mode, name), Part(backward, mode, f"the transpose of {name}", is_backward=True)


def _with_zeros(trace: Callable[[Callable[..., Any]], Any], function: Callable[..., Any]) -> Any:
    """A trace of the function; where torch fails at tensors that it knows to be 0, with ordinary zeros.

    Of a tangent that is 0 there is such a tensor, of which no sum has the right device when it is batched twice: in
    `vmap(hessian(f))` (seen in torch 2.13).
    """
    try:
        return trace(function)
    except torch_internals.mistakes_devices():

        @functools.wraps(function)
        def zeroed(*inputs: Tensor) -> Any:
            with _ordinary_zeros():
                return function(*inputs)

        return trace(zeroed)


def _ordinary_zeros() -> Any:
    """A mode in which tensors that torch knows to be 0 are ordinary ones."""

    class Zeros(torch_internals.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return (aten.zeros.default if func is aten._efficientzerotensor.default else func)(*args, **(kwargs or {}))

    return Zeros()


def _fake_mode() -> Any:
    """A mode of tensors without elements, which knows that all sizes are fixed: else the compiler keeps nothing on disk."""
    sizes = torch_internals.ShapeEnv(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
    return torch_internals.FakeTensorMode(allow_non_fake_inputs=True, shape_env=sizes)


def _like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors]


def _traced(function: Callable[..., Any], inputs: Sequence[Tensor], mode: Any) -> fx.GraphModule:
    """The function as a graph of operations without writes."""
    make_fx, decompositions = torch_internals.make_fx, torch_internals.select_decomp_table()
    with warnings.catch_warnings(), keeping() as kept, mode:
        warnings.simplefilter("ignore")  # torch's own modules use what torch deprecates.
        torch_internals.get("inductor_lowering")  # which the decomposition of max-pooling takes for imported
        graph = _with_zeros(lambda function: make_fx(function)(*inputs), function)
        _require_pure(graph)
        # apart, because `functionalize` takes no `autograd.Function`
        graph = make_fx(torch.func.functionalize(graph), decomposition_table=decompositions)(*inputs)
        if transpose_factors(graph):
            graph = make_fx(_contiguous(graph), decomposition_table=decompositions)(*inputs)
    graph.graph.eliminate_dead_code()
    graph.meta["kept"] = kept
    return graph


def _contiguous(graph: fx.GraphModule) -> Callable[..., Any]:
    """The same function, whose results lie in memory as those of all parts do, and what it gives to parts as they want it."""
    for call in calls(graph):
        tensors, number = call.args
        assert isinstance(tensors, list | tuple)
        with graph.graph.inserting_before(call):
            call.args = ([graph.graph.call_function(Tensor.contiguous, (x,)) for x in tensors], number)
    graph.recompile()
    return lambda *inputs: trees.map_leaves(Tensor.contiguous, graph(*inputs))


def _require_pure(graph: fx.GraphModule) -> None:
    """Raise ValueError where the graph holds what is no constant, writes to what it holds, or draws random numbers."""
    for node in graph.graph.find_nodes(op="get_attr"):
        if isinstance(getattr(graph, str(node.target)), torch_internals.FakeTensor):
            raise ValueError(
                "the function to compile closes over a tensor that the function around it computes. Pass it as an argument (of "
                "`unroll`, in `batch`)."
            )
    for node in graph.graph.nodes:
        if any(x.op == "get_attr" for x in _written(node)):
            raise ValueError(
                "the function to compile writes to a tensor that it closes over, as a batch norm does in training. Pass it as an "
                "argument, and return what becomes of it."
            )
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ValueError(
                f"the function to compile draws random numbers ({node.target}). Draw them before, and pass them as an argument "
                "(of `unroll`, as `batches`), the masks of a dropout too; or `module.eval()`, without dropout."
            )


def _written(node: fx.Node) -> list[fx.Node]:
    """What an operation writes to."""
    declared = zip(schema_of(node.target), node.args, strict=False)
    written = [x for argument, x in declared if argument.alias_info and argument.alias_info.is_write]
    return [x for x in written if isinstance(x, fx.Node)]


def _split(graph: fx.GraphModule, count: int, outputs: int, mode: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A joint graph as a forward graph, which also returns what the backward graph wants, and that one."""
    holders = graph.graph.find_nodes(op="placeholder")
    torch_internals.name_as_joint(holders, count)
    for node in graph.graph.nodes:
        torch_internals.forget_passes(node)  # The loss's own gradient was taken there.
        # Inductor stores booleans one by one: 90 µs for 13 thousand, 30 times the comparison. And what is kept is kept once,
        # not as a view too.
        if node.op == "call_function" and (is_boolean(node) or is_view(node)):
            torch_internals.compute_again(node)
    graph.recompile()
    # Of a loop, what is kept is kept for every step: better computed again, far apart as its uses may be.
    settings = torch_internals.patched(torch_internals.functorch_config, {"ban_recompute_used_far_apart": False})
    with torch_internals.tracing(torch_internals.TracingContext(mode)), settings:
        return torch_internals.partition(graph, [node.meta["val"] for node in holders], outputs)
