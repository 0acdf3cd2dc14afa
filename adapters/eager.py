"""The eager step of a chain of elementwise rules: its formula, run over lists of small tensors and over blocks of large ones.

A rule creates a new tensor with every operation. That is slow where tensors are large, because each of them is fresh memory,
and where they are many, because each is a call. Here the rules write down what they compute, once a step and for each group
(see `formula`), and torch's in-place operations do it (see `program`): a block of a large tensor stays in the cache from the
first operation to the last, and small tensors go through `torch._foreach_*` together.

What does not go this way raises `Unfit`, or whatever it raises, before anything is changed; the transform is then called itself.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.lifting import widened
from functional_optim.reductions import SumOver
from functional_optim.transform import Transform

from .formula import Later, Node, Value, apply, written
from .held import Held
from .layout import Flat, Layout
from .links import Link, links_of, scalars_of
from .memory import PLAIN, flat, is_dense, is_lazy, real, reals
from .program import Program

HParams: TypeAlias = Mapping[str, Any]
States: TypeAlias = Mapping[Tensor, Flat]
Row: TypeAlias = list[Sequence[Tensor]]

LOW = (torch.bfloat16, torch.float16)

# Elements of a block. With fewer, the threads of an operation wait for each other as long as they work, on a busy machine; with
# more, what it stores leaves the cache: of AdamW six tensors, 12 MB.
BLOCK = 1 << 19

# Up to this many elements, what an operation costs is the call.
SMALL = 1 << 15


class Unfit(Exception):
    """This step has to be the transform's own."""


@dataclass(frozen=True)
class Kind:
    """What parameters have in common that are stepped by one program.

    Attributes:
        group: the number of their group.
        counts: of updates so far, one for each link that counts.
        dtype: in which they are computed.
        plain: whether they and all their tensors are stored in it, and real.
    """

    group: int
    counts: tuple[int, ...]
    dtype: torch.dtype
    plain: bool


@dataclass(frozen=True, eq=False)
class Leaf:
    """One parameter of a plan: its number, the tensor, its slots, and its kind."""

    index: int
    param: Tensor
    slots: list[Tensor]
    kind: Kind


class Batch:
    """Parameters of a kind that are stepped at once: several small ones, or a large one."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.leaves: list[int] = []
        self.stored: list[list[Tensor]] = []

    def add(self, leaf: Leaf) -> None:
        """One more parameter."""
        tensors = [leaf.param, *leaf.slots]
        self.stored = self.stored or [[] for _ in tensors]
        self.leaves.append(leaf.index)
        for column, x in zip(self.stored, tensors, strict=True):
            column.append(x)

    def row(self, grads: Sequence[Tensor]) -> Row:
        """The gradients, the parameters, and each slot of all of them."""
        return [[grads[i] for i in self.leaves], *self.stored]

    def rows(self, grads: Sequence[Tensor]) -> Iterator[Row]:
        """The same in portions for a program: at once, or a large tensor block by block."""
        row = self.row(grads)
        tensors = [x[0] for x in row]
        if len(self.leaves) == 1 and reals(tensors[0]) > BLOCK and _alike(tensors):
            for block in zip(*(flat(x).split(BLOCK) for x in tensors), strict=True):
                yield [[x] for x in block]
        else:
            yield row


@dataclass(eq=False)
class Plan:
    """What stays the same from step to step while the same parameters have gradients and nobody touches the state.

    Attributes:
        held: the tensors it was made for.
        batches: the parameters as programs take them.
        lasting: the hyper-parameters of a kind, and the program that depends on nothing else.
        passing: the kinds whose programs depend on the step as well.
        steps: how many it has been used for.
    """

    held: Held
    batches: list[Batch]
    lasting: dict[Kind, tuple[HParams, Program]] = field(default_factory=dict)
    passing: set[Kind] = field(default_factory=set)
    steps: int = 0


def is_elementwise(transform: Transform) -> bool:
    """Whether a transform is made of elementwise rules, so that an `EagerStep` can step it."""
    links = links_of(transform)
    return links is not None and all(link.form.packs for link in links)


class EagerStep:
    """The eager step of one transform made of elementwise rules, for one optimizer."""

    def __init__(self, transform: Transform) -> None:
        self.links = links_of(transform) or []
        self.plan: Plan | None = None

    def fits(self, params: Sequence[Tensor], grads: Sequence[Tensor], groups: Sequence[int], states: States) -> bool:
        """Whether the plan of the last step still holds."""
        return self.plan is not None and self.plan.held.fits(params, grads, groups, states)

    def prepare(
        self,
        layout: Layout,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        groups: Sequence[int],
        states: Sequence[Flat],
    ) -> None:
        """Make a plan for these tensors, whose states are complete.

        Raises:
            Unfit: a tensor is of a kind that a program does not take.
        """
        self.plan = None  # It may hold the last reference to tensors that were replaced.
        slots = [layout.name_of[(*link.path, name)] for link in self.links for name in link.form.slots]
        counts = [layout.name_of[(*link.path, "step")] for link in self.links if link.form.counts]
        leaves = [
            Leaf(i, p, [state[name] for name in slots], _kind(g, p, state, group, slots, counts))
            for i, (p, g, group, state) in enumerate(zip(params, grads, groups, states, strict=True))
        ]
        self.plan = Plan(Held(params, grads, groups, states, slots, counts), _batches(leaves))

    def computed(self, grads: Sequence[Tensor], hparams: Mapping[int, HParams], states: States) -> Callable[[], None]:
        """The step over the tensors of the plan; what is returned writes it down.

        Args:
            grads: of the parameters of the plan.
            hparams: those of each group, by its number.
            states: of the optimizer; those of the plan are in there by the time of writing.

        Raises:
            NotElementwise: a rule can't be written down.
            Exception: whatever else a rule raises.
        """
        plan = self.plan
        assert plan is not None
        run = Run(self.links, plan, grads, hparams)
        if not plan.steps:
            run.try_out()
        return functools.partial(run.write, states)


class Run:
    """One step over a plan: its whole-tree quantities and programs, of which the first are computed at once."""

    def __init__(self, links: list[Link], plan: Plan, grads: Sequence[Tensor], hparams: Mapping[int, HParams]) -> None:
        self.links, self.plan, self.grads, self.hparams = links, plan, grads, hparams
        self.kinds = {batch.kind for batch in plan.batches}
        self.reduced: list[Any] = []
        for i, link in enumerate(links):
            if isinstance(link.form.reduce, SumOver):
                self.reduced.append(self._sum(i, link.form.reduce))
            elif link.form.reduce is not None:
                self.reduced.append(self._reduced(i, link.form.reduce))
        self.programs = {kind: self._program(kind) for kind in self.kinds}

    def try_out(self) -> None:
        """Run every program on tensors of no consequence, so that what torch refuses is known before anything is written."""
        for kind, program in self.programs.items():
            for length in (1, 2):
                program.run([[torch.ones(1, dtype=kind.dtype) for _ in range(length)] for _ in range(program.inputs)])

    def write(self, states: States) -> None:
        """Step every parameter and its state."""
        for batch in self.plan.batches:
            program = self.programs[batch.kind]
            for row in batch.rows(self.grads):
                if batch.kind.plain:
                    program.run(row)
                else:
                    _run_wide(program, row)
        if not self.plan.steps:
            self.plan.held.settle(states)
        self.plan.held.advance()
        self.plan.steps += 1

    def _formula(self, kind: Kind, length: int, step: Callable[[int], Any] = int) -> "Formula":
        """The first few links, written down for a kind; `step` makes of a step what the rules get."""
        counts = [step(count + self.plan.steps) for count in kind.counts]
        scalars = scalars_of(self.links[:length], self.hparams[kind.group], counts, self.reduced)
        return Formula(self.links, length, scalars, kind.dtype)

    def _program(self, kind: Kind) -> Program:
        """The program of a kind: an earlier step's, where the rules ask at most whether this is one of the first steps."""
        plan, hparams = self.plan, self.hparams[kind.group]
        known = plan.lasting.get(kind)
        if known and known[0] is hparams:
            return known[1]
        fixed = not self.reduced and not any(isinstance(x, Tensor) for x in trees.leaves(dict(hparams)))
        if plan.steps and kind not in plan.passing and fixed:
            try:
                program = self._arranged(kind, Later)
            except Exception:  # Whatever a rule raises that computes with the step.
                plan.passing.add(kind)
            else:
                plan.lasting[kind] = hparams, program
                return program
        return self._arranged(kind, int)

    def _arranged(self, kind: Kind, step: Callable[[int], Any]) -> Program:
        formula = self._formula(kind, len(self.links), step)
        stored = dict(enumerate(formula.new, start=2))
        if kind.plain:
            return Program(formula.inputs, {**stored, 1: apply("add", formula.p, formula.u)})
        return Program(formula.inputs, stored, [formula.u])

    def _sum(self, i: int, reduction: SumOver) -> Any:
        """A sum over the updates that reach a link."""
        sums = []
        for batch in self.plan.batches:
            formula = self._formula(batch.kind, i)
            terms = reduction.term(formula.u, formula.p, **formula.slots_of(i))
            program = Program(formula.inputs, {}, [terms] if isinstance(terms, Value) else list(terms))
            for row in batch.rows(self.grads):
                results = program.run(row if batch.kind.plain else _opened(row))
                sums.append([torch.cat([x.reshape(-1) for x in xs]).sum() for xs in results])
        return reduction.finish(*(torch.stack(column).sum() for column in zip(*sums, strict=True)))

    def _reduced(self, i: int, reduction: Callable[..., Any]) -> Any:
        """A reduction in general form: it gets all updates at once, and so they have to be stored."""
        names = self.links[i].form.slots
        before = sum(len(link.form.slots) for link in self.links[:i])
        columns: list[list[Any]] = [[None] * len(self.plan.held.params) for _ in range(2 + len(names))]
        for batch in self.plan.batches:
            formula = self._formula(batch.kind, i)
            row = _opened(batch.row(self.grads))
            (updates,) = Program(formula.inputs, {}, [formula.u]).run(row)
            for column, tensors in zip(columns, (updates, row[1], *row[2 + before :]), strict=False):
                for j, x in zip(batch.leaves, tensors, strict=True):
                    column[j] = x
        return reduction(columns[0], columns[1], **dict(zip(names, columns[2:], strict=True)))


class Formula:
    """The first few links of a chain, written down.

    Attributes:
        inputs: the nodes of the gradient, the parameter and all slots of the chain.
        p, slots: the stand-ins of the parameter and the slots.
        u, new: the update after these links, and their new slots.
    """

    def __init__(self, links: Sequence[Link], length: int, scalars: Sequence[Any], dtype: torch.dtype) -> None:
        self.links = links
        self.inputs = [Node("input") for _ in range(2 + sum(len(link.form.slots) for link in links))]
        g, self.p, *self.slots = (Value(node, dtype) for node in self.inputs)
        self.u, self.new = written(links[:length], scalars, g, self.p, self.slots)

    def slots_of(self, i: int) -> dict[str, Value]:
        """The slots of a link, by its own names for them."""
        before = sum(len(link.form.slots) for link in self.links[:i])
        return dict(zip(self.links[i].form.slots, self.slots[before:], strict=False))


def _batches(leaves: Sequence[Leaf]) -> list[Batch]:
    """The leaves in batches of one kind, none much longer than a block unless a single tensor is."""
    batches, growing = [], {}
    for leaf in leaves:
        size = reals(leaf.param)
        batch, length = (Batch(leaf.kind), 0) if size > SMALL else growing.get(leaf.kind, (Batch(leaf.kind), 0))
        if not batch.leaves:
            batches.append(batch)
        batch.add(leaf)
        if size <= SMALL:
            growing[leaf.kind] = (batch, length + size) if length + size < BLOCK else (Batch(leaf.kind), 0)
    return batches


def _kind(g: Tensor, p: Tensor, state: Flat, group: int, slots: Sequence[str], counts: Sequence[str]) -> Kind:
    tensors = [g, p, *(state[name] for name in slots)]
    for x in tensors:
        if type(x) not in PLAIN or x.layout != torch.strided or x.device.type != "cpu" or x.shape != p.shape:
            raise Unfit
        if x.is_complex() != p.is_complex() or (x is not g and is_lazy(x)):
            raise Unfit
    stored = {x.dtype.to_real() for x in tensors}
    computed = {torch.float32 if dtype in LOW else dtype for dtype in stored}
    if computed not in ({torch.float32}, {torch.float64}) or any(state[name].device.type != "cpu" for name in counts):
        raise Unfit
    plain = stored == computed and not p.is_complex()
    return Kind(group, tuple(int(state[name]) for name in counts), computed.pop(), plain)


def _alike(tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors are dense, and all in the same order of elements."""
    strides = tensors[0].stride()
    return all(x.stride() == strides and not is_lazy(x) for x in tensors) and is_dense(tensors[0])


def _run_wide(program: Program, row: Row) -> None:
    """Run on tensors that are complex, or stored in low precision: a rule sees neither."""
    opened = _opened(row)
    (updates,) = program.run(opened)
    for stored, wide in zip(row[2:], opened[2:], strict=True):
        for slot, new in zip(stored, wide, strict=True):
            if slot.dtype != new.dtype and not slot.is_complex():
                slot.copy_(new)
    for g, p, u in zip(row[0], row[1], updates, strict=True):
        real(p).add_(u.to(torch.promote_types(g.dtype, p.dtype).to_real()))


def _opened(row: Row) -> Row:
    return [[widened(real(x)) for x in tensors] for tensors in row]
