"""Muon: momentum, orthogonalised.

    m ← μ m + (1 − μ) g
    U ← m                                  Nesterov:  U ← μ m + (1 − μ) g
    X ← U / max(‖U‖, ε)
    X ← a X + (b X Xᵀ + c (X Xᵀ)²) X       k times: Newton and Schulz's iteration, of odd degree 5
    u ← √max(1, rows / columns) X          or  0.2 √max(rows, columns) X

Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks, https://kellerjordan.github.io/posts/muon/
Liu et al. 2025, Muon is Scalable for LLM Training, https://arxiv.org/abs/2502.16982: the second factor

With U = P Σ Qᵀ the iteration tends to P S Qᵀ, the singular values in S between about 0.7 and 1.2: the coefficients grow small
ones fast instead of bringing all of them to 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from functional_optim.hparams import ANY, FRACTION, NON_NEGATIVE, Hparam, require_count
from functional_optim.numerics import sqrt
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, per_tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)

FACTORS = {
    None: lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "spectral_unclamped": lambda rows, columns: math.sqrt(rows / columns),
}


def _matrix_zeros(p, hp):
    if p.ndim < 2:
        raise ValueError(
            f"scale_by_muon orthogonalises matrices, but a parameter has shape {tuple(p.shape)}: give it parameters of at least "
            "two dimensions, and the others to another rule."
        )
    return torch.zeros_like(p, requires_grad=False)


@per_tensor(
    slots={"momentum_buffer": _matrix_zeros},
    hparams={
        "momentum": Hparam(0.95, FRACTION),
        "ns_coefficients": Hparam(COEFFICIENTS, ANY),
        "eps": Hparam(1e-7, NON_NEGATIVE),
    },
    batched=True,
    name="scale_by_muon",
)
def _muon(hp, *, nesterov, ns_steps, adjust_lr_fn, ns_dtype):
    mu = hp["momentum"]

    def rule(g, p, m):
        m = mu * m + (1 - mu) * g
        u = mu * m + (1 - mu) * g if nesterov else m
        x = orthogonalized(u.flatten(2), hp["ns_coefficients"], hp["eps"], ns_steps, ns_dtype)
        return FACTORS[adjust_lr_fn](*x.shape[1:]) * x.reshape(g.shape), m

    return rule


@recorded
def scale_by_muon(
    momentum: float = 0.95,
    ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
    eps: float = 1e-7,
    *,
    nesterov: bool = True,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    ns_dtype: torch.dtype | None = None,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Replace each matrix by nearly the closest orthogonal one to its momentum: all directions move alike.

    A parameter of more than two dimensions, such as a convolution's, is the matrix of its first dimension by all others
    together. Matrices of equal shapes are iterated together, in one product for all of them.

    Args:
        momentum: μ, in [0, 1).
        ns_coefficients: a, b, c of the iteration.
        eps: at least 0, in units of the gradient's norm: a smaller momentum is not blown up.
        nesterov: orthogonalise the momentum looked ahead.
        ns_steps: k, how often to iterate, fewer than 100.
        adjust_lr_fn: None or "original" makes updates of tall matrices longer, so that outputs move alike whatever the width;
            "match_rms_adamw" gives updates the root mean square of AdamW's, about 0.2, so that its learning rates can be kept;
            "spectral_unclamped" is √(rows / columns) where that is below 1, too, as in torch from 2.14 on.
        ns_dtype: round the factors and the results of each product to this dtype; None computes in that of the parameter, at
            least float32. `torch.bfloat16` is torch's, whatever the parameter.
        state_dtype: dtype of the slot; the parameter's by default.

    State: `momentum_buffer` (m), like the parameters.

    Raises:
        ValueError: an unknown `adjust_lr_fn`, ns_steps not in [0, 100); or, by `init_state`, a parameter of fewer than two
            dimensions.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. Retraces `torch.optim.Muon`.
    `optax.contrib.scale_by_muon` corrects the bias of the momentum, which only Nesterov's form feels, and leaves the factor to
    another transform.

    >>> import torch
    >>> tx = scale_by_muon(ns_steps=30, ns_coefficients=(1.875, -1.25, 0.375))
    >>> g = torch.tensor([[3.0, 0.0], [0.0, -0.1]])
    >>> tx.update(g, tx.init_state(torch.zeros(2, 2)))[0].round(decimals=4)
    tensor([[ 1.,  0.],
            [ 0., -1.]])
    """
    if adjust_lr_fn not in FACTORS:
        raise ValueError(f"adjust_lr_fn = {adjust_lr_fn!r}: expected one of {', '.join(map(repr, FACTORS))}.")
    require_count("ns_steps", ns_steps, 0)
    if ns_steps >= 100:
        raise ValueError(f"ns_steps = {ns_steps} is outside [0, 100).")
    return _muon(nesterov, ns_steps, adjust_lr_fn, ns_dtype, momentum, ns_coefficients, eps, state_dtype=state_dtype)


@dataclass(frozen=True)
class MuonOrAdamW:
    """The labels of `muon`: a value, so that it pickles."""

    def __call__(self, name: str, leaf: Tensor) -> str:
        """The branch that takes a parameter of so many dimensions."""
        return "muon" if leaf.ndim > 1 else "adamw"

    def is_reserve(self, label: str, names: Sequence[str]) -> bool:
        """Either branch may be left without parameters."""
        return True


def orthogonalized(x, coefficients, eps, steps, dtype=None):
    """Of each of a stack of matrices (n, rows, columns), nearly the closest orthogonal one, by Newton and Schulz's iteration."""
    a, b, c = coefficients

    def low(y):
        return y if dtype is None else y.to(dtype).float()

    def times(y, z):
        # A GPU multiplies tensors of the low dtype many times faster, and rounds the product to it once more.
        return y @ z if dtype is None or not y.is_cuda else (y.to(dtype) @ z.to(dtype)).float()

    y = low(x if x.shape[1] <= x.shape[2] else x.mT)
    y = low(y / low(sqrt((y * y).sum((1, 2), keepdim=True))).clamp(min=eps))
    for _ in range(steps):
        gram = low(times(y, y.mT))
        y = low(a * y + times(low(b * gram + c * times(gram, gram)), y))
    return (y if x.shape[1] <= x.shape[2] else y.mT).to(x.dtype)
