"""Kernels for GPUs, in Triton: one launch for all tensors of a signature, and one that reads for sums, whatever their sizes.

As torch's fused optimizers do it, with the rules' own formulas. Nothing here waits for the device: numbers and addresses are
copied there from pinned memory. Triton keeps what it has compiled on disk.
"""

import hashlib
import linecache
from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from functional_optim import inductor, trees
from functional_optim.lifting import Leafwise

from ..lengths import Lengths
from ..prologue import Prologue
from .kernels import Request, numbers_of, sent, vector_of
from .trial import LENGTHS, try_out
from .triton_code import ALIGNED, BLOCK, STRETCH, Text, text_of

# Rows for the trial: one with whole blocks and a rest, too.
TRIED = (*LENGTHS, BLOCK + 9)

_kernels: dict[Any, "Kernel"] = {}


@dataclass(frozen=True, eq=False)
class Kernel:
    """A compiled run of links; the same to its callers as that of `kernels`.

    Attributes:
        prologue: scalars to numbers.
        launch: the compiled function, by its grid.
        sums: how many sums over each row it computes.
        dtype: of the numbers.
        device: of all tensors.
        forms: of the links; keeps what the cache knows by its `id` alive, and no parameter.
    """

    prologue: Prologue
    launch: Any
    sums: int
    dtype: torch.dtype
    device: torch.device
    forms: Sequence[Leafwise]

    def vector(self, scalars: Sequence[Any]) -> Tensor:
        """What the prologue makes of these scalars, on the device; without waiting for it. One for each row, if some are."""
        return vector_of(numbers_of(self.prologue, scalars), self.dtype, self.device)

    def __call__(self, vector: Tensor | Sequence[Tensor], columns: Sequence[Sequence[Tensor]], lengths: Lengths) -> list[Tensor]:
        """Run over all rows of some columns: tensors that are not empty, dense, and alike in the order of their elements.

        Args:
            vector: what `vector` returned, or one for each row.
            columns: updates, parameters, each slot, what arrived before, and, with an ending that needs one, targets.
            lengths: of the rows.

        Returns:
            The sums over each row.
        """
        numbers = vector if isinstance(vector, Tensor) else torch.stack(list(vector))
        stretches, counts = lengths.kept_by(stretches_of, self.device)
        arguments = [self._table(columns, lengths), stretches, numbers, numbers.shape[1] if numbers.ndim > 1 else 0]
        partial = torch.empty(self.sums, len(stretches), dtype=torch.float64, device=self.device)
        with _current(self.device):
            self.launch[(len(stretches),)](*arguments, *([partial] if self.sums else []), enable_fp_fusion=True)
        return [torch.segment_reduce(x, "sum", lengths=counts, unsafe=True) for x in partial]

    def _table(self, columns: Sequence[Sequence[Tensor]], lengths: Lengths) -> Tensor:
        """Addresses and lengths on the device; sent there anew only where an address is another than in the last step."""
        addresses = [[x.data_ptr() for x in column] for column in columns]
        known: list[Any] = lengths.kept_by(_nothing, self)
        if not known or known[0] != addresses:
            rows = zip(*addresses, lengths, strict=True)
            flat = [x for row in rows for x in (*row, not any(address % ALIGNED for address in row[:-1]))]
            known[:] = [addresses, sent(torch.frombuffer(array("q", flat), dtype=torch.int64), self.device)]
        return known[1]


def kernels_for(requests: Sequence[Request]) -> list[Kernel]:
    """The kernels of these structures, compiled at their first use and shared by all optimizers; see `kernels.kernels_for`."""
    with inductor.lock:
        for request in requests:
            if request.key not in _kernels:
                _kernels[request.key] = _tried(request)
        return [_kernels[request.key] for request in requests]


def _tried(request: Request) -> Kernel:
    links, ending, dtypes, device, scalars = request
    text = text_of(request.traced(), ending, dtypes)
    kernel = Kernel(text.prologue, function_of(text), text.sums, text.dtype, device, [link.form for link in links])
    try_out(kernel, kernel.vector(trees.leaves(list(scalars))), links, ending, dtypes, scalars, TRIED)
    return kernel


def function_of(text: Text) -> Any:
    """What Triton makes of the text of a kernel; it is compiled at its first launch."""
    # Triton asks Python for the text of a function.
    name = f"<kernel {hashlib.sha256(text.source.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(text.source), None, text.source.splitlines(keepends=True), name)
    names: dict[str, Any] = {"__name__": __name__, "triton": triton, "tl": tl, "libdevice": libdevice}
    exec(compile(text.source, name, "exec"), names)
    return names["kernel"]


def stretches_of(lengths: Lengths, device: torch.device) -> tuple[Tensor, Tensor]:
    """The row of each program of a launch, and the number of its stretch in the row; and how many each row has."""
    counts = [-(-length // STRETCH) for length in lengths]
    flat = [x for row, count in enumerate(counts) for i in range(count) for x in (row, i)]
    stretches = sent(torch.frombuffer(array("i", flat), dtype=torch.int32), device).view(-1, 2)
    return stretches, sent(torch.frombuffer(array("q", counts), dtype=torch.int64), device)


def _nothing(lengths: Lengths, kernel: Kernel) -> list[Any]:
    return []


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches where torch would."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
