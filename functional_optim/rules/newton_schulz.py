"""The iteration of Newton and Schulz, which orthogonalises matrices by products alone, and its coefficients.

    X ← U / max(‖U‖, ε)                    polar express:  U / (1.02 ‖U‖ + ε)
    X ← aₖ X + (bₖ X Xᵀ + cₖ (X Xᵀ)²) X    k times

With U = P Σ Qᵀ it tends to P S Qᵀ, where S is near 1: how near, and how fast, is a matter of the coefficients.

Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks, https://kellerjordan.github.io/posts/muon/
Amsel et al. 2025, The Polar Express, https://arxiv.org/abs/2505.16932: the best coefficients of each step
"""

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim.hparams import HParams, is_several, require_count
from functional_optim.lifting import SlotInit, require_dims
from functional_optim.numerics import Scalar, added_product, is_watched, sqrt
from functional_optim.symmetric import gram, multiplies, quadratic

# a, b, c of each step; after the last, its again.
Schedule: TypeAlias = Sequence[tuple[Scalar, Scalar, Scalar]]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)

SCHEDULES: dict[str, Schedule] = {
    "muon": [COEFFICIENTS],
    # As modded-nanogpt computed them by the paper's method, for five steps with a margin of 2 %.
    "polar_express": [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ],
    # Nearer to 1 at the end than Muon's, by Jiacheng You.
    "quintic": [
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ],
}
# How much larger than the norm of the whole matrix polar express takes it for.
MARGINS = {"polar_express": 1.02}


def schedule_of(coefficients: str | Schedule) -> Schedule:
    """The coefficients of each step, by name or as they are given."""
    return SCHEDULES[coefficients] if isinstance(coefficients, str) else coefficients


def margin_of(coefficients: str | Schedule) -> float | None:
    """How much larger than its norm a matrix is taken for; None for no larger."""
    return MARGINS.get(coefficients) if isinstance(coefficients, str) else None


def require_schedule(coefficients: str | Schedule, steps: int, dtype: torch.dtype | None = None) -> int:
    """How many steps; raises unless these are coefficients, for so many, and products can be rounded to this dtype."""
    if not (dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)):
        raise TypeError(f"ns_dtype = {dtype!r}: expected a real floating dtype, such as torch.bfloat16, or None.")
    if isinstance(coefficients, str) and coefficients not in SCHEDULES:
        raise ValueError(f"coefficients = {coefficients!r}: expected one of {', '.join(map(repr, SCHEDULES))}, or triples.")
    if not isinstance(coefficients, str) and not _are_triples(coefficients):
        raise ValueError(f"coefficients = {coefficients!r}: expected the (a, b, c) of one step or more.")
    steps = require_count("ns_steps", steps, 0)
    if steps >= 100:
        raise ValueError(f"ns_steps = {steps} is outside [0, 100).")
    return steps


def _are_triples(coefficients: Any) -> bool:
    return isinstance(coefficients, Sequence) and bool(coefficients) and all(is_several(x) and len(x) == 3 for x in coefficients)


def require_matrix(name: str, shape: Sequence[int]) -> None:
    """Raise ValueError unless a tensor of this shape can be taken for a matrix."""
    require_dims(name, "a parameter", shape)


def matrix_zeros(name: str) -> SlotInit:
    """The start of a slot of a rule of this name, which is of matrices: zeros like the parameter."""

    def start(p: Tensor, hp: HParams) -> Tensor:
        del hp
        require_matrix(name, p.shape)
        return torch.zeros_like(p, requires_grad=False)

    return start


def orthogonalized(
    x: Tensor, schedule: Schedule, eps: Scalar, steps: int, dtype: torch.dtype | None = None, margin: float | None = None
) -> Tensor:
    """Of each of a stack of matrices (n, rows, columns), nearly the closest orthogonal one, by Newton and Schulz's iteration."""
    triples = [schedule[min(step, len(schedule) - 1)] for step in range(steps)]
    # A product and a sum in one call are faster, and rounded once, as they are one after another in the wider dtype. But the call
    # takes numbers alone, which torch's batching, tracing and forward mode lose.
    numbers = all(isinstance(number, int | float) for number in (eps, *itertools.chain(*triples)))
    iterated = _iterated_by_calls if numbers and not is_watched(x) else _iterated
    y = iterated(x if x.shape[1] <= x.shape[2] else x.mT, triples, eps, dtype, margin)
    return (y if x.shape[1] <= x.shape[2] else y.mT).to(x.dtype)


def _iterated(x: Tensor, triples: Schedule, eps: Scalar, dtype: torch.dtype | None, margin: float | None) -> Tensor:
    def low(y: Tensor) -> Tensor:
        return y if dtype is None else y.to(dtype).float()

    y = low(x)
    size = low(sqrt((y * y).sum((1, 2), keepdim=True)))
    y = low(y / (size.clamp(min=eps) if margin is None else margin * size + eps))
    for a, b, c in triples:
        square = low(y @ y.mT)
        y = low(a * y + low(b * square + c * (square @ square)) @ y)
    return y


def _iterated_by_calls(x: Tensor, triples: Schedule, eps: Scalar, dtype: torch.dtype | None, margin: float | None) -> Tensor:
    is_native = dtype is None or multiplies(dtype, x.device)

    def low(y: Tensor) -> Tensor:
        rounded = y if dtype is None else y.to(dtype)
        return rounded if is_native else rounded.float()

    y = low(x)
    size = low(torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True))
    y = low(y / (size.clamp(min=eps) if margin is None else margin * size + eps))
    for a, b, c in triples:
        y = low(added_product(y, low(quadratic(low(gram(y)), b, c)), y, a, 1))
    return y
