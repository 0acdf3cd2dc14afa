"""Where the elements of a parameter are, when several processes hold it: all that the engine knows of torch's `DTensor`.

Elementwise stages work on the memory that this process has of a parameter, its gradient and its slots, as on ordinary tensors.
Sums over leaves are summed over the mesh as well, in one message for all. What needs the shape of a tensor gets a DTensor again.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from functional_optim.sharded import is_sharded, local


@dataclass(frozen=True)
class Placement:
    """How a tensor is spread over the processes of a mesh, one of which this is.

    Attributes:
        mesh: torch's `DeviceMesh`.
        placements: torch's `Placement` along each dimension of the mesh.
    """

    mesh: Any
    placements: tuple[Any, ...]

    @property
    def is_partial(self) -> bool:
        """Whether what the processes hold is yet to be summed, so that none of them has an element of the tensor."""
        return any(each.is_partial() for each in self.placements)

    @property
    def sharding(self) -> tuple[int, ...]:
        """The dimensions of the mesh along which processes hold different elements; along the others they hold copies."""
        return tuple(i for i, each in enumerate(self.placements) if not each.is_replicate())

    def counts_along(self, dims: Collection[int]) -> bool:
        """Whether this process's elements are counted in a sum along these dimensions of the mesh: of several copies one is."""
        coordinate = self.mesh.get_coordinate() or ()
        return not any(at for i, at in enumerate(coordinate) if i in dims and i not in self.sharding)

    def own(self, x: Any) -> Tensor:
        """The memory that this process has of a tensor, which is brought into this placement where it is in another."""
        is_placed = x.placements is self.placements or x.placements == self.placements
        return local(x if is_placed else x.redistribute(placements=self.placements))

    def spread(self, x: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Any:
        """The tensor of this shape of which this process has that memory; of a complex one, also the pairs of reals."""
        from torch.distributed.tensor import DTensor  # Loaded already, by whoever made the other.

        if x.ndim > len(shape):
            shape, strides = (*shape, 2), (*(2 * stride for stride in strides), 1)
        options: dict[str, Any] = {"shape": torch.Size(shape), "stride": tuple(strides)}
        return DTensor.from_local(x, self.mesh, self.placements, run_check=False, **options)

    @property
    def line(self) -> "Line | None":
        """The processes that have the pieces of a tensor, where it is cut along one of its dimensions and no other way."""
        if len(self.sharding) != 1:
            return None
        (along,) = self.sharding
        cut = self.placements[along]
        # What is cut once more along the same dimension, after that of another mesh, lies in another order.
        is_plain = type(cut).__name__ == "Shard"
        return Line(self.mesh.get_group(along), cut.dim, torch.device(self.mesh.device_type)) if is_plain else None


@dataclass(frozen=True)
class Copies:
    """Each of some processes has all of a tensor, and what is to be computed of it is shared out among them.

    Attributes:
        group: torch's process group.
        device: where its tensors are.
    """

    group: Any
    device: torch.device

    def own(self, x: Tensor) -> Tensor:
        """All of it."""
        return x

    def spread(self, x: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
        """The tensor itself."""
        return x

    @property
    def line(self) -> "Line":
        """The processes."""
        return Line(self.group, None, self.device)


@dataclass(frozen=True)
class Line:
    """Processes that have a piece of a tensor each, in order, or a copy.

    Attributes:
        group: torch's process group.
        dim: the dimension along which the tensor is cut; None for copies.
        device: where its tensors are.
    """

    group: Any
    dim: int | None
    device: torch.device

    @property
    def size(self) -> int:
        """How many they are."""
        return torch.distributed.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """The place of this one among them."""
        return torch.distributed.get_rank(self.group)

    def piece(self, shape: Sequence[int], rank: int) -> tuple[int, ...]:
        """The shape of what one of them has of a tensor, as torch cuts it: of equal length but for the last."""
        if self.dim is None:
            return tuple(shape)
        length = -(-shape[self.dim] // self.size)
        own = max(0, min(length, shape[self.dim] - rank * length))
        return (*shape[: self.dim], own, *shape[self.dim + 1 :])


def placement_of(x: Any) -> Placement | None:
    """How a tensor is spread; None for an ordinary one."""
    return Placement(x.device_mesh, tuple(x.placements)) if is_sharded(x) else None


def misplaced(param: Tensor, grad: Tensor) -> str:
    """Why the two can't be stepped on their own memory; or nothing."""
    own, other = placement_of(param), placement_of(grad)
    if own is None and other is None:
        return ""
    if own is None or other is None or own.mesh != other.mesh:
        return "a parameter and its gradient are not spread over the same processes"
    return "a parameter is a DTensor whose parts are yet to be summed (Partial)" if own.is_partial else ""
