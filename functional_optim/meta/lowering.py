"""Functions of tensors as compiled code: traced, split into a forward part and its transpose, and lowered.

    trace    `make_fx`, through whatever the function differentiates and batches inside
    split    the partitioner of `torch.compile` (Zheng et al., min-cut rematerialisation): what is cheap is computed again
    lower    Inductor, after a few changes to the graph

A part that runs by itself is a program. Met within another trace it is one node there, and its code one function of that program,
however often it is called. A loop there is a routine (see `routines`), which calls programs of its own.
"""

import copy
import functools
import itertools
import logging
import operator
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx

from functional_optim import inductor, torch_internals, trees
from functional_optim.meta.packing import is_smooth
from functional_optim.meta.products import take_small_products
from functional_optim.meta.routines import RUN, Routine, at_place, routine_of, running_with
from functional_optim.torch_internals import is_traced, memory_of, schema_of

Function: TypeAlias = Callable[..., tuple[Tensor, ...]]

log = logging.getLogger(__name__)

aten = torch.ops.aten

# The mark of a graph that came of a part.
_IS_PART = "functional_optim: part"

# Trust the shapes and strides that the trace has seen.
SETTINGS = {"size_asserts": False, "alignment_asserts": False}


class Part:
    """A graph as a function of a list of tensors to a list of tensors, compiled when it first runs outside of any trace.

    Attributes:
        graph: what is computed; it returns tensors with memory of their own, each once.
        views: of arguments and what the graph returns to the results, which may be parts of them.
        within: the parts and routines that the graph calls.
        name: for those who watch the compiler.
        settings: of the compiler, for programs that it is in.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        mode: Any,
        name: str,
        *,
        is_backward: bool = False,
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._views = _take_views_outside(graph)
        self.views = self._views.forward
        self.graph, self.mode, self.name, self.is_backward = graph, mode, name, is_backward
        inside = [*map(_part_of, _calls(graph))]
        self.within = [*inside, *map(_routine_at, _runs(graph))]
        self.settings = functools.reduce(lambda all, part: all | part.settings, inside, dict(settings))
        self.number = next(_numbers)
        _parts[self.number] = self
        self._code: Callable[[list[Tensor]], Sequence[Tensor]] | None = None

    @property
    def code(self) -> Callable[[list[Tensor]], Sequence[Tensor]]:
        """The graph as machine code, which empties the list that it gets."""
        if self._code is None:
            _compile_all([*dict.fromkeys(part for part in _programs(self) if part._code is None)])
        assert self._code is not None
        return self._code

    def lowered(self) -> Callable[[list[Tensor]], Sequence[Tensor]]:
        """What the compiler makes of the graph."""
        constants: list[Tensor] = []
        routines: list[Routine] = []

        def traced() -> inductor.Traced:
            routines.clear()
            graph, constants[:] = _prepared(self, routines)
            inside = [inner for inner in graph.modules() if isinstance(inner, fx.GraphModule)]
            log.info("compiling %s: %d operations", self.name, sum(len(inner.graph.nodes) for inner in inside))
            return graph, [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")], self.mode

        made = inductor.lowered(traced, SETTINGS | self.settings, is_backward=self.is_backward)
        run = torch_internals.called_alone(made)
        if not (constants or routines):
            return run

        def with_what_it_holds(tensors: list[Tensor]) -> Sequence[Tensor]:
            tensors += constants
            with running_with(routines):
                return run(tensors)

        return with_what_it_holds

    def own(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the graph returns, of which `views` makes the results."""
        if is_traced():
            keep(self)
            return _call(list(tensors), self.number)
        return self.code(list(tensors))

    def now(self) -> Callable[[list[Tensor]], Sequence[Tensor]]:
        """`own` for several calls, of lists that it may empty: it is asked once whether a graph is being made of them."""
        return self.own if is_traced() else self.code

    def some_views(self, places: slice) -> "Views":
        """How some of the results come of the arguments and what the graph returns."""
        graph = copy.deepcopy(self._views.graph)
        (results,) = graph.output_node().args
        assert isinstance(results, list | tuple)
        graph.output_node().args = (results[places],)
        graph.eliminate_dead_code()
        used = [bool(node.users) for node in graph.find_nodes(op="placeholder")]
        own = len(_returned(self.graph))
        return Views(fx.GraphModule(self._views, graph).forward, tuple(used[: -own or None]), tuple(used[len(used) - own :]))


class Views(NamedTuple):
    """Some results of a part.

    Attributes:
        of: all arguments and all that the graph returns to these results; what is not used may be None.
        arguments: which arguments are used.
        own: which of what the graph returns.
    """

    of: Callable[..., list[Tensor]]
    arguments: tuple[bool, ...]
    own: tuple[bool, ...]


def shapes_of(function: Function, like: Sequence[Tensor]) -> list[Tensor]:
    """What a function would return for tensors like these, without elements.

    Raises:
        ValueError: it asks for their values.
    """
    assert torch_internals.active_fake_mode, "which `is_traced` asks for, or it raises"
    with torch_internals.disable_current_modes():
        mode = _fake_mode()
        _kept.append([])
        try:
            with mode:
                return _with_zeros(lambda function: list(function(*_like(like))), function)
        except torch_internals.asks_for_values() as error:
            asked = getattr(error, "func", error)
            raise ValueError(
                f"the function to compile asks for a value in a tensor ({asked}), which has none while it is compiled. "
                "Choose with torch.where, weigh with a mask, and take x.index_select(0, i) for an index that is a tensor."
            ) from error
        finally:
            _kept.pop()


def forward_part(
    function: Function, like: Sequence[Tensor], name: str, settings: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Part, list[Tensor]]:
    """A function, for tensors like these, compiled with such settings; and tensors like its results."""
    with torch_internals.disable_current_modes():
        mode = _fake_mode()
        with mode:
            inputs = _like(like)
        graph = _traced(lambda *inputs: list(function(*inputs)), inputs, mode)
        outputs = [node.meta["val"] for node in _returned(graph)]
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


# --- Traces --------------------------------------------------------------------------------------------------------------

_parts: weakref.WeakValueDictionary[int, Part] = weakref.WeakValueDictionary()
_numbers = itertools.count()
# What each trace that is under way has called; nothing else may keep such a part until the graph is one itself.
_kept: list[list[Part | Routine]] = []


def keep(called: Part | Routine) -> None:
    """What is called in a trace lives as long as what is made of it."""
    if _kept:
        _kept[-1].append(called)


@torch.library.custom_op("functional_optim::call", mutates_args=())
def _call(tensors: list[Tensor], part: int) -> list[Tensor]:
    """A part as one node of a graph."""
    return list(_parts[part].graph(*tensors))


@_call.register_fake
def _(tensors: list[Tensor], part: int) -> list[Tensor]:
    return _new_results(_parts[part].graph)


def _new_results(graph: fx.GraphModule) -> list[Tensor]:
    """Tensors like those that a graph returns."""
    values = [node.meta["val"] for node in _returned(graph)]
    return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in values]


def is_compiling() -> bool:
    """Whether a function is being made a part now."""
    return bool(_kept) and is_traced()


def _calls(graph: fx.GraphModule) -> list[fx.Node]:
    return list(graph.graph.find_nodes(op="call_function", target=torch.ops.functional_optim.call.default))


def _part_of(call: fx.Node) -> Part:
    number = call.args[1]
    assert isinstance(number, int)
    return _parts[number]


def _runs(graph: fx.GraphModule) -> list[fx.Node]:
    return list(graph.graph.find_nodes(op="call_function", target=RUN))


def _routine_at(call: fx.Node) -> Routine:
    number = call.args[1]
    assert isinstance(number, int)
    return routine_of(number)


def _arguments(call: fx.Node) -> list[fx.Node]:
    (nodes, _) = call.args
    assert isinstance(nodes, list | tuple)
    return [node for node in nodes if isinstance(node, fx.Node)]


def _returned(graph: fx.GraphModule) -> list[fx.Node]:
    (nodes,) = graph.graph.output_node().args
    assert isinstance(nodes, list | tuple)
    return [node for node in nodes if isinstance(node, fx.Node)]


def _traced(function: Callable[..., Any], inputs: Sequence[Tensor], mode: Any) -> fx.GraphModule:
    """The function as a graph of operations without writes."""
    make_fx, decompositions = torch_internals.make_fx, torch_internals.select_decomp_table()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own modules use what torch deprecates.
        torch_internals.get("inductor_lowering")  # which the decomposition of max-pooling takes for imported
        _kept.append([])
        try:
            with mode:
                graph = _with_zeros(lambda function: make_fx(function)(*inputs), function)
                _require_pure(graph)
                # apart, because `functionalize` takes no `autograd.Function`
                graph = make_fx(torch.func.functionalize(graph), decomposition_table=decompositions)(*inputs)
                if _transpose_factors(graph):
                    graph = make_fx(_contiguous(graph), decomposition_table=decompositions)(*inputs)
        finally:
            kept = _kept.pop()
    graph.graph.eliminate_dead_code()
    graph.meta["kept"] = kept
    return graph


def _transpose_factors(graph: fx.GraphModule) -> bool:
    """(A B)ᵀ as Bᵀ Aᵀ, which comes in the order in which it is read on; derivatives of matrix products are full of it.

    Returns whether anything changed: then what is computed of such a product lies in memory otherwise than the graph says, which
    is to be traced anew.
    """
    for view in graph.graph.find_nodes(op="call_function", target=aten.view.default):
        if view.meta["val"].shape == view.args[0].meta["val"].shape:
            view.replace_all_uses_with(view.args[0])
            graph.graph.erase_node(view)
        else:
            view.target = aten.reshape.default  # which is a view, where it can be one
    changed = False
    for product, order in ((aten.mm.default, [1, 0]), (aten.bmm.default, [0, 2, 1])):
        for node in graph.graph.find_nodes(op="call_function", target=product):
            users = list(node.users)
            if users and all(user.target is aten.permute.default and user.args[1] == order for user in users):
                with graph.graph.inserting_before(node):
                    factors = [graph.graph.call_function(aten.permute.default, (x, order)) for x in reversed(node.args)]
                    turned = graph.graph.call_function(product, tuple(factors))
                for user in users:
                    user.replace_all_uses_with(turned)
                changed = True
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return changed


def _contiguous(graph: fx.GraphModule) -> Callable[..., Any]:
    """The same function, whose results lie in memory as those of all parts do, and what it gives to parts as they want it."""
    for call in _calls(graph):
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
        if node.op == "call_function" and (_is_boolean(node) or _is_view(node)):
            torch_internals.compute_again(node)
    graph.recompile()
    # Of a loop, what is kept is kept for every step: better computed again, far apart as its uses may be.
    settings = torch_internals.patched(torch_internals.functorch_config, {"ban_recompute_used_far_apart": False})
    with torch_internals.tracing(torch_internals.TracingContext(mode)), settings:
        return torch_internals.partition(graph, [node.meta["val"] for node in holders], outputs)


def _take_views_outside(graph: fx.GraphModule) -> fx.GraphModule:
    """Change the graph to return what it computes, each tensor once; the graph of arguments and these to its former results.

    A program that calls a part may reuse the memory of what it got, as soon as it needs it no more: nothing else may lie there.
    """
    inputs, results, outside = graph.graph.find_nodes(op="placeholder"), _returned(graph), fx.Graph()
    known = {node: outside.placeholder(node.name) for node in inputs}
    reached, own = list(reversed(results)), []
    while reached:
        node = reached.pop()
        if _is_view(node):
            reached += node.all_input_nodes
        elif node not in known and node.op != "get_attr":
            known[node] = outside.placeholder(node.name)
            own.append(node)

    def copied(node: fx.Node) -> fx.Node:
        if node not in known:
            known[node] = outside.node_copy(node, copied)
        return known[node]

    outside.output([copied(node) for node in results])
    graph.graph.output_node().args = (own,)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return fx.GraphModule(graph, outside)


def _memory(node: fx.Node) -> Any:
    value = node.meta.get("val")
    value = value[0] if isinstance(value, list | tuple) and value else value
    return memory_of(value) if isinstance(value, Tensor) else node


def _is_boolean(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.bool


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:  # of a list of views, as `split` returns it, or of new tensors
        return _is_view(node.all_input_nodes[0])
    return any(_memory(node) == _memory(x) for x in node.all_input_nodes)


# --- Code ----------------------------------------------------------------------------------------------------------------


def _programs(part: Part) -> Iterator[Part]:
    """What is to be compiled before a part can run: what its routines run, and itself."""
    for inner in part.within:
        if isinstance(inner, Routine):
            for run in inner.parts:
                yield from _programs(run)
        else:  # a function of this program
            yield from (other for other in _programs(inner) if other is not inner)
    yield part


def _compile_all(parts: Sequence[Part]) -> None:
    """Compile these at once."""
    name, start = ", ".join(part.name for part in parts), time.perf_counter()
    with torch_internals.disable_current_modes(), inductor.lock, _returning_what_is_known(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in a trace
        codes = inductor.together([part.lowered for part in parts])
        for part, code in zip(parts, codes, strict=True):
            part._code = code
    log.info("compiled %s in %.1f s", name, time.perf_counter() - start)


def _prepared(part: Part, routines: list[Routine]) -> tuple[fx.GraphModule, list[Tensor]]:
    """A copy of the graph as the compiler wants it, with the parts that it calls as graphs inside; and the constants it gets.

    The routines that it calls are added to those of the program, by their places in it.
    """
    graph = fx.GraphModule(part.graph, copy.deepcopy(part.graph.graph))
    inside: dict[Part, tuple[str, list[str]]] = {}
    for call in _calls(graph):
        inner = _part_of(call)
        if inner not in inside:
            name = f"part_{len(inside)}"
            own_graph, constants = _prepared(inner, routines)
            own_graph.meta[_IS_PART] = True
            graph.add_submodule(name, own_graph)
            inside[inner] = name, [f"{name}_constant_{i}" for i in range(len(constants))]
            for held, constant in zip(inside[inner][1], constants, strict=True):
                graph.register_buffer(held, constant)
        name, held = inside[inner]
        with graph.graph.inserting_before(call):
            attribute, *constants = map(graph.graph.get_attr, (name, *held))
            arguments = (attribute, name, *_arguments(call), *constants)
            own = graph.graph.call_function(torch.ops.higher_order.invoke_subgraph, arguments)
        own.meta["val"] = call.meta["val"]
        call.replace_all_uses_with(own)
        graph.graph.erase_node(call)
    for call in _runs(graph):
        routine = _routine_at(call)
        if routine not in routines:
            routines.append(routine)
        at_place(call, routines.index(routine))
    constants = _lift_constants(graph, part.mode)
    _divide_once(graph)
    _keep_small_powers_apart(graph)
    take_small_products(graph)
    torch_internals.keep_strides(graph.graph.output_node(), len(_returned(graph)))
    graph.recompile()
    return graph, constants


@contextmanager
def _returning_what_is_known() -> Iterator[None]:
    """What a call of a part returns is read from its graph, when the compiler asks.

    It asks at each call, of which there may be many, again after its passes, and would run the part.
    """
    fakes, call = torch_internals.get("registered_hop_fake_fns"), torch.ops.higher_order.invoke_subgraph
    if fakes is None or call not in fakes:
        yield
        return
    original = fakes[call]

    def known(graph: Any, name: str, *tensors: Tensor) -> Any:
        return _new_results(graph) if getattr(graph, "meta", {}).get(_IS_PART) else original(graph, name, *tensors)

    fakes[call] = known
    try:
        yield
    finally:
        fakes[call] = original


def _lift_constants(graph: fx.GraphModule, mode: Any) -> list[Tensor]:
    """Make what the graph holds more of its inputs, and return it: another data set is then no other program for the compiler."""
    last, lifted = graph.graph.find_nodes(op="placeholder"), {}
    for node in graph.graph.find_nodes(op="get_attr"):
        constant = getattr(graph, str(node.target))
        if not isinstance(constant, Tensor) or constant.is_conj() or constant.is_neg():
            continue
        if id(constant) not in lifted:
            with graph.graph.inserting_after(last[-1]) if last else graph.graph.inserting_before(next(iter(graph.graph.nodes))):
                last.append(graph.graph.placeholder(f"constant_{len(lifted)}"))
            last[-1].meta["val"] = mode.from_tensor(constant, static_shapes=True)
            lifted[id(constant)] = constant, last[-1]
        node.replace_all_uses_with(lifted[id(constant)][1])
        graph.graph.erase_node(node)
    return [constant for constant, _ in lifted.values()]


def _divide_once(graph: fx.GraphModule) -> None:
    """Multiply by a reciprocal where a divisor serves several quotients, or many elements: a division takes ten times as long."""
    quotients: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.graph.find_nodes(op="call_function", target=aten.div.Tensor):
        divisor = node.args[1]
        if isinstance(divisor, fx.Node) and is_smooth(divisor.meta["val"]):
            quotients.setdefault(divisor, []).append(node)
    for divisor, users in quotients.items():
        if sum(map(_numel, users)) < 2 * _numel(divisor):
            continue
        with graph.graph.inserting_after(divisor):
            inverse = graph.graph.call_function(aten.reciprocal.default, (divisor,))
        inverse.meta["val"] = divisor.meta["val"].reciprocal()
        for node in users:
            node.target, node.args = aten.mul.Tensor, (node.args[0], inverse)


def _keep_small_powers_apart(graph: fx.GraphModule) -> None:
    """Compute what comes from a power of few elements, such as βᵗ, once, and not for every element that it is multiplied with."""
    few: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "call_function" and "pow" in str(node.target) or not few.isdisjoint(node.all_input_nodes):
            if _numel(node) and all(_numel(node) * 8 > _numel(x) for x in node.all_input_nodes):
                few.add(node)
    for node in few:
        if any(_numel(user) > 8 * _numel(node) for user in node.users):
            torch_internals.store(node)


def _numel(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 0
