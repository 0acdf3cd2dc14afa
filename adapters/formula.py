"""What a chain's rules compute, written down: they run once on stand-ins for tensors, which note what is done to them.

Numbers are Python's meanwhile, so whatever depends on them alone has been computed when a rule returns. A stand-in is a number
times a node; multiplying by a number changes the number and costs no pass over memory, and so does most adding:

    b x + c y  =  b (x + c/b y)

Only operations that treat every element alike are known. A rule that does anything else raises `NotElementwise`.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .links import Link

Number: TypeAlias = float

PRODUCTS = ("mul", "div")

# Ratios above this are not drawn out of a sum: the smaller term might underflow, the larger overflow.
MILD = 1e6

BOOLEAN = frozenset("eq ne lt le gt ge logical_and logical_or logical_not logical_xor isnan isinf isfinite signbit".split())
ELEMENTWISE = BOOLEAN | frozenset(
    "abs acos asin atan atan2 ceil clamp clamp_max clamp_min copysign cos cosh erf erfc exp expm1 floor frac hypot lerp log "
    "log10 log1p log2 maximum minimum nan_to_num ones_like pow reciprocal round rsqrt sigmoid sign sin sinh sqrt tan tanh trunc "
    "where zeros_like".split()
)
SAME = {"clip": "clamp", "divide": "div", "multiply": "mul", "negative": "neg", "subtract": "sub", "true_divide": "div"}
SAME |= {"truediv": "div", "absolute": "abs", "greater": "gt", "less": "lt", "and": "logical_and", "or": "logical_or"}
SAME |= {"invert": "logical_not", "xor": "logical_xor", "sgn": "sign", "arctan2": "atan2"}


class NotElementwise(Exception):
    """A rule did something that can't be written down."""


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


class Later:
    """A step that may as well be any later one: it can be compared with numbers of earlier steps, and nothing else."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __add__(self, steps: int) -> "Later":
        return Later(self.step + steps)

    def _is_later(self, other: object) -> bool:
        if not isinstance(other, int | float) or other >= self.step:
            raise NotElementwise("a rule waits for a later step")
        return True

    def _is_not(self, other: object) -> bool:
        return not self._is_later(other)

    __gt__ = __ge__ = __ne__ = _is_later
    __lt__ = __le__ = __eq__ = _is_not


class Value:
    """A stand-in for a tensor: a number times a node. It takes part in operators, and in torch's functions and methods."""

    __slots__ = ("dtype", "node", "scale")

    def __init__(self, node: Node, dtype: torch.dtype, scale: Number = 1.0) -> None:
        self.node, self.dtype, self.scale = node, dtype, scale

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> "Value":
        del types
        return apply(function.__name__.strip("_"), *args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Callable[..., "Value"]:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in KNOWN:
            raise NotElementwise(name)
        return functools.partial(apply, name, self)

    def of(self, op: str, *args: Any, scale: Number = 1.0, **options: Any) -> "Value":
        """The result of an operation on nodes and numbers, times a number."""
        wide = op not in BOOLEAN and any(isinstance(x, Node) and x.wide for x in args)
        return Value(Node(op, args, options, wide), self.dtype, scale)

    def times(self, factor: Number) -> "Value":
        """The product with a number."""
        scale = self.scale * factor
        return (
            Value(self.node, self.dtype, scale) if math.isfinite(scale) else self.of("mul", self.node, factor, scale=self.scale)
        )

    def whole(self) -> Node:
        """A node that is the value, number and all."""
        if self.scale != 1:
            self.node, self.scale = Node("mul", (self.node, self.scale), wide=self.node.wide), 1.0
        return self.node


def apply(name: str, *args: Any, **options: Any) -> Value:
    """The value of a function, a method or an operator of torch's, by its name."""
    if name[:1] == "r" and name[1:] in REVERSIBLE:
        name, args = name[1:], args[::-1]
    name, args = SAME.get(name, name), tuple(map(_plain, args))
    if name in FOLDED:
        return FOLDED[name](*args, **{key: _plain(value) for key, value in options.items()})
    return _general(name, *args, **options)


def written(
    links: Sequence[Link], scalars: Sequence[Any], u: Value, p: Value, slots: Sequence[Value]
) -> tuple[Value, list[Value]]:
    """What the links make of an update, a parameter and its slots: the new update and slots.

    Raises:
        NotElementwise: a rule did something that can't be written down. A rule may as well raise what it likes.
    """
    stored, new = iter(slots), []
    for link, (hp, t, reduced) in zip(links, scalars, strict=True):
        results = link.form.rule(hp, *(t or (None,)), *(reduced or (None,)))(u, p, *[next(stored) for _ in link.form.slots])
        results = results if isinstance(results, tuple | list) else (results,)
        if len(results) != 1 + len(link.form.slots) or not all(isinstance(x, Value) and x.node.wide for x in results):
            raise NotElementwise(f"the rule of {link.form.name} did not return a tensor for the update and each slot")
        u = results[0]
        new += results[1:]
    return u, new


def _general(name: str, *args: Any, **options: Any) -> Value:
    """An operation with nothing to simplify."""
    if name not in ELEMENTWISE or any(not isinstance(option, int | float | None) for option in options.values()):
        raise NotElementwise(name)
    like = next(x for x in args if isinstance(x, Value))
    return like.of(name, *[x.whole() if isinstance(x, Value) else x for x in args], **options)


def _plain(x: Any) -> Any:
    """An argument as a value or a number: a () tensor on the host is a number as well."""
    if isinstance(x, Tensor):
        if x.ndim or x.device.type != "cpu" or x.is_complex():
            raise NotElementwise("a rule combines its tensors with a tensor from elsewhere")
        return x.item()
    return x


def _mul(a: Any, b: Any) -> Value:
    if not isinstance(a, Value):
        return b.times(a)
    return a.of("mul", a.node, b.node, scale=a.scale).times(b.scale) if isinstance(b, Value) else a.times(b)


def _div(a: Any, b: Any) -> Value:
    if not isinstance(b, Value):
        return a.of("div", a.whole(), b) if b == 0 else a.times(1 / b)
    if b.scale == 0:
        b.whole()
    if not isinstance(a, Value):
        return b.of("reciprocal", b.node, scale=a / b.scale)
    return a.of("div", a.node, b.node, scale=a.scale / b.scale)


def _add(a: Any, b: Any, alpha: Number = 1) -> Value:
    b = b if alpha == 1 else b * alpha
    if not isinstance(a, Value):
        a, b = b, a
    if not isinstance(b, Value):
        if not 1 / MILD < abs(a.scale) < MILD:
            a.whole()
        return a.of("add", a.node, b / a.scale, scale=a.scale)
    # The sum is computed as `base + ratio · other`; a product or quotient as `other` goes in without being stored.
    base, other = sorted((a, b), key=lambda x: (x.node.op in PRODUCTS, x.scale != 1))
    if abs(other.scale) > MILD * abs(base.scale):
        base, other = other, base
    if base.scale == 0:
        base.whole()
    return base.of("add", base.node, other.node, alpha=other.scale / base.scale, scale=base.scale)


def _sub(a: Any, b: Any, alpha: Number = 1) -> Value:
    return _add(a, b * -alpha)


def _neg(x: Value) -> Value:
    return x.times(-1.0)


def _sqrt(x: Value) -> Value:
    return x.of("sqrt", x.node, scale=math.sqrt(x.scale)) if x.scale > 0 else _general("sqrt", x)


def _sign(x: Value) -> Value:
    return x.of("sign", x.node, scale=math.copysign(1.0, x.scale)) if x.scale else _general("sign", x)


def _abs(x: Value) -> Value:
    return x.of("abs", x.node, scale=abs(x.scale))


def _pow(x: Any, exponent: Any) -> Value:
    return _mul(x, x) if isinstance(exponent, int | float) and exponent == 2 else _general("pow", x, exponent)


def _addcmul(x: Any, a: Any, b: Any, *, value: Number = 1) -> Value:
    return _add(x, _mul(a, b), value)


def _addcdiv(x: Any, a: Any, b: Any, *, value: Number = 1) -> Value:
    return _add(x, _div(a, b), value)


def _same(x: Value) -> Value:
    return x


def _to(x: Value, dtype: Any) -> Value:
    if dtype != x.dtype:
        raise NotElementwise(f"a rule converts to {dtype}")
    return x if x.node.wide else Value(Node("to", (x.whole(), dtype)), x.dtype)


FOLDED: dict[str, Callable[..., Value]] = {
    "mul": _mul,
    "div": _div,
    "add": _add,
    "sub": _sub,
    "neg": _neg,
    "sqrt": _sqrt,
    "sign": _sign,
    "abs": _abs,
    "pow": _pow,
    "square": lambda x: _mul(x, x),
    "reciprocal": lambda x: _div(1.0, x),
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "clone": _same,
    "detach": _same,
    "to": _to,
}
KNOWN = ELEMENTWISE | FOLDED.keys() | SAME.keys()
REVERSIBLE = ("add", "sub", "mul", "truediv", "div", "pow", "and", "or", "xor")


def _operator(name: str) -> Callable[..., Value]:
    def operator(self: Value, *other: Any) -> Value:
        return apply(name, self, *other)

    return operator


for _name in (*REVERSIBLE, "neg", "abs", "invert", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Value, f"__{_name}__", _operator(_name))
for _name in REVERSIBLE:
    setattr(Value, f"__r{_name}__", _operator(f"r{_name}"))
