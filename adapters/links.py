"""The rules that a transform is made of, in order; which of them each parameter goes through; and the numbers that each takes."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from functional_optim.combinators.innermost import innermost
from functional_optim.combinators.origin import Counts, Origin
from functional_optim.hparams import HParams
from functional_optim.lifting import Leafwise
from functional_optim.transform import Transform
from functional_optim.trees import distinct

from .layout import Key, Params


@dataclass(frozen=True, eq=False)
class Link:
    """A rule in a transform: its form, the path of its state, where its hyper-parameters come from, and whom it sees."""

    form: Leafwise
    path: tuple[str, ...]
    hparams: Mapping[str, Origin]
    members: Container[Key]

    @property
    def step(self) -> tuple[str, ...]:
        """The path of its count of updates, where it has one."""
        return (*self.path, "step")

    @property
    def structure(self) -> tuple[Any, ...]:
        """Equal for links that compute the same: everything about a link but its numbers and names."""
        form = self.form
        options = tuple((name, _known_by(value)) for name, value in sorted(form.options.items()))
        return (form.scalars, options, tuple(form.slots), form.counts, form.reduce, tuple(self.hparams))


# What a parameter goes through.
Route: TypeAlias = tuple[Link, ...]


def links_of(transform: Transform, params: Params | None = None) -> list[Link] | None:
    """The rules that a transform is made of, in order; None where something in it is no rule of gradient, parameter and slots."""
    links = []
    for placed in innermost(transform, params):
        form = placed.transform.form
        if not isinstance(form, Leafwise) or form.extra or form.leaf_extra:
            return None
        links.append(Link(form, placed.path, placed.hparams, placed.params or {}))
    return links


def routes_of(links: Sequence[Link], keys: Sequence[Key]) -> list[Route]:
    """What each parameter goes through."""
    return [tuple(link for link in links if key in link.members) for key in keys]


def values_of(links: Iterable[Link], hparams: HParams, counts: Counts) -> dict[Link, HParams]:
    """The hyper-parameters of every link, of a group's and of the counts before the step."""
    return {link: {name: origin.value(hparams, counts) for name, origin in link.hparams.items()} for link in links}


def scalars_of(links: Iterable[Link], values: Mapping[Link, HParams], counts: Counts, reduced: Mapping[Link, Any]) -> list[Any]:
    """The scalars of every link: its hyper-parameters, its step (counted from 1), and what it reduced, where it has these.

    `counts` are those before the step; `reduced` lacks the last link where that one is about to reduce.
    """
    return [
        (
            {name: _separate(value) for name, value in values[link].items()},
            (counts[link.step] + 1,) if link.form.counts else (),
            (reduced[link],) if link in reduced else (),
        )
        for link in links
    ]


def _separate(value: Any) -> Any:
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
