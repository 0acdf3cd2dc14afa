"""Scion's directions: of the unit ball of a norm the point that lies farthest along the update.

    spectral        √(rows / columns) P S Qᵀ     of U = P Σ Qᵀ, by Newton and Schulz's iteration, with S near 1
    spectral_conv   √(out / in) P S Qᵀ / k       of a kernel of k elements, as the matrix of `out` by all others
    col_norm        √rows U / ‖U‖                ‖·‖ of each column
    row_norm        U / (√columns ‖U‖)           ‖·‖ of each row
    sign            sign(U) / columns
    bias_rms        u / rms(u)                   of a vector

Pethick et al. 2025, Training Deep Learning Models with Norm-Constrained LMOs, https://arxiv.org/abs/2502.07529
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.numerics import Scalar, sqrt
from functional_optim.recipe import recorded
from functional_optim.rules.newton_schulz import COEFFICIENTS, orthogonalized, require_schedule
from functional_optim.transform import Transform, per_tensor


class _Choices(NamedTuple):
    """What the directions ask for beside the update."""

    eps: Scalar
    normalized: bool
    ns_steps: int
    ns_dtype: torch.dtype | None


def _orthogonal(x: Tensor, chosen: _Choices) -> Tensor:
    y = orthogonalized(x.flatten(2), [COEFFICIENTS], 1e-7, chosen.ns_steps, chosen.ns_dtype, margin=1.0)
    return y.reshape(x.shape)


def _spectral(x: Tensor, chosen: _Choices) -> Tensor:
    return math.sqrt(x.shape[1] / (x.shape[2] if chosen.normalized else 1)) * _orthogonal(x, chosen)


def _spectral_conv(x: Tensor, chosen: _Choices) -> Tensor:
    return math.sqrt(x.shape[1] / x.shape[2]) / math.prod(x.shape[3:]) * _orthogonal(x, chosen)


def _col_norm(x: Tensor, chosen: _Choices) -> Tensor:
    length = sqrt((x * x).mean(1, keepdim=True)) * (x.shape[2] if chosen.normalized else 1)
    return x / (length + chosen.eps)


def _row_norm(x: Tensor, chosen: _Choices) -> Tensor:
    length = sqrt((x * x).sum(2, keepdim=True)) * math.sqrt(x.shape[2] if chosen.normalized else 1)
    return x / (length + chosen.eps)


def _sign(x: Tensor, chosen: _Choices) -> Tensor:
    return x.sign() / (x.shape[2] if chosen.normalized else 1)


def _bias_rms(x: Tensor, chosen: _Choices) -> Tensor:
    y = x.unsqueeze(-1) if x.ndim == 1 else x
    return (y / (sqrt((y * y).mean(1, keepdim=True)) + chosen.eps)).reshape(x.shape)


# By name: what it is, and for tensors of how many dimensions.
NORMS: dict[str, tuple[Callable[[Tensor, _Choices], Tensor], tuple[int, ...]]] = {
    "spectral": (_spectral, (2,)),
    "spectral_conv": (_spectral_conv, (3, 4, 5)),
    "col_norm": (_col_norm, (2,)),
    "row_norm": (_row_norm, (2,)),
    "sign": (_sign, (2,)),
    "bias_rms": (_bias_rms, (0, 1)),
}
# What chooses one of these for each tensor, by its dimensions.
AUTO = "auto"
AUTOMATIC = ("bias_rms", "spectral", "spectral_conv")


@per_tensor(hparams={"norm_eps": Hparam(1e-8, NON_NEGATIVE)}, batched=True, name="scale_by_lmo")
def _scale_by_lmo(hp, *, norm, normalized, transpose, ns_steps, ns_dtype):
    chosen = _Choices(hp["norm_eps"], normalized, ns_steps, ns_dtype)

    def rule(u, p):
        dims = u.ndim - 1
        name = norm if norm != AUTO else next((each for each in AUTOMATIC if dims in NORMS[each][1]), "spectral_conv")
        direction, fits = NORMS[name]
        if dims not in fits:
            raise ValueError(
                f"norm = {name!r} of scale_by_lmo is one of tensors of {' or '.join(map(str, fits))} dimensions, but a parameter "
                f"has shape {tuple(u.shape[1:])}: give it another one, with `partition`."
            )
        if not u.numel():
            return u
        return direction(u.mT, chosen).mT if transpose else direction(u, chosen)

    return rule


@recorded
def scale_by_lmo(
    norm: str = AUTO,
    norm_eps: float = 1e-8,
    *,
    normalized: bool = True,
    transpose: bool = False,
    ns_steps: int = 5,
    ns_dtype: torch.dtype | None = None,
) -> Transform:
    """Replace the update by the point of a norm's unit ball that lies farthest along it: the same length for any gradient.

    Which norm fits depends on what a layer does: the operator norm from inputs' to outputs' root mean square for hidden
    matrices, the largest column's for a first layer, the largest element's for a last one.

    Args:
        norm: "auto", "spectral" for matrices, "spectral_conv" for more dimensions, "bias_rms" for vectors and scalars; or one
            of these for all tensors, or "col_norm", "row_norm", "sign".
        norm_eps: ε, at least 0, in units of the norm: what is added to it before it divides; not of spectral norms, whose
            iteration has 1e-7.
        normalized: divide by the number of inputs as the list on top of the module's file has it: √columns for "spectral" and
            "row_norm", columns for "sign" and "col_norm". The authors' ColNorm has False by default.
        transpose: of matrices stored the other way round, as embeddings are.
        ns_steps: how often to iterate, fewer than 100.
        ns_dtype: round the factors and the results of each product to this dtype; see `scale_by_muon`.

    Raises:
        ValueError: an unknown norm, ns_steps not in [0, 100); or, by `update`, a tensor of other dimensions than the norm's.

    Source: Pethick et al. 2025, https://arxiv.org/abs/2502.07529; the names are those of the authors' program, which takes the
    kernels of convolutions for square ones. Neither torch nor optax has it.

    >>> scale_by_lmo().update(torch.tensor([3.0, -4.0]), {})[0].round(decimals=4)
    tensor([ 0.8485, -1.1314])
    """
    ns_steps = require_schedule([COEFFICIENTS], ns_steps, ns_dtype)
    if norm not in (AUTO, *NORMS):
        raise ValueError(f"norm = {norm!r}: expected one of {', '.join(map(repr, (AUTO, *NORMS)))}.")
    return _scale_by_lmo(norm, normalized, transpose, ns_steps, ns_dtype, norm_eps)
