"""What a config may name: the constructors of this library, and what is the user's own."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from functional_optim.combinators.labels import ByName, ByNdim, by_name, by_ndim
from functional_optim.transform import Transform

Config: TypeAlias = Any
Names: TypeAlias = Mapping[str, Any]

# Values that a function of the library returns, and that have its arguments as their fields.
VALUES = {ByName: by_name, ByNdim: by_ndim}


@functools.cache
def constructors() -> dict[str, Callable[..., Any]]:
    """What a config may name of this library: all that makes transforms, schedules, codecs, line searches and labels."""
    import functional_optim as fo

    searches = {name: getattr(fo.solvers, name) for name in fo.solvers.__all__}
    public = {**searches, **{name: getattr(fo, name) for name in fo.__all__}}
    return {name: made_by for name, made_by in public.items() if made_by is not fo.from_config and _makes_something(made_by)}


def _makes_something(constructor: Any) -> bool:
    if inspect.isfunction(constructor):
        return inspect.signature(constructor).return_annotation in (Transform, *VALUES)
    modules = "functional_optim.schedules", "functional_optim.codecs", "functional_optim.searches"
    return dataclasses.is_dataclass(constructor) and constructor.__module__.startswith(modules)


def checked(names: Names) -> Names:
    """The user's names; raise ValueError where one of them is the library's for something else."""
    for name, value in names.items():
        if name in constructors() and constructors()[name] is not value:
            raise ValueError(f"names: {name!r} is a name of the library. Call your own otherwise.")
    return names


def join(path: str, name: str) -> str:
    """The place of what a name has, at this place."""
    return f"{path}.{name}" if path else name
