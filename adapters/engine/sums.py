"""Sums over leaves, of which other processes may have a share: one message for all of them together."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed
from torch import Tensor

from .buckets import Part
from .placement import Copies, Placement

# Of the leaves of one part, a column for each sum: one number for each leaf, or for any stretches of them.
Sums: TypeAlias = Sequence[Tensor]


def over_all(parts: Sequence[Part], sums: Sequence[Sums]) -> tuple[Tensor, ...]:
    """The sums over all these parts together, over all processes."""
    if not any(part.placement for part in parts):
        return totals_of(sums)
    members: dict[Placement | Copies | None, list[Sums]] = {}
    # Processes may have cut their shards into other parts; the first leaf of each placement is the same.
    for part, own in sorted(zip(parts, sums, strict=True), key=lambda item: min(item[0].rows)):
        members.setdefault(part.placement, []).append(own)
    totals = list(map(totals_of, members.values()))
    found = sum_over_meshes(list(map(torch.stack, totals)), members)
    return tuple(torch.stack([x.to(found[0].device) for x in found]).sum(0).unbind())


def over_each(parts: Sequence[Part], sums: Sequence[Sums]) -> Sequence[Sums]:
    """The sums over each leaf, over all processes."""
    if not any(part.placement for part in parts) or not all(sums):
        return sums
    places = sorted((row, n, i) for n, part in enumerate(parts) for i, row in enumerate(part.rows))
    own = [torch.stack([column[i] for column in sums[n]]) for _, n, i in places]
    found = sum_over_meshes(own, [parts[n].placement for _, n, _ in places])
    by_place = {(n, i): x for (_, n, i), x in zip(places, found, strict=True)}
    return [list(torch.stack([by_place[n, i] for i in range(len(part.rows))], 1).unbind()) for n, part in enumerate(parts)]


def totals_of(sums: Sequence[Sums]) -> tuple[Tensor, ...]:
    """The sums over all rows."""
    return tuple(torch.cat([x.to(column[0].device) for x in column]).sum() for column in zip(*sums, strict=True))


def sum_over_meshes(sums: Sequence[Tensor], placements: Iterable[Placement | Copies | None]) -> list[Tensor]:
    """Sums over all elements of some leaves, vectors of several, of those over the elements that this process has.

    Each mesh is asked once, for all leaves together; once along each of its dimensions if several of them share out elements. All
    its processes have to call this for the same leaves, in the same order; each gets the same sums, to the bit.
    """
    known, found = list(placements), list(sums)
    meshes: dict[Any, dict[int, Placement]] = {}
    for i, placement in enumerate(known):
        if isinstance(placement, Placement) and placement.sharding:
            meshes.setdefault(placement.mesh, {})[i] = placement
    for mesh, rows in meshes.items():
        dims = sorted({dim for placement in rows.values() for dim in placement.sharding})
        counted = {i: found[i] if each.counts_along(dims) else torch.zeros_like(found[i]) for i, each in rows.items()}
        table = torch.stack([x.double() for x in counted.values()])
        for dim in dims:
            torch.distributed.all_reduce(table, group=mesh.get_group(dim))
        for i, x in zip(rows, table.unbind(), strict=True):
            found[i] = x
    return found
