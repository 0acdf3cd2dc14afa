"""Parameters whose counts lie on their device, and are never read there: `capturable=True`, for steps in a CUDA graph."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim.form import Path
from functional_optim.numerics import double
from functional_optim.torch_internals import version_of

from ..state.layout import Flat
from .anatomy import TensorCounts
from .snapshot import Held
from .work import Refused


class HeldOnDevice(Held):
    """The same as `Held`, of parameters that all have had as many updates, and all have a gradient in every step.

    Raises:
        Refused: they haven't.
    """

    @property
    def table(self) -> TensorCounts:
        """The counts as they are now: () tensors."""
        row: Any = list(map(double, self.counts[0].unbind()))
        return TensorCounts(self._paths, [row] * len(self.counts))

    def advance(self, ones: Tensor, grads: Sequence[Tensor | None], clocks: Mapping[Path, float]) -> None:
        """Count a step."""
        del grads, clocks
        self.counts.add_(ones)
        self._seen_version = version_of(self.counts)

    def moving(self, paths: Collection[Path]) -> Tensor:
        """What a step adds to the counts of a parameter in which those at these paths advance."""
        return super().moving(paths).to(self.counts.device)

    def _gathered(self, rows: Sequence[tuple[Sequence[str], Flat]]) -> Tensor:
        columns = [[state[name] for own, state in rows if (name := own[i]) in state] for i in range(len(self._paths))]
        if len({x.device for column in columns for x in column} | {p.device for p in self.params}) != 1:
            raise Refused("capturable=True, but counts and parameters lie on several devices")
        if not all(map(_are_equal, filter(None, columns))):
            raise Refused("capturable=True, but some parameters have had more updates than others")
        none = torch.zeros((), device=self.params[0].device)
        first = [column[0].float() if column else none for column in columns]
        counts = (torch.stack(first) if first else none[None][:0]).repeat(len(rows), 1)
        self._seen_version = version_of(counts)
        return counts

    def _are_counts_known(self) -> bool:
        return version_of(self.counts) == self._seen_version


def _are_equal(counts: Sequence[Any]) -> bool:
    """Whether these are; read here, once. Tensors without memory have no values."""
    column = torch.stack(list(counts))
    return column.is_meta or bool((column == column[0]).all())
