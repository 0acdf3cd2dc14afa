"""Tensors that are spread over several processes: all that the core knows of torch's `DTensor`.

Elementwise rules need nothing from here: a DTensor computes as any tensor does, each process on its own shard. A quantity of
the whole tree has to be summed over the mesh before it meets other tensors, and a rule that needs a tensor's true shape has to
see the whole tensor. A DTensor is told by its attributes, so that torch.distributed is not imported until somebody has made one.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim import torch_internals


def is_sharded(x: Any) -> bool:
    """Whether this is a `DTensor`."""
    return isinstance(x, Tensor) and hasattr(x, "device_mesh")


def whole(x: Any) -> Any:
    """A DTensor as the ordinary tensor that it stands for, gathered or summed over its mesh; anything else as it is."""
    return x.full_tensor() if is_sharded(x) else x


def local(x: Tensor) -> Tensor:
    """The memory that this process holds of a tensor."""
    own = torch_internals.local_of(x)
    return x if own is None else own


def placed_like(x: Tensor, stored: Any) -> Tensor:
    """The reverse of `whole` and `on_one_mesh`: a tensor that all processes have, in the form in which `stored` is held.

    One of another shape than a DTensor's stays ordinary.
    """
    if not is_sharded(stored):
        return whole(x)
    if is_sharded(x) or x.shape != stored.shape:
        return x
    replicated = _replicated(x, stored)
    # What was a gradient yet to be summed becomes an update that is already.
    pairs = zip(stored.placements, replicated.placements, strict=True)
    return replicated.redistribute(placements=[copied if own.is_partial() else own for own, copied in pairs])


def placed_as(x: Any, other: Any) -> Tensor:
    """A tensor as `other` is held, whose shape it may have: spread in the same way over the same processes, or whole."""
    if is_sharded(x) and is_sharded(other) and (x.device_mesh, x.placements) == (other.device_mesh, other.placements):
        return x
    return placed_like(whole(x), other)


def spread_as(x: Any, other: Any) -> Any:
    """A tensor spread in the way of a DTensor, which may have another shape, but as many dimensions as are cut."""
    if is_sharded(x) and x.device_mesh != other.device_mesh:
        x = whole(x)
    x = x if is_sharded(x) else _replicated(x, other)
    return x if x.placements == other.placements else x.redistribute(placements=other.placements)


def of_pieces(x: Tensor, shape: Sequence[int], other: Any) -> Any:
    """The DTensor of this shape, spread in the way of another one, of which this process has this memory."""
    from torch.distributed.tensor import DTensor  # Loaded already, by whoever made the other.

    strides = torch.empty(tuple(shape), device="meta").stride()
    options: dict[str, Any] = {"shape": torch.Size(shape), "stride": strides}
    return DTensor.from_local(x.contiguous(), other.device_mesh, other.placements, run_check=False, **options)


def cuts_of(x: Any) -> dict[int, int] | None:
    """Into how many pieces a DTensor is cut along each of its dimensions; None where these are yet to be summed."""
    found: dict[int, int] = {}
    for size, placement in zip(x.device_mesh.shape, x.placements, strict=True):
        if placement.is_partial():
            return None
        if not placement.is_replicate():
            found[placement.dim] = found.get(placement.dim, 1) * size
    return found


def elements_before(shape: Sequence[int], mesh: Any, placements: Sequence[Any]) -> int:
    """How many elements of a DTensor come before those of this process, where it has some in a row; else 0."""
    # A single process cuts nothing.
    cut = [(i, each) for i, each in enumerate(placements) if not each.is_replicate() and mesh.shape[i] > 1]
    if len(cut) != 1 or type(cut[0][1]).__name__ != "Shard" or cut[0][1].dim != 0:
        return 0
    (i, _), coordinate = cut[0], mesh.get_coordinate() or ()
    length = -(-shape[0] // mesh.shape[i])  # As torch cuts: of equal length but for the last.
    return min(coordinate[i] * length, shape[0]) * math.prod(shape[1:]) if coordinate else 0


def on_one_mesh(tensors: Sequence[Tensor | None]) -> list[Any]:
    """The same tensors; if some are DTensors, then all of them, so that a rule for all together can combine them."""
    first = next((x for x in tensors if is_sharded(x)), None)
    return [x if x is None or first is None or is_sharded(x) else _replicated(x, first) for x in tensors]


def _replicated(x: Tensor, other: Any) -> Any:
    """A tensor that all processes have, as a DTensor on the mesh of another."""
    from torch.distributed.tensor import DTensor, Replicate  # Loaded already, by whoever made the other.

    return DTensor.from_local(x, other.device_mesh, [Replicate()] * other.device_mesh.ndim, run_check=False)


def total(scalars: Sequence[Tensor]) -> Tensor:
    """The sum of one or more () tensors, an ordinary tensor on the device of the first; of DTensors, the sum over their mesh.

    Each mesh is asked once, however many tensors it holds: messages, not additions, are what a norm costs there.
    """
    device = scalars[0].device
    meshes: dict[Any, list[Tensor]] = {}
    for x in scalars:
        meshes.setdefault(getattr(x, "device_mesh", None), []).append(x.to(device))
    sums = [whole(torch.stack(column).sum()) for column in meshes.values()]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()
