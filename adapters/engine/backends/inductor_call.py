"""A compiled graph that is one C++ function, called without what the compiler puts around it.

The compiler's own call costs 3 µs a tensor, half of which reads sizes that are known here. The function below takes addresses
and a length, so that tensors keep their shapes, and one loop in C calls it for a whole list of them. What it looks like is the
compiler's private matter: whatever differs from the one pattern that is known here is called as the compiler wants it.
"""

import ctypes
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import repeat
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from functional_optim.torch_internals import WRAPPING, is_kernel, wrapper_of

from ..lengths import Lengths

# No input has this length by chance.
LENGTH = 1031


class Direct:
    """A function of C++ over columns of dense tensors, row by row.

    Args:
        function: writes to its arguments.
        places: which of (vector, *columns, lengths, *sums) each argument of it is.
        sums: how many () results it writes, in float64.
    """

    def __init__(self, function: Callable[..., None], places: Sequence[int], sums: int) -> None:
        self.function, self.places, self.sums = function, places, sums

    def __call__(self, vector: Tensor | Sequence[Tensor], columns: Sequence[Sequence[Tensor]], lengths: Lengths) -> list[Tensor]:
        """Run over all rows, with one vector or one for each; the sums over each of them."""
        rooms = lengths.rooms(self.sums)
        arguments = (
            repeat(vector) if isinstance(vector, Tensor) else vector,
            *columns,
            lengths,
            *(places for _, places in rooms),
        )
        with one_thread() if lengths.are_small else nullcontext():
            deque(map(self.function, *[arguments[place] for place in self.places]), maxlen=0)
        return [sums.clone() for sums, _ in rooms]


def direct(compiled: Any, inputs: int) -> Direct | None:
    """The one function that a compiled graph of a length and so many tensors consists of; None where it is anything else."""
    try:
        call = wrapper_of(compiled)
        names = [name for name in call.__code__.co_names if is_kernel(name)]
        if len(names) != 1 or not WRAPPING.issuperset({*call.__code__.co_names} - {*names}):
            return None
        calls: list[tuple[Any, ...]] = []
        recording = {**call.__globals__, names[0]: lambda *arguments: calls.append(arguments)}
        tensors = [torch.empty(LENGTH, device="cpu") for _ in range(inputs)]
        results = FunctionType(call.__code__, recording)(None, [LENGTH, *tensors])
        (arguments,) = calls
        known = [*map(id, tensors), LENGTH, *map(id, results)]
        places = [known.index(x if isinstance(x, int) else id(x)) for x in arguments]
        is_sum = all(x.dtype == torch.float64 and not x.ndim and inputs + 1 + i in places for i, x in enumerate(results))
        return Direct(call.__globals__[names[0]], places, len(results)) if is_sum else None
    except Exception:  # Whatever else the compiler returns in some version of torch.
        return None


@contextmanager
def one_thread() -> Iterator[None]:
    """No threads of OpenMP's meanwhile: to wake one takes longer than a small tensor does, much longer where others compete."""
    if _set_threads is None or _get_threads is None:
        yield
        return
    threads = _get_threads()
    _set_threads(1)
    try:
        yield
    finally:
        _set_threads(threads)


# The setting is the calling thread's own, unlike `torch.set_num_threads`.
try:
    _openmp = ctypes.CDLL(None)
    _get_threads, _set_threads = _openmp.omp_get_max_threads, _openmp.omp_set_num_threads
except (OSError, AttributeError, TypeError):
    _get_threads = _set_threads = None
