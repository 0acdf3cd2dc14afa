"""Graphs as compiled functions, which call each other.

A part that runs by itself is a program. Met within another trace it is one node there, and its code one function of that program,
however often it is called. A loop there is a routine (see `routines`), which calls programs of its own.
"""

import copy
import functools
import itertools
import logging
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from functional_optim import inductor, torch_internals
from functional_optim.meta.joins import compute_in_place
from functional_optim.meta.nodes import returned
from functional_optim.meta.products import take_small_products
from functional_optim.meta.rewrites import divide_once, keep_small_powers_apart, lift_constants, take_views_outside
from functional_optim.meta.routines import RUN, Routine, at_place, routine_of, running_with
from functional_optim.torch_internals import is_traced

log = logging.getLogger(__name__)

# The mark of a graph that came of a part.
_IS_PART = "functional_optim: part"

# Trust the shapes and strides that the trace has seen.
SETTINGS = {"size_asserts": False, "alignment_asserts": False}
# On a processor Inductor has convolutions by channels, which suits them. But with their derivatives all that is between them is
# turned for it, in tiles: a fifth of the time of a few-shot network's gradient.
WITHOUT_TURNING = {"layout_optimization": False}


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
        self._views = take_views_outside(graph)
        self.views = self._views.forward
        self.graph, self.mode, self.name, self.is_backward = graph, mode, name, is_backward
        inside = [*map(_part_of, calls(graph))]
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

        settings = SETTINGS | (WITHOUT_TURNING if _derives_convolutions_on_processors(self) else {}) | self.settings
        made = inductor.lowered(traced, settings, is_backward=self.is_backward)
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
        own = len(returned(self.graph))
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


_parts: weakref.WeakValueDictionary[int, Part] = weakref.WeakValueDictionary()
_numbers = itertools.count()
# What each trace that is under way has called; nothing else may keep such a part until the graph is one itself.
_kept: list[list[Part | Routine]] = []


def keep(called: Part | Routine) -> None:
    """What is called in a trace lives as long as what is made of it."""
    if _kept:
        _kept[-1].append(called)


@contextmanager
def keeping() -> Iterator[list[Part | Routine]]:
    """What is called in the trace inside."""
    _kept.append([])
    try:
        yield _kept[-1]
    finally:
        _kept.pop()


@torch.library.custom_op("functional_optim::call", mutates_args=())
def _call(tensors: list[Tensor], part: int) -> list[Tensor]:
    """A part as one node of a graph."""
    return list(_parts[part].graph(*tensors))


@_call.register_fake
def _(tensors: list[Tensor], part: int) -> list[Tensor]:
    return _new_results(_parts[part].graph)


def _new_results(graph: fx.GraphModule) -> list[Tensor]:
    """Tensors like those that a graph returns."""
    values = [node.meta["val"] for node in returned(graph)]
    return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in values]


def is_compiling() -> bool:
    """Whether a function is being made a part now."""
    return bool(_kept) and is_traced()


def calls(graph: fx.GraphModule) -> list[fx.Node]:
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


def _programs(part: Part) -> Iterator[Part]:
    """What is to be compiled before a part can run: what its routines run, and itself."""
    for inner in part.within:
        if isinstance(inner, Routine):
            for run in inner.parts:
                yield from _programs(run)
        else:  # a function of this program
            yield from (other for other in _programs(inner) if other is not inner)
    yield part


def _derives_convolutions_on_processors(part: Part) -> bool:
    """Whether it, or a function that it calls, holds the derivative of a convolution there."""
    found = part.graph.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution_backward.default)
    return any(node.args[1].meta["val"].device.type == "cpu" for node in found) or any(
        isinstance(inner, Part) and _derives_convolutions_on_processors(inner) for inner in part.within
    )


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
    for call in calls(graph):
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
    constants = lift_constants(graph, part.mode)
    divide_once(graph)
    keep_small_powers_apart(graph)
    compute_in_place(graph)
    take_small_products(graph)
    torch_internals.keep_strides(graph.graph.output_node(), len(returned(graph)))
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
