"""What a transform is made of, in order; which of it each parameter goes through; and the numbers that each link takes."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from torch import Tensor

from functional_optim.closures import constants_of
from functional_optim.combinators.compared import ARRIVED
from functional_optim.combinators.innermost import Asked, Mark, Placed, innermost
from functional_optim.combinators.origin import Counts, Origin
from functional_optim.form import Path
from functional_optim.hparams import HParams
from functional_optim.lifting import Leafwise, widened
from functional_optim.numbered import Numbered
from functional_optim.transform import Transform
from functional_optim.trees import distinct

from ..state.layout import Key, Params


@dataclass(frozen=True, eq=False)
class Link:
    """A place in a transform where something happens to updates: a rule, or what can only be called itself.

    Attributes:
        transform: what stands there.
        path: the keys to its state.
        hparams: where its hyper-parameters come from.
        members: the parameters that it sees.
        asks: the gate that wants to know what it has reduced.
        is_still: whether its updates are 0.
        mark, copy: see `Placed`.
    """

    transform: Transform
    path: Path
    hparams: Mapping[str, Origin]
    members: Container[Key]
    asks: Asked | None = None
    is_still: bool = False
    mark: Mark | None = None
    copy: Path | None = None

    @cached_property
    def rule(self) -> Leafwise | None:
        """Its form, where it is a rule of numbers, gradient, parameter and slots."""
        form = self.transform.form
        if not isinstance(form, Leafwise) or {*form.leaf_extra} - {ARRIVED}:
            return None
        # What keeps numbers, and its slots in codes, is called itself.
        return None if isinstance(form, Numbered) and form.coding else form

    @cached_property
    def form(self) -> Leafwise:
        """Its rule, which it has."""
        assert self.rule is not None
        return self.rule

    @cached_property
    def packs(self) -> bool:
        """Whether it is a rule that treats every element alike."""
        return self.rule is not None and self.rule.packs

    @cached_property
    def joins(self) -> bool:
        """Whether all leaves that it sees have to be there before it does anything with one of them."""
        return self.rule is None or self.rule.finds

    @property
    def sees(self) -> Mark | None:
        """The place where the updates that it asks for arrived."""
        return self.mark if self.rule and ARRIVED in self.rule.leaf_extra else None

    @property
    def remembers(self) -> Mark | None:
        """The place that it is."""
        return None if self.sees else self.mark

    @property
    def slots(self) -> Sequence[str]:
        """What its rule calls its slots."""
        return tuple(self.rule.slots) if self.rule else ()

    @cached_property
    def is_steady(self) -> bool:
        """Whether its hyper-parameters are those of the transform, whatever the counts are, and it is given nothing else."""
        return not any(origin.counts for origin in self.hparams.values()) and not (self.rule and self.rule.extra)

    @cached_property
    def step(self) -> Path:
        """The path of its count of updates, where it has one."""
        return (*self.path, "step")

    @property
    def structure(self) -> tuple[Any, ...]:
        """Equal for links that compute the same: everything about a link but its numbers and names."""
        form = self.form
        options = tuple((name, _known_by(value)) for name, value in sorted(form.options.items()))
        constants = constants_of(form.scalars)
        return (form.scalars, constants, options, tuple(form.slots), form.counts, form.reduce, tuple(self.hparams))

    def __str__(self) -> str:
        return self.transform.name if self.sees else ".".join(self.path) or self.transform.name


def names_of(links: Iterable[Link]) -> tuple[str, ...]:
    """What they are called, in order: those that do together what one rule does, once."""
    return tuple(name for *_, name in dict.fromkeys((link.path, link.sees, str(link)) for link in links))


# What a parameter goes through.
Route: TypeAlias = tuple[Link, ...]


def links_of(
    transform: Transform,
    params: Params | None = None,
    gates: Mapping[Path, bool] | None = None,
    kept: Callable[[Key], Container[Path]] = lambda key: (),
) -> list[Link]:
    """What a transform is made of, in order, where these gates are open or closed; `kept` tells the paths of a leaf's slots."""
    for copies in (True, False):
        links = [
            Link(each.transform, each.path, each.hparams, _concerned(each), each.asks, each.is_still, each.mark, each.copy)
            for each in innermost(transform, params, gates, copies=copies)
        ]
        keys = list(params or ())
        routes, paths = routes_of(links, keys), {link.copy for link in links if link.copy}
        steps_copies = all(
            any(link.copy in paths for link in route[-1:]) or not any(path in kept(key) for path in paths)
            for key, route in zip(keys, routes, strict=True)
        )
        if steps_copies and all(map(_ends_with_its_copy, set(routes))):
            break
    return links


def routes_of(links: Sequence[Link], keys: Sequence[Key]) -> list[Route]:
    """What each parameter goes through."""
    return [tuple(link for link in links if key in link.members) for key in keys]


def _concerned(placed: Placed) -> Params:
    """The parameters that it sees and has something to do for."""
    return {key: p for key, p in (placed.params or {}).items() if placed.transform.form.concerns(p)}


def _ends_with_its_copy(route: Route) -> bool:
    """Whether nothing is done any more to the parameter itself when a copy of it has been stepped."""
    first = next((i for i, link in enumerate(route) if link.copy), len(route))
    return len({link.copy for link in route[first:]}) <= 1


def values_of(links: Iterable[Link], hparams: HParams, counts: Counts, extra: Mapping[str, Any]) -> dict[Link, HParams]:
    """The hyper-parameters of every link, of a group's and of the counts before the step; and the numbers that rules ask for
    beside these, of what the transform was given. Pairs are tuples of their entries."""
    return {link: _given(link, hparams, counts, extra) for link in links}


def numbers_asked(links: Iterable[Link]) -> list[str]:
    """The names of the numbers that rules ask for beside the hyper-parameters."""
    return [name for link in links if link.rule for name in link.rule.extra]


def scalars_of(
    links: Iterable[Link], given: Callable[[Link], tuple[HParams, Any]], reduced: Mapping[Link, Any]
) -> list[tuple[Any, ...]]:
    """The scalars of every link: its hyper-parameters, its step (counted from 1), and what it reduced, where it has these.

    `given` gives the first two, a step None where there is none; `reduced` lacks the last link where that one is about to reduce.
    """
    return [
        (hp, () if t is None else (t,), (reduced[link],) if link in reduced else ()) for link in links for hp, t in [given(link)]
    ]


def structure_of(links: Sequence[Link]) -> tuple[Any, ...]:
    """Equal for runs of links that compute the same, whatever their numbers and names are."""
    places = [*(link.remembers for link in links), *marks_before(links)]
    return tuple((link.structure, places.index(link.sees) if link.sees else None) for link in links)


def marks_before(links: Sequence[Link]) -> list[Mark]:
    """The places before some links where updates arrived that these ask for."""
    own = [link.remembers for link in links]
    return list(dict.fromkeys(link.sees for link in links if link.sees and link.sees not in own))


def run_links(
    links: Sequence[Link], scalars: Sequence[Any], columns: Sequence[Any], *, total: bool = False
) -> tuple[Any, list[Any]]:
    """What the rules of elementwise links make of an update, a parameter and their slots: the new update and slots.

    Args:
        links: in order.
        scalars: of each; see `scalars_of`.
        columns: the update, the parameter, each slot, and what arrived at `marks_before`: tensors in at least float32, or what
            stands for them.
        total: whether the last link is not run, but the terms of its sums are asked for: these are the result, and no slots.
    """
    u, p, *stored = columns
    known, rest, new = dict(zip(marks_before(links), stored[slot_count(links) :], strict=True)), iter(stored), []
    for link, (hp, t, reduced) in zip(links, scalars, strict=True):
        own = [next(rest) for _ in link.slots]
        if link.remembers:
            known[link.remembers] = u
        arguments = (u, p, *own, *([known[link.sees]] if link.sees else ()))
        if total and link is links[-1]:
            terms = link.form.terms(hp, *(t or (None,)), *(reduced or (None,)))
            assert terms is not None
            return terms(*arguments), []
        results = link.form.rule(hp, *(t or (None,)), *(reduced or (None,)))(*arguments)
        results = results if isinstance(results, tuple | list) else (results,)
        if len(results) != 1 + len(link.slots):
            raise TypeError(f"the rule of {link.form.name} did not return a tensor for the update and each slot")
        u = results[0].to(u.dtype)
        new += results[1:]
    return u, new


def unopened(links: Iterable[Link]) -> list[bool]:
    """Of each slot of theirs, whether the rule sees it as it is stored."""
    return [kept for link in links for kept in link.form.unopened]


def opened(links: Sequence[Link], row: Sequence[Tensor]) -> list[Tensor]:
    """What some links see of an update, a parameter, their slots and more: at least float32, but some slots as stored."""
    slots = unopened(links)
    kept = [False, False, *slots, *[False] * (len(row) - 2 - len(slots))]
    return [x if keeps else widened(x) for x, keeps in zip(row, kept, strict=True)]


def slot_count(links: Iterable[Link]) -> int:
    """How many slots these links have together."""
    return sum(len(link.slots) for link in links)


def stored_of(link: Link) -> list[tuple[str | None, int]]:
    """Of each slot of a link's rule the kind of its codes, where it may be in some, and in how many parts it is stored."""
    coding = link.form.coding
    return [(kind, count) for _, kind, count in coding.slots] if coding else [(None, 1) for _ in link.slots]


def _given(link: Link, hparams: HParams, counts: Counts, extra: Mapping[str, Any]) -> HParams:
    origins = link.hparams.items()
    own = {name: separate(origin.value(hparams, counts)) for name, origin in origins if origin.has_value(hparams)}
    if link.rule and link.rule.places:
        own["place"] = 0  # Any, to see what the rule says of its numbers; `lifted` gives each leaf its own.
    return {**own, **link.rule.numbers_of(extra)} if link.rule and link.rule.extra else own


def separate(value: Any) -> Any:
    """A pair as a tuple of its entries, however it was given."""
    if isinstance(value, Tensor) and value.ndim:
        return tuple(value.unbind())
    return tuple(value) if isinstance(value, list) else value


def _known_by(value: Any) -> Any:
    return distinct(value) if _is_hashable(value) else id(value)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
