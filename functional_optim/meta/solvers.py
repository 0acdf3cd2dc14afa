"""Linear solvers as pure functions: the product with a matrix and a right-hand side to the solution, both trees of tensors.

    conjugate gradient      A symmetric, positive definite: minimise ½ xᵀAx − bᵀx along conjugate directions
    normal CG               any invertible A: the same for AᵀA x = Aᵀb
    GMRES                   any invertible A: minimise ‖Ax − b‖ over span{b, Ab, …, Aᵏ⁻¹b}
    Neumann series          A near 1/α: x = α Σₖ (1 − αA)ᵏ b
    dense                   any invertible A, small: form it, factorise it

Hestenes & Stiefel 1952, https://doi.org/10.6028/jres.049.044; Saad & Schultz 1986, https://doi.org/10.1137/0907058;
Lorraine, Vicol & Duvenaud 2020, Optimizing Millions of Hyperparameters by Implicit Differentiation, https://arxiv.org/abs/1911.02590

All take a fixed number of steps, so that they run under `vmap` and the compiler; where a tolerance is met before, the rest change
nothing. None looks at a value in Python.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from functional_optim.meta.packing import ravel
from functional_optim.trees import Tree

MatVec: TypeAlias = Callable[[Tree], Tree]
Solve: TypeAlias = Callable[[MatVec, Tree], Tree]


def cg(matvec: MatVec, b: Tree, *, steps: int = 50, tol: float = 1e-6, damping: float = 0.0) -> Tree:
    """Solve `(A + damping) x = b` for a symmetric positive definite A by conjugate gradients, from x = 0.

    Args:
        matvec: `x -> A x`, linear, trees of tensors like `b`.
        b: the right-hand side.
        steps: at most this many products; in exact arithmetic, the number of different eigenvalues suffices.
        tol: stop once ‖b − Ax‖ ≤ tol ‖b‖.
        damping: added to A's diagonal, at least 0.

    Source: Hestenes & Stiefel 1952, https://doi.org/10.6028/jres.049.044. As `jax.scipy.sparse.linalg.cg`.

    >>> cg(lambda x: 4 * x, torch.tensor([2.0, 8.0]))
    tensor([0.5000, 2.0000])
    """
    a, b_, unravel = _flat(matvec, b, damping)
    x, r, p = torch.zeros_like(b_), b_, b_
    rr = threshold = r.dot(r)
    threshold = tol**2 * threshold
    for _ in range(steps):
        ap = a(p)
        going = rr > threshold
        alpha = torch.where(going, _ratio(rr, p.dot(ap)), 0.0)
        x, r = x + alpha * p, r - alpha * ap
        rr, before = r.dot(r), rr
        p = torch.where(going, r + _ratio(rr, before) * p, p)
    return unravel(x)


def normal_cg(matvec: MatVec, b: Tree, *, steps: int = 50, tol: float = 1e-6, damping: float = 0.0) -> Tree:
    """Solve `A x = b` for any invertible A, as `(AᵀA + damping) x = Aᵀb` by conjugate gradients.

    The condition number is squared: where A is known to be symmetric and positive definite, `cg` takes fewer steps and keeps more
    digits. The arguments are those of `cg`, the tolerance is one of `‖Aᵀ(b − Ax)‖ / ‖Aᵀb‖`.

    >>> normal_cg(lambda x: -4 * x, torch.tensor([2.0, 8.0]))
    tensor([-0.5000, -2.0000])
    """
    a, b_, unravel = _flat(matvec, b, 0.0)
    pull = torch.func.vjp(a, b_)[1]
    return unravel(cg(lambda x: pull(a(x))[0], pull(b_)[0], steps=steps, tol=tol, damping=damping))


def gmres(matvec: MatVec, b: Tree, *, steps: int = 20, damping: float = 0.0) -> Tree:
    """Solve `(A + damping) x = b` for any invertible A by minimising the residual over a Krylov space, without restarts.

    Args:
        matvec: `x -> A x`, linear, trees of tensors like `b`.
        b: the right-hand side.
        steps: products, and vectors of b's size that are kept.
        damping: added to A's diagonal.

    Source: Saad & Schultz 1986, https://doi.org/10.1137/0907058. As `jax.scipy.sparse.linalg.gmres` with one cycle.

    >>> gmres(lambda x: torch.stack([x[1], -x[0]]), torch.tensor([2.0, 3.0]))
    tensor([-3.,  2.])
    """
    a, b_, unravel = _flat(matvec, b, damping)
    norm = torch.linalg.vector_norm(b_)
    basis, columns = [_ratio(b_, norm)], []
    for k in range(min(steps, b_.numel())):
        w = a(basis[-1])
        size = torch.linalg.vector_norm(w)
        v = torch.stack(basis)
        first = v @ w
        w = w - first @ v
        # Gram–Schmidt twice: once leaves an error of the order of what cancelled
        second = v @ w
        w = w - second @ v
        rest = torch.linalg.vector_norm(w)
        # below rounding, the Krylov space is exhausted: a zero vector, and zero columns from here on
        rest = torch.where(rest > 100 * torch.finfo(w.dtype).eps * size, rest, 0.0)
        columns.append(torch.cat([first + second, rest.reshape(1), w.new_zeros(min(steps, b_.numel()) - k - 1)]))
        basis.append(_ratio(w, rest))
    hessenberg = torch.stack(columns, 1)
    target = torch.cat([norm.reshape(1), b_.new_zeros(len(columns))])
    return unravel(torch.linalg.pinv(hessenberg) @ target @ torch.stack(basis[:-1]))


def neumann(matvec: MatVec, b: Tree, *, steps: int = 20, scale: float = 1.0) -> Tree:
    """Approximate A⁻¹b by the first terms of its series, `α Σₖ (1 − αA)ᵏ b` for k < steps.

    With A a Hessian and α the learning rate, this is what unrolling `steps` more steps of gradient descent at the optimum gives.

    Args:
        matvec: `x -> A x`, linear, trees of tensors like `b`.
        b: the right-hand side.
        steps: terms, at least 1.
        scale: α, below 2 / ‖A‖ for the series to converge.

    Source: Lorraine et al. 2020, Algorithm 3, https://arxiv.org/abs/1911.02590.

    >>> neumann(lambda x: 0.5 * x, torch.tensor([1.0]), steps=2)
    tensor([1.5000])
    """
    a, term, unravel = _flat(matvec, b, 0.0)
    total = term
    for _ in range(steps - 1):
        term = term - scale * a(term)
        total = total + term
    return unravel(scale * total)


def dense(matvec: MatVec, b: Tree, *, damping: float = 0.0) -> Tree:
    """Solve `(A + damping) x = b` by forming the matrix, one product per element of b, and factorising it.

    Exact up to rounding, for anything invertible; takes memory for n² numbers and time of order n³.

    >>> dense(lambda x: 4 * x, torch.tensor([2.0, 8.0]))
    tensor([0.5000, 2.0000])
    """
    a, b_, unravel = _flat(matvec, b, damping)
    columns = torch.vmap(a)(torch.eye(b_.numel(), dtype=b_.dtype, device=b_.device))
    return unravel(torch.linalg.solve(columns.T, b_))


def _flat(matvec: MatVec, b: Tree, damping: float) -> tuple[Callable[[Tensor], Tensor], Tensor, Callable[[Tensor], Tree]]:
    """The product with A + damping on vectors, b as a vector, and the way back."""
    vector, unravel = ravel(b)

    def product(x: Tensor) -> Tensor:
        return ravel(matvec(unravel(x)))[0] + damping * x

    return product, vector, unravel


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0, with finite derivatives there."""
    zero = b == 0
    return torch.where(zero, 0.0, a / torch.where(zero, 1.0, b))
