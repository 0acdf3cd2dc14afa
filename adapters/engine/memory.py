"""How tensors lie in memory, and torch's functions on lists of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from operator import is_
from typing import Any

import torch
from torch import Tensor

from functional_optim import torch_internals

# Tensors of other types may not keep their elements in memory of their own.
PLAIN = (Tensor, torch.nn.Parameter)


def _each(write: Callable[..., Any]) -> Callable[..., None]:
    def over_lists(*lists: Sequence[Tensor]) -> None:
        for row in zip(*lists, strict=True):
            write(*row)

    return over_lists


# What a program can't do without, tensor by tensor; and torch's functions on lists.
LOOPS: Mapping[str, Callable[..., Any]] = {
    "add_": _each(Tensor.add_),
    "mul_": _each(Tensor.mul_),
    "copy_": _each(Tensor.copy_),
    "zero_": _each(Tensor.zero_),
}
foreach: Mapping[str, Callable[..., Any]] = {**LOOPS, **torch_internals.foreach_functions()}


def flat(x: Tensor) -> Tensor:
    """A dense tensor as a 1-D one, complex numbers as pairs of reals, on the same memory."""
    x = torch.view_as_real(x.detach()) if x.is_complex() else x.detach()
    return x.as_strided((x.numel(),), (1,))


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, each once, in whatever order."""
    return torch.empty_like(x, device="meta").stride() == x.stride()


def is_lazy(x: Tensor) -> bool:
    """Whether the memory holds the conjugate, or the negative, of the tensor."""
    return x.is_conj() or x.is_neg()


def on_host(x: Tensor) -> bool:
    """Whether a call costs little beside what it computes, and a number can be read without waiting."""
    return x.is_cpu


def reals(x: Tensor) -> int:
    """How many real numbers a tensor holds."""
    return x.numel() * (2 if x.is_complex() else 1)


def are_same(found: Iterable[Any], known: Sequence[Any]) -> bool:
    """Whether these are the very objects, in this order."""
    found = found if isinstance(found, list) else list(found)
    return len(found) == len(known) and all(map(is_, found, known))


def lacks_some(found: Sequence[Any]) -> bool:
    """Whether some are None."""
    return any(map(is_, found, repeat(None)))
