"""The ordinary way of elementwise rules: their formula, run over lists of small tensors and over blocks of large ones.

A rule creates a new tensor with every operation. That is slow where tensors are large, because each of them is fresh memory,
and where they are many, because each is a call. Here the rules write down what they compute, for each kind of parameters and
whenever its numbers have changed (see `formula`), and torch's in-place operations do it (see `program`): a block of a large
tensor stays in the cache from the first operation to the last, and small tensors go through `torch._foreach_*` together.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.hparams import HParams
from functional_optim.lifting import widened
from functional_optim.reductions import SumOver

from .formula import Later, Node, NotElementwise, Value, apply, written
from .links import Link, scalars_of, values_of
from .memory import PLAIN, flat, is_dense, is_lazy, real, reals
from .parts import Column, Kind, Leaf
from .program import Program
from .run import Numbers, Refused, Run, Work
from .stages import Stage, slot_count

Row: TypeAlias = list[Sequence[Tensor]]

LOW = (torch.bfloat16, torch.float16)

# Elements of a block. With fewer, the threads of an operation wait for each other as long as they work, on a busy machine; with
# more, what it stores leaves the cache: of AdamW six tensors, 12 MB.
BLOCK = 1 << 19

# Up to this many elements, what an operation costs is the call.
SMALL = 1 << 15


class Lists:
    """The way of lists and blocks, for one plan."""

    def __init__(self) -> None:
        # The hyper-parameters that a program was made with, where it depends on nothing else but that, and not on the step.
        self.lasting: dict[tuple[Kind, Stage, torch.dtype, bool], tuple[HParams, Program]] = {}
        self.passing: set[tuple[Kind, Stage]] = set()

    def refuses(self, leaf: Leaf, hparams: HParams) -> str:
        """Why it can't take this parameter; or nothing."""
        del hparams
        if not any(stage.fuses for stage in leaf.kind.passage.stages):
            return "no rule is elementwise"
        p, slots = leaf.param, [leaf.values()[i] for i in leaf.kind.passage.elementwise]
        tensors = [p, *slots]
        if any(type(x) not in PLAIN or x.layout != torch.strided or x.device.type != "cpu" for x in tensors):
            return f"a parameter is a {type(p).__name__} on {p.device}, of layout {p.layout}"
        if p.is_complex() and not leaf.kind.passage.is_one_run:
            return "a parameter is complex, and not all rules are elementwise"
        if any(map(is_lazy, tensors)) or any(x.shape != p.shape or x.is_complex() != p.is_complex() for x in slots):
            return "a slot is not like its parameter"
        if len(_computed([leaf.grad_dtype, *(x.dtype for x in tensors)])) != 1:
            return "a parameter and its slots are of several precisions"
        return ""

    def ready(self, run: Run, work: Work) -> None:
        """Arrange the program of the stage.

        Raises:
            Refused: its rules can't be written down.
        """
        waits = any(link.rule and link.rule.reduce and link not in run.reduced for link in work.stage.links)
        try:
            if not waits:
                self._program(run, work)
            elif run.plan.is_new:
                self._formula(work, run.numbers[work.kind], run, _first_waiting(run, work.stage))
        except Exception as error:  # A rule may raise what it likes when it gets stand-ins for tensors.
            raise Refused(f"{', '.join(map(str, work.stage.links))}: {type(error).__name__}: {error}") from error

    def step(self, run: Run, work: Work, slots: Sequence[Column]) -> None:
        """Over lists, or block by block."""
        program, last, plain = self._program(run, work), work.stage.last, _is_plain(work)
        updates: dict[int, Tensor] = {}
        for piece in _pieces(work):
            row = [[column[i] for i in piece] for column in (work.u, work.p, *slots)]
            blocks = _blocks(row)
            if last or len(blocks) == 1:
                for block in blocks:
                    results = _run(program, block, plain)
                    if last and not work.stage.is_still:
                        _add(block[1], results, work.part.leaves[0].update_dtype)
                    elif not last:
                        updates |= zip(piece, results, strict=True)
            else:
                updates[piece[0]] = target = torch.empty_like(real(row[1][0]), dtype=_dtype_of(work))
                for block, place in zip(blocks, flat(target).split(BLOCK), strict=True):
                    place.copy_(_run(program, block, plain)[0])
        work.u = [updates[i] for i in sorted(updates)]

    def sums(self, run: Run, work: Work, link: Link) -> list[Tensor]:
        """Over the same pieces."""
        reduction = link.form.reduce
        assert isinstance(reduction, SumOver)
        formula = self._formula(work, run.numbers[work.kind], run, link)
        terms = reduction.term(formula.u, formula.p, **formula.slots_of(link))
        program = Program(formula.inputs, {}, [terms] if isinstance(terms, Value) else list(terms))
        sums: list[list[Tensor]] = []
        for piece in _pieces(work):
            for block in _blocks([[column[i] for i in piece] for column in (work.u, work.p, *work.slots)]):
                sums.append([torch.cat([x.reshape(-1) for x in xs]).sum() for xs in program.run(_opened(block))])
        return [torch.stack(column).sum() for column in zip(*sums, strict=True)]

    def reaching(self, run: Run, work: Work, link: Link) -> Column:
        """Written down as far as that."""
        formula = self._formula(work, run.numbers[work.kind], run, link)
        (updates,) = Program(formula.inputs, {}, [formula.u]).run(_opened([work.u, work.p, *work.slots]))
        return list(updates)

    def _program(self, run: Run, work: Work) -> Program:
        """The program of a stage: an earlier step's, where the rules ask at most whether this is one of the first steps."""
        key = (work.kind, work.stage, _dtype_of(work), _is_plain(work))
        if key not in run.cache:
            run.cache[key] = self._lasting(key, run, work) or self._arranged(run, work, run.numbers[work.kind])
        return run.cache[key]

    def _lasting(self, key: Any, run: Run, work: Work) -> Program | None:
        hparams = run.hparams[work.kind.group]
        known = self.lasting.get(key)
        if known and known[0] is hparams:
            return known[1]
        reduces = any(link in run.reduced for link in work.stage.links)
        if run.plan.is_new or reduces or key[:2] in self.passing:
            return None
        try:
            program = self._arranged(run, work, _lasting_numbers(run, work))
        except Exception:  # A schedule or a tensor among the numbers, and whatever a rule raises that computes with the step.
            self.passing.add(key[:2])
            return None
        self.lasting[key] = hparams, program
        return program

    def _arranged(self, run: Run, work: Work, numbers: Numbers) -> Program:
        formula, in_place = self._formula(work, numbers, run), work.stage.last and _is_plain(work)
        stored = dict(enumerate(formula.new, start=2))
        if work.stage.is_still:
            program = Program(formula.inputs, stored)
        elif in_place:
            program = Program(formula.inputs, {**stored, 1: apply("add", formula.p, formula.u)})
        else:
            program = Program(formula.inputs, stored, [formula.u])
        if run.plan.is_new:  # What torch refuses has to be known before anything is written.
            for length in (1, 2):
                shape = torch.ones(1, dtype=_dtype_of(work), device="cpu")
                program.run([[shape.clone() for _ in range(length)] for _ in range(program.inputs)])
        return program

    def _formula(self, work: Work, numbers: Numbers, run: Run, until: Link | None = None) -> "Formula":
        """The links of a stage, or those before one of them, written down."""
        links = work.stage.links
        count = len(links) if until is None else links.index(until)
        return Formula(links, count, scalars_of(links[:count], *numbers, run.reduced), _dtype_of(work))


class Formula:
    """The first few links of a stage, written down.

    Attributes:
        inputs: the nodes of the update, the parameter and all slots of the stage.
        p, slots: the stand-ins of the parameter and the slots.
        u, new: the update after these links, and their new slots.
    """

    def __init__(self, links: Sequence[Link], length: int, scalars: Sequence[Any], dtype: torch.dtype) -> None:
        self.links = links
        self.inputs = [Node("input") for _ in range(2 + slot_count(links))]
        g, self.p, *self.slots = (Value(node, dtype) for node in self.inputs)
        self.u, self.new = written(links[:length], scalars, g, self.p, self.slots)

    def slots_of(self, link: Link) -> dict[str, Value]:
        """The slots of a link, by its own names for them."""
        return dict(zip(link.slots, self.slots[slot_count(self.links[: self.links.index(link)]) :], strict=False))


def _lasting_numbers(run: Run, work: Work) -> Numbers:
    """The numbers of this step and of all later ones.

    Raises:
        KeyError: a hyper-parameter has a schedule, which may ask for more than the step.
        NotElementwise: one is a tensor, which anyone may fill with another number.
    """
    values = values_of(work.stage.links, run.hparams[work.kind.group], {})
    if any(isinstance(x, Tensor) for own in values.values() for x in trees.leaves(dict(own))):
        raise NotElementwise("a hyper-parameter is a tensor")
    return values, {path: Later(count) for path, count in run.numbers[work.kind][1].items()}


def _first_waiting(run: Run, stage: Stage) -> Link:
    """The first link that has not been able to reduce yet."""
    return next(link for link in stage.links if link.form.reduce and link not in run.reduced)


def _pieces(work: Work) -> list[list[int]]:
    """The leaves of a part in lists of small ones, none much longer than a block, and large ones alone."""
    pieces: list[list[int]] = []
    growing, length = [], 0
    for i, p in enumerate(work.p):
        if reals(p) > SMALL:
            pieces.append([i])
        else:
            if not growing or length >= BLOCK:
                growing, length = [], 0
                pieces.append(growing)
            growing.append(i)
            length += reals(p)
    return pieces


def _blocks(row: Sequence[Sequence[Tensor]]) -> Sequence[Row]:
    """The row, or a large tensor block by block."""
    tensors = [x[0] for x in row]
    if len(row[0]) > 1 or reals(tensors[0]) <= BLOCK or not _alike(tensors):
        return [list(row)]
    return [[[x] for x in block] for block in zip(*(flat(x).split(BLOCK) for x in tensors), strict=True)]


def _run(program: Program, row: Row, plain: bool) -> Sequence[Tensor]:
    """Run on the tensors themselves; where they are complex, or stored in low precision, on what a rule sees of them."""
    opened = row if plain else _opened(row)
    results = program.run(opened)
    for stored, wide in zip(row[2:], opened[2:], strict=True):
        for slot, new in zip(stored, wide, strict=True):
            if slot.dtype != new.dtype and not slot.is_complex():
                slot.copy_(new)
    return results[0] if results else ()


def _add(params: Sequence[Tensor], updates: Sequence[Tensor], dtype: torch.dtype) -> None:
    for p, u in zip(params, updates, strict=bool(updates)):
        real(p).add_(u.to(dtype.to_real()))


def _opened(row: Sequence[Sequence[Tensor]]) -> Row:
    return [[widened(real(x)) for x in tensors] for tensors in row]


def _alike(tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors are dense, and all in the same order of elements."""
    strides = tensors[0].stride()
    return all(x.stride() == strides and not is_lazy(x) for x in tensors) and is_dense(tensors[0])


def _dtype_of(work: Work) -> torch.dtype:
    return _computed([work.p[0].dtype]).pop()


def _computed(dtypes: Iterable[torch.dtype]) -> set[torch.dtype]:
    """In what these are computed."""
    reals = {dtype.to_real() for dtype in dtypes}
    return {torch.float32 if dtype in LOW else dtype for dtype in reals}


def _is_plain(work: Work) -> bool:
    """Whether all tensors of a stage are real, and stored in what they are computed in."""
    tensors = [work.u[0], work.p[0], *(column[0] for column in work.slots)]
    return {x.dtype for x in tensors} == {_dtype_of(work)}
