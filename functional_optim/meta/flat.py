"""Parameters as one vector while a loop runs, where the transform can't tell: fewer, larger operations, and less to compile.

A law of the library is that elementwise rules see no shapes: of one flat tensor that holds all leaves, the update is that of the
leaves. So a chain of such rules may run on the vector, and only the loss sees the tree.
"""

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
from functional_optim.transform import Transform
from functional_optim.trees import Spec, Tree


@dataclass(frozen=True)
class Flat:
    """How a tree of parameters goes into a vector, and what is like it with it: gradients and slots.

    Attributes:
        spec: the structure of the parameters.
        shapes: of their leaves.
    """

    spec: Spec
    shapes: tuple[torch.Size, ...]

    def join(self, tree: Tree) -> Tensor:
        """A tree like the parameters as a vector."""
        return torch.cat([x.reshape(-1) for x in trees.leaves(tree)])

    def part(self, vector: Tensor) -> Tree:
        """The tree that a vector was joined from."""
        pieces = vector.split([shape.numel() for shape in self.shapes])
        return trees.unflatten(self.spec, [piece.reshape(s) for piece, s in zip(pieces, self.shapes, strict=True)])

    def join_state(self, state: Tree, like: Tree) -> Tree:
        """A state for the tree as one for the vector, of the structure `like`."""
        leaves, spec = trees.flatten(like)
        parts = zip(spec.flatten_up_to(state), leaves, strict=True)
        return trees.unflatten(spec, [self.join(part) if leaf.ndim else part for part, leaf in parts])

    def part_state(self, state: Tree) -> Tree:
        """A state for the vector as one for the tree."""
        return trees.map_leaves(lambda x: self.part(x) if x.ndim else x, state)


def flattening(params: Tree, transform: Transform, *hparams: HParams) -> Flat | None:
    """How to run this transform on a vector in place of these parameters; None where that would make a difference."""
    leaves, spec = trees.flatten(params)
    if len(leaves) < 2 or not all(isinstance(p, Tensor) and p.is_floating_point() for p in leaves):
        return None
    alike = len({(p.dtype, p.device) for p in leaves}) == 1
    uniform = not any(isinstance(value, PerLeaf) for mapping in hparams for value in mapping.values())
    if not (alike and uniform and all(_sees_no_shapes(form) for _, form in nested(transform))):
        return None
    return Flat(spec, tuple(p.shape for p in leaves))


def _sees_no_shapes(form: Any) -> bool:
    return isinstance(form, Chained | Renamed) or (isinstance(form, Leafwise) and form.elementwise and not form.leaf_extra)
