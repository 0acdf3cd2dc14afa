"""What a function closes over, which is a constant of the code that is made of it.

A compiled kernel has the numbers in it that a rule found in its closure, in its module and in the object that it belongs to. Who
keeps such code compares these, and makes it anew where they are others.
"""

import dis
import functools
import inspect
import weakref
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor

from functional_optim import trees

# Functions of these packages close over nothing that changes.
STILL = ("functional_optim", "torch")


@dataclass(frozen=True, eq=False)
class Same:
    """What is equal to this very tensor."""

    tensor: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.tensor is self.tensor

    def __hash__(self) -> int:
        return id(self.tensor)


def constants_of(function: Any) -> tuple[Any, ...]:
    """Equal as long as a function, a method or a callable object finds the same numbers, texts, tensors and functions.

    It looks at what its code names, and that of functions within and of those that it calls: variables outside, trees of values,
    and attributes of objects, but not at attributes of attributes.
    """
    return tuple(_constants(function, "", set()))


def _constants(function: Any, where: str, seen: set[Any]) -> Iterator[Any]:
    function = inspect.unwrap(function) if inspect.isroutine(function) else function
    if isinstance(function, functools.partial):
        bound = {**dict(enumerate(function.args)), **function.keywords}
        for name, value in bound.items():
            yield from _constants_in(value, f"{where}.{name}", (), seen)
        yield from _constants(function.func, where, seen)
        return
    owner = getattr(function, "__self__", None) if inspect.ismethod(function) else function
    method = getattr(function, "__func__", None) or inspect.getattr_static(type(function), "__call__", None)
    found = function if isinstance(function, FunctionType) else method
    if not isinstance(found, FunctionType) or found in seen or (found.__module__ or "").split(".")[0] in STILL:
        return
    seen.add(found)
    variables, attributes = _named(found.__code__)
    if owner is not found:
        yield from _attributes(owner, f"{where}.self", attributes)
    for name, value in _variables(found, variables).items():
        yield from _constants_in(value, f"{where}.{name}", attributes, seen)


def _constants_in(value: Any, where: str, attributes: Container[str], seen: set[Any]) -> Iterator[Any]:
    """Those of a value that code sees which asks for these attributes."""
    for x in trees.leaves(value):
        if _is_constant(x):
            yield where, _constant(x)
        elif isinstance(x, FunctionType):
            yield where, weakref.ref(x)
            yield from _constants(x, where, seen)
        elif callable(x) and not isinstance(x, type):
            yield from _constants(x, where, seen)
        else:
            yield from _attributes(x, where, attributes)


def _attributes(owner: Any, where: str, names: Container[str]) -> Iterator[Any]:
    """The constants among these attributes of an object; modules and classes don't change."""
    if isinstance(owner, type) or inspect.ismodule(owner):
        return
    for name, value in getattr(owner, "__dict__", {}).items():
        if name in names:
            yield from ((f"{where}.{name}", _constant(x)) for x in trees.leaves(value) if _is_constant(x))


def _variables(function: FunctionType, names: Iterable[str]) -> Mapping[str, Any]:
    """What stands outside of a function, by name: these variables of its module, and those of the functions around it."""
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # Nothing has been assigned yet.
            continue
    return found


@functools.lru_cache(maxsize=1024)
def _named(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The variables of its module that code reads, and the attributes; also within."""
    variables, attributes = set[str](), set[str]()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            variables.add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            own_variables, own_attributes = _named(inner)
            variables |= own_variables
            attributes |= own_attributes
    return frozenset(variables), frozenset(attributes)


def _is_constant(x: Any) -> bool:
    return isinstance(x, Tensor | int | float | complex | str)


def _constant(x: Any) -> Any:
    return Same(x) if isinstance(x, Tensor) else trees.distinct(x)
