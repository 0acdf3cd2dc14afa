"""The eager step of elementwise rules: their formula, run over lists of small tensors and over blocks of large ones.

A rule creates a new tensor with every operation. That is slow where tensors are large, because each of them is fresh memory,
and where they are many, because each is a call. Here the rules write down what they compute, for each group and whenever its
numbers have changed (see `formula`), and torch's in-place operations do it (see `program`): a block of a large tensor stays in
the cache from the first operation to the last, and small tensors go through `torch._foreach_*` together.

A parameter that some rule needs in its shape goes from link to link instead (see `walk`), in step with the others where a
whole-tree quantity spans them all.

What does neither raises `Unfit`, or whatever it raises, before anything is changed; the transform is then called itself.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.hparams import HParams
from functional_optim.lifting import widened
from functional_optim.reductions import SumOver
from functional_optim.transform import Transform

from .formula import Later, Node, NotElementwise, Value, apply, written
from .held import Held, States
from .layout import Flat, Key, Layout
from .links import Link, Route, links_of, routes_of, scalars_of, values_of
from .memory import PLAIN, flat, is_dense, is_lazy, real, reals
from .program import Program
from .walk import Kind, Leaf, Numbers, Walk

Row: TypeAlias = list[Sequence[Tensor]]

LOW = (torch.bfloat16, torch.float16)

# Elements of a block. With fewer, the threads of an operation wait for each other as long as they work, on a busy machine; with
# more, what it stores leaves the cache: of AdamW six tensors, 12 MB.
BLOCK = 1 << 19

# Up to this many elements, what an operation costs is the call.
SMALL = 1 << 15


class Unfit(Exception):
    """This step has to be the transform's own."""


class Batch:
    """Parameters of a kind that are stepped at once: several small ones, or a large one."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.leaves: list[int] = []
        self.stored: list[list[Tensor]] = []

    def add(self, leaf: Leaf) -> None:
        """One more parameter."""
        tensors = [leaf.param, *leaf.stored]
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
        walking: the others.
        kinds: of all of them.
        links: all that there are, in order.
        lasting: the hyper-parameters of a kind, and the program that depends on nothing else.
        passing: the kinds whose programs depend on the step as well.
    """

    held: Held
    batches: list[Batch]
    walking: list[Leaf]
    kinds: set[Kind]
    links: list[Link]
    lasting: dict[Kind, tuple[HParams, Program]] = field(default_factory=dict)
    passing: set[Kind] = field(default_factory=set)


def has_programs(transform: Transform, params: Mapping[Key, Tensor]) -> bool:
    """Whether a transform is made of rules, and some of these parameters go through elementwise ones only."""
    links = links_of(transform, params)
    return links is not None and any(all(link.form.packs for link in route) for route in set(routes_of(links, list(params))))


class EagerStep:
    """The eager step of one transform made of rules, some of them elementwise, for one optimizer."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform
        self.plan: Plan | None = None

    def fits(self, params: Sequence[Tensor], grads: Sequence[Tensor], groups: Sequence[int], states: States) -> bool:
        """Whether the plan of the last step still holds."""
        return self.plan is not None and self.plan.held.fits(params, grads, groups, states)

    def prepare(
        self,
        layout: Layout,
        params: Mapping[Key, Tensor],
        grads: Sequence[Tensor],
        groups: Sequence[int],
        states: Mapping[Key, Flat],
    ) -> None:
        """Make a plan for these tensors, whose states are complete; other states are those of parameters that sit out.

        Raises:
            Unfit: a tensor is of a kind that a program does not take.
        """
        self.plan = None  # It may hold the last reference to tensors that were replaced.
        links, tensors = links_of(self.transform, params) or [], list(params.values())
        routes, own = routes_of(links, list(params)), [states[key] for key in params]
        leaves = [
            _leaf(i, key, p, g, state, group, route, layout)
            for i, (key, p, g, state, group, route) in enumerate(zip(params, tensors, grads, own, groups, routes, strict=True))
        ]
        waiting = {key: state for key, state in states.items() if key not in params}
        held = Held(tensors, grads, groups, own, [leaf.names for leaf in leaves], layout, list(params), waiting)
        walking, kinds = [leaf for leaf in leaves if leaf.kind.walks], {leaf.kind for leaf in leaves}
        self.plan = Plan(held, _batches(leaves), walking, kinds, links)

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
        run = Run(plan, grads, hparams)
        if not plan.held.steps:
            run.try_out()
        return functools.partial(run.write, states)


class Run:
    """One step over a plan: its whole-tree quantities and programs, of which the first are computed at once."""

    def __init__(self, plan: Plan, grads: Sequence[Tensor], hparams: Mapping[int, HParams]) -> None:
        self.plan, self.grads = plan, grads
        self.hparams = {kind: hparams[kind.group] for kind in plan.kinds}
        self.reduced: dict[Link, Any] = {}
        self.walk = Walk(plan.walking, plan.links, grads, {kind: self._numbers(kind) for kind in plan.kinds if kind.walks})
        for link in plan.links:
            batches = [batch for batch in plan.batches if link in batch.kind.route] if link.form.reduce else []
            if batches:
                self.walk.go_on(link, self.reduced)
                is_sum = isinstance(link.form.reduce, SumOver)
                self.reduced[link] = self._sum(link, batches) if is_sum else self._reduced(link, batches)
        self.walk.go_on(None, self.reduced)
        self.programs = {kind: self._program(kind) for kind in plan.kinds if not kind.walks}

    def try_out(self) -> None:
        """Run every program on tensors of no consequence, so that what torch refuses is known before anything is written."""
        for kind, program in self.programs.items():
            for length in (1, 2):
                program.run(
                    [[torch.ones(1, dtype=kind.dtype, device="cpu") for _ in range(length)] for _ in range(program.inputs)]
                )

    def write(self, states: States) -> None:
        """Step every parameter and its state."""
        for batch in self.plan.batches:
            program = self.programs[batch.kind]
            for row in batch.rows(self.grads):
                if batch.kind.plain:
                    program.run(row)
                else:
                    _run_wide(program, row)
        self.walk.write()
        if not self.plan.held.steps:
            self.plan.held.settle(states)
        self.plan.held.advance()

    def _numbers(self, kind: Kind) -> Numbers:
        """What the links of a kind get."""
        counts = self.plan.held.counts_now(kind.counts)
        return values_of(kind.route, self.hparams[kind], counts), counts

    def _lasting_numbers(self, kind: Kind) -> Numbers:
        """The same for this step and all later ones.

        Raises:
            KeyError: a hyper-parameter has a schedule, which may ask for more than the step.
            NotElementwise: one is a tensor, which anyone may fill with another number.
        """
        values = values_of(kind.route, self.hparams[kind], {})
        if any(isinstance(x, Tensor) for own in values.values() for x in trees.leaves(dict(own))):
            raise NotElementwise("a hyper-parameter is a tensor")
        return values, {path: Later(count) for path, count in self.plan.held.counts_now(kind.counts).items()}

    def _formula(self, kind: Kind, numbers: Numbers, last: Link | None = None) -> "Formula":
        """The links of a kind, or those before one of them, written down."""
        links = kind.route if last is None else kind.route[: kind.route.index(last)]
        return Formula(kind.route, len(links), scalars_of(links, *numbers, self.reduced), kind.dtype)

    def _program(self, kind: Kind) -> Program:
        """The program of a kind: an earlier step's, where the rules ask at most whether this is one of the first steps."""
        plan, hparams = self.plan, self.hparams[kind]
        known = plan.lasting.get(kind)
        if known and known[0] is hparams:
            return known[1]
        if plan.held.steps and kind not in plan.passing and not self.reduced:
            try:
                program = self._arranged(kind, self._lasting_numbers(kind))
            except Exception:  # These two, and whatever a rule raises that computes with the step.
                plan.passing.add(kind)
            else:
                plan.lasting[kind] = hparams, program
                return program
        return self._arranged(kind, self._numbers(kind))

    def _arranged(self, kind: Kind, numbers: Numbers) -> Program:
        formula = self._formula(kind, numbers)
        stored = dict(enumerate(formula.new, start=2))
        if kind.plain:
            return Program(formula.inputs, {**stored, 1: apply("add", formula.p, formula.u)})
        return Program(formula.inputs, stored, [formula.u])

    def _sum(self, link: Link, batches: Sequence[Batch]) -> Any:
        """A sum over the updates that reach a link."""
        reduction, sums = link.form.reduce, []
        assert isinstance(reduction, SumOver)
        for batch in batches:
            formula = self._formula(batch.kind, self._numbers(batch.kind), link)
            terms = reduction.term(formula.u, formula.p, **formula.slots_of(link))
            program = Program(formula.inputs, {}, [terms] if isinstance(terms, Value) else list(terms))
            for row in batch.rows(self.grads):
                results = program.run(row if batch.kind.plain else _opened(row))
                sums.append([torch.cat([x.reshape(-1) for x in xs]).sum() for xs in results])
        for u, p, *slots in self.walk.rows(link).values():
            sums.append([term.sum() for term in reduction.terms(u, p, dict(zip(link.form.slots, slots, strict=True)))])
        return reduction.finish(*(torch.stack(column).sum() for column in zip(*sums, strict=True)))

    def _reduced(self, link: Link, batches: Sequence[Batch]) -> Any:
        """A reduction in general form: it gets all updates at once, and so they have to be stored."""
        assert link.form.reduce is not None
        names = link.form.slots
        rows: dict[int, Sequence[Tensor]] = {**self.walk.rows(link)}
        for batch in batches:
            formula = self._formula(batch.kind, self._numbers(batch.kind), link)
            row = _opened(batch.row(self.grads))
            (updates,) = Program(formula.inputs, {}, [formula.u]).run(row)
            first = 2 + formula.before(link)
            rows |= dict(zip(batch.leaves, zip(updates, row[1], *row[first : first + len(names)], strict=True), strict=True))
        updates, params, *slots = zip(*(rows[i] for i in sorted(rows)), strict=True)
        return link.form.reduce(list(updates), list(params), **dict(zip(names, map(list, slots), strict=True)))


class Formula:
    """The first few links of a route, written down.

    Attributes:
        inputs: the nodes of the gradient, the parameter and all slots of the route.
        p, slots: the stand-ins of the parameter and the slots.
        u, new: the update after these links, and their new slots.
    """

    def __init__(self, links: Sequence[Link], length: int, scalars: Sequence[Any], dtype: torch.dtype) -> None:
        self.links = links
        self.inputs = [Node("input") for _ in range(2 + sum(len(link.form.slots) for link in links))]
        g, self.p, *self.slots = (Value(node, dtype) for node in self.inputs)
        self.u, self.new = written(links[:length], scalars, g, self.p, self.slots)

    def before(self, link: Link) -> int:
        """How many slots the links before this one have."""
        return sum(len(other.form.slots) for other in self.links[: self.links.index(link)])

    def slots_of(self, link: Link) -> dict[str, Value]:
        """The slots of a link, by its own names for them."""
        return dict(zip(link.form.slots, self.slots[self.before(link) :], strict=False))


def _batches(leaves: Sequence[Leaf]) -> list[Batch]:
    """The leaves in batches of one kind, none much longer than a block unless a single tensor is."""
    batches, growing = [], {}
    for leaf in (leaf for leaf in leaves if not leaf.kind.walks):
        size = reals(leaf.param)
        batch, length = (Batch(leaf.kind), 0) if size > SMALL else growing.get(leaf.kind, (Batch(leaf.kind), 0))
        if not batch.leaves:
            batches.append(batch)
        batch.add(leaf)
        if size <= SMALL:
            growing[leaf.kind] = (batch, length + size) if length + size < BLOCK else (Batch(leaf.kind), 0)
    return batches


def _leaf(index: int, key: Key, p: Tensor, g: Tensor, state: Flat, group: int, route: Route, layout: Layout) -> Leaf:
    names = [layout.slots_of(key, link.path, link.form.slots) for link in route]
    slots = {
        link: {slot: state[name] for slot, name in zip(link.form.slots, own, strict=True)}
        for link, own in zip(route, names, strict=True)
    }
    counts = layout.counts_in(key, state)
    kind = _kind(g, p, [state[name] for own in names for name in own], counts, group, route)
    return Leaf(index, p, slots, [name for own in names for name in own], kind)


def _kind(g: Tensor, p: Tensor, slots: Sequence[Tensor], counts: Sequence[Tensor], group: int, route: Route) -> Kind:
    tensors = [g, p, *slots]
    if any(type(x) not in PLAIN or x.layout != torch.strided or x.device.type != "cpu" for x in tensors):
        raise Unfit
    if any(isinstance(x, Tensor) and x.device.type != "cpu" for x in counts):
        raise Unfit
    stored = {x.dtype.to_real() for x in tensors}
    computed = {torch.float32 if dtype in LOW else dtype for dtype in stored}
    walks = not all(link.form.packs for link in route)
    alike = all(x.shape == p.shape and x.is_complex() == p.is_complex() for x in tensors)
    lazy = any(map(is_lazy, (p, *slots)))
    if not walks and (lazy or not alike or computed not in ({torch.float32}, {torch.float64})):
        raise Unfit
    plain = stored == computed and not p.is_complex()
    return Kind(group, route, tuple(map(int, counts)), computed.pop(), plain, walks)


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
