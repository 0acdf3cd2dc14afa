"""From a transform to plain data."""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from functional_optim.combinators.labels import ByName
from functional_optim.config.names import VALUES, Config, Names, checked, constructors, join
from functional_optim.hparams import PerLeaf, is_several
from functional_optim.recipe import Recipe
from functional_optim.transform import Transform


class Writer:
    """Writes values down; `path` is where they stand in what is written."""

    def __init__(self, names: Names) -> None:
        self.names = checked(names)
        self.used = dict(names)

    def written(self, value: Any, path: str) -> Config:
        """The value as plain data."""
        for name, known in self.names.items():
            if known is value:
                return name
        recipe = getattr(value, "recipe", None)
        if isinstance(recipe, Recipe):
            return self._call(recipe, value, path)
        if dataclasses.is_dataclass(value) and not isinstance(value, type | Transform | PerLeaf):
            return self._value(value, path)
        return self._plain(value, path)

    def _call(self, recipe: Recipe, made: Any, path: str) -> Config:
        name = self._name(recipe.constructor, path)
        inside, arguments = join(path, name), dict(recipe.arguments(shown=getattr(made, "declared", ())))
        for parameter in recipe.bound.signature.parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL and set(arguments) == {parameter.name}:
                return {name: self.written(arguments[parameter.name], inside)}
        return {name: {key: self.written(value, join(inside, key)) for key, value in arguments.items()}}

    def _value(self, value: Any, path: str) -> Config:
        """A schedule, or labels: its constructor has its fields as arguments."""
        name = self._name(VALUES.get(type(value), type(value)), path)
        inside = join(path, name)
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        if isinstance(value, ByName):  # The first pattern found wins: a dict might get sorted.
            fields = {"patterns": list(value.patterns.items())}
        return {name: {key: self.written(each, join(inside, key)) for key, each in fields.items()}}

    def _name(self, made_by: Any, path: str) -> str:
        """What a constructor or a function is called: by `names`, by the library, or by itself."""
        for name, known in self.names.items():
            if known is made_by:
                return name
        name = getattr(made_by, "__name__", "")
        if not name.isidentifier():
            raise ValueError(
                f"{path or 'the transform'}: {made_by!r} has no name: give it one, to_config(tx, names={{'mine': f}})."
            )
        if name in constructors() and constructors()[name] is not made_by:
            raise ValueError(
                f"{path}: {made_by!r} is called {name!r}, as something of the library: give it another name, "
                f"to_config(tx, names={{'my_{name}': ...}})."
            )
        if self.used.setdefault(name, made_by) is not made_by:
            raise ValueError(
                f"{path}: {made_by!r} is called {name!r}, and so is {self.used[name]!r}: give one another name, "
                f"to_config(tx, names={{'other_{name}': ...}})."
            )
        return name

    def _plain(self, value: Any, path: str) -> Config:
        match value:
            case None | bool():
                return value
            case str():
                return str(value)
            case torch.dtype():
                return str(value).removeprefix("torch.")
            case Tensor() if value.ndim <= 1 and not value.is_complex():
                return value.detach().tolist()
            case PerLeaf():
                return {"PerLeaf": self.written(value.tree, join(path, "PerLeaf"))}
            case Mapping():
                return {self._key(key, path): self.written(each, join(path, str(key))) for key, each in value.items()}
            case list() | tuple():
                return [self.written(each, f"{path}[{i}]") for i, each in enumerate(value)]
            case numbers.Integral():
                return int(value)
            case numbers.Real():
                return float(value)
            case Transform():
                raise ValueError(
                    f"{path or 'the transform'}: {value!r} was made by hand, or changed afterwards, and does not know how: give "
                    "it a name, to_config(tx, names={'mine': transform})."
                )
        if is_several(value):  # An array.
            return [self.written(each, f"{path}[{i}]") for i, each in enumerate(value)]
        if callable(value):
            return self._name(value, path)
        raise ValueError(f"{path}: {value!r} is a {type(value).__name__}, which can't be written as plain data.")

    def _key(self, key: Any, path: str) -> str:
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise ValueError(f"{path}: the key {key!r} is a {type(key).__name__}: in plain data keys are texts.")
        return str(key)
