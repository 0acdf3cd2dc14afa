"""Parameters as one vector while a loop runs, where the transform can't tell: fewer, larger operations, and less to compile.

A law of the library is that elementwise rules see no shapes: of one flat tensor that holds all leaves, the update is that of the
leaves. So a chain of such rules may run on the vector, and only the loss sees the tree. What is kept or computed for each leaf by
itself, a slot of another shape or a `reduce` that looks at the leaves, needs the tree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.form import Path, nested
from functional_optim.hparams import HParams, PerLeaf
from functional_optim.lifting import Leafwise
from functional_optim.transform import Transform
from functional_optim.trees import Spec, Tree


@dataclass(frozen=True)
class Flat:
    """How a tree of parameters goes into a vector, and what is like it with it: gradients and slots.

    Attributes:
        spec: the structure of the parameters.
        shapes: of their leaves.
        slots: the keys to each slot in the state of the transform. All else in it are counts of steps.
    """

    spec: Spec
    shapes: tuple[torch.Size, ...]
    slots: frozenset[Path]

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

    def _on_slots(self, function: Callable[[Any], Any], state: Tree, path: Path = ()) -> Tree:
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
    if any(isinstance(value, PerLeaf) for mapping in hparams for value in mapping.values()):
        return None
    if any(form.sees_shapes or form.needs.trees for _, form in nested(transform)):
        return None
    slots: set[Path] = set()
    for path, form in nested(transform):
        own = _at(state, path)
        if any(not isinstance(own.get(count), Tensor) for count in form.own_counts):
            return None
        for name in form.slots if isinstance(form, Leafwise) else ():
            x, x_spec = trees.flatten(own.get(name))
            if x_spec != spec or not _are_alike(x) or any(a.shape != b.shape for a, b in zip(x, leaves, strict=True)):
                return None
            slots.add((*path, name))
    return Flat(spec, tuple(p.shape for p in leaves), frozenset(slots))


def _at(state: Tree, path: Path) -> dict[str, Any]:
    """A part's own state; nothing where that is none, which the part will say."""
    for key in path:
        state = state.get(key) if isinstance(state, dict) else None
    return state if isinstance(state, dict) else {}


def _are_alike(leaves: list[Any]) -> bool:
    """Whether these are real tensors that go into one without a change."""
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in leaves):
        return False
    return len({(x.dtype, x.device) for x in leaves}) == 1
