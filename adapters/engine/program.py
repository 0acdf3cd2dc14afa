"""What was traced as a short list of torch's own operations, which overwrite whatever is not needed any more.

A program works on lists of tensors at once: one call of `torch._foreach_*` for many small tensors; or on single ones, which
have the size of a cache, so that what it stores meanwhile never leaves it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from .memory import foreach, on_host
from .passes import PRODUCTS, Scaled, is_nonnegative
from .prologue import Place, taking
from .stand_ins import Node, Number, is_one
from .trace import ordered

COMMUTATIVE = ("mul", "maximum", "minimum")

# Operations that take a list of tensors, or a number, as their second argument.
REPEATED = ("add", "mul")

# Operations that take no memory to put their result in.
NEW = ("to", "clone", "zeros_like", "ones_like")

FUNCTIONS: Mapping[str, Callable[..., Any]] = {**vars(torch), "to": Tensor.to}


@dataclass(eq=False, slots=True)
class Instruction:
    """`registers[out] = op(*args, **options)`, in the memory of the argument number `target` where that is given.

    Attributes:
        args: the registers of the arguments, a constant's too.
        options: those of the keyword arguments.
        keeps: whether it must be that memory, an input's, and not just might be.
        frees: the registers that nobody needs after it.
    """

    op: str
    args: list[int]
    options: Mapping[str, int]
    out: int
    target: int | None
    keeps: bool
    frees: list[int]
    take: Callable[[list[Any]], Sequence[Any]] = field(init=False)
    take_options: Callable[[list[Any]], Sequence[Any]] = field(init=False)
    function: Callable[..., Any] = field(init=False)
    in_place: Callable[..., Any] | None = field(init=False)

    def __post_init__(self) -> None:
        self.take, self.take_options = taking(self.args), taking([*self.options.values()])
        self.function = FUNCTIONS[self.op]
        self.in_place = foreach.get(f"{self.op}_") if self.target == 0 else None

    def on_lists(self, registers: list[Any], args: list[Any], options: Mapping[str, Any]) -> None:
        """Run where each register holds a list of tensors, and torch has nothing that does it in place."""
        if self.target == 1 and "alpha" in options:
            foreach["mul_"](args[1], _repeated(options["alpha"], args[1]))
            foreach["add_"](args[1], args[0])
        elif self.target is not None and self.keeps:
            foreach["copy_"](args[self.target], self._results(args, options))
        else:
            registers[self.out] = self._results(args, options)
            return
        registers[self.out] = args[self.target or 0]

    def _results(self, args: list[Any], options: Mapping[str, Any]) -> Sequence[Tensor]:
        if self.op in foreach and isinstance(args[0], Sequence):
            return foreach[self.op](*args, **options)
        length = next(len(x) for x in args if isinstance(x, Sequence))
        rows = zip(*(x if isinstance(x, Sequence) else [x] * length for x in args), strict=True)
        return [self.function(*row, **options) for row in rows]


def _repeated(number: Any, tensors: Sequence[Tensor]) -> Any:
    """A number as torch multiplies lists with it fastest: on the host three times as fast as with the number itself."""
    if not on_host(tensors[0]):
        return number
    return [torch.tensor(number, dtype=tensors[0].dtype, device="cpu")] * len(tensors)


class Program:
    """Instructions on the registers of the inputs, in their order, and on further ones.

    Attributes:
        numbers: the places of the numbers that `run` gets.
        nonnegative: of what `run` returns, whether its elements are known to be at least 0.
    """

    def __init__(self, inputs: Sequence[Node], stored: Mapping[int, Scaled], returned: Sequence[Scaled] = ()) -> None:
        """Arrange what computes some values.

        Args:
            inputs: the nodes that `run` gets tensors for.
            stored: the value that is to replace an input, by the input's index.
            returned: what `run` returns.
        """
        results = [value.whole() for value in returned]
        self.nonnegative = list(map(is_nonnegative, results))
        results = [Node("clone", (node,)) if node in inputs else node for node in results]
        self.emptied = [index for index, value in stored.items() if value.node.op == "zeros_like"]
        stored = {index: value for index, value in stored.items() if index not in self.emptied}
        nodes, finals = _ordered(inputs, stored, results)
        self.inputs = len(inputs)
        self.registers = {node: i for i, node in enumerate([*inputs, *nodes])}
        # Behind the registers of nodes: constants, and numbers by their places.
        self.values: list[Any] = []
        self.last_use = {x: i for i, node in enumerate(nodes) for x in node.operands}
        self.kept = {*results, *finals.values()}
        # The memory in which a node lies: an input's, by its index, or some of its own, None.
        self.home: dict[Node, int | None] = {node: i for i, node in enumerate(inputs)}
        self.instructions: list[Instruction] = []
        for i, node in enumerate(nodes):
            own = {index for index, final in finals.items() if final is node}
            self._append(node, self._target(i, node, {None, *(own if node in self.kept else stored)}))
            last = [x for x in node.operands if self.last_use[x] == i and self.home[x] is None and x not in self.kept]
            self.instructions[-1].frees += {self.registers[x] for x in last} - {self.registers[node]}
        self.moves = [(index, self.registers[node]) for index, node in finals.items() if self.home[node] != index]
        self.take_returned = taking([self.registers[node] for node in results])
        self.numbers = [x for x in self.values if type(x) is Place]
        # What the registers behind the inputs hold at first, and those of the numbers.
        self.further = [None] * len(self.instructions) + self.values
        self.places = [i for i, x in enumerate(self.further) if type(x) is Place]

    def run(self, tensors: Sequence[Sequence[Tensor]], numbers: Sequence[Any]) -> list[Sequence[Tensor]]:
        """Run on a list of tensors for each input, all of one length, and the numbers."""
        further = self.further.copy()
        for place, number in zip(self.places, numbers, strict=True):
            further[place] = number
        if len(tensors[0]) == 1:
            registers: list[Any] = [*map(itemgetter(0), tensors), *further]
            for each in self.instructions:
                args, options = each.take(registers), dict(zip(each.options, each.take_options(registers), strict=True))
                if each.target is not None:
                    options["out"] = args[each.target]
                registers[each.out] = each.function(*args, **options)
            for target, source in self.moves:
                registers[target].copy_(registers[source])
            for target in self.emptied:
                registers[target].zero_()
            return [[x] for x in self.take_returned(registers)]
        registers = [*tensors, *further]
        for each in self.instructions:
            args, options = [*each.take(registers)], dict(zip(each.options, each.take_options(registers), strict=True))
            if each.op in REPEATED and type(args[1]) in (float, int):
                args[1] = _repeated(args[1], args[0])
            if each.in_place:
                each.in_place(*args, **options)
                registers[each.out] = args[0]
            else:
                each.on_lists(registers, args, options)
            for register in each.frees:
                registers[register] = None
        for target, source in self.moves:
            foreach["copy_"](registers[target], registers[source])
        for target in self.emptied:
            foreach["zero_"](registers[target])
        return list(self.take_returned(registers))

    def _append(self, node: Node, target: int | None) -> None:
        args = list(node.args)
        if target == 1 and (node.op in COMMUTATIVE or is_one(node.options.get("alpha"))):
            args, target = args[::-1], 0
        self.home[node] = None if target is None else self.home[args[target]]
        options = {name: self._register(x) for name, x in node.options.items()}
        keeps = self.home[node] is not None
        self.instructions.append(
            Instruction(node.op, list(map(self._register, args)), options, self.registers[node], target, keeps, [])
        )

    def _register(self, x: Any) -> int:
        """The register of a node, a number or a constant."""
        if isinstance(x, Node):
            return self.registers[x]
        value = x.place if isinstance(x, Number) else x
        same = [i for i, other in enumerate(self.values) if type(other) is type(value) and other == value]
        if not same:
            self.values.append(value)
        return len(self.registers) + (same[0] if same else len(self.values) - 1)

    def _target(self, i: int, node: Node, allowed: Collection[int | None]) -> int | None:
        """The argument whose memory the result takes over: one that nobody needs after this node."""
        free = [
            (self.home[x] is None, j)
            for j, x in enumerate(node.args)
            if isinstance(x, Node) and self.last_use[x] == i and x.wide and x not in self.kept and self.home[x] in allowed
        ]
        # Torch's `where` of a number takes no memory either.
        is_new = node.op in NEW or (node.op == "where" and not all(isinstance(x, Node) for x in node.args[1:]))
        return min(free)[1] if free and node.wide and not is_new else None


def _ordered(
    inputs: Sequence[Node], stored: Mapping[int, Scaled], returned: Sequence[Node]
) -> tuple[list[Node], dict[int, Node]]:
    """The nodes in the order of execution, and the one that each stored input ends with."""
    bases = {index: _base(inputs, index, value) for index, value in stored.items()}
    roots = [*returned, *bases.values()]
    uses = Counter([*roots, *(x for node in ordered(roots) for x in node.operands)])
    for node in list(uses):
        _sum_in_place(node, uses, inputs)
        _absorb_product(node, uses)
    # The parameter, which is input 1, is written when nothing reads it any more, nor a gradient that might be its memory.
    last = [bases[1]] if 1 in bases else []
    first = [x for node in last for x in node.operands]
    nodes = ordered([*first, *(root for root in roots if root not in last), *last], inputs)
    # A number times what was computed comes at the very end: until there, others may need it without the number.
    finals = {}
    for index, base in bases.items():
        scale = stored[index].scale
        finals[index] = base if is_one(scale) else Node("mul", (base, scale))
    return [*nodes, *(node for index, node in finals.items() if node is not bases[index])], finals


def _base(inputs: Sequence[Node], index: int, value: Scaled) -> Node:
    """What a stored value is a multiple of; never another input, which might have been overwritten by then."""
    if value.node in inputs and value.node is not inputs[index]:
        return Node("clone", (value.node,)) if is_one(value.scale) else value.whole()
    return value.node


def _sum_in_place(node: Node, uses: Mapping[Node, int], inputs: Sequence[Node]) -> None:
    """Where a sum of gradient and parameter is needed for another sum alone, add them to what is to be stored, one by one:

    (a + s b) + r y  =  (a + r y) + s b
    """
    if node.op != "add" or not all(isinstance(x, Node) and x.wide for x in node.args):
        return
    alpha = node.options["alpha"]
    for x, y in (node.args, node.args[::-1]):
        is_sum = x.op == "add" and uses[x] == 1 and all(a in inputs[:2] for a in x.args)
        if is_sum and y not in inputs[:2] and (x is node.args[0] or is_one(alpha)):
            a, b = x.args
            node.args, node.options = (Node("add", (a, y), {"alpha": alpha}), b), x.options
            return


def _absorb_product(node: Node, uses: Mapping[Node, int]) -> None:
    """Turn a sum with a product or quotient that nobody else needs into one operation."""
    if node.op == "add" and isinstance(other := node.args[1], Node) and other.op in PRODUCTS and uses[other] == 1:
        factors = other.operands
        if len(factors) == 2 and all(x.wide for x in (node, *factors)):
            node.op, node.args = f"addc{other.op}", (node.args[0], *factors)
            node.options = {"value": node.options["alpha"]}
