"""What is joined to a larger tensor is computed in its place there, where the compiler would copy it.

It does so for what is joined as it is computed, and not for views of that: so here what is computed has the shape that is joined.
"""

from typing import Any

import torch
from torch import fx

from functional_optim.meta.products import join_rows

aten = torch.ops.aten


def compute_in_place(graph: fx.GraphModule) -> None:
    """Have sums and products that are joined computed in their places, and what is added to all of them with each."""
    for cat in graph.graph.find_nodes(op="call_function", target=aten.cat.default):
        _add_before(graph, cat)
    for cat in graph.graph.find_nodes(op="call_function", target=aten.cat.default):
        pieces: Any = cat.args[0]
        for view in pieces:
            made = view.args[0] if view.target in (aten.view.default, aten.reshape.default) else None
            if isinstance(made, fx.Node) and [*made.users] == [view] and [*view.users] == [cat]:
                _shape_as_joined(graph, made, view)
    graph.graph.eliminate_dead_code()


def _add_before(graph: fx.GraphModule, cat: fx.Node) -> None:
    """a + [b, c] as [a₁ + b, a₂ + c], which goes once over the memory of the result."""
    pieces: Any = cat.args[0]
    like, dim = cat.meta["val"], cat.args[1] if len(cat.args) > 1 else 0
    user, start, sums = next(iter(cat.users), cat), 0, []
    if len(cat.users) != 1 or user.target is not aten.add.Tensor or user.kwargs:
        return
    other = next((x for x in user.args if x is not cat), None)
    added = other.meta.get("val") if isinstance(other, fx.Node) else None
    if added is None or (added.shape, added.dtype) != (like.shape, like.dtype):
        return
    if any("val" not in x.meta or x.meta["val"].ndim != like.ndim for x in pieces):  # one without elements may have one dimension
        return
    with graph.graph.inserting_before(user):
        for piece in pieces:
            end = start + piece.meta["val"].shape[dim]
            sums.append(_call(graph, aten.add.Tensor, _call(graph, aten.slice.Tensor, other, dim, start, end), piece))
            start = end
        user.replace_all_uses_with(_call(graph, aten.cat.default, sums, dim))
    graph.graph.erase_node(user)


def _shape_as_joined(graph: fx.GraphModule, made: fx.Node, view: fx.Node) -> None:
    """Compute in the shape of a view what only that has."""
    with graph.graph.inserting_before(view):
        new = None
        if made.target is aten.sum.dim_IntList and not made.kwargs:
            new = _call(graph, aten.sum.dim_IntList, *made.args[:2])
        elif made.target in (aten.mm.default, aten.bmm.default):
            new = _sum_of_products(graph, made) or join_rows(graph, made)
        if new is not None and new.meta["val"].shape == view.meta["val"].shape:
            view.replace_all_uses_with(new)


def _sum_of_products(graph: fx.GraphModule, made: fx.Node) -> fx.Node | None:
    """What the compiler makes on a processor of a batch of vectors times matrices; None of another product."""
    a, b = made.args
    value = made.meta["val"]
    if value.ndim == 2 or value.device.type != "cpu" or min(value.shape[1:]) > 1:
        return None
    if value.shape[1] == 1:
        column = _call(graph, aten.permute.default, a, [0, 2, 1])
        return _call(graph, aten.sum.dim_IntList, _call(graph, aten.mul.Tensor, column, b), [1])
    row = _call(graph, aten.permute.default, b, [0, 2, 1])
    return _call(graph, aten.sum.dim_IntList, _call(graph, aten.mul.Tensor, a, row), [2])


def _call(graph: fx.GraphModule, target: Any, *args: Any) -> fx.Node:
    """A new operation of a graph."""
    node = graph.graph.call_function(target, args)
    node.meta["val"] = target(*fx.map_arg(args, lambda x: x.meta["val"]))
    return node
