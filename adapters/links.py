"""The rules of a chain in order, and the numbers that each of them takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from functional_optim.combinators.innermost import innermost
from functional_optim.lifting import Leafwise
from functional_optim.transform import Transform


@dataclass(frozen=True, eq=False)
class Link:
    """A rule in a chain: its form, the path of its state, and the rule's name to the group's of every hyper-parameter."""

    form: Leafwise
    path: tuple[str, ...]
    hparams: Mapping[str, str]

    @property
    def structure(self) -> tuple[Any, ...]:
        """Equal for links that compute the same: everything about a link but its numbers and names."""
        form = self.form
        options = tuple((name, _distinct(value)) for name, value in sorted(form.options.items()))
        return (form.scalars, options, tuple(form.slots), form.counts, form.reduce, tuple(self.hparams))


def links_of(transform: Transform) -> list[Link] | None:
    """The rules that a transform is made of, in order; None where something in it is no rule of gradient, parameter and slots."""
    links = []
    for placed in innermost(transform):
        form = placed.transform.form
        if not isinstance(form, Leafwise) or form.extra or form.leaf_extra:
            return None
        links.append(Link(form, placed.path, placed.hparams))
    return links


def scalars_of(links: Sequence[Link], hparams: Mapping[str, Any], counts: Sequence[int], reduced: Sequence[Any]) -> list[Any]:
    """The scalars of every link: its hyper-parameters, its step (counted from 1), and what it reduced, where it has these.

    `counts` are those before the step; `reduced` may stop short of the last link, where that one is about to reduce.
    """
    steps, quantities = iter(counts), iter(reduced)
    return [
        (
            {name: _separate(hparams[outer]) for name, outer in link.hparams.items()},
            (next(steps) + 1,) if link.form.counts else (),
            tuple(islice(quantities, 1)) if link.form.reduce else (),
        )
        for link in links
    ]


def _separate(value: Any) -> Any:
    """A pair as a tuple of its entries, however it was given."""
    if isinstance(value, Tensor) and value.ndim:
        return tuple(value.unbind())
    return tuple(value) if isinstance(value, list) else value


def _distinct(value: Any) -> Any:
    """A key that differs where the value does: 1, True and 1.0 are equal in Python, and so are 0.0 and -0.0."""
    if isinstance(value, int | float):
        return type(value), repr(value)
    return value if _is_hashable(value) else id(value)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
