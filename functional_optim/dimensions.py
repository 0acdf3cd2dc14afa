"""A slot per dimension: matrices of a tensor's sides, for rules that treat rows and columns each in a way of their own.

A rule that wants them is `batched`: it sees stacks of tensors of one shape, (n, rows, columns), and of their sides,
(n, rows, rows) and (n, columns, columns). The slots are called `GG.0`, `GG.1`, …; where a tensor has no such dimension, or it is
left out, the slot is empty, (n, 0, 0).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from functional_optim.hparams import HParams
from functional_optim.lifting import SlotInit, widened
from functional_optim.numerics import Scalar, plus_product, sqrt

# Of a shape, the sizes of the dimensions that have slots; 0 for one that has none.
Sides = Callable[[Sequence[int]], Sequence[int]]


def folded(shape: Sequence[int], dims: int) -> tuple[int, ...]:
    """A shape of at most so many dimensions: of more, the last are taken together."""
    return (*shape[: dims - 1], math.prod(shape[dims - 1 :])) if len(shape) > dims else tuple(shape)


def sides(shape: Sequence[int], dims: int, largest: int, vectors: bool) -> list[int]:
    """The size of each of the dimensions of a folded shape that have slots; 0 for the others.

    Args:
        shape: of a tensor.
        dims: how many dimensions there may be.
        largest: a dimension larger than this has none.
        vectors: whether the only dimension of a vector has one.
    """
    sizes = folded(shape, dims)
    kept = [size if size <= largest and (len(sizes) > 1 or vectors) else 0 for size in sizes]
    return kept + [0] * (dims - len(kept))


def per_dimension(name: str, dims: int, sizes: Sides, start: Callable[..., Tensor]) -> dict[str, SlotInit]:
    """The slots `name.0`, `name.1`, …: square matrices, each made by `start(size, dtype=, device=)`, in at least float32."""

    def begins(i: int) -> SlotInit:
        def begin(p: Tensor, hp: HParams) -> Tensor:
            del hp
            like = widened(p[:0]) if p.ndim else widened(p)
            return start(sizes(p.shape)[i], dtype=like.dtype, device=p.device)

        return begin

    return {f"{name}.{i}": begins(i) for i in range(dims)}


def square_zeros(size: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A matrix of zeros."""
    return torch.zeros(size, size, dtype=dtype, device=device)


def along(function: Callable[[Tensor], Tensor], x: Tensor, i: int) -> Tensor:
    """Of a stack of tensors, a function of the matrices (n, all others, dimension i), which keeps their shape."""
    y = x.movedim(i + 1, -1)
    return function(_as_matrices(y)).reshape(y.shape).movedim(-1, i + 1)


def turned(x: Tensor, qs: Sequence[Tensor]) -> Tensor:
    """Each of a stack of tensors in other bases: dimension i times the columns of its `qs[i]`; where that is empty, as it is."""
    for i, q in enumerate(qs):
        if q.shape[-1]:
            x = along(lambda y, q=q: y @ q, x, i)
    return x


def gram(x: Tensor, i: int) -> Tensor:
    """Of each of a stack of tensors, the inner products of its slices along dimension i: of matrices G Gᵀ for 0, Gᵀ G for 1."""
    y = _as_matrices(x.movedim(i + 1, -1))
    return y.mT @ y


def added_gram(gg: Tensor, x: Tensor, i: int, keep: Scalar, share: Scalar) -> Tensor:
    """`keep gg + share gram(x, i)`, a running sum of such products; empty where there is none."""
    if not gg.shape[-1]:
        return gg
    y = _as_matrices(x.movedim(i + 1, -1))
    return plus_product(gg, y.mT, y, keep, share)


def roots_along(ggs: Sequence[Tensor], qs: Sequence[Tensor], eps: Scalar) -> list[Tensor]:
    """Of each dimension's second moment, its roots along the columns of a basis, (n, size), at least √eps."""
    return [sqrt((q * (gg @ q)).sum(1).clamp(min=eps)) for gg, q in zip(ggs, qs, strict=True)]


def whitened(x: Tensor, roots: Sequence[Tensor]) -> Tensor:
    """Each of a stack of tensors divided by the roots along its dimensions; where there are none, as it is."""
    for i, root in enumerate(roots):
        if root.shape[-1]:
            x = along(lambda y, root=root: y / root.unsqueeze(1), x, i)
    return x


def whitened_gram(x: Tensor, i: int, qs: Sequence[Tensor], roots: Sequence[Tensor]) -> Tensor:
    """As `gram`, a mean over the other dimensions, whitened along them: of matrices for 0, G Qᴿ Dᴿ⁻¹ Qᴿᵀ Gᵀ / n."""
    others = [j for j in range(len(qs)) if j != i and j < x.ndim - 1]
    for j in others:
        if qs[j].shape[-1]:
            x = along(lambda y, j=j: y @ qs[j] / roots[j].unsqueeze(1), x, j)
    return gram(x, i) / math.prod([x.shape[j + 1] for j in others])


def followed(ggs: Sequence[Tensor], qs: Sequence[Tensor]) -> tuple[list[Tensor], dict[int, Tensor]]:
    """One step of the power iteration from the bases so far, by falling qᵀ L q; and the columns' order, by dimension."""
    new, orders = list(qs), {}
    for i, (gg, q) in enumerate(zip(ggs, qs, strict=True)):
        if gg.shape[-1]:
            power = gg @ q
            orders[i] = (q * power).sum(1).argsort(descending=True)
            new[i] = torch.linalg.qr(arranged(power, orders[i], 1))[0]
    return new, orders


def arranged(x: Tensor, order: Tensor, i: int) -> Tensor:
    """Each of a stack of tensors with the slices along dimension i in another order, (n, size): its own."""
    return along(lambda y: y.gather(2, order.unsqueeze(1).expand(y.shape)), x, i)


def _as_matrices(y: Tensor) -> Tensor:
    return y.reshape(y.shape[0], math.prod(y.shape[1:-1]), y.shape[-1])
