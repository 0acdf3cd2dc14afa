"""Stand-ins for tensors and for numbers: what a rule does with them is written down.

For a tensor one stands for each of its elements, so only operations that treat every element alike are known; numbers are kept on
a tape. A rule that does anything else raises `NotElementwise`.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .memory import on_host
from .prologue import NotElementwise, Operation, Place, Tape

BOOLEAN = frozenset("eq ne lt le gt ge logical_and logical_or logical_not logical_xor isnan isinf isfinite signbit".split())
ELEMENTWISE = BOOLEAN | frozenset(
    "abs acos acosh add asin asinh atan atan2 atanh ceil clamp clamp_max clamp_min copysign cos cosh digamma div erf erfc "
    "erfinv exp exp2 expm1 floor floor_divide fmod frac hypot lerp lgamma log log10 log1p log2 logaddexp logit maximum "
    "minimum mul nan_to_num neg ones_like pow reciprocal relu remainder round rsqrt sigmoid sign sin sinc sinh sqrt sub tan "
    "tanh trunc where xlogy zeros_like".split()
)
SAME = {"clip": "clamp", "divide": "div", "multiply": "mul", "negative": "neg", "subtract": "sub", "true_divide": "div"}
SAME |= {"truediv": "div", "absolute": "abs", "greater": "gt", "less": "lt", "and": "logical_and", "or": "logical_or"}
SAME |= {"invert": "logical_not", "xor": "logical_xor", "sgn": "sign", "arctan2": "atan2"}
SAME |= {"mod": "remainder", "floordiv": "floor_divide"}
REVERSIBLE = ("add", "sub", "mul", "truediv", "div", "pow", "mod", "floordiv", "and", "or", "xor")
# Questions about a number, in functions that are not Python's.
IS_ONE = functools.partial(operator.eq, 1.0)
IS_POSITIVE = functools.partial(operator.lt, 0.0)
DIVISION = Operation("div", operator.truediv, (Place(0), Place(1)))


@dataclass(eq=False, slots=True)
class Node:
    """An input, or an operation of torch's on nodes and numbers.

    Attributes:
        op: its name in torch; "input" for an input.
        args: nodes and numbers.
        options: its keyword arguments, all numbers.
        wide: whether it has the dtype that everything is computed in; a comparison has not.
    """

    op: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    wide: bool = True

    @property
    def operands(self) -> list["Node"]:
        """The nodes that it is computed from."""
        return [x for x in self.args if isinstance(x, Node)]


class StandIn:
    """Takes part in operators, and in torch's functions and methods, and writes down what is done with it."""

    __slots__ = ()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        del types
        return record(function.__name__.strip("_"), *args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in KNOWN:
            raise NotElementwise(f"a rule asks for {name!r}, which is not known to treat every element alike")
        return functools.partial(record, name, self)


class Value(StandIn):
    """A stand-in for a tensor."""

    __slots__ = ("dtype", "node")

    def __init__(self, node: Node, dtype: torch.dtype) -> None:
        self.node, self.dtype = node, dtype


class Number(StandIn):
    """A stand-in for a number, or a () tensor."""

    __slots__ = ("place", "tape")

    dtype = torch.float64
    device = torch.device("cpu")
    shape = torch.Size()
    ndim = 0

    def __init__(self, tape: Tape, place: Place) -> None:
        self.tape, self.place = tape, place

    @property
    def value(self) -> Any:
        """What it is in the step in which a rule is traced."""
        return self.tape.values[self.place]

    @property
    def is_bool(self) -> bool:
        """Whether it is the result of a comparison."""
        return isinstance(self.value, bool) or (isinstance(self.value, Tensor) and self.value.dtype == torch.bool)

    @property
    def is_away(self) -> bool:
        """Whether it is a tensor on another device than the host, for which nobody waits."""
        return isinstance(self.value, Tensor)

    def __bool__(self) -> bool:
        return self.tape.answer(self.place, bool)

    def __float__(self) -> float:
        return self.tape.answer(self.place, float)

    def __int__(self) -> int:
        return self.tape.answer(self.place, int)

    def __index__(self) -> int:
        return int(self)

    def item(self) -> float:
        """The number itself: what is traced holds for no other."""
        return float(self)


def record(name: str, *args: Any, **options: Any) -> Any:
    """The stand-in for the result of a function, a method or an operator of torch's, by its name."""
    if name[:1] == "r" and name[1:] in REVERSIBLE:
        name, args = name[1:], args[::-1]
    name, args = SAME.get(name, name), tuple(map(_plain, args))
    options = {key: _plain(value) for key, value in options.items()}
    return COMPOSED[name](*args, **options) if name in COMPOSED else _noted(name, *args, **options)


def ask(x: Any, question: Callable[[Any], bool]) -> bool:
    """The answer of a number, in every step in which what is written down is used."""
    return x.tape.answer(x.place, question) if isinstance(x, Number) else question(x)


def is_away(x: Any) -> bool:
    """Whether nothing can be asked of a number."""
    return isinstance(x, Number) and x.is_away


def is_one(x: Any) -> bool:
    """Whether a factor can be left out."""
    return ask(x, IS_ONE)


def quotient(a: Any, b: Any) -> Any:
    """a / b, infinite or NaN where b is 0."""
    return record("div", a, b) if isinstance(a, Number) or isinstance(b, Number) else DIVISION((a, b))


def root(x: Any) -> Any:
    """√x of a number."""
    return _note(x.tape, "sqrt", x) if isinstance(x, Number) else math.sqrt(x)


def sign(x: Any) -> Any:
    """1 with the sign of a number."""
    return _note(x.tape, "copysign", 1.0, x) if isinstance(x, Number) else math.copysign(1.0, x)


def _note(tape: Tape, name: str, *args: Any) -> Number:
    """An operation on numbers."""
    return Number(tape, tape.note(name, *(x.place if isinstance(x, Number) else x for x in args)))


def _noted(name: str, *args: Any, **options: Any) -> Any:
    """An operation as it is."""
    if name not in ELEMENTWISE or any(not isinstance(x, int | float | Number | None) for x in options.values()):
        raise NotElementwise(f"a rule uses {name!r}, which is not known to treat every element alike")
    values = [x for x in args if isinstance(x, Value)]
    if not values:
        if options:
            raise NotElementwise(f"{name} of numbers, with options")
        return _note(next(x.tape for x in args if isinstance(x, Number)), name, *args)
    if name == "div" and isinstance(args[1], Number):
        name, args = "mul", (args[0], _noted("reciprocal", args[1]))  # A product for each element costs less.
    is_bool = name in BOOLEAN
    dtype = torch.bool if is_bool else functools.reduce(torch.promote_types, (x.dtype for x in values))
    node = Node(name, tuple(x.node if isinstance(x, Value) else x for x in args), options, not is_bool)
    return Value(node, dtype)


def _plain(x: Any) -> Any:
    """An argument as a stand-in or a number: a () tensor on the host is a number as well."""
    if isinstance(x, Tensor):
        if x.ndim or not on_host(x) or x.is_complex():
            raise NotElementwise("a rule combines its tensors with a tensor from elsewhere")
        return x.item()
    return x


def _plus(name: str, a: Any, b: Any, alpha: Any = None) -> Any:
    return _noted(name, a, b if alpha is None else b * alpha)


def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    x = x if min is None else _noted("clamp_min", x, min)
    return x if max is None else _noted("clamp_max", x, max)


def _pow(x: Any, exponent: Any) -> Any:
    return _noted("mul", x, x) if isinstance(exponent, int | float) and exponent == 2 else _noted("pow", x, exponent)


def _to(x: Any, dtype: Any) -> Any:
    if isinstance(x, Number) or dtype == x.dtype:
        return x
    if not isinstance(dtype, torch.dtype):
        raise NotElementwise(f"a rule moves a tensor to {dtype}")
    return Value(Node("to", (x.node, dtype)), dtype)


def _lerp(x: Any, y: Any, weight: Any) -> Any:
    """In one call where torch has it for lists: with a number of the host."""
    if isinstance(x, Number) or isinstance(weight, Value) or is_away(weight):
        return x + weight * (y - x)
    return _noted("lerp", x, y, weight)


COMPOSED: Mapping[str, Callable[..., Any]] = {
    "add": functools.partial(_plus, "add"),
    "sub": functools.partial(_plus, "sub"),
    "addcmul": lambda x, a, b, *, value=1: x + value * (a * b),
    "addcdiv": lambda x, a, b, *, value=1: x + value * (a / b),
    "clamp": _clamp,
    "clone": lambda x: x,
    "detach": lambda x: x,
    "double": lambda x: _to(x, torch.float64),
    "float": lambda x: _to(x, torch.float32),
    "lerp": _lerp,
    "pow": _pow,
    "square": lambda x: x * x,
    "to": _to,
}
KNOWN = ELEMENTWISE | COMPOSED.keys() | SAME.keys()


def _operator(name: str) -> Callable[..., Any]:
    def operator(self: Any, *other: Any) -> Any:
        return record(name, self, *other)

    return operator


for _name in (*REVERSIBLE, "neg", "abs", "invert", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(StandIn, f"__{_name}__", _operator(_name))
for _name in REVERSIBLE:
    setattr(StandIn, f"__r{_name}__", _operator(f"r{_name}"))
