"""Which transforms of a table hold every part of all: where a test takes long `make test` tries these, `make test-all` all."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from functional_optim import Transform
from functional_optim.combinators.chain import Chained
from functional_optim.lifting import Lifted


def parts_of(tx: Transform) -> set[str]:
    """What a transform is made of: the rules, whatever choices are made for them, and what is around them."""
    form = tx.form
    if isinstance(form, Lifted):
        return {form.name}
    own = {type(form).__name__ if isinstance(form, Chained) or tx.recipe is None else tx.recipe.constructor.__name__}
    return own.union(*map(parts_of, form.parts.values()))


def written_in(tx: Transform) -> set[Any]:
    """Parts, with each choice of options and numbers that rules are made with."""
    form = tx.form
    if isinstance(form, Lifted):
        return {(repr(tx), kind_of(form))}
    own: Any = type(form) if isinstance(form, Chained) or tx.recipe is None else tx.recipe.constructor.__name__
    return {own}.union(*map(written_in, form.parts.values()))


def kind_of(rule: Lifted) -> tuple[Any, ...]:
    """Its class, and which of its fields are filled."""
    return (type(rule), *(field.name for field in dataclasses.fields(rule) if getattr(rule, field.name)))


def structures_of(tx: Transform) -> set[Any]:
    """Parts; elementwise rules of a kind are one, whose formulas differ, while rules that see shapes have loops as well."""
    form = tx.form
    if isinstance(form, Lifted):
        return {form.name if form.sees_shapes else kind_of(form)}
    own: Any = type(form) if isinstance(form, Chained) or tx.recipe is None else tx.recipe.constructor.__name__
    return {own}.union(*map(structures_of, form.parts.values()))


def kinds_of(tx: Transform) -> set[Any]:
    """What engines tell transforms apart by: the kinds of rules, and what is around them."""
    form = tx.form
    if isinstance(form, Lifted):
        return {kind_of(form)}
    own = type(form) if isinstance(form, Chained) or tx.recipe is None else tx.recipe.constructor.__name__
    return {own}.union(*map(kinds_of, form.parts.values()))


def covering(table: Mapping[str, Transform], parts_of: Callable[[Transform], set[Any]] = parts_of) -> set[str]:
    """The names of transforms that have every part of all: each time the one with most of what is missing, for its size."""
    parts = {name: parts_of(tx) for name, tx in table.items()}
    missing, chosen = set().union(*parts.values()), set()
    while missing:
        best = max(parts, key=lambda name: len(parts[name] & missing) / (1 + len(parts[name])))
        chosen.add(best)
        missing -= parts[best]
    for name in sorted(chosen):  # What came early may have nothing that those after it lack.
        if parts[name] <= set().union(*(parts[other] for other in chosen - {name})):
            chosen.remove(name)
    return chosen


def mostly_full(
    table: Mapping[str, Transform], parts_of: Callable[[Transform], set[Any]] = parts_of
) -> dict[str, list[pytest.MarkDecorator]]:
    """The marks of each of these in a test that takes long."""
    chosen = covering(table, parts_of)
    return {name: [] if name in chosen else [pytest.mark.full] for name in table}
