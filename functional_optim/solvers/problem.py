"""An objective as a function of one vector: the parameters' tensors joined, complex ones as pairs of reals."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import numerics, torch_internals, trees
from functional_optim.checks import check_params
from functional_optim.numerics import Scalar, real
from functional_optim.searches.scalars import can_read
from functional_optim.trees import Spec, Tree


@dataclass(frozen=True, eq=False)
class Problem:
    """What is minimised, and how to evaluate it.

    Attributes:
        fn: the objective, of trees.
        args: what it takes after the parameters.
        has_aux: whether it returns a pair.
        leaves: the parameters at the start, those that are not trained included.
        spec: their structure.
        on_host: whether values are read, so that what is not needed is not computed. Else they are tensors.
        residuals: what the objective is half the sum of the squares of, a function like `fn`; None if it is no such sum.
        bounds: the least and the greatest vector; None if there are none.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    has_aux: bool
    leaves: tuple[Any, ...]
    spec: Spec
    on_host: bool
    residuals: Callable[..., Any] | None = None
    bounds: tuple[Tensor, Tensor] | None = None

    @functools.cached_property
    def trained(self) -> list[int]:
        """Which leaves are minimised over."""
        return [i for i, x in enumerate(self.leaves) if _is_smooth(x)]

    @functools.cached_property
    def sizes(self) -> list[int]:
        """How many numbers each of them is in the vector."""
        return [self.leaves[i].numel() * (2 if self.leaves[i].is_complex() else 1) for i in self.trained]

    @property
    def start(self) -> Tensor:
        """The vector to start at."""
        return self.joined([self.leaves[i] for i in self.trained])

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors like the trained leaves as a vector, in the precision that all of them fit into."""
        parts = list(map(real, tensors))
        dtype = parts[0].dtype
        for x in parts[1:]:
            dtype = torch.promote_types(dtype, x.dtype)
        return torch.cat([x.reshape(-1).to(dtype) for x in parts])

    def parted(self, vector: Tensor) -> list[Tensor]:
        """The tensors that a vector was joined from."""
        pieces = vector.split_with_sizes(self.sizes)
        return [_shaped(piece, self.leaves[i]) for piece, i in zip(pieces, self.trained, strict=True)]

    def tree(self, vector: Tensor) -> Tree:
        """The parameters of a vector."""
        return self.filled(self.parted(vector))

    def gradients(self, vector: Tensor) -> Tree:
        """The gradients of a vector, None for what is not minimised over."""
        leaves: list[Any] = [None] * len(self.leaves)
        for i, x in zip(self.trained, self.parted(vector), strict=True):
            leaves[i] = x
        return trees.unflatten(self.spec, leaves)

    def filled(self, tensors: Sequence[Tensor]) -> Tree:
        """The parameters with these in place of the trained leaves."""
        return trees.unflatten(self.spec, self.with_trained(tensors))

    def with_trained(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """All leaves, with these in place of those that are trained."""
        leaves = list(self.leaves)
        for i, x in zip(self.trained, tensors, strict=True):
            leaves[i] = x
        return tuple(leaves)

    def trained_of(self, params: Tree) -> list[Tensor]:
        """The trained leaves of parameters."""
        leaves = trees.leaves(params)
        return [leaves[i] for i in self.trained]

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor, Tree]:
        """Value, gradient and auxiliary output."""
        if not self.on_host or torch_internals.transforms():
            g, (f, aux) = torch.func.grad(self.objective, has_aux=True)(x)
            return f, g, aux
        tensors = [piece.detach() for piece in self.parted(x)]
        with torch.enable_grad():
            for piece in tensors:
                piece.requires_grad = True
            f, aux = self.returned(tensors)
            found = torch.autograd.grad(f, tensors, allow_unused=True) if f.requires_grad else [None] * len(tensors)
        slopes = [torch.zeros_like(p) if g is None else g for g, p in zip(found, tensors, strict=True)]
        return f.detach(), self.joined(slopes), trees.map_leaves(Tensor.detach, aux) if self.has_aux else aux

    def objective(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tree]]:
        """Of a vector: the value, and beside it itself and the auxiliary output."""
        f, aux = self.returned(self.parted(x))
        return f, (f, aux)

    def returned(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tree]:
        """What the objective returns: its value, and what it has beside it."""
        found = self.fn(self.filled(tensors), *self.args)
        if self.has_aux and not (isinstance(found, tuple) and len(found) == 2):
            raise ValueError(f"with has_aux, the objective returns a pair (value, aux), but it returned {found!r}.")
        f, aux = found if self.has_aux else (found, ())
        if not isinstance(f, Tensor) or f.ndim != 0 or f.is_complex():
            what = f"a {f.dtype} tensor of shape {tuple(f.shape)}" if isinstance(f, Tensor) else f"a {type(f).__name__}"
            raise ValueError(f"the objective is {what}: expected a real () tensor. For (value, aux), pass has_aux=True.")
        return f, aux

    def product(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The Hessian at x, times a vector."""
        gradient = torch.func.grad(lambda x: self.objective(x)[0])
        pull = torch.func.vjp(gradient, x)[1]
        return lambda v: pull(v)[0]

    def residual(self, x: Tensor) -> tuple[Tensor, Tree]:
        """Of a vector: the residuals as one, and the auxiliary output."""
        assert self.residuals is not None, "which whoever asks for it has given"
        r, aux = real_residuals(self.residuals(self.tree(x), *self.args), self.has_aux)
        return r.reshape(-1).to(x.dtype), aux

    def gauss_product(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """JᵀJ of the residuals at x, times a vector."""

        def residual(x: Tensor) -> Tensor:
            return self.residual(x)[0]

        pull = torch.func.vjp(residual, x)[1]
        return lambda v: pull(torch.func.jvp(residual, (x,), (v,))[1])[0]

    def projected(self, x: Tensor) -> Tensor:
        """The vector within the bounds that is nearest."""
        return x if self.bounds is None else x.maximum(self.bounds[0]).minimum(self.bounds[1])

    def free(self, x: Tensor, g: Tensor) -> Tensor | None:
        """1 where x may follow −g, 0 where a bound is in the way; None without bounds."""
        if self.bounds is None:
            return None
        low, high = self.bounds
        return (~((x <= low) & (g > 0) | (x >= high) & (g < 0))).to(x.dtype)

    def read(self, *scalars: Tensor) -> list[Scalar]:
        """Scalars as what decides: Python's numbers on the host, to which one transfer brings them all from a device."""
        if not self.on_host:
            return [numerics.double(x) for x in scalars]
        on_cpu = scalars[0].device.type == "cpu"
        return list(map(float, scalars if on_cpu else torch.stack([numerics.double(x) for x in scalars]).unbind()))

    def scalar(self, number: float) -> Scalar:
        """A number of the kind that `read` returns."""
        return number if self.on_host else numerics.double(number, self.leaves[self.trained[0]].device)

    def count(self, number: int) -> Any:
        """A whole number that stays one: a tensor where values can't be read."""
        return number if self.on_host else torch.tensor(number, device=self.leaves[self.trained[0]].device)

    def flag(self, holds: bool) -> bool | Tensor:
        """A flag of the kind that comparisons of these numbers return."""
        return holds if self.on_host else self.scalar(0.0) == (0.0 if holds else 1.0)


def problem_of(fn: Callable[..., Any], params: Tree, args: Any, has_aux: bool, *, constant: bool = False) -> Problem:
    """The problem of minimising a function, from these parameters; `constant` if no derivative is taken of what is computed.

    Raises:
        TypeError: `fn` is no function, `args` is no tuple, or a leaf of `params` is not a tensor.
        ValueError: there is nothing to minimise over.
    """
    if not callable(fn):
        raise TypeError(f"fn is a {type(fn).__name__}: expected a function of the parameters, (params, *args) -> value.")
    if not isinstance(args, tuple):
        raise TypeError(f"args is a {type(args).__name__}: expected a tuple of what fn takes after params, such as (x, y).")
    check_params(params)
    leaves, spec = trees.flatten(params)
    if not any(_is_smooth(x) and x.numel() for x in leaves):
        raise ValueError("params hold no floating-point number: there is nothing to minimise over.")
    on_host = can_read(args, constant=constant)
    return Problem(fn, args, has_aux, tuple(x.detach() if on_host and _is_smooth(x) else x for x in leaves), spec, on_host)


def real_residuals(found: Any, has_aux: bool) -> tuple[Tensor, Tree]:
    """What a function of residuals returned: them, and what it has beside them.

    Raises:
        ValueError: it is no pair, or they are no real tensor.
    """
    if has_aux and not (isinstance(found, tuple) and len(found) == 2):
        raise ValueError(f"with has_aux, the residuals are the first of a pair (r, aux), but fn returned {found!r}.")
    r, aux = found if has_aux else (found, ())
    if not isinstance(r, Tensor) or r.is_complex():
        what = f"a {r.dtype} tensor" if isinstance(r, Tensor) else f"a {type(r).__name__}"
        raise ValueError(
            f"the residuals are {what}: expected a real tensor; of complex ones, torch.view_as_real(r). "
            "For (r, aux), pass has_aux=True."
        )
    return r, aux


def _is_smooth(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _shaped(piece: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        return torch.complex(*piece.reshape(*like.shape, 2).unbind(-1)).to(like.dtype)
    return piece.reshape(like.shape).to(like.dtype)
