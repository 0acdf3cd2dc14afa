"""The ordinary way of elementwise rules: their formula, run over lists of small tensors and over blocks of large ones.

A rule creates a new tensor with every operation. That is slow where tensors are large, because each of them is fresh memory,
and where they are many, because each is a call. Here what the rules compute is written down once (see `tracing`), and torch's
in-place operations do it (see `program`): a block of a large tensor stays in the cache from the first operation to the last, and
small tensors go through `torch._foreach_*` together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.hparams import HParams
from functional_optim.numerics import real
from functional_optim.reductions import SumOver

from ..buckets import Column, Leaf
from ..memory import PLAIN, foreach, is_lazy, on_host
from ..passes import drawn_out, require_one_dtype, stepped
from ..program import Program
from ..prologue import NotElementwise, Prologue, is_column
from ..route import Link, marks_before, names_of, slot_count
from ..run import Run
from ..stages import Dtypes, Ending
from ..trace import Traced, trace
from ..work import Refused, Work
from .rows import Row, add, blocks, computed_in, form_of, normed, opened, pieces, rows_in, summed

# Leaves with the same numbers that are worth a list of their own, with numbers that are drawn out of it.
ALONE = 4
DTYPE, FIRST = attrgetter("dtype"), itemgetter(0)
IS_FLOAT = frozenset({float})
# Of a run whose numbers keep giving other answers, so many programs are kept.
VARIANTS = 8


class Arranged(NamedTuple):
    """A program for some leaves of a part, or for all (None), and its numbers in one step; by leaf, where they differ.

    Attributes:
        plain: whether tensors are real, and stored in the dtype that they are computed in.
    """

    rows: Sequence[int] | None
    program: Program
    numbers: Sequence[Any]
    plain: bool

    def rows_of(self, work: Work) -> Sequence[int]:
        """The places of the leaves."""
        return range(len(work.part.lengths)) if self.rows is None else self.rows

    def numbers_of(self, piece: Sequence[int]) -> Sequence[Any]:
        """Those of a list of leaves, or of a single one."""
        if self.rows is None:
            return self.numbers
        single = len(piece) == 1
        return [(x[piece[0]] if single else [x[i] for i in piece]) if isinstance(x, dict) else x for x in self.numbers]


@dataclass(frozen=True, eq=False)
class Variant:
    """What a run of links computes, as long as its rules get the same answers.

    Attributes:
        prologue: the scalars of the links to the program's numbers.
        program: of the update, the parameter and the slots.
    """

    prologue: Prologue
    program: Program


class Lists:
    """The way of lists and blocks, for one plan."""

    def __init__(self) -> None:
        self.variants: dict[Any, list[Variant]] = {}

    def refuses(self, leaf: Leaf, hparams: HParams) -> str:
        """Why it can't take this parameter; or nothing."""
        del hparams
        if not any(stage.fuses for stage in leaf.passage.stages):
            return "no rule is elementwise"
        p, slots = leaf.param, [leaf.values()[i] for i in leaf.passage.elementwise]
        tensors = [p, *slots]
        if any(type(x) not in PLAIN or x.layout != torch.strided or x.device != p.device for x in tensors):
            return f"a parameter is a {type(p).__name__} on {p.device}, of layout {p.layout}"
        if p.is_complex() and not leaf.passage.is_one_run:
            return "a parameter is complex, and not all rules are elementwise"
        if any(map(is_lazy, tensors)) or any(x.shape != p.shape or x.is_complex() != p.is_complex() for x in slots):
            return "a slot is not like its parameter"
        if any(link.rule and link.rule.as_stored for stage in leaf.passage.stages if stage.fuses for link in stage.links):
            return "a rule sees a slot as it is stored"
        if len({computed_in(dtype) for dtype in (leaf.grad_dtype, *(x.dtype for x in tensors))}) != 1:
            return "a parameter and its slots are of several precisions"
        return ""

    def ready(self, run: Run, work: Work) -> list[Arranged] | None:
        """The program of the stage, and its numbers.

        Raises:
            Refused: its rules can't be written down.
        """
        try:
            waiting = run.waiting(work)
            if not waiting:
                return self._arranged(run, work)
            if run.plan.is_new:
                first = waiting[0]
                self._arranged(run, work, first, Ending.TOTAL if isinstance(first.form.reduce, SumOver) else Ending.PEEK)
        except Exception as error:  # A rule may raise what it likes when it gets stand-ins for tensors.
            raise Refused(f"{', '.join(names_of(work.stage.links))}: {type(error).__name__}: {error}") from error
        return None

    def step(self, run: Run, work: Work, slots: Sequence[Column], prepared: Sequence[Arranged]) -> None:
        """Over lists, or block by block."""
        del run
        steps, end = work.stage.steps, 2 + len(slots)
        columns = [work.u, work.p, *slots, *(work.further if work.arrived else ())]
        updates: dict[int, Tensor] = {}
        for arranged in prepared:
            for piece in pieces(work, arranged.rows):
                row = rows_in(columns, piece)
                numbers = arranged.numbers if arranged.rows is None else arranged.numbers_of(piece)
                parts = blocks(row)
                if steps or len(parts) == 1:
                    for block in parts:
                        results = _run(arranged, block, numbers, end)
                        if steps and results and not work.stage.is_still:
                            add(block[1], results, work.part.leaves[0].update_dtype)
                        elif not steps:
                            updates |= zip(piece, results, strict=True)
                else:
                    updates[piece[0]] = target = torch.empty_like(real(row[1][0]), dtype=computed_in(row[1][0].dtype))
                    for block, ((place,),) in zip(parts, blocks([[target]]), strict=True):
                        place.copy_(_run(arranged, block, numbers, end)[0])
        work.u = [updates[i] for i in sorted(updates)] if updates else []

    def sums(self, run: Run, work: Work, link: Link) -> list[Tensor]:
        """Over the same pieces."""
        sums: dict[int, Sequence[Tensor]] = {}
        for arranged in self._arranged(run, work, link, Ending.TOTAL):
            kinds, each = arranged.program.nonnegative, not link.form.sums_all_only
            # What may be of either sign is stored twice, of half the tensors at a time.
            for piece in pieces(work, arranged.rows, at_least=1 if all(kinds) else 2):
                numbers = arranged.numbers_of(piece)
                for block in blocks(rows_in(work.columns, piece)):
                    terms = arranged.program.run(block if arranged.plain else opened(block), numbers)
                    results = summed(terms, each=each) if on_host(work.p[0]) else normed(terms, kinds)
                    for i, own in zip(piece, results, strict=False):
                        sums[i] = [x + y for x, y in zip(sums[i], own, strict=True)] if i in sums else own
        return [torch.stack(column) for column in zip(*(sums[i] for i in sorted(sums)), strict=True)]

    def reaching(self, run: Run, work: Work, link: Link) -> Column:
        """Written down as far as that."""
        updates: dict[int, Tensor] = {}
        for arranged in self._arranged(run, work, link, Ending.PEEK):
            rows = arranged.rows_of(work)
            (results,) = arranged.program.run(opened(rows_in(work.columns, rows)), arranged.numbers_of(rows))
            updates |= zip(rows, results, strict=True)
        return [updates[i] for i in sorted(updates)]

    def _arranged(self, run: Run, work: Work, until: Link | None = None, ending: Ending | None = None) -> list[Arranged]:
        """The program of a stage, or of the links that come before one of them, and its numbers in this step; several, where
        rules get other answers for some leaves than for others."""
        stage = work.stage
        dtype, plain = form_of(tuple(map(DTYPE, map(FIRST, work.columns))))
        ending = ending or (Ending.STORE if stage.is_still else Ending.STEP if stage.steps and plain else Ending.UPDATE)
        key = stage, until, ending, dtype
        whose = key, plain, run.owner(work)
        if whose not in run.cache:
            links = stage.links[: len(stage.links) if until is None else stage.links.index(until) + (ending is Ending.TOTAL)]
            known = self._known(key, run.flat(work, links), plain) if run.is_uniform(work) else None
            if known is not None:
                run.cache[whose] = [known]
                return run.cache[whose]
            given, rows = run.given(work), range(len(work.part.leaves))
            if not given.varies and not run.varies(work):
                (arranged,) = self._programs(key, run.scalars(work, links), work, len(links), rows[:1], plain)
                run.cache[whose] = [arranged._replace(rows=None)]  # Other parts may be given the same numbers.
            elif run.varies(work) or given.kind_count * ALONE > len(rows):
                run.cache[whose] = self._programs(key, run.scalars(work, links), work, len(links), rows, plain)
            else:
                run.cache[whose] = [
                    arranged
                    for own, numbers in given.kinds
                    for arranged in self._programs(key, run.scalars(work, links, numbers), work, len(links), own, plain)
                ]
        return run.cache[whose]

    def _known(self, key: Any, flat_scalars: Sequence[Any], plain: bool) -> Arranged | None:
        """A program that was arranged before, for all leaves, where their rules get the same answers."""
        for variant in self.variants.get(key, ()):
            numbers = variant.prologue(flat_scalars)
            if numbers is not None:
                if not IS_FLOAT.issuperset(map(type, numbers)):
                    numbers = [_like(x, key[-1]) for x in numbers]
                return Arranged(None, variant.program, numbers, plain)
        return None

    def _programs(
        self, key: Any, scalars: Sequence[Any], work: Work, count: int, rows: Sequence[int], plain: bool
    ) -> list[Arranged]:
        """Programs that were arranged before, for as many of these leaves as their rules get the same answers; and new ones."""
        dtype = key[-1]
        flat_scalars = trees.leaves(list(scalars))
        columns = [i for i, x in enumerate(flat_scalars) if isinstance(x, Tensor) and x.ndim]
        known = self.variants.setdefault((*key, *columns), [])
        found: list[Arranged] = []
        while rows:
            for variant in known:
                there, numbers = variant.prologue.by_row(flat_scalars, len(rows))
                if any(there):
                    break
            else:
                variant = self._traced(key, flat_scalars, scalars, work, count, len(rows))
                there, numbers = variant.prologue.by_row(flat_scalars, len(rows))
                if not any(there):
                    raise NotElementwise("a rule gets other answers than when it is asked again")
                known[:] = [variant, *known[: VARIANTS - 1]]
            own = list(compress(rows, there))
            numbers = [x if type(x) is float else _like(x, dtype, own, there) for x in numbers]
            found.append(Arranged(own, variant.program, numbers, plain))
            if all(there):
                break
            rows, left = [row for row, is_done in zip(rows, there, strict=True) if not is_done], torch.tensor(there, device="cpu")
            flat_scalars = [x[~left.to(x.device)] if is_column(x) else x for x in flat_scalars]
        return found

    def _traced(
        self, key: Any, flat_scalars: Sequence[Any], scalars: Sequence[Any], work: Work, count: int, rows: int
    ) -> Variant:
        """What the links compute, traced with these numbers."""
        ending, dtype = key[2:]
        links, where = work.stage.links, torch.device("cpu")
        dtypes = Dtypes(dtype, dtype, (dtype,) * slot_count(links), (dtype,) * len(marks_before(links)))
        spec = trees.flatten(list(scalars))[1]
        traced = trace(links, trees.unflatten(spec, flat_scalars), dtypes, count=count, total=ending is Ending.TOTAL, asks=True)
        require_one_dtype(traced)
        program = program_of(traced, ending)
        prologue = traced.tape.prologue(program.numbers)
        numbers = prologue.by_row(flat_scalars, rows)[1]
        if any(isinstance(x, Tensor) and not on_host(x) for x in numbers):
            where = work.p[0].device
        first = [_like(x[0] if is_column(x) else x, dtype) for x in numbers]
        for length in (1, 2):  # What torch refuses has to be known before anything is written.
            shape = torch.ones(1, dtype=dtype, device=where)
            own = [[x] * length if is_column(y) and length > 1 else x for x, y in zip(first, numbers, strict=True)]
            program.run([[shape.clone() for _ in range(length)] for _ in range(program.inputs)], own)
        return Variant(prologue, program)


def program_of(traced: Traced, ending: Ending) -> Program:
    """What was traced, with its results where the ending wants them."""
    results = drawn_out(traced)
    if ending in (Ending.TOTAL, Ending.PEEK):
        return Program(traced.inputs, {}, results[: None if ending is Ending.TOTAL else 1])
    u, stored = results[0], dict(enumerate(results[1:], start=2))
    if ending is Ending.STORE:
        return Program(traced.inputs, stored)
    if ending is Ending.UPDATE:
        return Program(traced.inputs, stored, [u])
    return Program(traced.inputs, {**stored, 1: stepped(traced.inputs[1], u)})


def _run(arranged: Arranged, row: Row, numbers: Sequence[Any], end: int) -> Sequence[Tensor]:
    """Run a program on tensors as they are, or on opened copies, of which all that comes after the update and the parameter, up
    to `end`, is what is stored.
    """
    if arranged.plain:
        results = arranged.program.run(row, numbers)
        return results[0] if results else ()
    copies = opened(row)
    results = arranged.program.run(copies, numbers)
    for stored, wide in zip(row[2:end], copies[2:end], strict=True):
        if stored[0].dtype != wide[0].dtype and not stored[0].is_complex():
            foreach["copy_"](stored, wide)
    return results[0] if results else ()


def _like(number: Any, dtype: torch.dtype, rows: Sequence[int] = (), there: Sequence[bool] = ()) -> Any:
    """A number that is a tensor in the dtype of those that it is combined with; of a column, those of the leaves in question."""
    if not isinstance(number, Tensor):
        return number
    number = number if number.dtype == torch.bool else number.to(dtype)
    return dict(zip(rows, compress(number.unbind(), there), strict=True)) if is_column(number) else number
