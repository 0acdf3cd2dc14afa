"""The scalar half of a traced run: a few dozen () operations, evaluated as Python arithmetic in double precision."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from functional_optim.torch_internals import schema_of

aten = torch.ops.aten


def _clamped(x: Any, low: Any = None, high: Any = None) -> Any:
    x = low if low is not None and x < low else x
    return high if high is not None and x > high else x


HOST: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: operator.add,
    aten.sub.Tensor: operator.sub,
    aten.mul.Tensor: operator.mul,
    aten.div.Tensor: operator.truediv,
    aten.neg.default: operator.neg,
    aten.lift_fresh_copy.default: lambda x: x,
    aten.reciprocal.default: lambda x: 1 / x,
    aten.rsub.Scalar: lambda a, b: b - a,
    aten.pow.Tensor_Tensor: operator.pow,
    aten.pow.Tensor_Scalar: operator.pow,
    aten.pow.Scalar: operator.pow,
    aten.sqrt.default: math.sqrt,
    aten.exp.default: math.exp,
    aten.log.default: math.log,
    aten.cos.default: math.cos,
    aten.eq.Scalar: operator.eq,
    aten.lt.Scalar: operator.lt,
    aten.le.Scalar: operator.le,
    aten.gt.Scalar: operator.gt,
    aten.ge.Scalar: operator.ge,
    aten.clamp.default: _clamped,
    aten.where.self: lambda condition, a, b: a if condition else b,
}


class Prologue:
    """The numbers that the body of a traced run needs, as a function of the run's scalars.

    Numbers on the host take the Python operators of `HOST`, some hundred times faster than () tensors. Everything else (an
    operation that is not there, one that Python refuses, such as 1 / 0, a tensor on another device) is left to torch.
    """

    def __init__(self, inputs: Sequence[fx.Node], nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> None:
        constants = [node for node in nodes if node.op == "get_attr"]
        self.constants = [_constant(node) for node in constants]
        places = {node: Place(i) for i, node in enumerate([*inputs, *constants])}
        self.operations: list[Operation] = []
        for node in nodes:
            if node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), places.__getitem__)
                self.operations.append(Operation(node.target, args, kwargs))
                places[node] = Place(len(places))
        self.outputs = [places[node] for node in outputs]

    def __call__(self, scalars: Sequence[Any]) -> list[Any]:
        """The numbers: Python's, and () tensors where a scalar was a tensor on another device than the host."""
        values = [*map(_on_host, scalars), *self.constants]
        run = Operation.on_tensors if any(isinstance(value, Tensor) for value in values) else Operation.on_numbers
        for operation in self.operations:
            values.append(run(operation, values))
        return [values[place] for place in self.outputs]


class Place(int):
    """Stands in an argument list for the value at this index."""


class Operation:
    """One node of the prologue."""

    def __init__(self, target: Any, args: Any, kwargs: Any) -> None:
        self.target, self.args, self.kwargs = target, args, kwargs
        self.function = HOST.get(target) if not kwargs else None
        self.declared = [schema.type for schema in schema_of(target)]
        if target is aten._to_copy.default and kwargs == {"dtype": torch.float64}:
            self.function = float

    def on_numbers(self, values: list[Any]) -> Any:
        """The value as Python computes it, where Python can."""
        if self.function is not None:
            try:
                value = self.function(*[values[a] if type(a) is Place else a for a in self.args])
                if not isinstance(value, complex):
                    return value
            except (ArithmeticError, ValueError):
                pass
        return self.on_tensors(values)

    def on_tensors(self, values: list[Any]) -> Any:
        """The value as torch computes it, on the device of its arguments."""
        args = [_filled(a, values) for a in self.args]
        kwargs = {name: _filled(value, values) for name, value in self.kwargs.items()}
        if "device" in kwargs:
            kwargs["device"] = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
        return _on_host(self.target(*map(_as_tensor, args, self.declared), **kwargs))


def _filled(argument: Any, values: list[Any]) -> Any:
    if isinstance(argument, list | tuple):
        return [_filled(a, values) for a in argument]
    return values[argument] if type(argument) is Place else argument


def _as_tensor(argument: Any, declared: Any) -> Any:
    """A number as the () tensor that torch computes with, where the operation takes a tensor."""
    if "Tensor" not in str(declared):
        return argument
    if isinstance(argument, list):
        return [_as_tensor(a, declared) for a in argument]
    if isinstance(argument, float):
        return torch.tensor(argument, dtype=torch.float64, device="cpu")
    return torch.tensor(argument, device="cpu") if isinstance(argument, int) else argument


def _on_host(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.device.type == "cpu" and value.ndim == 0 else value


def _constant(node: fx.Node) -> Any:
    assert isinstance(node.target, str)
    return _on_host(getattr(node.graph.owning_module, node.target))
