"""Numbers drawn out of what is computed for each element, so that most multiplications cost no pass over memory.

A value is a number times a node. Multiplying by a number changes the number, and so does most adding:

    b x + c y  =  b (x + c/b y)

A number that is a tensor on another device than the host stays where it is.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .prologue import NotElementwise
from .stand_ins import BOOLEAN, IS_POSITIVE, Node, Number, ask, is_away, is_one, quotient, root, sign
from .trace import Traced, ordered

PRODUCTS = ("mul", "div")

# Ratios above this are not drawn out of a sum: the smaller term might underflow, the larger overflow.
MILD = 1e6


@dataclass(slots=True)
class Scaled:
    """A number times a node."""

    node: Node
    scale: Any = 1.0

    def times(self, factor: Any) -> "Scaled":
        """The product with a number."""
        if is_away(factor):
            return Scaled(_node("mul", (self.whole(), factor)))
        if is_one(factor):
            return self
        scale = factor if is_one(self.scale) else self.scale * factor
        return Scaled(self.node, scale) if ask(scale, math.isfinite) else Scaled(self.whole(), factor)

    def whole(self) -> Node:
        """A node that is the value, number and all."""
        if not is_one(self.scale):
            self.node, self.scale = _node("mul", (self.node, self.scale)), 1.0
        return self.node


def drawn_out(traced: Traced) -> list[Scaled]:
    """The results of what was traced."""
    values = {node: Scaled(node) for node in traced.inputs}
    for node in ordered(traced.results, traced.inputs):
        args = [values[x] if isinstance(x, Node) else x for x in node.args]
        values[node] = FOLDED[node.op](*args) if node.op in FOLDED and not node.options else _general(node, args)
    return [values[node] for node in traced.results]


def added(a: Scaled, b: Scaled) -> Scaled:
    """The sum, as `base + ratio · other`; a product or quotient as `other` goes in without being stored."""
    first, second = sorted((a, b), key=lambda x: (x.node.op in PRODUCTS, not is_one(x.scale)))
    for base, other in ((first, second), (second, first)):
        ratio = other.scale if is_one(base.scale) else quotient(other.scale, base.scale)
        if is_one(base.scale) or _is_mild(ratio):
            return Scaled(_node("add", (base.node, other.node), {"alpha": ratio}), base.scale)
    return Scaled(_node("add", (first.whole(), second.node), {"alpha": second.scale}))


def stepped(p: Node, u: Scaled) -> Scaled:
    """p + u, the parameter after the step; an update that decays p has p in it, with which it is taken together:

    p + b (p + c y)  =  (1 + b) p + b c y
    """
    if u.node.op != "add" or p not in u.node.args[:2] or u.node.args[0] is u.node.args[1]:
        return added(Scaled(p), u)
    base, other = u.node.args
    alpha = u.node.options["alpha"]
    ours, others = (u.scale, u.scale * alpha) if base is p else (u.scale * alpha, u.scale)
    return added(Scaled(p, 1 + ours), Scaled(other if base is p else base, others))


def is_nonnegative(node: Node) -> bool:
    """Whether it is known of a node that its elements are at least 0, or NaN."""
    bound = node.args[1] if node.op == "clamp_min" else None
    is_square = node.op == "mul" and node.args[0] is node.args[1]
    return node.op == "abs" or is_square or (isinstance(bound, int | float) and bound >= 0)


def _is_mild(ratio: Any) -> bool:
    return bool(abs(ratio) <= MILD)


def _is_mild_both_ways(scale: Any) -> bool:
    return bool(abs(scale) > 1 / MILD) and bool(abs(scale) < MILD)


def _node(op: str, args: tuple[Any, ...], options: Mapping[str, Any] | None = None) -> Node:
    wide = op not in BOOLEAN and any(x.wide for x in args if isinstance(x, Node))
    return Node(op, args, options or {}, wide or op == "to")


def _general(node: Node, args: list[Any]) -> Scaled:
    """An operation with nothing to simplify."""
    whole = tuple(x.whole() if isinstance(x, Scaled) else x for x in args)
    return Scaled(_node(node.op, whole, node.options))


def _mul(a: Any, b: Any) -> Scaled:
    if not isinstance(a, Scaled):
        return b.times(a)
    if not isinstance(b, Scaled):
        return a.times(b)
    a, b = _as_number(a), _as_number(b)
    return Scaled(_node("mul", (a.node, b.node)), a.scale).times(b.scale)


def _div(a: Any, b: Any) -> Scaled:
    if not isinstance(b, Scaled):
        return Scaled(_node("div", (a.whole(), b))) if b == 0 else a.times(1 / b)
    if not ask(b.scale, bool):
        b.whole()
    if is_away(a):
        return Scaled(_node("reciprocal", (b.whole(),))).times(a)
    if not isinstance(a, Scaled):
        return Scaled(_node("reciprocal", (b.node,)), quotient(a, b.scale))
    scale = a.scale if is_one(b.scale) else quotient(a.scale, b.scale)
    return Scaled(_node("div", (a.node, b.node)), scale)


def _add(a: Any, b: Any) -> Scaled:
    if not isinstance(a, Scaled):
        a, b = b, a
    if isinstance(b, Scaled):
        return added(a, b)
    if is_away(b) or not _is_mild_both_ways(a.scale):
        a.whole()
    return Scaled(_node("add", (a.node, b if is_one(a.scale) else b / a.scale)), a.scale)


def _sqrt(x: Scaled) -> Scaled:
    return Scaled(_node("sqrt", (x.node,)), root(x.scale)) if ask(x.scale, IS_POSITIVE) else Scaled(_node("sqrt", (x.whole(),)))


def _sign(x: Scaled) -> Scaled:
    if ask(x.scale, bool):
        return Scaled(_node("sign", (x.node,)), sign(x.scale))
    return Scaled(_node("sign", (x.whole(),)))


def _to(x: Scaled, dtype: Any) -> Scaled:
    number = _as_number(x)
    return number if number is not x else _general(Node("to"), [x, dtype])


def _as_number(x: Scaled) -> Scaled:
    """A comparison with 0 as 1 or 0, by functions that torch has for lists; it has none that compares."""
    if x.node.op not in ("gt", "lt") or type(x.node.args[1]) not in (int, float) or x.node.args[1] != 0:
        return x
    signs = _node("sign", (x.node.args[0],))
    if x.node.op == "gt":
        return Scaled(_node("clamp_min", (signs, 0.0)))
    return Scaled(_node("clamp_max", (signs, 0.0)), -1.0)


def _where(condition: Any, a: Any, b: Any) -> Scaled:
    if not isinstance(condition, Number) or condition.is_away:
        return _general(Node("where"), [condition, a, b])
    chosen, other = (a, b) if condition else (b, a)
    return chosen if isinstance(chosen, Scaled) else _add(_general(Node("zeros_like"), [other]), chosen)


FOLDED: Mapping[str, Callable[..., Scaled]] = {
    "abs": lambda x: Scaled(_node("abs", (x.node,)), abs(x.scale)),
    "add": _add,
    "div": _div,
    "mul": _mul,
    "neg": lambda x: x.times(-1.0),
    "sign": _sign,
    "sqrt": _sqrt,
    "to": _to,
    "sub": lambda a, b: _add(a, b.times(-1.0) if isinstance(b, Scaled) else -b),
    "reciprocal": lambda x: _div(1.0, x),
    "where": _where,
}


def require_one_dtype(traced: Traced) -> None:
    """Raise NotElementwise where a rule converts between floating-point dtypes."""
    for node in ordered(traced.results):
        if node.op == "to" and node.operands[0].wide:
            raise NotElementwise(f"a rule converts to {node.args[1]}")
