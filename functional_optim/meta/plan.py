"""A loop as data: how many steps of what, how it is batched and differentiated; and what a run of it keeps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import torch_internals

Tensors: TypeAlias = tuple[Any, ...]
Step: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], tuple[Sequence[Tensor], Sequence[Tensor]]]


@dataclass(frozen=True, eq=False)
class Plan:
    """A loop, and how it is batched; see `run_loop`.

    Attributes:
        at_stop: what becomes of each tensor of the carry where derivatives end.
        structure, name, segment, settings, ended: see `run_loop`.
        moving: which tensors derivatives are taken of.
        batches: for each `vmap` that has gone into the step, the axis of each tensor, None if it is not batched.
        within: see `Tape`.
    """

    step: Step
    carried: int
    constant: int
    steps: int
    stops: frozenset[int]
    at_stop: tuple[Callable[[Tensor], Tensor], ...]
    cache: dict[Any, Any]
    key: Any
    structure: list[Any]
    name: str
    segment: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    ended: Callable[[Sequence[Tensor]], bool] | None = None
    moving: tuple[bool, ...] = ()
    batches: tuple[tuple[int | None, ...], ...] = ()
    within: tuple[int | None, ...] = ()

    def stopped(self, carry: Sequence[Tensor]) -> list[Tensor]:
        """The carry where derivatives end."""
        return [end(x) for end, x in zip(self.at_stop, carry, strict=True)]

    def parts(self, tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        """The carry, the constants and the entries."""
        return (
            tensors[: self.carried],
            tensors[self.carried : self.carried + self.constant],
            tensors[self.carried + self.constant :],
        )

    def segments(self) -> list[range]:
        """The steps, segment by segment."""
        length = self.segment or self.steps
        return [range(start, min(start + length, self.steps)) for start in range(0, self.steps, length)]

    def segment_to(self, k: int) -> range:
        """The steps of a segment up to this one."""
        return range(k - k % (self.segment or self.steps), k + 1)

    def axis(self, i: int) -> int:
        """Where the i-th tensor is batched: entries behind the axis of the steps."""
        return int(i >= self.carried + self.constant)

    def batched(self, axes: tuple[int | None, ...]) -> "Plan":
        """The plan whose step takes the batch, of the `vmap` that calls this, at these axes."""
        given = tuple(list(part) for part in self.parts([None if axis is None else 0 for axis in axes]))

        def step(*parts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            carry, logs = self.step(*parts)
            return list(carry), list(logs)

        where: Any = given[0], 0  # of the carry as it came, and of the logs
        batches, within = (*self.batches, axes), (*self.within, torch_internals.maybe_current_level())
        return replace(self, step=torch.vmap(step, given, where), batches=batches, within=within)

    def run(self, *tensors: Tensor) -> Tensors:
        """The loop without the compiler, for derivatives that are not compiled."""
        carry, constants, entries = self.parts(tensors)
        rows = []
        for k in range(self.steps):
            if k in self.stops:
                carry = self.stopped(carry)
            carry, logs = self.step(list(carry), list(constants), [x[k] for x in entries])
            rows.append(logs)
        return *carry, *(torch.stack(column) for column in zip(*rows, strict=True))


@dataclass(eq=False)
class Tape:
    """What a run of a loop keeps for its transpose.

    Attributes:
        rows: of each step, what its transpose wants and only it has, or of each segment, what it began with; a tensor that
            holds them, in a program.
        code: the compiled step.
        batches: for each `vmap` around the loop, innermost first, which tensors it batches.
        within: in which level of torch's transforms each of them is, None for the outermost.
    """

    rows: Any = None
    code: Any = None
    batches: tuple[Any, ...] = ()
    within: tuple[int | None, ...] = ()
