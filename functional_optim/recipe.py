"""How something was made: its constructor and the arguments, from which come its repr, its pickle and its copies."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import torch

from functional_optim.hints import hint, parameters_advice

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")

# How what is switched on or off is annotated; and where it may be left open.
OPEN = (bool | None, "bool | None")
SWITCHES = (bool, "bool", *OPEN)


@dataclass(frozen=True, eq=False)
class Recipe:
    """A constructor and all arguments that it got, defaults included."""

    constructor: Callable[..., Any]
    bound: inspect.BoundArguments

    def text(self, shown: Collection[str]) -> str:
        """The call as one would write it; an argument that has its default is left out, unless it is one of these."""
        return f"{self.constructor.__name__}({', '.join(self._texts(shown))})"

    def reduced(self) -> tuple[Any, ...]:
        """What pickles and copies are rebuilt from."""
        return _made, (self.constructor, self.bound.args, self.bound.kwargs)

    def arguments(self, shown: Collection[str]) -> Iterator[tuple[str, Any]]:
        """The arguments by name, without those that have their default, unless they are shown; those of `**names` by theirs."""
        for name, value in self.bound.arguments.items():
            parameter = self.bound.signature.parameters[name]
            if parameter.kind is parameter.VAR_KEYWORD:
                yield from value.items()
            elif name in shown or not _is_default(value, parameter.default):
                yield name, value

    def _texts(self, shown: Collection[str]) -> Iterator[str]:
        in_place = True  # No argument that is left out or named comes before it.
        for name, value in self.bound.arguments.items():
            parameter = self.bound.signature.parameters[name]
            in_place = in_place and is_recorded(value) and parameter.kind is not parameter.KEYWORD_ONLY
            if parameter.kind is parameter.VAR_POSITIONAL:
                yield from map(_text, value)
            elif parameter.kind is parameter.VAR_KEYWORD:
                yield from (f"{key}={_text(each)}" for key, each in value.items())
            elif in_place:
                yield _text(value)
            elif name in shown or not _is_default(value, parameter.default):
                yield f"{name}={_text(value)}"


def recorded(constructor: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """Let what a constructor returns, a frozen dataclass with a `recipe`, know how it was made.

    What it returns as it was given stays what it is. `dataclasses.replace` of what was made has no recipe.
    """
    signature = inspect.signature(constructor)

    @functools.wraps(constructor)
    def construct(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        try:
            # What is made in a traced function stays there.
            bound = None if torch.compiler.is_compiling() else _bound(constructor.__name__, signature, args, kwargs, OPEN)
            original: Any = constructor(*args, **kwargs)
        except TypeError:
            problem = _misfit(constructor.__name__, signature, args, kwargs)
            if problem:
                raise TypeError(_number_advice(constructor, signature, args, kwargs) or problem) from None
            raise
        if bound is None or any(original is each for each in (*args, *kwargs.values())):
            return original
        made = dataclasses.replace(original)
        bound.apply_defaults()
        bound.arguments = {name: _own(value) for name, value in bound.arguments.items()}
        object.__setattr__(made, "recipe", Recipe(construct, bound))
        return made

    return construct


def _bound(
    name: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any], may_be_none: Collection[Any]
) -> inspect.BoundArguments:
    """Arguments by name; TypeError where what is switched on or off got something else, or None with another annotation."""
    bound = signature.bind(*args, **kwargs)
    for key, value in bound.arguments.items():
        switch = signature.parameters[key].annotation
        if switch in SWITCHES and not (_is_switch(value) or value is None and switch in may_be_none):
            raise TypeError(f"{key} = {value!r} of {name}: expected True or False.")
    return bound


def _is_switch(value: Any) -> bool:
    """Whether this is True or False, or 1 or 0; NumPy's and () tensors of them are, too."""
    if isinstance(value, int):
        return value in (0, 1)
    return is_bool(value) and not value.ndim


def is_bool(value: Any) -> bool:
    """Whether this is a bool, or an array or tensor of bools."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


# Once for each class. torch.compile traces no function that closes over a signature.
_signature_of = functools.cache(inspect.signature)


def explained(cls: type[Made]) -> type[Made]:
    """Let a class say, of arguments that it does not take, what it takes, as what is `recorded` does.

    None is off there, as in torch's classes.
    """
    init = cls.__init__

    @functools.wraps(init)
    def construct(self: Made, *args: Any, **kwargs: Any) -> None:
        try:
            if not torch.compiler.is_compiling():
                _bound(cls.__name__, _signature_of(cls), args, kwargs, SWITCHES)
            init(self, *args, **kwargs)
        except TypeError:
            problem = _misfit(cls.__name__, _signature_of(cls), args, kwargs)
            if problem:
                raise TypeError(problem) from None
            raise

    cls.__init__ = construct
    return cls


def answering(function: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """Let a function say, of arguments that it does not take, what it takes, as what is `recorded` does."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        try:
            return function(*args, **kwargs)
        except TypeError:
            problem = _misfit(function.__name__, signature, args, kwargs)
            if problem:
                raise TypeError(problem) from None
            raise

    return call


def _misfit(name: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What is wrong with arguments that a constructor does not take; nothing if it takes them."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        names = [key for key, parameter in signature.parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
        for given in kwargs:
            if given not in names:
                accepted = ", ".join(map(repr, names)) or "none"
                return f"{name} has no argument {given!r}; it accepts: {accepted}.{hint(given, names)}"
        bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
        advice = _by_name(bare, args) + ("" if {"params", "model", "module"} & {*names} else parameters_advice(args))
        return f"{name}: {error}; it is {name}{inspect.Signature(bare)}.{advice}"
    return ""


def _number_advice(
    constructor: Callable[..., Any], signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """What is said of arguments that are hyper-parameters of what is made without them; nothing if they are none."""
    others = {key: value for key, value in kwargs.items() if key in signature.parameters}
    try:
        declared = getattr(constructor(*args, **others), "declared", {})
    except (TypeError, ValueError):
        return ""
    name = next((key for key in kwargs if key not in others and key in declared), None)
    if name is None:
        return ""
    made, number = constructor.__name__, f"{name}={kwargs[name]!r}"
    return (
        f"{made} has no argument {name!r}, but it is a hyper-parameter of what {made} returns: it goes into hparams, "
        f"update(..., hparams={{{name!r}: ...}}), or an optimizer's arguments, OptimizerAdapter(params, transform, {number}). "
        f"set_defaults({made}(...), {number}) gives it another default."
    )


def _by_name(parameters: Sequence[inspect.Parameter], args: Sequence[Any]) -> str:
    """Advice where a number has no place, but may be a learning rate: a sentence after a space, or nothing."""
    places = [x for x in parameters if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)]
    takes_lr = any(x.name in ("lr", "hparams") for x in parameters[len(places) :])
    if not takes_lr or len(args) <= len(places) or not isinstance(args[len(places)], int | float):
        return ""
    return f" Numbers are given by their names, such as lr={args[len(places)]}."


def is_recorded(value: Any) -> bool:
    """Whether this has a recipe."""
    return isinstance(getattr(value, "recipe", None), Recipe)


def _made(constructor: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return constructor(*args, **kwargs)


def _own(value: Any) -> Any:
    """A container of the recipe's own, so that nobody changes it afterwards."""
    return value.copy() if isinstance(value, dict | list) else value


def _is_default(value: Any, default: Any) -> bool:
    is_plain = type(value) is type(default) and isinstance(value, bool | int | float | str | tuple)
    return value is default or (is_plain and value == default)


def _text(value: Any) -> str:
    """As `repr`, but a function or class by its name."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_text(key)}: {_text(each)}' for key, each in value.items())}}}"
    return value.__qualname__ if isinstance(value, FunctionType | type) else repr(value)
