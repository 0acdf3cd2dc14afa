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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim.codecs import Codec
from functional_optim.hparams import ANY, FRACTION, NON_NEGATIVE, Hparam, is_several
from functional_optim.in_turn import in_turn
from functional_optim.numerics import mixed
from functional_optim.recipe import recorded
from functional_optim.rules.newton_schulz import (
    COEFFICIENTS,
    Schedule,
    margin_of,
    matrix_zeros,
    orthogonalized,
    require_schedule,
    schedule_of,
)
from functional_optim.rules.shape import scaled_by_shape
from functional_optim.transform import Transform, elementwise, per_tensor

EPS = Hparam(1e-7, NON_NEGATIVE)


@elementwise(
    slots={"momentum_buffer": matrix_zeros("scale_by_muon")},
    coded={"momentum_buffer": "signed"},
    hparams={"momentum": Hparam(0.95, FRACTION)},
    name="scale_by_muon",
)
def _momentum(hp, *, nesterov):
    mu = hp["momentum"]

    def rule(g, p, m):
        m = mixed(m, g, 1 - mu)
        return mixed(g, m, mu) if nesterov else m, m

    return rule


@per_tensor(hparams={"ns_coefficients": Hparam(COEFFICIENTS, ANY), "eps": EPS}, batched=True, least_dims=2, name="scale_by_muon")
def _direction(hp, *, ns_steps, ns_dtype):
    return _orthogonalizing([hp["ns_coefficients"]], hp["eps"], ns_steps, ns_dtype, None)


@per_tensor(hparams={"eps": EPS}, batched=True, least_dims=2, name="scale_by_muon")
def _scheduled_direction(hp, *, schedule, ns_steps, ns_dtype):
    return _orthogonalizing(schedule_of(schedule), hp["eps"], ns_steps, ns_dtype, margin_of(schedule))


def _orthogonalizing(schedule, eps, ns_steps, ns_dtype, margin):
    return lambda u, p: orthogonalized(u.flatten(2), schedule, eps, ns_steps, ns_dtype, margin).reshape(u.shape)


@recorded
def scale_by_muon(
    momentum: float = 0.95,
    ns_coefficients: tuple[float, float, float] | str | Schedule = COEFFICIENTS,
    eps: float = 1e-7,
    *,
    nesterov: bool = True,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    ns_dtype: torch.dtype | None = None,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Replace each matrix by nearly the closest orthogonal one to its momentum: all directions move alike.

    A parameter of more than two dimensions, such as a convolution's, is the matrix of its first dimension by all others
    together. Matrices of equal shapes are iterated together: in one product for all, on the host for as many as a cache holds.

    Args:
        momentum: μ, in [0, 1).
        ns_coefficients: a, b, c of the iteration; or of each of its steps, a list of triples or "polar_express" or "quintic",
            see `orthogonalize`, and then no hyper-parameter.
        eps: at least 0, in units of the gradient's norm: a smaller momentum is not blown up.
        nesterov: orthogonalise the momentum looked ahead.
        ns_steps: k, how often to iterate, fewer than 100.
        adjust_lr_fn: None or "original" makes updates of tall matrices longer, so that outputs move alike whatever the width;
            "match_rms_adamw" gives updates the root mean square of AdamW's, about 0.2, so that its learning rates can be kept;
            "spectral_unclamped" is √(rows / columns) where that is below 1, too, as in torch from 2.14 on.
        ns_dtype: round the factors and the results of each product to this dtype; None computes in that of the parameter, at
            least float32. `torch.bfloat16` is torch's, whatever the parameter.
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

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
    factor = scaled_by_shape(adjust_lr_fn)
    given: Any = ns_coefficients
    by_steps = not is_several(given)
    ns_steps = require_schedule(given if by_steps else [given], ns_steps, ns_dtype)
    options = {"eps": eps, "ns_steps": ns_steps, "ns_dtype": ns_dtype}
    direction = _scheduled_direction(schedule=given, **options) if by_steps else _direction(ns_coefficients=given, **options)
    codec = state_dtype if isinstance(state_dtype, Codec) else None
    first = _momentum(nesterov, momentum, state_dtype=None if codec else state_dtype)
    return in_turn(first, direction, factor, name="scale_by_muon", codec=codec)


@dataclass(frozen=True)
class MuonOrAdamW:
    """The labels of `muon`, and of what else is for matrices: a value, so that it pickles.

    Attributes:
        matrices: the label of tensors of two dimensions or more.
    """

    matrices: str = "muon"

    def __call__(self, name: str, leaf: Tensor) -> str:
        """The branch that takes a parameter of so many dimensions."""
        return self.matrices if leaf.ndim > 1 else "adamw"

    def is_reserve(self, label: str, names: Sequence[str]) -> bool:
        """Either branch may be left without parameters."""
        return True
