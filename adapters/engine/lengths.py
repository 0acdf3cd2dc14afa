"""How long the rows of some columns are, and what can be made of that once."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from functional_optim.numerics import dtype_of_scalars

# Up to this many elements, what an operation costs is the call, and a second thread is of no use.
SMALL = 1 << 15


class Lengths(tuple[int, ...]):
    """Of the rows of some columns, in real numbers; and room for sums over the rows, which takes long to make."""

    @cached_property
    def _rooms(self) -> list[tuple[Tensor, Sequence[Tensor]]]:
        return []

    def rooms(self, count: int) -> list[tuple[Tensor, Sequence[Tensor]]]:
        """Memory for so many sums over each row, and the places in it; the same at each call."""
        while len(self._rooms) < count:
            sums = torch.empty(len(self), dtype=torch.float64, device="cpu")
            self._rooms.append((sums, sums.unbind()))
        return self._rooms[:count]

    @cached_property
    def _kept(self) -> dict[Any, Any]:
        return {}

    def kept_by(self, make: Callable[["Lengths", Any], Any], key: Any) -> Any:
        """What `make(lengths, key)` returned when it was first asked for."""
        if (make, key) not in self._kept:
            self._kept[make, key] = make(self, key)
        return self._kept[make, key]

    @cached_property
    def _columns(self) -> dict[torch.device, Tensor]:
        return {}

    def column(self, device: torch.device) -> Tensor:
        """The same as numbers on a device; made once."""
        if device not in self._columns:
            self._columns[device] = torch.tensor(self, dtype=dtype_of_scalars(device), device=device)
        return self._columns[device]

    @cached_property
    def are_small(self) -> bool:
        """Whether all rows are."""
        return max(self) <= SMALL

    def pieces(self, small: float, longest: int) -> list[list[int]]:
        """As `in_pieces`, of all rows; made once."""
        key = small, longest
        if key not in self._kept:
            self._kept[key] = self.in_pieces(range(len(self)), small, longest)
        return self._kept[key]

    def in_pieces(self, rows: Iterable[int], small: float, longest: int) -> list[list[int]]:
        """Some rows in lists: those up to `small` together, in lists not much longer than `longest`; each of the others alone."""
        pieces: list[list[int]] = []
        growing, length = [], 0
        for i in rows:
            if self[i] > small:
                pieces.append([i])
                continue
            if not growing or length >= longest:
                growing, length = [], 0
                pieces.append(growing)
            growing.append(i)
            length += self[i]
        return pieces
