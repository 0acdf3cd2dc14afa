"""Large matrices cut into blocks, each of which is a matrix of its own to a rule whose work grows faster than they do."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim.combinators.per_matrix import require_batched
from functional_optim.dimensions import folded
from functional_optim.hparams import HParams, require_count
from functional_optim.lifting import SlotInit
from functional_optim.recipe import recorded
from functional_optim.transform import Transform


@recorded
def blocked(transform: Transform, size: int = 1024) -> Transform:
    """Let a rule for matrices see a large one as blocks of at most `size` rows and columns: as many matrices.

    Work and memory of a preconditioner grow with the cube and the square of a dimension; in blocks, with the dimension.
    A tensor of more than two dimensions is the matrix of its first dimension by all others together; vectors are cut, too; what
    is small enough is left as it is. Where a dimension is no multiple of `size`, the last block is filled up with zeros.

    Args:
        transform: a rule that takes matrices of equal shapes together, and to which rows of zeros make no difference:
            `scale_by_shampoo()`, `rotate(...)`. To `scale_by_kl_shampoo()`, which takes means, they make one in last blocks.
        size: of the largest block, at least 1.

    State: the rule's; slots of what is cut have the numbers of its blocks in front, (blocks of rows, blocks of columns, …).
    `quantized` codes none of them; a dtype goes inside, `blocked(rotate(scale_by_adam(state_dtype=torch.bfloat16)))`.

    Raises:
        TypeError: this is no transform, or no such rule.

    Source: Shi et al. 2023, https://arxiv.org/abs/2309.06497, section 4.1. Neither torch nor optax has it.

    >>> from functional_optim import scale_by_shampoo
    >>> tx = blocked(scale_by_shampoo(), size=2)
    >>> state = tx.init_state(torch.zeros(4, 6))
    >>> state["factors.0"].shape
    torch.Size([2, 3, 2, 2])
    """
    inner = require_batched(transform, "blocked", codable=False)
    size = require_count("size", size, 1)
    slots = {name: _of_each_block(start, size) for name, start in inner.slots.items()}
    # Codecs take slots to have the parameter's shape.
    form = dataclasses.replace(inner, scalars=_Scalars(inner.scalars, size), slots=slots, coded={})
    return Transform.of(form, transform.declared, "blocked")


def _is_cut(shape: Sequence[int], size: int) -> bool:
    return any(side > size for side in folded(shape, 2))


def _cut(x: Tensor, size: int) -> Tensor:
    """A stack of vectors or matrices in blocks: (n, blocks of each dimension, sides of a block)."""
    for i in range(x.ndim - 1, 0, -1):
        count, side = -(-x.shape[i] // size), min(x.shape[i], size)
        padding = [0, 0] * (x.ndim - 1 - i) + [0, count * side - x.shape[i]]
        x = torch.nn.functional.pad(x, padding).unflatten(i, (count, side))
    dims = (x.ndim - 1) // 2
    return x.movedim([1 + 2 * i for i in range(dims)], list(range(1, 1 + dims)))


def _joined(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The reverse, of vectors or matrices of this shape."""
    dims = len(shape)
    x = x.movedim(list(range(1, 1 + dims)), [1 + 2 * i for i in range(dims)])
    for i in range(dims):
        x = x.flatten(1 + i, 2 + i)
    return x[(slice(None), *map(slice, shape))]


def _of_each_block(start: SlotInit, size: int) -> SlotInit:
    def begin(p: Tensor, hp: HParams) -> Tensor:
        shape = folded(tuple(p.shape), 2)
        if not _is_cut(shape, size) or not p.numel():
            return start(p, hp)
        blocks = _cut(p.detach().reshape(1, *shape), size)[0]
        lead = blocks.shape[: len(shape)]
        each = [start(block, hp) for block in blocks.flatten(0, len(shape) - 1)]
        return torch.stack(each).reshape(*lead, *each[0].shape)

    return begin


@dataclasses.dataclass(frozen=True)
class _Scalars:
    """The function of the scalars of a rule, which gets the blocks of a stack of tensors as one stack."""

    inner: Callable[..., Any]
    size: int

    def __call__(self, *scalars: Any, **options: Any) -> Any:
        rule = self.inner(*scalars, **options)

        def of_stacks(g: Tensor, p: Tensor | None, *slots: Tensor) -> Any:
            shape = folded(tuple(g.shape[1:]), 2)
            if not _is_cut(shape, self.size) or not g.numel():
                return rule(g, p, *slots)

            def cut(x: Tensor) -> Tensor:
                return _cut(x.reshape(len(x), *shape), self.size)

            blocks = cut(g)
            lead = blocks.shape[: 1 + len(shape)]

            def flat(x: Tensor) -> Tensor:
                return x.reshape(math.prod(lead), *x.shape[len(lead) :])

            outputs = rule(flat(blocks), None if p is None else flat(cut(p)), *map(flat, slots))
            u, *new = (outputs,) if isinstance(outputs, Tensor) else outputs
            joined = _joined(u.reshape(blocks.shape), shape).reshape(g.shape)
            return [joined, *(x.reshape(*lead, *x.shape[1:]) for x in new)]

        return of_stacks
