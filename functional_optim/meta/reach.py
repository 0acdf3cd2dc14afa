"""How far a batch reaches in a loop: what is the same for all of its entries is computed once, and not for each of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from functional_optim import torch_internals
from functional_optim.meta.packing import is_smooth
from functional_optim.meta.plan import Plan, Tensors
from functional_optim.meta.tracing import shapes_of


def batch_axes(plan: Plan, given: Sequence[int | None], tensors: Sequence[Tensor]) -> tuple[int | None, ...]:
    """Where each tensor of a loop is to be batched, of which those are that are `given` at some axis; None if it is not.

    What moves is, so that the transpose returns a derivative for each entry of the batch, never their sum. What is carried is,
    unless it is whole numbers, a count of steps say, which no step makes differ within the batch.
    """
    forms = tuple((x.shape, x.dtype, x.device) for x in tensors)
    key = "reach", plan.key, plan.moving, plan.batches, tuple(given), forms
    if key not in plan.cache:
        alone = {i for i in range(plan.carried) if given[i] is None and not is_smooth(tensors[i])}
        while alone and not alone.isdisjoint(reached := _reached(plan, given, tensors, alone)):
            alone -= reached
        plan.cache[key] = _axes(plan, given, alone)
    return plan.cache[key]


def _axes(plan: Plan, given: Sequence[int | None], alone: set[int]) -> tuple[int | None, ...]:
    return tuple(
        plan.axis(i) if dim is not None or plan.moving[i] or i < plan.carried and i not in alone else None
        for i, dim in enumerate(given)
    )


def _reached(plan: Plan, given: Sequence[int | None], tensors: Sequence[Tensor], alone: set[int]) -> set[int]:
    """What differs within the batch after a step, of what is carried."""
    axes = _axes(plan, given, alone)
    reached: set[int] = set()

    def watched(*parts: Sequence[Tensor]) -> list[Tensor]:
        carry, logs = plan.step(*map(list, parts))
        reached.update(i for i, x in enumerate(carry) if torch_internals.is_batchedtensor(x))
        return [*carry, *logs]

    dims = [list(part) for part in plan.parts([None if axis is None else 0 for axis in axes])]

    def step(*tensors: Tensor) -> Tensors:
        return tuple(torch.vmap(watched, tuple(dims))(*map(list, plan.parts(tensors))))

    size = next(x.shape[dim] for x, dim in zip(tensors, given, strict=True) if dim is not None)
    moved = [to_axis(x, dim, axis, size) for x, dim, axis in zip(tensors, given, axes, strict=True)]
    carry, constants, entries = plan.parts(moved)
    shapes_of(step, (*carry, *constants, *(x[0] for x in entries)))
    return reached


def to_axis(x: Tensor, given: int | None, axis: int | None, size: int) -> Tensor:
    """A tensor batched at one axis, or at none, batched at another."""
    if axis is None:
        return x
    if given is not None:
        return x.movedim(given, axis)
    return x.unsqueeze(axis).expand(*x.shape[:axis], size, *x.shape[axis:]).contiguous()
