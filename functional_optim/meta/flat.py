"""Parameters as one vector while a loop runs, where the transform can't tell: fewer, larger operations, and less to compile.

A law of the library is that elementwise rules see no shapes: of one flat tensor that holds all leaves, the update is that of the
leaves. So a chain of such rules may run on the vector, and only the loss sees the tree. What is kept or computed for each leaf by
itself, a slot of another shape or a `reduce` that looks at the leaves, needs the tree.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.chain import Chained
from functional_optim.combinators.rename import Renamed
from functional_optim.form import nested
from functional_optim.hparams import HParams, PerLeaf
from functional_optim.lifting import Leafwise
from functional_optim.reductions import SumOver
from functional_optim.transform import Transform
from functional_optim.trees import Spec, Tree


@dataclass(frozen=True)
class Flat:
    """How a tree of parameters goes into a vector, and what is like it with it: gradients and slots.

    Attributes:
        spec: the structure of the parameters.
        shapes: of their leaves.
        slots: the keys to each slot in the state of the transform.
    """

    spec: Spec
    shapes: tuple[torch.Size, ...]
    slots: frozenset[tuple[str, ...]]

    def join(self, tree: Tree) -> Tensor:
        """A tree like the parameters as a vector."""
        return torch.cat([x.reshape(-1) for x in trees.leaves(tree)])

    def part(self, vector: Tensor) -> Tree:
        """The tree that a vector was joined from."""
        pieces = vector.split([shape.numel() for shape in self.shapes])
        return trees.unflatten(self.spec, [piece.reshape(s) for piece, s in zip(pieces, self.shapes, strict=True)])

    def join_state(self, state: Tree) -> Tree:
        """A state for the tree as one for the vector."""
        return self._on_slots(self.join, state)

    def part_state(self, state: Tree) -> Tree:
        """A state for the vector as one for the tree."""
        return self._on_slots(self.part, state)

    def _on_slots(self, function: Callable[[Any], Any], state: Tree, path: tuple[str, ...] = ()) -> Tree:
        if path in self.slots:
            return function(state)
        if not isinstance(state, dict):
            return state
        return {name: self._on_slots(function, value, (*path, name)) for name, value in state.items()}


def flattening(params: Tree, state: Tree, transform: Transform, *hparams: HParams) -> Flat | None:
    """How to run this transform on a vector in place of these parameters; None where that would make a difference."""
    leaves, spec = trees.flatten(params)
    if len(leaves) < 2 or not _are_alike(leaves):
        return None
    uniform = not any(isinstance(value, PerLeaf) for mapping in hparams for value in mapping.values())
    if not (uniform and all(_sees_no_shapes(form) for _, form in nested(transform))):
        return None
    slots: set[tuple[str, ...]] = set()
    for path, value in _entries(transform, state):
        if isinstance(value, Tensor) and value.ndim == 0 and path[-1] == "step":
            continue
        own, own_spec = trees.flatten(value)
        if own_spec != spec or not _are_alike(own) or any(x.shape != p.shape for x, p in zip(own, leaves, strict=True)):
            return None
        slots.add(path)
    return Flat(spec, tuple(p.shape for p in leaves), frozenset(slots))


def _sees_no_shapes(form: Any) -> bool:
    if isinstance(form, Leafwise):
        return form.packs and not form.leaf_extra and (form.reduce is None or isinstance(form.reduce, SumOver))
    return isinstance(form, Chained | Renamed)


def _entries(transform: Transform, state: Tree) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What the rules keep, with the keys to it; a state that is not the transform's is one entry of its own."""
    for path, form in nested(transform):
        if isinstance(form, Leafwise):
            own = state
            for key in path:
                own = own[key] if isinstance(own, dict) and key in own else None
            if not isinstance(own, dict) or set(own) != form.state_names:
                yield path, None
            else:
                yield from (((*path, name), value) for name, value in own.items())


def _are_alike(leaves: list[Any]) -> bool:
    """Whether these are real tensors that go into one without a change."""
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in leaves):
        return False
    return len({(x.dtype, x.device) for x in leaves}) == 1
