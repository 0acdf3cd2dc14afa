"""Trees of tensors: the project's only door to optree.

A parameter tree is any pytree that optree knows: dict, list, tuple, NamedTuple, a dataclass registered in
optree's global namespace, or a bare tensor. `None` is a leaf: it stands for "no gradient" or "no parameter".
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import optree
import optree.dataclasses
import optree.registry
import torch

from functional_optim import torch_internals

Tree: TypeAlias = Any
Spec: TypeAlias = optree.PyTreeSpec
IsLeaf: TypeAlias = Callable[[Any], bool]


def flatten(tree: Tree, is_leaf: IsLeaf | None = None) -> tuple[list[Any], Spec]:
    """The leaves of a tree and its structure; `None` counts as a leaf, and so does what `is_leaf` says."""
    return optree.tree_flatten(tree, is_leaf, none_is_leaf=True)


def unflatten(spec: Spec, leaves: Sequence[Any]) -> Tree:
    """The tree of this structure with these leaves."""
    return optree.tree_unflatten(spec, leaves)


def leaves(tree: Tree, is_leaf: IsLeaf | None = None) -> list[Any]:
    """The leaves of a tree, as `flatten` finds them."""
    return optree.tree_leaves(tree, is_leaf, none_is_leaf=True)


def map_leaves(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """`function` on the leaves of one or several trees of equal structure; where the first has `None`, so has the result."""

    def on_leaf(leaf: Any, *others: Any) -> Any:
        return None if leaf is None else function(leaf, *others)

    return optree.tree_map(on_leaf, tree, *rest, none_is_leaf=True)


def paths(tree: Tree, root: str = "", is_leaf: IsLeaf | None = None) -> list[str]:
    """How each leaf is reached from `root`, as Python source: `["params['w']", "params['layers'][0]"]`."""
    return [accessor.codify(root) for accessor in optree.tree_accessors(tree, is_leaf, none_is_leaf=True)]


def names(tree: Tree) -> list[str]:
    """What each leaf is called: the keys to it joined by dots, `layers.0.weight`; "" for a bare leaf."""
    return [".".join(map(str, path)) for path in optree.tree_paths(tree, none_is_leaf=True)]


def keys(tree: Tree) -> list[Any]:
    """What each leaf is called, for a flat dict of leaves: its name, or the key itself of a flat dict whose keys are objects."""
    paths = optree.tree_paths(tree, none_is_leaf=True)
    return [
        path[0] if len(path) == 1 and not isinstance(path[0], str | int) else name
        for path, name in zip(paths, names(tree), strict=True)
    ]


def distinct(value: Any) -> Any:
    """A key that differs where the value does: 1, True and 1.0 are equal in Python, and so are 0.0 and -0.0."""
    if isinstance(value, int | float | complex):
        return type(value), repr(value)
    return value


def leaves_like(tree: Tree, reference: Tree, spec: Spec, name: str, reference_name: str) -> list[Any]:
    """The leaves of `tree`, which must have the structure `spec` of `reference`.

    Raises ValueError that names the first path by which they differ.
    """
    found, found_spec = flatten(tree)
    if _differ(found_spec, spec):
        raise ValueError(
            f"{name} does not have the structure of {reference_name}: {_first_difference(tree, reference, name, reference_name)}."
        )
    return found


def _differ(a: Spec, b: Spec) -> bool:
    """Whether two structures differ. While `torch.compile` traces, by what it can compare in every version: no functions."""
    if not torch.compiler.is_compiling():
        return a != b
    if a.type is not b.type or a.entries() != b.entries():
        return True
    return any(_differ(x, y) for x, y in zip(a.children(), b.children(), strict=True))


def _first_difference(tree: Tree, reference: Tree, name: str, reference_name: str) -> str:
    ours, theirs = paths(tree), paths(reference)
    for paths_of_one, own_name in ((ours, name), (theirs, reference_name)):
        if paths_of_one == [""] and ours != theirs:
            return f"{own_name} is a single leaf"
    for path in theirs:
        if path not in ours:
            return f"{reference_name}{path} has no counterpart in {name}"
    for path in ours:
        if path not in theirs:
            return f"{name}{path} has no counterpart in {reference_name}"
    return f"the same leaves are held by other containers: {flatten(tree)[1]} against {flatten(reference)[1]}"


def register_box(box: Any, attribute: str) -> None:
    """Let trees go through a class that holds one tree: optree's, and those of `torch.vmap` and `torch.func.grad`."""

    def content(instance: Any) -> Any:
        return [getattr(instance, attribute)], None

    def rebuilt(children: Any, context: Any) -> Any:
        (tree,) = children
        return box(tree)

    if hasattr(optree.dataclasses, "register_node"):
        optree.dataclasses.register_node(box, namespace="")
    else:  # Before optree 0.20 only a private name stands for everywhere.
        everywhere = vars(optree.registry)["__GLOBAL_NAMESPACE"]
        optree.register_pytree_node(box, content, lambda context, children: rebuilt(children, context), namespace=everywhere)
    if torch_internals.get("register_pytree_node"):
        torch_internals.register_pytree_node(box, content, rebuilt)
