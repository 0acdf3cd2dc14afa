"""From plain data to a transform."""

import collections.abc
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin

import torch

from functional_optim.codecs import Codec
from functional_optim.config.names import Config, Names, checked, constructors, join
from functional_optim.hints import hint
from functional_optim.hparams import PerLeaf
from functional_optim.searches.search import Search
from functional_optim.transform import Transform

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


class Reader:
    """Makes values of data; `path` is where these stand, `wanted` the annotation of what takes the value."""

    def __init__(self, names: Names) -> None:
        self.names = checked(names)

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
            return {_key(key, key_type, path): self.read(each, join(path, str(key)), entry) for key, each in value.items()}
        if len(value) == 1:
            (name, arguments), *_ = value.items()
            if name == "PerLeaf":
                return PerLeaf(self.read(arguments, join(path, name), Any))
            if kinds.calls and (not kinds.is_open or name in constructors() or name in self.names):
                return self._called(name, arguments, path)
        elif kinds.calls and not kinds.is_open:
            found = ", ".join(map(repr, value)) or "nothing"
            raise ValueError(
                f"{path or 'the config'}: expected one name with its arguments, as in {{'adamw': {{'lr': 0.1}}}}, but got "
                f"{found}."
            )
        return {str(key): self.read(each, join(path, str(key)), Any) for key, each in value.items()}

    def _called(self, name: str, arguments: Config, path: str) -> Any:
        """What a constructor returns."""
        constructor = self.names.get(name, constructors().get(name))
        if isinstance(constructor, Transform) and not arguments:
            return constructor
        if not callable(constructor):
            raise ValueError(self._unknown(name, path, "transform or function"))
        inside = join(path, name)
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
                key: self.read(value, join(path, key), parameters[key].annotation if key in parameters else others)
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
