"""Trees to what `torch.autograd.Function`, a solver or the compiler takes: a flat list of tensors, or one vector."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.hparams import PerLeaf
from functional_optim.trees import Tree

Rebuild: TypeAlias = Callable[[Sequence[Tensor]], Tree]


def pack(tree: Tree) -> tuple[list[Tensor], Rebuild]:
    """The tensors of a tree, those inside a `PerLeaf` too, and the function that puts others in their places."""
    leaves, spec = trees.flatten(tree, _is_per_leaf)
    inner = {i: pack(leaf.tree) for i, leaf in enumerate(leaves) if isinstance(leaf, PerLeaf)}
    found: list[Tensor] = []
    for i, leaf in enumerate(leaves):
        found.extend(inner[i][0] if i in inner else [leaf] if isinstance(leaf, Tensor) else [])

    def rebuild(tensors: Sequence[Tensor]) -> Tree:
        rest, filled = iter(tensors), []
        for i, leaf in enumerate(leaves):
            if i in inner:
                below, rebuild_below = inner[i]
                filled.append(PerLeaf(rebuild_below([next(rest) for _ in below])))
            else:
                filled.append(next(rest) if isinstance(leaf, Tensor) else leaf)
        return trees.unflatten(spec, filled)

    return found, rebuild


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """`function` on every tensor of a tree, those inside a `PerLeaf` too."""
    tensors, rebuild = pack(tree)
    return rebuild([function(x) for x in tensors])


def detached(tree: Tree) -> Tree:
    """The same numbers as constants: no derivative, of either mode and any order, goes through them."""
    return map_tensors(Tensor.detach, tree)


def is_smooth(x: Any) -> bool:
    """Whether this is a tensor that a derivative can be taken of, rather than of integers or booleans."""
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def ravel(tree: Tree) -> tuple[Tensor, Callable[[Tensor], Tree]]:
    """All elements of a tree of tensors as one vector, and the function that turns such a vector into a tree again."""
    tensors, rebuild = pack(tree)

    def unravel(vector: Tensor) -> Tree:
        pieces = vector.split([x.numel() for x in tensors])
        return rebuild([piece.reshape(x.shape).to(x.dtype) for piece, x in zip(pieces, tensors, strict=True)])

    return torch.cat([x.reshape(-1) for x in tensors]), unravel


def _is_per_leaf(x: Any) -> bool:
    return isinstance(x, PerLeaf)
