"""Trees to what `torch.autograd.Function`, a solver or the compiler takes: a flat list of tensors, or one vector."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.trees import Tree

Rebuild: TypeAlias = Callable[[Sequence[Tensor]], Tree]


def pack(tree: Tree) -> tuple[list[Tensor], Rebuild]:
    """The tensors of a tree, and the function that puts others in their places; everything else in the tree stays."""
    leaves, spec = trees.flatten(tree)
    if not all(isinstance(leaf, Tensor) or leaf is None for leaf in leaves) and trees.adopt(tree):
        leaves, spec = trees.flatten(tree)
    # without the tensors themselves, which would live as long as the function
    rest = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]

    def rebuild(tensors: Sequence[Tensor]) -> Tree:
        values = iter(tensors)
        return trees.unflatten(spec, [next(values) if kept is None else kept[0] for kept in rest])

    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], rebuild


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """`function` on every tensor of a tree; everything else stays."""
    tensors, rebuild = pack(tree)
    return rebuild([function(x) for x in tensors])


def detached(tree: Tree) -> Tree:
    """The same numbers as constants: no derivative, of either mode and any order, goes through them."""
    return map_tensors(Tensor.detach, tree)


def is_smooth(x: Any) -> bool:
    """Whether this is a tensor that a derivative can be taken of, rather than of integers or booleans."""
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def ravel(tree: Tree) -> tuple[Tensor, Callable[[Tensor], Tree]]:
    """All elements of a tree of tensors as one vector, and the function that turns such a vector into a tree again.

    Complex numbers are pairs of reals in it, so that it is real, and its inner product that of derivatives.
    """
    tensors, rebuild = pack(tree)
    # stacked, not viewed: a view back wants pairs that lie at even places
    parts = [torch.stack([x.real, x.imag], -1) if x.is_complex() else x for x in tensors]
    shapes = [(part.shape, part.dtype, x.is_complex()) for part, x in zip(parts, tensors, strict=True)]

    def unravel(vector: Tensor) -> Tree:
        pieces = vector.split([shape.numel() for shape, *_ in shapes])
        reals = [piece.reshape(shape).to(dtype) for piece, (shape, dtype, _) in zip(pieces, shapes, strict=True)]
        return rebuild([torch.complex(*r.unbind(-1)) if paired else r for r, (*_, paired) in zip(reals, shapes, strict=True)])

    return torch.cat([part.reshape(-1) for part in parts]), unravel
