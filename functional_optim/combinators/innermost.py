"""The rules that a transform runs one after another, for engines: looks through chains and renamings, and no further."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from functional_optim.combinators.chain import Chained
from functional_optim.combinators.rename import Renamed
from functional_optim.transform import Transform


@dataclass(frozen=True, eq=False)
class Placed:
    """A transform inside another that no combinator made: a rule, or one written by hand.

    Attributes:
        transform: the transform.
        path: the keys to its state in the state of the outermost one.
        hparams: the name by which the outermost one knows each of its hyper-parameters, by its own name.
    """

    transform: Transform
    path: tuple[str, ...]
    hparams: Mapping[str, str]


def innermost(transform: Transform) -> list[Placed]:
    """The rules and hand-written transforms that this one runs, first to last; none for an empty chain."""
    return list(_walk(transform, (), {name: name for name in transform.declared}))


def _walk(transform: Transform, path: tuple[str, ...], outer: Mapping[str, str]) -> Iterator[Placed]:
    match transform.form:
        case Chained(links=links):
            for name, link in links.items():
                yield from _walk(link, (*path, name), {own: outer[own] for own in link.declared})
        case Renamed(inner=inner, outer=names):
            yield from _walk(inner, path, {own: outer[names.get(own, own)] for own in inner.declared})
        case _:
            yield Placed(transform, path, outer)
