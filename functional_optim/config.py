"""A chain as data: `to_config` writes a transform down in plain dicts, lists and numbers, `from_config` makes it again.

    {"chain": [{"clip_by_global_norm": {"max_norm": 1.0}}, {"adamw": {"weight_decay": 0.1}}]}

A call is a dict of one entry, the name and the arguments. What an argument that is a text or a dict means depends on what the
constructor takes there: a transform, a function, or data.
"""

import collections.abc
import dataclasses
import functools
import inspect
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, Union, get_args, get_origin

import torch
from torch import Tensor

from functional_optim.codecs import Codec
from functional_optim.combinators.labels import ByName, ByNdim, by_name, by_ndim
from functional_optim.hints import hint
from functional_optim.hparams import PerLeaf, is_several
from functional_optim.recipe import Recipe
from functional_optim.searches.search import Search
from functional_optim.transform import Transform, require_transform

Config: TypeAlias = Any
Names: TypeAlias = Mapping[str, Any]

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}

# Values that a function of the library returns, and that have its arguments as their fields.
VALUES = {ByName: by_name, ByNdim: by_ndim}


def to_config(transform: Transform, names: Names | None = None) -> dict[str, Config]:
    """A transform as plain data, for JSON, YAML or Hydra: `json.dump(to_config(tx), file)`.

    Hyper-parameters are written with their values, options where they differ from their defaults. A function of your own, a
    condition, a schedule, labels, is written by its name; so is a constructor of your own.

    Args:
        transform: anything made by this library's constructors, or by constructors that its decorators have made.
        names: what to call what has no name, or another: `{"mine": lambda step: ...}`. Give the same to `from_config`.

    Returns:
        Dicts with texts as keys, lists, texts, numbers, bools and None. A () tensor is written as the number that it holds.

    Raises:
        TypeError: this is no transform.
        ValueError: something in it can't be written, such as a function without a name. The message says where.

    optax has nothing like it.

    >>> from functional_optim import chain, clip_by_global_norm, linear, scheduled, sgd
    >>> to_config(scheduled(chain(clip_by_global_norm(), sgd()), lr=linear(0.1, 0.0, 100)))["scheduled"]["lr"]
    {'linear': {'start': 0.1, 'end': 0.0, 'steps': 100}}
    """
    require_transform(transform, "to_config(transform)")
    written = _Writer(names or {}).written(transform, "")
    return written if isinstance(written, dict) else {written: {}}


def from_config(config: Config, names: Names | None = None) -> Transform:
    """The transform that some data describe: what `to_config` returned, or what a person wrote.

        from_config(json.load(file))
        from_config(yaml.safe_load(file), names={"mine": my_schedule})

    Nothing is imported or looked up by what stands in the data, but the constructors of this library and `names`.

    Args:
        config: a dict of one entry, name to arguments: a dict by name, or a list in order, as the links of a `chain`. A name
            alone is a call without arguments: `"adamw"`. Any mapping is a dict, and any sequence a list, such as OmegaConf's; the
            patterns of `by_name`, whose order counts, may be a list of pairs, so that no tool sorts them.
        names: functions, transforms and constructors of your own, by the names that the data have for them.

    Raises:
        TypeError, ValueError: as the constructor, with the place in the data in front, `chain[2].masked.transform`; or a name is
            unknown, or one of `names` is one of the library's.

    >>> from_config({"chain": [{"clip_by_global_norm": {"max_norm": 0.5}}, {"adam": {"betas": [0.9, 0.95]}}, "monitor"]})
    chain(clip_by_global_norm(max_norm=0.5), adam(lr=0.001, betas=(0.9, 0.95), eps=1e-08), monitor())
    """
    made = _Reader(names or {}).read(config, "", Transform)
    require_transform(made, "from_config")
    return made


@functools.cache
def constructors() -> dict[str, Callable[..., Any]]:
    """What a config may name of this library: all that makes transforms, schedules, codecs, line searches and labels."""
    import functional_optim as fo

    searches = {name: getattr(fo.solvers, name) for name in fo.solvers.__all__}
    public = {**searches, **{name: getattr(fo, name) for name in fo.__all__}}
    return {name: made_by for name, made_by in public.items() if _makes_something(made_by)}


def _makes_something(constructor: Any) -> bool:
    if inspect.isfunction(constructor) and constructor is not from_config:
        return inspect.signature(constructor).return_annotation in (Transform, *VALUES)
    modules = "functional_optim.schedules", "functional_optim.codecs", "functional_optim.searches"
    return dataclasses.is_dataclass(constructor) and constructor.__module__.startswith(modules)


def _checked(names: Names) -> Names:
    for name, value in names.items():
        if name in constructors() and constructors()[name] is not value:
            raise ValueError(f"names: {name!r} is a name of the library. Call your own otherwise.")
    return names


class _Writer:
    """Writes values down; `path` is where they stand in what is written."""

    def __init__(self, names: Names) -> None:
        self.names = _checked(names)
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
        inside, arguments = _join(path, name), dict(recipe.arguments(shown=getattr(made, "declared", ())))
        for parameter in recipe.bound.signature.parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL and set(arguments) == {parameter.name}:
                return {name: self.written(arguments[parameter.name], inside)}
        return {name: {key: self.written(value, _join(inside, key)) for key, value in arguments.items()}}

    def _value(self, value: Any, path: str) -> Config:
        """A schedule, or labels: its constructor has its fields as arguments."""
        name = self._name(VALUES.get(type(value), type(value)), path)
        inside = _join(path, name)
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        if isinstance(value, ByName):  # The first pattern found wins: a dict might get sorted.
            fields = {"patterns": list(value.patterns.items())}
        return {name: {key: self.written(each, _join(inside, key)) for key, each in fields.items()}}

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
                return {"PerLeaf": self.written(value.tree, _join(path, "PerLeaf"))}
            case Mapping():
                return {self._key(key, path): self.written(each, _join(path, str(key))) for key, each in value.items()}
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


class _Reader:
    """Makes values of data; `path` is where these stand, `wanted` the annotation of what takes the value."""

    def __init__(self, names: Names) -> None:
        self.names = _checked(names)

    def read(self, value: Config, path: str, wanted: Any) -> Any:
        """The value that is meant."""
        kinds = _Kinds(wanted)
        if isinstance(value, str):
            return self._text(value, path, kinds)
        if isinstance(value, Mapping):
            return self._mapping(value, path, kinds)
        if not isinstance(value, Sequence) or isinstance(value, bytes):
            return value
        if kinds.mapping is not None:
            return self._mapping(_paired(value, path), path, kinds)
        values = [self.read(each, f"{path}[{i}]", kinds.element) for i, each in enumerate(value)]
        is_pair = all(isinstance(each, int | float) for each in values)
        return tuple(values) if is_pair or not kinds.is_open else values

    def _text(self, text: str, path: str, kinds: "_Kinds") -> Any:
        if kinds.is_dtype:
            if text.removeprefix("torch.") not in DTYPES:
                raise ValueError(f"{path}: {text!r} is no dtype of torch's, such as 'bfloat16'.")
            return DTYPES[text.removeprefix("torch.")]
        if not kinds.calls and text not in self.names:
            return text
        if kinds.is_made and not isinstance(self.names.get(text), Transform):
            return self._called(text, {}, path)
        if text in self.names:
            return self.names[text]
        if kinds.is_open:
            return text
        raise ValueError(self._unknown(text, path, "function"))

    def _mapping(self, value: Mapping[Any, Config], path: str, kinds: "_Kinds") -> Any:
        if kinds.mapping is not None:
            key_type, entry = kinds.mapping
            return {_key(key, key_type, path): self.read(each, _join(path, str(key)), entry) for key, each in value.items()}
        if len(value) == 1:
            (name, arguments), *_ = value.items()
            if name == "PerLeaf":
                return PerLeaf(self.read(arguments, _join(path, name), Any))
            if kinds.calls and (not kinds.is_open or name in constructors() or name in self.names):
                return self._called(name, arguments, path)
        elif kinds.calls and not kinds.is_open:
            found = ", ".join(map(repr, value)) or "nothing"
            raise ValueError(
                f"{path or 'the config'}: expected one name with its arguments, as in {{'adamw': {{'lr': 0.1}}}}, but got "
                f"{found}."
            )
        return {str(key): self.read(each, _join(path, str(key)), Any) for key, each in value.items()}

    def _called(self, name: str, arguments: Config, path: str) -> Any:
        """What a constructor returns."""
        constructor = self.names.get(name, constructors().get(name))
        if isinstance(constructor, Transform) and not arguments:
            return constructor
        if not callable(constructor):
            raise ValueError(self._unknown(name, path, "transform or function"))
        inside = _join(path, name)
        args, kwargs = self._arguments(inspect.signature(constructor), arguments, inside)
        try:
            return constructor(*args, **kwargs)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{inside}: {error}") from None

    def _arguments(self, signature: inspect.Signature, given: Config, path: str) -> tuple[list[Any], dict[str, Any]]:
        parameters = {p.name: p for p in signature.parameters.values()}
        several = next((p for p in parameters.values() if p.kind is p.VAR_POSITIONAL), None)
        others = next((p.annotation for p in parameters.values() if p.kind is p.VAR_KEYWORD), Any)
        if given is None:
            return [], {}
        if isinstance(given, Mapping):
            rest = {str(key): value for key, value in given.items()}
            links = rest.pop(several.name, ()) if several else ()
            args = self._in_order(links, [], several, f"{path}.{several.name}" if several else path)
            kwargs = {
                key: self.read(value, _join(path, key), parameters[key].annotation if key in parameters else others)
                for key, value in rest.items()
            }
            return args, kwargs
        if isinstance(given, str | bytes) or not isinstance(given, Sequence):
            raise ValueError(f"{path}: expected its arguments, a dict by name or a list in order, but got {given!r}.")
        return self._in_order(given, list(parameters.values()), several, path), {}

    def _in_order(
        self, values: Sequence[Config], first: Sequence[inspect.Parameter], several: inspect.Parameter | None, path: str
    ) -> list[Any]:
        """Positional arguments."""
        single = [p.annotation for p in first if p.kind is p.POSITIONAL_OR_KEYWORD]
        rest = Any if several is None else several.annotation
        return [self.read(value, f"{path}[{i}]", single[i] if i < len(single) else rest) for i, value in enumerate(values)]

    def _unknown(self, name: Any, path: str, kind: str) -> str:
        known = [*self.names, *constructors()]
        return (
            f"{path or 'the config'}: there is no {kind} {name!r}.{hint(name, known) if isinstance(name, str) else ''} "
            f"One of your own is given by its name: from_config(config, names={{{name!r}: ...}})."
        )


class _Kinds:
    """What an annotation says of the values that are taken."""

    def __init__(self, wanted: Any) -> None:
        kinds = get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)
        origins = {get_origin(kind): get_args(kind) for kind in kinds}
        self.is_made = Transform in kinds or Codec in kinds
        self.is_dtype = torch.dtype in kinds
        # A tree of labels, or whatever a constructor without annotations takes.
        self.is_open = any(kind in (Any, inspect.Parameter.empty, object) or isinstance(kind, str) for kind in kinds)
        self.calls = self.is_made or self.is_open or collections.abc.Callable in origins or Search in kinds
        self.mapping: tuple[Any, Any] | None = origins.get(collections.abc.Mapping)  # type of the keys, of the entries
        self.element: Any = next(iter(origins.get(collections.abc.Sequence, ())), Any)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _key(key: Any, key_type: Any, path: str) -> Any:
    """A key, a number where numbers are wanted: JSON has none."""
    if key_type is int and isinstance(key, str):
        if not key.lstrip("-").isdigit():
            raise ValueError(f"{path}: the key {key!r} is no whole number.")
        return int(key)
    return key


def _paired(pairs: Sequence[Any], path: str) -> dict[Any, Config]:
    """A list of pairs as a dict in their order."""
    for i, pair in enumerate(pairs):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"{path}[{i}] is {pair!r}: expected a pair, in a list of them, or a dict.")
    return dict(map(tuple, pairs))
