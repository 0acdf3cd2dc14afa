"""The rules that a transform runs, for engines: looks into whatever does nothing else than to run its parts, in order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from functional_optim.combinators.origin import Origin
from functional_optim.transform import Transform
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class Placed:
    """A transform inside another that is a rule, or was written by hand, or does more than run its parts.

    Attributes:
        transform: the transform.
        path: the keys to its state in the state of the outermost one.
        hparams: where each of its hyper-parameters comes from.
        params: what it sees of the parameters; None where none were given.
    """

    transform: Transform
    path: tuple[str, ...]
    hparams: Mapping[str, Origin]
    params: Tree


def innermost(transform: Transform, params: Tree = None) -> list[Placed]:
    """The rules and other transforms that this one runs, in their order; none for an empty chain.

    A leaf of the parameters goes through those that see it, one after another.
    """
    return list(_walk(transform, (), {name: Origin((name,)) for name in transform.declared}, params))


def _walk(transform: Transform, path: tuple[str, ...], hparams: Mapping[str, Origin], params: Tree) -> Iterator[Placed]:
    form = transform.form
    handed = form.origins(path, hparams)
    if handed is None:
        yield Placed(transform, path, hparams, params)
        return
    shares = {} if params is None else form.shares(params)
    for keys, part in form.parts.items():
        yield from _walk(part, (*path, *keys), handed[keys], shares.get(keys))
