"""The numbers of a step as stand-ins: what a rule does with them is noted once, and done again at each step.

Hyper-parameters, the step and whole-tree quantities are numbers on the host; what depends on them alone is a few dozen operations
of Python's, in double precision, whatever the tensors. A rule that asks whether a number is large, say, gets the answer of the
step in which it is traced; the answer is noted too, and what was traced holds as long as it is the same.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim.numerics import dtype_of_scalars

from .memory import on_host


class NotElementwise(Exception):
    """A rule did something that can't be written down."""


def is_column(x: Any) -> bool:
    """Whether this is no single number, but one for each leaf."""
    return isinstance(x, Tensor) and x.ndim > 0


NUMBERS = frozenset({bool, float, int, type(None)})

# Those that are computed with as they are.
PLAIN_NUMBERS = NUMBERS - {int}


class Place(int):
    """Stands in an argument list for the value at this index."""


# As Python computes them; whatever is not here, or what Python refuses, such as 1 / 0, torch computes.
HOST: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "add": operator.add,
    "clamp_max": lambda x, high: min(x, high) if x == x else x,
    "clamp_min": lambda x, low: max(x, low) if x == x else x,
    "copysign": math.copysign,
    "cos": math.cos,
    "div": operator.truediv,
    "eq": operator.eq,
    "exp": math.exp,
    "floor": lambda x: float(math.floor(x)),
    "floor_divide": operator.floordiv,
    "ge": operator.ge,
    "gt": operator.gt,
    "isfinite": math.isfinite,
    "isnan": math.isnan,
    "le": operator.le,
    "log": math.log,
    "logical_and": lambda a, b: bool(a and b),
    "logical_not": operator.not_,
    "logical_or": lambda a, b: bool(a or b),
    "lt": operator.lt,
    "mul": operator.mul,
    "ne": operator.ne,
    "neg": operator.neg,
    "pow": math.pow,
    "reciprocal": functools.partial(operator.truediv, 1.0),
    "remainder": operator.mod,
    "sqrt": math.sqrt,
    "sub": operator.sub,
    "where": lambda condition, a, b: a if condition else b,
}

# As Python's operators, which take a number on either side of a () tensor on another device.
OPERATORS = {name: HOST[name] for name in "abs add div eq ge gt le lt mul ne neg reciprocal sub".split()} | {"pow": operator.pow}

# With this second argument the first is the result.
NEUTRAL = {"mul": 1, "div": 1, "pow": 1}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on numbers."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]

    def __call__(self, values: Sequence[Any]) -> Any:
        """The value: Python's number, or a () tensor where an argument is one, on another device than the host."""
        args = [values[x] if type(x) is Place else x for x in self.args]
        where = next((x.device for x in args if isinstance(x, Tensor)), None)
        if where is not None:
            wide = dtype_of_scalars(where)
            return OPERATORS[self.name](*args) if self.name in OPERATORS else _by_torch(self.name, *args, wide=wide)
        try:
            return self.function(*args)
        except (ArithmeticError, ValueError):
            return _read(self.name, *args)


# The value at an index, what is asked of it, and the answer for which something was traced.
Guard: TypeAlias = tuple[Place, Callable[[Any], Any], Any]


class Tape:
    """Numbers, and what has been done with them.

    Args:
        values: of the inputs, in the step in which a rule is traced.
        asks: whether a rule may ask what they are.
    """

    def __init__(self, values: Sequence[Any], *, asks: bool) -> None:
        self.values: list[Any] = [_on_host(value) for value in values]
        self.operations: list[Operation] = []
        self.guards: list[Guard] = []
        self._inputs, self._asks = len(self.values), asks
        self._known: dict[Any, Place] = {}

    def note(self, name: str, *args: Any) -> Place:
        """Where the result of an operation on values of this tape, and on other numbers, is."""
        if name in NEUTRAL and type(args[0]) is Place and type(args[1]) is not Place and args[1] == NEUTRAL[name]:
            return args[0]
        key = name, tuple((type(x), x) for x in args)
        if key not in self._known:
            operation = Operation(name, HOST.get(name) or functools.partial(_read, name), args)
            self.values.append(operation(self.values))
            self.operations.append(operation)
            self._known[key] = Place(len(self.values) - 1)
        return self._known[key]

    def answer(self, place: Place, question: Callable[[Any], Any]) -> Any:
        """The answer of this step, which from now on has to be the same."""
        if not self._asks:
            raise NotElementwise("a rule asks for the value of a number")
        value = self.values[place]
        if isinstance(value, Tensor) and not on_host(value):
            raise NotElementwise("a rule asks for the value of a number that is on another device")
        answer = question(value[0].item() if is_column(value) else value)
        self.guards.append((place, question, answer))
        return answer

    def prologue(self, outputs: Sequence[Place]) -> "Prologue":
        """The numbers of a step as a function of its inputs."""
        return Prologue(self, self._inputs, outputs)


class Prologue:
    """The numbers that something traced needs, as a function of its inputs.

    Args:
        tape: what was noted.
        inputs: how many there are.
        outputs: the places of what is needed.
    """

    def __init__(self, tape: Tape, inputs: int, outputs: Sequence[Place]) -> None:
        self.guards = list(dict.fromkeys(tape.guards))
        needed = {*outputs, *(place for place, _, _ in self.guards)}
        operations = list(enumerate(tape.operations, start=inputs))
        for place, operation in reversed(operations):
            if place in needed:
                needed |= {x for x in operation.args if type(x) is Place}
        self.operations = [(place, operation) for place, operation in operations if place in needed]
        self.others = [(i, x) for i, x in enumerate(tape.values[:inputs]) if not isinstance(x, int | float | Tensor)]
        self.inputs, self.outputs, self.asked = inputs, list(outputs), needed.union(i for i, _ in self.others)
        # Behind the places of inputs and results are the constants, so that all arguments are at places.
        self.further: list[Any] = [None] * len(operations)
        self.calls = [(place, operation.function, self._taken(operation.args)) for place, operation in self.operations]
        self.taken = taking(self.outputs)

    def __call__(self, inputs: Sequence[Any]) -> list[Any] | None:
        """The numbers: Python's, () tensors where an input was one on another device than the host, and columns where one was a
        column. None where a rule would have got another answer than when it was traced."""
        if not PLAIN_NUMBERS.issuperset(map(type, inputs)):
            inputs = [x if i in self.asked else 0.0 for i, x in enumerate(inputs)]
        if not PLAIN_NUMBERS.issuperset(map(type, inputs)):
            holds, numbers = self.by_row(inputs, 1)
            return numbers if holds[0] else None
        values = [*inputs, *self.further]
        self._compute(values)
        return list(self.taken(values)) if self._is_same(values) else None

    def by_row(self, inputs: Sequence[Any], rows: int) -> tuple[list[bool], list[Any]]:
        """In which rows of the columns among the inputs a rule would get the same answers; and the numbers."""
        values: list[Any] = [x if type(x) is float else _on_host(x) for x in inputs]
        values += self.further
        if not _hold_tensors(values):
            self._compute(values)
            return [self._is_same(values)] * rows, list(self.taken(values))
        self._compute_one_by_one(values)
        holds = [all(values[place] == value for place, value in self.others)] * rows
        for place, question, answer in self.guards:
            value = values[place]
            if is_column(value):
                holds = [there and question(x) == answer for there, x in zip(holds, value.tolist(), strict=True)]
            elif question(value) != answer:
                holds = [False] * rows
        return holds, [values[place] for place in self.outputs]

    def _is_same(self, values: list[Any]) -> bool:
        """Whether a rule would get the same answers, where no value is a tensor."""
        for place, value in self.others:
            if values[place] != value:
                return False
        for place, question, answer in self.guards:
            if question(values[place]) != answer:
                return False
        return True

    def _compute(self, values: list[Any]) -> None:
        """By Python's own functions; where one refuses, all over again."""
        try:
            for place, function, take in self.calls:
                values[place] = function(*take(values))
        except (ArithmeticError, ValueError):
            self._compute_one_by_one(values)

    def _compute_one_by_one(self, values: list[Any]) -> None:
        for place, operation in self.operations:
            values[place] = operation(values)

    def _taken(self, args: Sequence[Any]) -> Callable[[list[Any]], Sequence[Any]]:
        """What takes the arguments of an operation out of all values."""
        places: list[int] = []
        for x in args:
            if type(x) is not Place:
                self.further.append(x)
            places.append(x if type(x) is Place else self.inputs + len(self.further) - 1)
        return taking(places)


def taking(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What takes the values at these places out of a sequence."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    # One place alone would give its value, and not a sequence of one.
    first = places[0] if places else 0
    return operator.itemgetter(slice(first, first + len(places)))


def _by_torch(name: str, *args: Any, wide: torch.dtype = torch.float64) -> Tensor:
    return getattr(torch, name)(*[x if isinstance(x, Tensor) else _tensor(x, wide) for x in args])


def _read(name: str, *args: Any) -> Any:
    return _by_torch(name, *args).item()


def _tensor(x: Any, wide: torch.dtype) -> Tensor:
    return torch.tensor(x, dtype=torch.bool if isinstance(x, bool) else wide, device="cpu")


def _hold_tensors(values: Sequence[Any]) -> bool:
    kinds = set(map(type, values))
    return not kinds <= NUMBERS and any(issubclass(kind, Tensor) for kind in kinds)


def _on_host(value: Any) -> Any:
    """A () tensor on the host as a number, and whole ones as others: a power of a large one would never end."""
    if isinstance(value, Tensor) and value.ndim == 0 and on_host(value):
        value = value.item()
    return float(value) if type(value) is int else value
