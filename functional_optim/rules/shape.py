"""Factors of the update that a matrix's shape gives, and an update of one size whatever its shape.

    u ← √max(1, rows / columns) u       "original", Muon's: outputs move alike whatever the width
    u ← 0.2 √max(rows, columns) u       "match_rms_adamw"
    u ← √(rows / columns) u             "spectral_unclamped"
    u ← r √n u / (‖u‖ + ε)              of n elements: the root mean square is r

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025, Muon is Scalable for LLM Training,
https://arxiv.org/abs/2502.16982; Bernstein 2025, Deriving Muon, https://jeremybernste.in/writing/deriving-muon
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim.hparams import ANY, NON_NEGATIVE, Hparam
from functional_optim.lifting import Leafwise
from functional_optim.numerics import sqrt
from functional_optim.recipe import recorded
from functional_optim.rules.newton_schulz import require_matrix
from functional_optim.transform import Transform, elementwise, numbered, per_tensor

FACTORS = {
    None: lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "spectral_unclamped": lambda rows, columns: math.sqrt(rows / columns),
}


def aspect(x: Tensor) -> float:
    """√(rows / columns) of each of a stack of matrices; 1 of those without elements, which nothing is done to."""
    return _factor("spectral_unclamped", x.shape[1:])


@per_tensor(batched=True, least_dims=2, name="scale_by_shape")
def _scale_by_shape(hp, *, adjust_lr_fn):
    def rule(u, p):
        require_matrix("scale_by_shape", u.shape[1:])
        return _factor(adjust_lr_fn, u.shape[1:]) * u

    return rule


def _factor(adjust_lr_fn: str | None, shape: Sequence[int]) -> float:
    """Of a matrix of this shape; 1 of one that has no elements, which nothing is done to."""
    return FACTORS[adjust_lr_fn](shape[0], math.prod(shape[1:])) if math.prod(shape) else 1.0


@elementwise(hparams={"shape_factor": Hparam(1.0, ANY)}, name="scale_by_shape")
def _scaled(hp):
    return lambda u, p: hp["shape_factor"] * u


@recorded
def scale_by_shape(adjust_lr_fn: str = "original") -> Transform:
    """Multiply the update of a matrix by a factor that its shape gives; it goes behind `orthogonalize`.

    A tensor of more than two dimensions is the matrix of its first dimension by all others together.

    Args:
        adjust_lr_fn: "original", √max(1, rows / columns), so that outputs move alike whatever the width; "match_rms_adamw", 0.2
            √max(rows, columns), which gives an orthogonal matrix the root mean square of AdamW's updates; "spectral_unclamped",
            √(rows / columns).

    Raises:
        ValueError: an unknown factor; or, by `update`, a tensor of fewer than two dimensions.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025, https://arxiv.org/abs/2502.16982. The
    names are those of `torch.optim.Muon`.
    """
    return scaled_by_shape(adjust_lr_fn)


def scaled_by_shape(adjust_lr_fn: str | None) -> Transform:
    """The same; of tensors whose factor is known an engine multiplies the elements together with whatever comes next."""
    require_factor(adjust_lr_fn)
    rule = _scale_by_shape(adjust_lr_fn)
    return _with(rule, by_shape=_Scalings(rule, adjust_lr_fn))


def _with(rule: Transform, **changes: Any) -> Transform:
    """The rule with other attributes of its form."""
    form = rule.form
    assert isinstance(form, Leafwise)
    return Transform.of(dataclasses.replace(form, **changes), rule.declared, rule.name)


@dataclass(frozen=True)
class _Scalings:
    """A rule for each factor that some parameters have; what is no matrix is left to the rule of shapes, which refuses it."""

    rule: Transform
    adjust_lr_fn: str | None

    def __call__(self, params: Sequence[Tensor]) -> list[Transform]:
        factors = dict.fromkeys(map(self.factor, params))
        return [self.refusing() if factor is None else self.scaling(factor) for factor in factors]

    def factor(self, p: Tensor) -> float | None:
        return _factor(self.adjust_lr_fn, p.shape) if p.ndim > 1 else None

    def refusing(self) -> Transform:
        """The rule for those of none."""
        return _with(self.rule, only=lambda p: self.factor(p) is None)

    def scaling(self, factor: float) -> Transform:
        """The rule for those of one factor."""
        return _with(_scaled(factor), only=lambda p: self.factor(p) == factor)


@numbered(hparams={"rms": Hparam(0.2, NON_NEGATIVE), "rms_eps": Hparam(1e-8, NON_NEGATIVE)})
def scale_to_rms(hp, numbers):
    """Give each tensor's update the root mean square `rms`: `r √n u / (‖u‖ + ε)`, of n elements.

    Args:
        rms: r, at least 0; 0.2 is about that of AdamW's updates, so that its learning rates can be kept.
        rms_eps: ε, at least 0, in units of ‖u‖.

    Source: Liu et al. 2025, https://arxiv.org/abs/2502.16982, for the 0.2.

    >>> scale_to_rms(rms=1.0).update(torch.tensor([3.0, 4.0]), {})[0]
    tensor([0.8485, 1.1314])
    """

    def terms(u, p):
        return u * u, torch.ones_like(u)

    def finish(sums):
        square, count = sums.own
        return {"factor": hp["rms"] * sqrt(count) / (sqrt(square) + hp["rms_eps"])}

    def rule(new, u, p):
        return new["factor"] * u

    return terms, finish, rule


def require_factor(adjust_lr_fn: str | None) -> None:
    """Raise ValueError unless there is a factor of this name."""
    if adjust_lr_fn not in (*FACTORS,):
        raise ValueError(f"adjust_lr_fn = {adjust_lr_fn!r}: expected one of {', '.join(map(repr, FACTORS))}.")
