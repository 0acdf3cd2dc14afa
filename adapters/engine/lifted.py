"""Rules that need the shapes of tensors, run as their transform runs them: on whole tensors, as they are or gathered."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from functional_optim.hparams import one_or_each, together
from functional_optim.lifting import widened
from functional_optim.sharded import is_sharded, local

from ..state.layout import detached_from
from .buckets import Column, Leaf
from .owners import Matrix, Sight, computed_by_owners, owners_of, sight_of
from .placement import Line
from .route import Link

if TYPE_CHECKING:
    from .run import Run


def wider(u: Tensor, leaf: Leaf) -> torch.dtype:
    """A gradient is taken in at least its parameter's precision."""
    return leaf.update_dtype if u.dtype == leaf.grad_dtype else u.dtype


def lifted(
    run: "Run", link: Link, leaves: Sequence[Leaf], u: Column, p: Column, slots: Sequence[Column]
) -> tuple[Column, list[Column]]:
    """A rule's own update of some leaves: their updates and new slots, none of them in the memory of what is to be written; but a
    slot that the rule left alone is the same tensor as before.

    What is spread over processes is gathered by each of them.
    """
    seen_u = [leaf.whole(widened(x.to(wider(x, leaf)))) for leaf, x in zip(leaves, u, strict=True)]
    seen_p = [leaf.whole(widened(x)) for leaf, x in zip(leaves, p, strict=True)]
    seen = [[leaf.whole_slot(link, i, x) for leaf, x in zip(leaves, column, strict=True)] for i, column in enumerate(slots)]
    owned = [*p, *(x for column in slots for x in column)]
    found_u, found = _ruled(run, link, leaves, seen_u, seen_p, seen)
    written = [[None if x is old else x for x, old in zip(*pair, strict=True)] for pair in zip(found, slots, strict=True)]
    new_u, new = detached_from(owned, (found_u, written))
    rows = zip(leaves, new_u, strict=True)
    return [leaf.laid_out(leaf.own(x)) for leaf, x in rows], [
        [old if x is None else local(x) for x, old in zip(*pair, strict=True)] for pair in zip(new, slots, strict=True)
    ]


def by_owners(
    run: "Run", links: Sequence[Link], leaves: Sequence[Leaf], u: Column, p: Column, slots: Sequence[Column]
) -> tuple[Column, list[Column]]:
    """The same, of leaves that several processes hold: each is computed by one of them, where it is cut in an ordinary way.

    Rules that follow one another are run by the same owner, with the slots of all.
    """
    teams: dict[Any, list[tuple[int, Line, Sight]]] = {}
    others = list[int]()
    for i in sorted(range(len(leaves)), key=lambda i: leaves[i].index):
        placement = leaves[i].placement
        line = None if placement is None or u[i].is_complex() else placement.line
        sight = None if line is None else _sight(run, links, leaves[i], u[i], [column[i] for column in slots])
        if line is None or sight is None:
            others.append(i)
        else:
            teams.setdefault(line.group, []).append((i, line, sight))
    found: dict[int, Sequence[Tensor]] = {}
    for members in teams.values():
        owners = owners_of([sight.cost for _, _, sight in members], members[0][1].size)
        reads_param = any(sight.reads_param for _, _, sight in members)
        matrices = [
            _matrix(links, leaves[i], i, line, owner, u[i], p[i] if reads_param else None, [column[i] for column in slots])
            for (i, line, _), owner in zip(members, owners, strict=True)
        ]
        found.update(computed_by_owners(matrices, functools.partial(_ruled_in_turn, run, links), reads_param))
    if others:
        own_u, own_p, *own = [[column[i] for i in others] for column in (u, p, *slots)]
        results: list[Column] = []
        for link, first in _with_places(links):
            columns = own[first : first + len(link.slots)]
            own_u, new = lifted(run, link, [leaves[i] for i in others], own_u, own_p, columns)
            results += new
        found.update(zip(others, zip(own_u, *results, strict=True), strict=True))
    columns = [[found[i][j] for i in range(len(leaves))] for j in range(1 + len(slots))]
    return [leaf.laid_out(x) for leaf, x in zip(leaves, columns[0], strict=True)], columns[1:]


def _with_places(links: Sequence[Link]) -> list[tuple[Link, int]]:
    """The links, and where the slots of each begin among those of all."""
    counts = [len(link.slots) for link in links]
    return [(link, sum(counts[:i])) for i, link in enumerate(links)]


def _shapes_of(links: Sequence[Link], leaf: Leaf) -> list[tuple[bool, Sequence[int]]]:
    """Whether each of their slots is spread as the parameter is, and the shape of the whole of it."""
    stored = [leaf.stored(link, i) for link in links for i in range(len(link.slots))]
    return [(is_sharded(x), x.shape) for x in stored]


def _ruled_in_turn(
    run: "Run", links: Sequence[Link], leaves: Sequence[Leaf], u: Column, p: Column | None, slots: Sequence[Column]
) -> tuple[Column, list[Column]]:
    """What rules make of some leaves, one after another."""
    results: list[Column] = []
    for link, first in _with_places(links):
        u, new = _ruled(run, link, leaves, u, p, slots[first : first + len(link.slots)])
        results += new
    return u, results


def _ruled(
    run: "Run", link: Link, leaves: Sequence[Leaf], u: Column, p: Column | None, slots: Sequence[Column]
) -> tuple[Column, list[Column]]:
    """A rule's own update of some leaves, of tensors as it sees them.

    A whole-tree quantity that is known already is taken as it is: it may span others, too.
    """
    form = link.form
    if link in run.reduced:
        form = dataclasses.replace(form, reduce=lambda *_, **__: run.reduced[link])
    keys = [leaf.index for leaf in leaves]
    numbers = dict(zip(keys, map(run.numbers, leaves), strict=True))
    hp = together({i: own[link] for i, (own, _) in numbers.items()})
    if form.places:
        hp["place"] = one_or_each({i: run.ranks[link][i] for i in keys})
    state: dict[str, Any] = {name: dict(zip(keys, column, strict=True)) for name, column in zip(link.slots, slots, strict=True)}
    if form.counts:
        state["step"] = one_or_each({i: counts[link.step] for i, (_, counts) in numbers.items()})
    params = None if p is None else dict(zip(keys, p, strict=True))
    extra = {name: hp[name] for name in form.extra}
    new_u, new = form.update(dict(zip(keys, u, strict=True)), state, params, hp, **extra)
    return [new_u[i] for i in keys], [[new[name][i] for i in keys] for name in link.slots]


def _sight(run: "Run", links: Sequence[Link], leaf: Leaf, u: Tensor, slots: Sequence[Tensor]) -> Sight | None:
    """What rules do with tensors like these."""
    shapes = [(shape, x.dtype) for (_, shape), x in zip(_shapes_of(links, leaf), slots, strict=True)]
    key = *links, leaf.shape, u.dtype, *shapes
    if key not in run.plan.sights:
        dtype = widened(u.new_empty(0).to(wider(u, leaf))).dtype
        run.plan.sights[key] = sight_of(functools.partial(_ruled_in_turn, run, links), leaf, shapes, dtype)
    return run.plan.sights[key]


def _matrix(
    links: Sequence[Link],
    leaf: Leaf,
    place: int,
    line: Line,
    owner: int,
    u: Tensor,
    p: Tensor | None,
    slots: Sequence[Tensor],
) -> Matrix:
    first = [widened(u.to(wider(u, leaf))), *([] if p is None else [widened(p)])]
    of_slots, is_cut = _shapes_of(links, leaf), line.dim is not None
    are_pieces = [is_cut and is_spread for is_spread in (*[True] * len(first), *(is_spread for is_spread, _ in of_slots))]
    shapes = [*[leaf.shape] * len(first), *(shape for _, shape in of_slots)]
    return Matrix(place, leaf, line, owner, [*first, *slots], are_pieces, shapes)
