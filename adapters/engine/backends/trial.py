"""A compiled kernel's first run: on tensors of no consequence, its numbers compared with those of the rules themselves.

What a compiler has changed, or gets wrong, is found out here, before anything depends on it.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees

from ..lengths import Lengths
from ..route import Link, opened, run_links, slot_count
from ..stages import Dtypes, Ending

# What a tensor was, what it should become, and what became of it.
Compared: TypeAlias = tuple[Tensor, Tensor, Tensor]

# A row that fills vector registers and leaves a rest, and one that fills none.
LENGTHS = (77, 3)

# So much of a change may be lost: kernels multiply by reciprocals, and sum in another order.
TOLERANCE = 1e-3

# And so many units in the last place of the largest number, in the narrowest dtype: rules subtract.
UNITS = 16


class WrongNumbers(Exception):
    """A kernel computes something else than its rules."""


def try_out(
    kernel: Callable[..., list[Tensor]],
    vector: Tensor,
    links: Sequence[Link],
    ending: Ending,
    dtypes: Dtypes,
    scalars: Sequence[Any],
    lengths: Sequence[int] = LENGTHS,
) -> None:
    """Run a kernel once.

    Args:
        kernel: of a vector, columns and lengths.
        vector: what it takes for the scalars, on its device.
        links, ending, dtypes: what it was made of.
        scalars: as `scalars_of` arranges them.
        lengths: of the rows that it is run on.

    Raises:
        WrongNumbers: the links compute others.
    """
    numbers = trees.map_leaves(lambda x: torch.as_tensor(x, dtype=torch.float64, device="cpu").detach(), list(scalars))
    rows = [_row(length, dtypes, ending) for length in lengths]
    columns = [[x.to(vector.device, copy=True) for x in column] for column in zip(*rows, strict=True)]
    with torch.no_grad():
        sums = kernel(vector, columns, Lengths(lengths))
        computed = [_by_rules(links, ending, numbers, row[: len(dtypes.all)]) for row in rows]
    written = ending.written(dtypes)
    compared: list[Compared] = []
    for i, (row, results) in enumerate(zip(rows, computed, strict=True)):
        after = {**dict(enumerate(row)), **dict(zip(written, results, strict=ending is not Ending.TOTAL))}
        compared += [(x, after[j], columns[j][i].cpu()) for j, x in enumerate(row)]
    for terms, found in zip(zip(*computed, strict=True), sums, strict=ending is Ending.TOTAL):
        total = torch.stack([x.double().sum() for x in terms]).sum()
        compared.append((torch.zeros_like(total), total, found.sum().cpu()))
    _require_close(compared, dtypes, links)


def _by_rules(links: Sequence[Link], ending: Ending, numbers: Sequence[Any], columns: Sequence[Tensor]) -> Sequence[Tensor]:
    """The links' own rules, under the dtype policy of `lifting`: what is to be written, or the terms of the sums."""
    result, new = run_links(links, numbers, opened(links, columns), total=ending is Ending.TOTAL)
    return result if ending is Ending.TOTAL else ending.outcome(result, new, *columns[1 : 2 + slot_count(links)])


def _row(length: int, dtypes: Dtypes, ending: Ending) -> list[Tensor]:
    """Update, parameter, slots, and a target where there is one: numbers below 1 without any order, those of slots positive."""
    places = torch.arange(length, dtype=torch.float64, device="cpu")
    own = [torch.sin(1.3 * places + 0.7 * k + 0.5) for k in range(len(dtypes.all))]
    end = 2 + len(dtypes.slots)
    values = [*own[:2], *(x * x + 0.1 for x in own[2:end]), *own[end:]]
    row = [x.to(dtype) for x, dtype in zip(values, dtypes.all, strict=True)]
    return [*row, *(torch.zeros_like(row[0], dtype=dtype) for dtype in ending.targets(dtypes))]


def _require_close(compared: Sequence[Compared], dtypes: Dtypes, links: Sequence[Link]) -> None:
    narrowest = max(torch.finfo(x).eps for x in dtypes.all if x.is_floating_point)
    least = UNITS * narrowest * max(_largest(wanted) for _, wanted, _ in compared)
    for before, wanted, found in compared:
        allowed = TOLERANCE * _largest(wanted.double() - before.double()) + least
        if not torch.allclose(found.double(), wanted.double(), rtol=0.0, atol=allowed, equal_nan=True):
            names = ", ".join(link.form.name for link in links) or "no rule at all"
            raise WrongNumbers(f"the compiled kernel of {names} computes other numbers than the rules do")


def _largest(x: Tensor) -> float:
    return x.double().abs().nan_to_num(0.0, 0.0, 0.0).max().item()
