"""Questions to the nodes of a graph: what they return, where that lies, whether it is a view."""

import operator
from typing import Any

import torch
from torch import Tensor, fx

from functional_optim.torch_internals import memory_of


def returned(graph: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose values a graph returns."""
    (nodes,) = graph.graph.output_node().args
    assert isinstance(nodes, list | tuple)
    return [node for node in nodes if isinstance(node, fx.Node)]


def memory(node: fx.Node) -> Any:
    """Where the value of a node lies: equal for a tensor and its views."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, list | tuple) and value else value
    return memory_of(value) if isinstance(value, Tensor) else node


def is_boolean(node: fx.Node) -> bool:
    """Whether it is a tensor of booleans."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.bool


def is_view(node: fx.Node) -> bool:
    """Whether it is, or is a list of, parts of what it is made of."""
    if node.target is operator.getitem:  # of a list of views, as `split` returns it, or of new tensors
        return is_view(node.all_input_nodes[0])
    return any(memory(node) == memory(x) for x in node.all_input_nodes)


def numel(node: fx.Node) -> int:
    """How many elements it has; 0 if it is no tensor."""
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 0
