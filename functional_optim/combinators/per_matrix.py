"""Tensors of matrices: of three dimensions or more, each pair of the last two is a matrix of its own, as of experts or heads."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from functional_optim.coding import require_plain
from functional_optim.hparams import HParams
from functional_optim.lifting import Leafwise, OneNumber, SlotInit
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, require_transform


@recorded
def per_matrix(transform: Transform) -> Transform:
    """Let a rule for matrices see a tensor of three dimensions or more as so many matrices, of its last two dimensions.

    Without it such a tensor is one matrix to the rule, of its first dimension by all others: right for a convolution, not for
    weights (experts, inputs, outputs) of a mixture of experts, or (heads, inputs, outputs) of attention. All matrices of tensors
    of one shape are computed together. Matrices, vectors and scalars are left to the rule as they are.

    Args:
        transform: a rule that takes matrices of equal shapes together: `scale_by_muon()`, `orthogonalize()`, `rotate(...)`,
            `scale_by_shampoo()`, `scale_by_psgd_kron()`, `scale_by_row_rms()`, `scale_by_shape()`.

    State: the rule's, its slots with the leading dimensions of the tensor in front.

    Raises:
        TypeError: this is no transform, or no such rule.

    >>> from functional_optim import orthogonalize
    >>> experts = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[0.0, 3.0], [3.0, 0.0]]])
    >>> per_matrix(orthogonalize("quintic")).update(experts, {})[0].round().tolist()
    [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]
    """
    inner = require_batched(transform, "per_matrix")
    slots = {name: _of_each_matrix(start) for name, start in inner.slots.items()}
    form = dataclasses.replace(inner, scalars=_Scalars(inner.scalars), slots=slots, in_turn=(), by_shape=None)
    return Transform.of(form, transform.declared, "per_matrix")


def require_batched(transform: Any, name: str, *, codable: bool = True) -> Leafwise:
    """The form of a rule that sees matrices of equal shapes together, or TypeError; `codable` as for `require_plain`."""
    require_transform(transform, name)
    inner = transform.form
    require_plain(inner, name, codable=codable)
    known = isinstance(inner, Leafwise) and inner.batched and not inner.finds and not inner.leaf_extra
    if not isinstance(inner, Leafwise) or not known or any(isinstance(start, OneNumber) for start in inner.slots.values()):
        raise TypeError(
            f"{name} takes a rule that sees matrices of equal shapes together, such as scale_by_muon(), but {transform.name} "
            f"is none. What treats every element alike needs no such thing, and goes around: chain({name}(...), ...)."
        )
    return inner


def _of_each_matrix(start: SlotInit) -> SlotInit:
    def begin(p: Tensor, hp: HParams) -> Tensor:
        if p.ndim < 3 or not p.numel():
            return start(p, hp)
        each = [start(matrix, hp) for matrix in p.flatten(0, -3)]
        return torch.stack(each).reshape(*p.shape[:-2], *each[0].shape)

    return begin


@dataclasses.dataclass(frozen=True)
class _Scalars:
    """The function of the scalars of a rule, which gets the matrices of a stack of tensors as one stack."""

    inner: Callable[..., Any]

    def __call__(self, *scalars: Any, **options: Any) -> Any:
        rule = self.inner(*scalars, **options)

        def of_stacks(g: Tensor, p: Tensor | None, *slots: Tensor) -> Any:
            if g.ndim < 4:
                return rule(g, p, *slots)
            lead = g.shape[:-2]

            def flat(x: Tensor) -> Tensor:
                return x.reshape(math.prod(lead), *x.shape[len(lead) :])

            outputs = rule(flat(g), None if p is None else flat(p), *map(flat, slots))
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            return [x.reshape(*lead, *x.shape[1:]) for x in outputs]

        return of_stacks
