"""Tensors that are spread over several processes: all that the core knows of torch's `DTensor`.

Elementwise rules need nothing from here: a DTensor computes as any tensor does, each process on its own shard. A quantity of
the whole tree has to be summed over the mesh before it meets other tensors, and a rule that needs a tensor's true shape has to
see the whole tensor. A DTensor is told by its attributes, so that torch.distributed is not imported until somebody has made one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def is_sharded(x: Any) -> bool:
    """Whether this is a `DTensor`."""
    return isinstance(x, Tensor) and hasattr(x, "device_mesh")


def whole(x: Any) -> Any:
    """A DTensor as the ordinary tensor that it stands for, gathered or summed over its mesh; anything else as it is."""
    return x.full_tensor() if is_sharded(x) else x


def local(x: Tensor) -> Tensor:
    """The memory that this process holds of a tensor."""
    to_local = getattr(x, "to_local", None)
    return x if to_local is None else to_local()


def placed_like(x: Tensor, stored: Tensor) -> Tensor:
    """The reverse of `whole`: a tensor that all processes have is spread like `stored`, if that is a DTensor of its shape."""
    if not is_sharded(stored) or is_sharded(x) or x.shape != stored.shape:
        return x
    from torch.distributed.tensor import DTensor, Replicate  # Loaded already, by whoever made the DTensor.

    assert isinstance(stored, DTensor)
    everywhere = [Replicate()] * stored.device_mesh.ndim
    # What was a gradient yet to be summed becomes an update that is already.
    placements = [Replicate() if each.is_partial() else each for each in stored.placements]
    replicated = DTensor.from_local(x, stored.device_mesh, everywhere, run_check=False)
    return replicated.redistribute(placements=placements)


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
