"""Losses and linear algebra by formulas of which torch has all derivatives right, in every mode and order.

mse, huber, soft margin     torch's kernels have no forward derivative of their gradients
Gaussian likelihood         without its look at the variances, which no batch has
solve                       A⁻¹ b
det, slogdet, logdet        of U, where A = P L U: torch takes the factors of A for constants when it differentiates a forward
                            derivative, so that second derivatives are wrong (seen in torch 2.13)
GLU                         a σ(b): torch's kernel has no derivatives of its forward derivative
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def mse_loss(input: Tensor, target: Tensor, *legacy: Any, reduction: str = "mean", **options: Any) -> Tensor:
    if legacy or any(value is not None for value in options.values()):
        return F.mse_loss(input, target, *legacy, reduction=reduction, **options)
    return _reduced((input - target).square(), reduction)


def huber_loss(input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Any = None) -> Tensor:
    error = input - target
    far = delta * (error.abs() - delta / 2)
    loss = torch.where(error.abs() < delta, error.square() / 2, far)
    return _reduced(loss if weight is None else loss * weight, reduction)


def soft_margin_loss(input: Tensor, target: Tensor, *legacy: Any, reduction: str = "mean", **options: Any) -> Tensor:
    if legacy or any(value is not None for value in options.values()):
        return F.soft_margin_loss(input, target, *legacy, reduction=reduction, **options)
    return _reduced(F.softplus(-target * input), reduction)


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    if not isinstance(var, Tensor):
        var = torch.full_like(input, var)
    if var.shape != input.shape and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    var = var + (var.clamp(min=eps) - var).detach()
    loss = (var.log() + (input - target).square() / var + (math.log(2 * math.pi) if full else 0.0)) / 2
    return _reduced(loss, reduction)


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return loss if reduction == "none" else getattr(loss, reduction)()


def glu(input: Tensor, dim: int = -1) -> Tensor:
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()


def solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    is_vector = B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])
    b = B.unsqueeze(-1) if is_vector else B
    x = torch.linalg.inv(A) @ b if left else b @ torch.linalg.inv(A)
    return x.squeeze(-1) if is_vector else x


def det(A: Tensor) -> Tensor:
    turn, diagonal = _triangular(A)
    return turn * diagonal.prod(-1)


class Slogdet(NamedTuple):
    """As torch's."""

    sign: Tensor
    logabsdet: Tensor


def slogdet(A: Tensor) -> Slogdet:
    turn, diagonal = _triangular(A)
    return Slogdet(turn * diagonal.sgn().prod(-1), diagonal.abs().log().sum(-1))


def logdet(input: Tensor) -> Tensor:
    sign, size = slogdet(input)
    return size + sign.log() if input.is_complex() else torch.where(sign < 0, torch.nan, size)


def _triangular(A: Tensor) -> tuple[Tensor, Tensor]:
    """The sign of a permutation, and a diagonal, whose products are the determinant."""
    factors, pivots = torch.linalg.lu_factor(A)
    swaps = (pivots != torch.arange(1, A.shape[-1] + 1, device=A.device)).sum(-1)
    return (1 - 2 * (swaps % 2)).to(A.dtype), factors.diagonal(dim1=-2, dim2=-1)
