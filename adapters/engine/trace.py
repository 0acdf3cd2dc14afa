"""What a run of rules computes, written down once for each structure, whatever the tensors' sizes and the numbers.

The rules run on stand-ins for tensors and numbers. What comes out is a short list of torch's operations on elements, from which
every engine makes what it runs, and a tape of what is done with numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from functional_optim import trees

from .prologue import NotElementwise, Place, Tape
from .route import Link, marks_before, names_of, run_links, slot_count, unopened
from .stages import Dtypes, wide
from .stand_ins import Node, Number, Value


@dataclass(frozen=True, eq=False)
class Traced:
    """What some rules compute.

    Attributes:
        tape: their numbers.
        inputs: the nodes of the update, the parameter, each slot, and what arrived before.
        results: the nodes of the new update, and each new slot; or of the terms of a sum.
        kept: of each input, whether it is seen as it is stored, and not in at least float32.
    """

    tape: Tape
    inputs: list[Node]
    results: list[Node]
    kept: list[bool]


def trace(
    links: Sequence[Link], scalars: Sequence[Any], dtypes: Dtypes, *, count: int | None = None, total: bool = False, asks: bool
) -> Traced:
    """What the links make of an update, a parameter and the slots of all of them.

    Args:
        links: elementwise.
        scalars: of each; see `scalars_of`.
        dtypes: of the tensors that all links have.
        count: how many of the links are run; all by default.
        total: whether the last link is not run, and the terms of the sums that it asks for are the result.
        asks: whether a rule may ask what a number is.

    Raises:
        NotElementwise: a rule did something that can't be written down. A rule may as well raise what it likes.
    """
    flat, spec = trees.flatten(list(scalars))
    tape = Tape(flat, asks=asks)
    kept = [False, False, *unopened(links), *[False] * len(dtypes.further)]
    columns = [Value(Node("input"), dtype if keeps else wide(dtype)) for dtype, keeps in zip(dtypes.all, kept, strict=True)]
    inputs = [x.node for x in columns]

    numbers = [Number(tape, Place(i)) if isinstance(x, int | float | Tensor) else x for i, x in enumerate(tape.values)]
    stand_ins = trees.unflatten(spec, numbers)
    run, end = links[:count], 2 + slot_count(links)
    seen = [*columns[: 2 + slot_count(run)], *columns[end : end + len(marks_before(run))]]
    result, new = run_links(run, stand_ins, seen, total=total)
    results = [*(result if total else [result]), *new]
    if not all(isinstance(x, Value) and x.node.wide for x in results):
        raise NotElementwise(f"a rule of {', '.join(names_of(links))} returned something else than tensors like its own")
    return Traced(tape, inputs, [x.node for x in results], kept)


def ordered(roots: Iterable[Node], known: Iterable[Node] = ()) -> list[Node]:
    """The nodes that these are computed from, and they themselves, each after its operands; but for those known already."""
    done, order = set(known), []

    def visit(node: Node) -> None:
        if node not in done:
            done.add(node)
            for x in node.operands:
                visit(x)
            order.append(node)

    for root in roots:
        visit(root)
    return order
