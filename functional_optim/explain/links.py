"""The links that a transform is made of, in order, and what is to be said of each."""

import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.chain import Chained
from functional_optim.combinators.lr_factor import Factored, with_lr_factor
from functional_optim.combinators.partition import Partitioned
from functional_optim.combinators.rename import Renamed, rename_hparams, set_defaults
from functional_optim.combinators.rounding import with_rounding
from functional_optim.combinators.scheduled import Scheduled, scheduled
from functional_optim.explain.explanation import Curve, Row
from functional_optim.form import Path, part_at
from functional_optim.lifting import Lifted
from functional_optim.sharded import local
from functional_optim.transform import Transform
from functional_optim.trees import Tree

# So many values of a schedule make a curve.
SAMPLES = 32

# Forms that only hand on what they are given, and constructors that return another's transform.
SILENT = (Chained, Factored, Partitioned, Renamed, Scheduled)
AROUND = (set_defaults, rename_hparams, scheduled, with_lr_factor, with_rounding)


@dataclass(frozen=True)
class Place:
    """A transform inside another: the keys to its state, and what it sees and keeps."""

    transform: Transform
    path: Path
    depth: int
    params: Tree
    kept: Tree
    state: Tree
    hp: Mapping[str, Any]

    @functools.cached_property
    def by_name(self) -> dict[str, Tensor]:
        """The parameters that it sees."""
        return {name: p for name, p in zip(trees.names(self.params), trees.leaves(self.params), strict=True) if p is not None}

    @property
    def is_silent(self) -> bool:
        """Whether there is nothing to be said of it but of its parts."""
        return isinstance(self.transform.form, SILENT)

    @property
    def inside(self) -> "Iterator[Place]":
        """Its parts."""
        form, shares = self.transform.form, self.transform.form.shares(self.params)
        for keys, part in form.parts.items():
            yield Place(
                part,
                (*self.path, *keys),
                self.depth + (not self.is_silent),
                shares[keys],
                part_at(self.kept, keys),
                part_at(self.state, keys),
                form.handed(keys, self.hp, self.state),
            )

    @property
    def own(self) -> dict[str, Any]:
        """What it keeps itself, by name."""
        of_parts = {keys[0] if keys else None for keys in self.transform.form.parts}
        entries = self.kept.items() if isinstance(self.kept, Mapping) and None not in of_parts else ()
        return {name: value for name, value in entries if name not in of_parts}

    @property
    def curves(self) -> Iterator[Curve]:
        """The schedules that it has."""
        form = self.transform.form
        if isinstance(form, Scheduled):
            for name, schedule in form.schedules.items():
                yield from _curve(".".join((*self.path, name)), schedule, self.state["schedule_step"])
        elif not self.is_silent:
            step = next((self.state[name] for name in ("gradient_step", "step") if name in self.own), 0)
            for name, value in _arguments(self.transform).items():
                if callable(value) and name in ("schedule", "every"):
                    yield from _curve(".".join((*self.path, name)), value, step)

    def row(self, params: tuple[str, ...], elements: int) -> Row:
        """What it does to these parameters."""
        form, parts = self.transform.form, self.transform.form.parts.values()
        own = {name: value for name, value in self.hp.items() if not any(name in part.declared for part in parts)}
        given = _arguments(self.transform).items()
        options = {name: _text(x) for name, x in given if name not in self.transform.declared and not _holds_transforms(x)}
        return Row(
            params=params,
            elements=elements,
            link=_label(self.path, self.transform.name),
            depth=self.depth,
            what=_sentence(_documented(self.transform)),
            formula=_formula(self.transform) if isinstance(form, Lifted) else (),
            hparams=own if parts else dict(self.hp),
            options=options,
            state={name: _bytes(value, {name: self.by_name[name] for name in params}) for name, value in self.own.items()},
            remarks=tuple(form.remarks(self.state)),
        )


def places_in(place: Place) -> Iterator[Place]:
    """A place, unless it is silent, and all inside it; silent ones with schedules for these alone, without members."""
    if not place.is_silent:
        yield place
    elif isinstance(place.transform.form, Scheduled):
        yield replace(place, params={})
    for inner in place.inside:
        yield from places_in(inner)


def _made(transform: Transform) -> Transform:
    """The transform that somebody has given other defaults or names."""
    while transform.recipe is not None and transform.recipe.constructor in AROUND:
        transform = transform.recipe.bound.arguments["transform"]
    return transform


def _arguments(transform: Transform) -> dict[str, Any]:
    """What it was made with, but for what has its default."""
    recipe, form = _made(transform).recipe, transform.form
    if recipe is not None:
        return dict(recipe.arguments(shown=()))
    # Of one that was made anew of others, with a factor of its learning rates, the form tells.
    names = [each.name for each in dataclasses.fields(form)] if transform.form.parts and dataclasses.is_dataclass(form) else []
    return {name: getattr(form, name) for name in names if isinstance(getattr(form, name), int | float | str)}


def _documented(transform: Transform) -> Any:
    """What has a docstring about it."""
    import functional_optim as fo

    recipe, form = _made(transform).recipe, transform.form
    found = [
        None if recipe is None else recipe.constructor,
        getattr(form, "scalars", None),
        vars(fo).get(transform.name),
    ]
    return next((each for each in found if each is not None and inspect.getdoc(each)), None)


def _label(path: Path, name: str) -> str:
    """The keys to its state, and what it is where these don't say so."""
    keys = ".".join(path)
    last = re.sub(r"_\d+$", "", path[-1]) if path else ""
    return keys if last == name else f"{keys} ({name})" if keys else name


def _sentence(documented: Any) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join((inspect.getdoc(documented) or "").partition("\n\n")[0].split()) if documented else ""
    return re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph)[0]


def _formula(transform: Transform) -> tuple[str, ...]:
    """The lines of the paper's pseudocode, which a module of a single rule begins with."""
    scalars = getattr(transform.form, "scalars", None)
    module = sys.modules.get(getattr(scalars, "__module__", ""))
    if module is None or len(_rules_of(module)) != 1:
        return ()
    return tuple(line.strip() for line in (module.__doc__ or "").splitlines() if "←" in line)


def _rules_of(module: Any) -> list[Any]:
    """What a module has for others that makes a transform."""
    own = (value for name, value in vars(module).items() if not name.startswith("_") and inspect.isfunction(value))
    return [f for f in own if f.__module__ == module.__name__ and inspect.signature(f).return_annotation is Transform]


def _curve(name: str, schedule: Callable[[Any], Any], step: Any) -> Iterator[Curve]:
    """A schedule of one number, over its own length, or over twice the steps that have been."""
    try:
        present = float(step)
        length = float(_length(schedule) or max(100.0, 2 * present))
        values = tuple(float(schedule(length * i / (SAMPLES - 1))) for i in range(SAMPLES))
        yield Curve(name, _text(schedule), values, length, present, float(schedule(present)))
    except (TypeError, ValueError, RuntimeError):  # Of several numbers, batched, or of whole steps only.
        return


def _length(schedule: Any) -> Any:
    boundaries = getattr(schedule, "boundaries", None)
    last = 2 * boundaries[-1] if boundaries else None
    return last or getattr(schedule, "total_steps", None) or getattr(schedule, "steps", None)


def _bytes(value: Any, params: Mapping[str, Tensor]) -> int:
    """What these parameters keep of a tree, or all of what is shared; of what is spread as they are, the part of this process."""
    leaves = {name: x for name, x in zip(trees.names(value), trees.leaves(value), strict=True) if isinstance(x, Tensor)}
    own = leaves.keys() & params.keys() or leaves.keys()
    return sum(_held(leaves[name], params.get(name)) * leaves[name].element_size() for name in own)


def _held(x: Tensor, param: Tensor | None) -> int:
    """How many numbers this process has of a tensor that a parameter keeps."""
    return x.numel() if param is None or x.shape != param.shape else local(param).numel()


def _holds_transforms(value: Any) -> bool:
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
    return any(isinstance(each, Transform) for each in inside)


def _text(value: Any) -> str:
    return getattr(value, "__qualname__", None) or repr(value)
