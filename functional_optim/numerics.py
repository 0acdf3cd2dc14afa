"""Formulas that lose digits or derivatives when written the obvious way, each with its reason.

Scalars (hyper-parameters, the step) are Python numbers or () tensors: eager host code computes with the first,
`vmap`, autograd and the compiler with the second. These functions take both.
"""

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim.sharded import total

Scalar: TypeAlias = float | Tensor


def double(x: Scalar, device: torch.device | None = None) -> Scalar:
    """A scalar in float64, so that arithmetic with the step loses no digits; a Python number is that already.

    With a `device`, a Python number becomes a tensor there.
    """
    device = x.device if isinstance(x, Tensor) else device
    if device is None:
        return x
    # MPS has no float64; there scalars are float32.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return x.to(dtype) if isinstance(x, Tensor) else torch.tensor(x, dtype=dtype, device=device)


def bias_correction(beta: Scalar, t: Scalar) -> Scalar:
    """`1 - beta**t`, the share of its weight that a moving average started at 0 has gathered after `t ≥ 1` steps.

    In float64, whatever comes in: in float32 the difference loses four digits at beta = 0.999, t = 1
    (1.3e-5 relative). The derivative in `beta` is finite at beta = 0 as well, which `-expm1(t·log(beta))` would not give.
    """
    return 1 - double(beta) ** double(t)


def sqrt(x: Tensor) -> Tensor:
    """√x with slope 0 at 0.

    The true slope is infinite there, and any chain rule through a zero gradient would give 0·∞ = NaN. A moment that is
    exactly 0 has seen only zero gradients; its update is 0 and stays 0 to first order, so the slope 0 is the useful one.
    """
    if not _differentiating():
        return x.sqrt()
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())


def global_norm(tensors: Iterable[Tensor | None]) -> Tensor:
    """The Euclidean norm of all elements of several tensors together, a () tensor; its slope at 0 is 0. None counts as 0."""
    present = [x for x in tensors if x is not None]
    if not present:
        return torch.zeros(())
    return sqrt(total([(x * x).sum() for x in present]))


def where(condition: Any, a: Scalar, b: Scalar) -> Scalar:
    """`a` if the condition holds, else `b`, for scalars: `torch.where` as soon as the condition is a tensor."""
    if not isinstance(condition, Tensor):
        return a if condition else b
    return torch.where(condition, double(a, condition.device), double(b, condition.device))


def cos(x: Scalar) -> Scalar:
    """cos x of a scalar, in radians."""
    return x.cos() if isinstance(x, Tensor) else math.cos(x)


def _differentiating() -> bool:
    """Whether a derivative may be taken of what is computed now: in reverse mode, or in forward mode, which no_grad allows."""
    return torch.is_grad_enabled() or getattr(torch.autograd.forward_ad, "_current_level", 0) >= 0
