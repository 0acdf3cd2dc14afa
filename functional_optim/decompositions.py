"""Decompositions of stacks of matrices, (n, rows, columns), for rules.

Where a matrix holds NaN or infinity, torch's raise an error, for all of the stack; here the result of that matrix is NaN, and of
no other: NaN goes where it comes from, and `apply_if_finite` may leave the step out.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from functional_optim.torch_internals import is_at_hand


def eigh(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each of a stack of symmetric matrices the eigenvalues, rising, and the eigenvectors, in columns."""
    values, vectors = _of_finite(torch.linalg.eigh, x) if x.shape[-1] else (x[:, 0:0].flatten(1), x)
    return values, vectors


def singular_vectors(x: Tensor, rank: int, *, left: bool) -> Tensor:
    """Of each of a stack of matrices the first left or right singular vectors, in columns, by falling singular value."""
    u, _, vh = _of_finite(lambda y: torch.linalg.svd(y, full_matrices=False), x)
    return u[..., :rank] if left else vh[:, :rank].mT


def orthogonal_factor(x: Tensor) -> Tensor:
    """The Q of x = Q R, of each of a stack of matrices with at least as many rows as columns; of 0, the first columns of I.

    Derivatives of Q have no value where columns depend on one another; at 0 they are 0 here.
    """
    is_zero = (x == 0).flatten(1).all(1).reshape(-1, 1, 1)
    unit = torch.eye(*x.shape[1:], dtype=x.dtype, device=x.device)
    return torch.linalg.qr(torch.where(is_zero, unit, x))[0]


def _of_finite(decomposed: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
    total = x.sum()
    if is_at_hand(total) and bool(total.isfinite()):  # As it is nearly always, at a glance.
        return tuple(decomposed(x))
    finite = x.isfinite().flatten(1).all(1)
    parts = decomposed(torch.where(finite.reshape(-1, 1, 1), x, 0.0))
    return tuple(torch.where(finite.reshape(-1, *[1] * (part.ndim - 1)), part, torch.nan) for part in parts)
