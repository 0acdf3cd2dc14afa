"""Changes to a graph before it is compiled: the same function, in an order or a form that takes less time."""

from typing import Any

import torch
from torch import Tensor, fx

from functional_optim import torch_internals
from functional_optim.meta.nodes import is_view, numel, returned
from functional_optim.meta.packing import is_smooth

aten = torch.ops.aten


def transpose_factors(graph: fx.GraphModule) -> bool:
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


def take_views_outside(graph: fx.GraphModule) -> fx.GraphModule:
    """Change the graph to return what it computes, each tensor once; the graph of arguments and these to its former results.

    A program that calls a part may reuse the memory of what it got, as soon as it needs it no more: nothing else may lie there.
    """
    inputs, results, outside = graph.graph.find_nodes(op="placeholder"), returned(graph), fx.Graph()
    known = {node: outside.placeholder(node.name) for node in inputs}
    reached, own = list(reversed(results)), []
    while reached:
        node = reached.pop()
        if is_view(node):
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


def lift_constants(graph: fx.GraphModule, mode: Any) -> list[Tensor]:
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


def divide_once(graph: fx.GraphModule) -> None:
    """Multiply by a reciprocal where a divisor serves several quotients, or many elements: a division takes ten times as long."""
    quotients: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.graph.find_nodes(op="call_function", target=aten.div.Tensor):
        divisor = node.args[1]
        if isinstance(divisor, fx.Node) and is_smooth(divisor.meta["val"]):
            quotients.setdefault(divisor, []).append(node)
    for divisor, users in quotients.items():
        if sum(map(numel, users)) < 2 * numel(divisor):
            continue
        with graph.graph.inserting_after(divisor):
            inverse = graph.graph.call_function(aten.reciprocal.default, (divisor,))
        inverse.meta["val"] = divisor.meta["val"].reciprocal()
        for node in users:
            node.target, node.args = aten.mul.Tensor, (node.args[0], inverse)


def keep_small_powers_apart(graph: fx.GraphModule) -> None:
    """Compute what comes from a power of few elements, such as βᵗ, once, and not for every element that it is multiplied with."""
    few: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "call_function" and "pow" in str(node.target) or not few.isdisjoint(node.all_input_nodes):
            if numel(node) and all(numel(node) * 8 > numel(x) for x in node.all_input_nodes):
                few.add(node)
    for node in few:
        if any(numel(user) > 8 * numel(node) for user in node.users):
            torch_internals.store(node)
