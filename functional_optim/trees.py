"""Trees of tensors: with `traced_trees`, the project's only door to optree.

A parameter tree is a dict, list, tuple or NamedTuple, a class registered with torch's own pytrees or globally with optree, or a
bare tensor. `None` is a leaf: it stands for "no gradient" or "no parameter".
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import optree
from torch import Tensor
from torch.compiler import is_compiling

from functional_optim import torch_internals, traced_trees
from functional_optim.traced_trees import NAMESPACE

Tree: TypeAlias = Any
Spec: TypeAlias = optree.PyTreeSpec | traced_trees.TracedSpec
IsLeaf: TypeAlias = Callable[[Any], bool]


def flatten(tree: Tree, is_leaf: IsLeaf | None = None) -> tuple[list[Any], Spec]:
    """The leaves of a tree and its structure; `None` counts as a leaf, and so does what `is_leaf` says."""
    if is_compiling():
        return traced_trees.flatten(tree, is_leaf)
    return optree.tree_flatten(tree, is_leaf, none_is_leaf=True, namespace=NAMESPACE)


def unflatten(spec: Spec, leaves: Sequence[Any]) -> Tree:
    """The tree of this structure with these leaves."""
    if isinstance(spec, traced_trees.TracedSpec):
        return spec.unflatten(iter(leaves))
    return optree.tree_unflatten(spec, leaves)


def leaves(tree: Tree, is_leaf: IsLeaf | None = None) -> list[Any]:
    """The leaves of a tree, as `flatten` finds them."""
    if is_compiling():
        return traced_trees.flatten(tree, is_leaf)[0]
    return optree.tree_leaves(tree, is_leaf, none_is_leaf=True, namespace=NAMESPACE)


def map_leaves(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """`function` on the leaves of one or several trees of equal structure; where the first has `None`, so has the result."""

    def on_leaf(leaf: Any, *others: Any) -> Any:
        return None if leaf is None else function(leaf, *others)

    if is_compiling():
        first, spec = traced_trees.flatten(tree)
        columns = [spec.flatten_up_to(other) for other in rest]
        return spec.unflatten(iter([on_leaf(*row) for row in zip(first, *columns, strict=True)]))
    return optree.tree_map(on_leaf, tree, *rest, none_is_leaf=True, namespace=NAMESPACE)


def paths(tree: Tree, root: str = "", is_leaf: IsLeaf | None = None) -> list[str]:
    """How each leaf is reached from `root`, as Python source: `["params['w']", "params['layers'][0]"]`."""
    return [accessor.codify(root) for accessor in optree.tree_accessors(tree, is_leaf, none_is_leaf=True, namespace=NAMESPACE)]


def names(tree: Tree) -> list[str]:
    """What each leaf is called: the keys to it joined by dots, `layers.0.weight`; "" for a bare leaf."""
    return [".".join(map(str, path)) for path in _paths(tree)]


def keys(tree: Tree) -> list[Any]:
    """What each leaf is called, for a flat dict of leaves: its name, or the key itself of a flat dict whose keys are objects.

    Raises:
        ValueError: two leaves are called the same, as in `{"a.b": x, "a": {"b": y}}`.
    """
    paths = _paths(tree)
    return _told_apart(
        tree,
        [
            path[0] if len(path) == 1 and not isinstance(path[0], str | int) else name
            for path, name in zip(paths, names(tree), strict=True)
        ],
    )


def by_name(tree: Tree) -> dict[str, Any]:
    """The leaves by name.

    Raises:
        ValueError: two have one name.
    """
    return dict(zip(_told_apart(tree, names(tree)), leaves(tree), strict=True))


def _told_apart(tree: Tree, called: list[Any]) -> list[Any]:
    if len(set(called)) < len(called):
        twice = next(x for i, x in enumerate(called) if x in called[:i])
        both = " and ".join(f"tree{path}" for path, x in zip(paths(tree), called, strict=True) if x == twice)
        raise ValueError(f"{both} are both called {str(twice)!r}, and what goes by names can't tell them apart: rename one.")
    return called


def _paths(tree: Tree) -> list[tuple[Any, ...]]:
    """The entries to each leaf."""
    if is_compiling():
        return traced_trees.flatten(tree)[1].paths()
    return optree.tree_paths(tree, none_is_leaf=True, namespace=NAMESPACE)


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
    if found_spec != spec:
        raise ValueError(
            f"{name} does not have the structure of {reference_name}: {_first_difference(tree, reference, name, reference_name)}."
        )
    return found


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

    optree.register_pytree_node(box, content, lambda context, children: rebuilt(children, context), namespace=NAMESPACE)
    if torch_internals.get("register_pytree_node"):
        torch_internals.register_pytree_node(box, content, rebuilt)


def adopt(tree: Tree) -> bool:
    """Let trees go through those classes in this one that torch's own pytrees go through; whether there was one to learn of.

    While `torch.compile` traces, nothing can be learnt: there a class is known that some call outside has seen.
    """
    if is_compiling():
        return False
    torch_trees = torch_internals.get("torch_trees")
    others = [x for x in leaves(tree) if not (x is None or isinstance(x, Tensor))]
    strange = {type(x): x for x in others if torch_trees and not torch_trees.tree_is_leaf(x)}
    for kind, example in strange.items():
        named = all(isinstance(x, str) and hasattr(example, x) for x in _names_in_torch(example) or [0])
        entry = optree.GetAttrEntry if named else optree.AutoEntry
        optree.register_pytree_node(kind, _torch_children, _from_torch, path_entry_type=entry, namespace=NAMESPACE)
    if strange:
        adopt(tree)
    return bool(strange)


def _torch_children(container: Any) -> tuple[list[Any], Any, list[Any] | None]:
    children, spec = torch_internals.torch_trees.tree_flatten(container, lambda x: x is not container)
    return children, spec, _names_in_torch(container)


def _from_torch(spec: Any, children: Iterable[Any]) -> Any:
    return torch_internals.torch_trees.tree_unflatten(children, spec)


def _names_in_torch(container: Any) -> list[Any] | None:
    """What torch calls the children of a container; None where it does not say."""
    try:
        found, _ = torch_internals.torch_trees.tree_flatten_with_path(container, lambda x: x is not container)
    except ValueError:  # The class was registered without names.
        return None
    return [getattr(key, "name", getattr(key, "key", getattr(key, "idx", None))) for (key,), _ in found]
