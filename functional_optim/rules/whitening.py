"""PSGD's fit of a Kronecker product of triangular matrices that whitens gradients: P = QᵀQ with E[P g gᵀ P] → I.

    A ← G ×₁ Q₁ ×₂ Q₂ …                   G: the gradient
    B ← V ×₁ Q₁⁻ᵀ ×₂ Q₂⁻ᵀ …               V: a normal probe
    Qᵢ ← Qᵢ − μ triu(Aᵢ Aᵢᵀ − Bᵢ Bᵢᵀ) Qᵢ / ‖Aᵢ Aᵢᵀ + Bᵢ Bᵢᵀ‖

Aᵢ is A as the matrix of dimension i by all others. A Qᵢ may be diagonal, a vector: then only the diagonals are looked at. ‖·‖ is
a lower bound of the spectral norm, two products of the largest column; of a vector its largest element.

Li 2015, Preconditioned Stochastic Gradient Descent, https://arxiv.org/abs/1512.04202
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from functional_optim.dimensions import along, gram
from functional_optim.numerics import Scalar, sqrt

# √ of float32's ε: how much of the probe is mixed into a gradient, so that a fit to gradients of low rank stays finite.
DAMPING = 2.0**-11.5


def fitted(qs: Sequence[Tensor], x: Tensor, v: Tensor, rate: Scalar) -> list[Tensor]:
    """The matrices after a gradient, x, and a probe, v: stacks (n, …) both, the qs (n, d, d), upper triangular, or (n, d)."""
    mean = x.abs().mean(tuple(range(1, x.ndim)), keepdim=True)
    a, b = x + DAMPING * mean * v, v
    for i, q in enumerate(qs):
        a = multiplied(a, q, i)
        b = along(lambda y, q=q: y / q.unsqueeze(1) if q.ndim == 2 else _divided(y, q), b, i)
    return [_moved(q, *_squares(a, b, i, q), rate) for i, q in enumerate(qs)]


def multiplied(x: Tensor, q: Tensor, i: int) -> Tensor:
    """Q times a stack of tensors, along dimension i."""
    return along(lambda y: y * q.unsqueeze(1) if q.ndim == 2 else y @ q.mT, x, i)


def preconditioned(x: Tensor, qs: Sequence[Tensor]) -> Tensor:
    """QᵀQ times a stack of tensors, along each dimension."""
    for i, q in enumerate(qs):
        x = multiplied(multiplied(x, q, i), q.mT if q.ndim == 3 else q, i)
    return x


def balanced(qs: Sequence[Tensor]) -> list[Tensor]:
    """The same product, its factors of one size: what one gains, another loses."""
    sizes = [_largest(q) for q in qs]
    mean = torch.stack(sizes).log().mean(0).exp()
    return [q * (mean / size).reshape(-1, *[1] * (q.ndim - 1)) for q, size in zip(qs, sizes, strict=True)]


def _divided(y: Tensor, q: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(q, y, upper=True, left=False)


def _squares(a: Tensor, b: Tensor, i: int, q: Tensor) -> tuple[Tensor, Tensor]:
    if q.ndim == 3:
        return gram(a, i), gram(b, i)
    others = [d for d in range(1, a.ndim) if d != i + 1]
    first, second = ((x * x).sum(others) if others else x * x for x in (a, b))
    return first, second


def _moved(q: Tensor, first: Tensor, second: Tensor, rate: Scalar) -> Tensor:
    if not q.numel():
        return q
    largest = _largest(first + second).clamp(min=torch.finfo(q.dtype).tiny)
    if q.ndim == 2:
        return q - rate * (first - second) * q / largest.unsqueeze(1)
    size = _lower_bound(first + second, largest.reshape(-1, 1, 1))
    return q - rate * ((first - second).triu() / size) @ q


def _largest(x: Tensor) -> Tensor:
    """The largest magnitude in each of a stack of tensors; 0 in those without elements."""
    flat = x.abs().flatten(1)
    return torch.cat([flat, flat.new_zeros(len(flat), 1)], 1).amax(1)


def _lower_bound(x: Tensor, largest: Tensor) -> Tensor:
    """Of the spectral norm of each of a stack of symmetric matrices, whose largest elements are known."""
    x = x / largest
    column = (x * x).sum(1).argmax(1).reshape(-1, 1, 1).expand(-1, x.shape[1], 1)
    y = x.mT @ x.gather(2, column)
    y = x @ (y / sqrt((y * y).sum(1, keepdim=True)).clamp(min=torch.finfo(x.dtype).tiny))
    return (largest * sqrt((y * y).sum(1, keepdim=True))).clamp(min=torch.finfo(x.dtype).tiny)
