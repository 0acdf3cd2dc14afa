"""Trees inside `torch.compile`, which can't trace optree through a dict that is empty, or holds nothing but None.

torch computes such a dict's flattening while it traces, and then does not know what to make of the result. This walks dicts by
itself, in optree's order, and asks optree about every other container.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import optree
import optree.utils

# Of classes that optree knows for this library's sake only.
NAMESPACE = "functional_optim"


@dataclass(frozen=True)
class TracedSpec:
    """The structure of a tree, as optree's `PyTreeSpec`; two compare without functions, which not every torch can trace.

    Attributes:
        kind: the container's type; None for a leaf.
        metadata: what else tells it from others of its type, such as the keys of a dict.
        entries: what each child is called.
        children: their structures.
        rebuild: `children -> container`.
    """

    kind: type | None = None
    metadata: Any = None
    entries: tuple[Any, ...] = field(default=(), compare=False)
    children: tuple[TracedSpec, ...] = ()
    rebuild: Callable[[Sequence[Any]], Any] = field(default=tuple, compare=False)

    @property
    def num_leaves(self) -> int:
        """How many leaves a tree of this structure has."""
        return 1 if self.kind is None else sum(child.num_leaves for child in self.children)

    def unflatten(self, leaves: Iterator[Any]) -> Any:
        """The tree of this structure with the next leaves."""
        return next(leaves) if self.kind is None else self.rebuild([child.unflatten(leaves) for child in self.children])

    def flatten_up_to(self, tree: Any) -> list[Any]:
        """What another tree has where this one has leaves."""
        if self.kind is None:
            return [tree]
        own, found = _node(tree)
        if (own.kind, own.metadata, len(found)) != (self.kind, self.metadata, len(self.children)):
            raise ValueError(f"Expected a {self.kind.__name__} with the entries {self.entries}, got {tree!r}.")
        return [x for child, part in zip(self.children, found, strict=True) for x in child.flatten_up_to(part)]

    def paths(self) -> list[tuple[Any, ...]]:
        """The entries to each leaf."""
        if self.kind is None:
            return [()]
        return [(entry, *path) for entry, child in zip(self.entries, self.children, strict=True) for path in child.paths()]


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], TracedSpec]:
    """The leaves of a tree and its structure; `None` counts as a leaf, and so does what `is_leaf` says."""
    if optree.tree_is_leaf(tree, is_leaf, none_is_leaf=True, namespace=NAMESPACE):
        return [tree], TracedSpec()
    own, parts = _node(tree)
    leaves: list[Any] = []
    children = []
    for part in parts:
        found, child = flatten(part, is_leaf)
        leaves += found
        children.append(child)
    return leaves, TracedSpec(own.kind, own.metadata, own.entries, tuple(children), own.rebuild)


def _node(tree: Any) -> tuple[TracedSpec, Sequence[Any]]:
    """A container without its children, and these."""
    if type(tree) is dict:
        order, keys = list(tree), optree.utils.total_order_sorted(tree)

        def rebuild(children: Sequence[Any]) -> dict[Any, Any]:
            values = dict(zip(keys, children, strict=True))
            return {key: values[key] for key in order}

        return TracedSpec(dict, keys, tuple(keys), (), rebuild), [tree[key] for key in keys]
    if optree.tree_is_leaf(tree, none_is_leaf=True, namespace=NAMESPACE):
        return TracedSpec(), []
    children, metadata, entries, unflatten = optree.tree_flatten_one_level(tree, none_is_leaf=True, namespace=NAMESPACE)
    return TracedSpec(type(tree), metadata, entries, (), lambda parts: unflatten(metadata, parts)), children
