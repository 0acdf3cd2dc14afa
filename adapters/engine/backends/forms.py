"""How operations on elements are written, where kernels' languages agree."""

from collections.abc import Callable, Iterator, Mapping

from ..stand_ins import Node

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


def arguments(node: Node, value: Callable[..., str]) -> Iterator[str]:
    """Those of an operation, by `value(x, as_it_is=...)`, which is told where a comparison's result may stay one."""
    for j, x in enumerate(node.args):
        yield value(x, as_it_is=node.op in _OF_BOOLEANS and (node.op != "where" or j == 0))
