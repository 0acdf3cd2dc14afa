"""How operations on elements are written, where kernels' languages agree."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..prologue import NotElementwise, Place
from ..stand_ins import Node, Number
from ..trace import ordered

# By torch's names, functions of one number, and of two, that libraries call the same.
LIBRARY = (
    "acos acosh asin asinh atan atanh ceil cos cosh erf erfc exp exp2 expm1 floor lgamma log log10 log1p log2 sin sinh tan tanh "
    "trunc"
).split()
LIBRARY_OF_TWO = ("atan2", "copysign", "fmod", "hypot", "pow")
OPERATORS: Mapping[str, str] = {
    "add": "{0} + {1}",
    "eq": "{0} == {1}",
    "ge": "{0} >= {1}",
    "gt": "{0} > {1}",
    "isnan": "{0} != {0}",
    "le": "{0} <= {1}",
    "lerp": "{0} + {2} * ({1} - {0})",
    "logical_and": "({0} != 0) & ({1} != 0)",
    "logical_not": "{0} == 0",
    "logical_or": "({0} != 0) | ({1} != 0)",
    "logical_xor": "({0} != 0) != ({1} != 0)",
    "lt": "{0} < {1}",
    "mul": "{0} * {1}",
    "ne": "{0} != {1}",
    "neg": "-{0}",
    "sub": "{0} - {1}",
}

# Operations whose arguments may be comparisons' results as they are.
_OF_BOOLEANS = ("where", "logical_and", "logical_not", "logical_or", "logical_xor")


@dataclass(frozen=True)
class Language:
    """What the lines of a kernel are written in.

    Attributes:
        kernels: what errors call those that are.
        forms: how operations are written, by torch's names.
        type: of all numbers, for `{T}` in the forms.
        number: the form of a comparison's result as a number.
        constant: how a number of Python's is written.
        converted: what a conversion makes of a value, which goes on in the type of all; it may raise NotElementwise.
        line: what gives the result of an operation, written like this, a name.
    """

    kernels: str
    forms: Mapping[str, str]
    type: str
    number: str
    constant: Callable[[float], str]
    converted: Callable[[Node, str], str]
    line: Callable[[Node, str, str], str]


def written(
    language: Language, inputs: Sequence[Node], results: Sequence[Node]
) -> tuple[list[str], dict[Node, str], dict[Place, str]]:
    """A line for each operation that the results take, the names of all values, and those of the numbers that are taken.

    Raises:
        NotElementwise: there is no form for an operation.
    """
    names, numbers, lines = {node: f"v{i}" for i, node in enumerate(inputs)}, dict[Place, str](), list[str]()

    def value(x: Any, *, as_it_is: bool) -> str:
        if isinstance(x, Node):
            return names[x] if x.wide or as_it_is else language.number.format(names[x], T=language.type)
        if isinstance(x, Number):
            name = numbers.setdefault(x.place, f"n{len(numbers)}")
            return f"({name} != 0)" if x.is_bool else name
        return language.constant(x)

    for i, node in enumerate(ordered(results, inputs)):
        if node.op == "to":
            expression = language.converted(node, names[node.args[0]])
        elif node.op not in language.forms or node.options:
            raise NotElementwise(f"a rule uses {node.op!r}, which {language.kernels} don't know")
        else:
            expression = language.forms[node.op].format(*_arguments(node, value), T=language.type)
        names[node] = f"r{i}"
        lines.append(language.line(node, names[node], expression))
    return lines, names, numbers


def _arguments(node: Node, value: Callable[..., str]) -> Iterator[str]:
    """Those of an operation, by `value(x, as_it_is=...)`, which is told where a comparison's result may stay one."""
    for j, x in enumerate(node.args):
        yield value(x, as_it_is=node.op in _OF_BOOLEANS and (node.op != "where" or j == 0))
