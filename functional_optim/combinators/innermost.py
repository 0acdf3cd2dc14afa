"""The rules that a transform runs, for engines: looks into whatever does nothing else than to run its parts, in order."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from functional_optim import trees
from functional_optim.combinators.gate import Gated, arriving
from functional_optim.combinators.origin import Counts, Origin
from functional_optim.form import Form, Path
from functional_optim.hparams import HParams
from functional_optim.lifting import Leafwise
from functional_optim.transform import Transform, elementwise
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class Asked:
    """A gate inside a transform.

    Attributes:
        form: decides.
        path: the keys to its state.
        hparams: where its hyper-parameters come from.
    """

    form: Gated
    path: Path
    hparams: Mapping[str, Origin]

    def clocks(self, counts: Counts) -> dict[str, Any]:
        """Its own, of all counts."""
        return {name: counts[(*self.path, name)] for name in self.form.clocks}

    def opens(self, hp: HParams, counts: Counts, found: Any) -> bool:
        """Whether it is open in this step, of the outermost transform's hyper-parameters and counts."""
        own = {name: origin.value(hp, counts) for name, origin in self.hparams.items() if origin.has_value(hp)}
        return bool(self.form.opens(self.clocks(counts), own, found))


@dataclass(frozen=True, eq=False)
class Placed:
    """A transform inside another that is a rule, or was written by hand, or does more than run its parts.

    Attributes:
        transform: the transform.
        path: the keys to its state in the state of the outermost one.
        hparams: where each of its hyper-parameters comes from.
        params: what it sees of the parameters; None where none were given.
        asks: the gate that wants to know what the transform, a rule that changes nothing, has reduced.
        is_still: whether its updates are 0.
        mark: where it is the place at which the updates that arrive are remembered, that place; of a rule that asks for them
            later, the place where they were.
        copy: the keys to what it takes for the parameters, where that is a copy of them.
    """

    transform: Transform
    path: Path
    hparams: Mapping[str, Origin]
    params: Tree
    asks: Asked | None = None
    is_still: bool = False
    mark: "Mark | None" = None
    copy: Path | None = None


class Mark:
    """A place where the updates that arrive are remembered for a later rule."""


def innermost(
    transform: Transform, params: Tree = None, gates: Mapping[Path, bool] | None = None, *, copies: bool = True
) -> list[Placed]:
    """The rules and other transforms that this one runs, in their order; none for an empty chain.

    A leaf of the parameters goes through those that see it, one after another.

    Args:
        transform: the outermost one.
        params: what it sees.
        gates: which of its gates are open, by the keys to their states; into those that are missing here nobody looks.
        copies: whether to look into what steps a copy of the parameters.
    """
    return list(_walk(transform, (), _as_given(transform), _Inside(params, gates or {}, copies)))


def gates_of(transform: Transform) -> list[Asked]:
    """The gates inside a transform, outermost first, as far as engines look inside."""
    return list(_gates(transform, (), _as_given(transform)))


def _as_given(transform: Transform) -> dict[str, Origin]:
    return {name: Origin((name,)) for name in transform.declared}


@dataclass(frozen=True)
class _Inside:
    """Where a walk is: what is seen there of the parameters, how gates stand, and what is taken for the parameters."""

    params: Tree
    gates: Mapping[Path, bool]
    copies: bool
    copy: Path | None = None

    def looks_into(self, form: Form) -> bool:
        """Whether a copy can be followed; not one of a copy."""
        return form.copy is None or (self.copies and self.copy is None)

    def placed(self, transform: Transform, path: Path, hparams: Mapping[str, Origin], **how: Any) -> Placed:
        """A transform that is here."""
        return Placed(transform, path, hparams, self.params, copy=self.copy, **how)


def _walk(transform: Transform, path: Path, hparams: Mapping[str, Origin], here: _Inside) -> Iterator[Placed]:
    form = transform.form
    if isinstance(form, Gated) and path in here.gates:
        yield from _through(form, path, hparams, here)
        return
    handed = form.origins(path, hparams) if here.looks_into(form) else None
    if handed is None:
        for rule in _rules(transform, here.params):
            fixed = {name: Origin(fixed=hparam.default) for name, hparam in rule.declared.items() if name not in hparams}
            yield here.placed(rule, path, {name: {**hparams, **fixed}[name] for name in rule.declared})
        return
    mark = Mark()
    if form.after is not None:
        yield here.placed(passing(), path, {}, mark=mark)
    shares = {} if here.params is None else form.shares(here.params)
    copy = here.copy if form.copy is None else (*path, form.copy)
    for keys, part in form.parts.items():
        inside = dataclasses.replace(here, params=shares.get(keys), copy=copy)
        yield from _walk(part, (*path, *keys), handed[keys], inside)
    if form.after is not None:
        yield here.placed(form.after, path, {}, mark=mark)


def _rules(transform: Transform, params: Tree) -> Iterator[Transform]:
    """The transform itself, or the rules that do the same to these parameters, for the good of engines."""
    form = transform.form
    if isinstance(form, Leafwise) and form.in_turn:
        for rule in form.in_turn:
            yield from _rules(rule, params)
    elif isinstance(form, Leafwise) and form.by_shape is not None and params is not None:
        yield from form.by_shape([p for p in trees.leaves(params) if p is not None])
    else:
        yield transform


def _through(form: Gated, path: Path, hparams: Mapping[str, Origin], here: _Inside) -> Iterator[Placed]:
    asked, opens = Asked(form, path, hparams), here.gates[path]
    if form.reduce is not None and opens:
        yield here.placed(arriving(form.reduce), path, {}, asks=asked)
    for keys, part in form.acts(opens):
        if keys:
            yield from _walk(part, (*path, *keys), {name: hparams[name] for name in part.declared}, here)
        else:
            yield here.placed(part, path, {name: _of_clocks(asked, name) for name in part.declared}, is_still=not opens)


def _of_clocks(asked: Asked, name: str) -> Origin:
    return Origin((), lambda counts: asked.form.own_hparams(asked.clocks(counts))[name])


@elementwise(name="passing")
def passing(hp):
    """What arrives."""
    del hp
    return lambda u, p: u


def _gates(transform: Transform, path: Path, hparams: Mapping[str, Origin]) -> Iterator[Asked]:
    form = transform.form
    handed = form.origins(path, hparams) or {}
    if isinstance(form, Gated):
        yield Asked(form, path, hparams)
        handed = {keys: {name: hparams[name] for name in part.declared} for keys, part in form.parts.items()}
    for keys, own in handed.items():
        yield from _gates(form.parts[keys], (*path, *keys), own)
