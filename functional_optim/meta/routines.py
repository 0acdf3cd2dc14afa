"""Python within a program: a function of tensors that compiled code calls while it runs, as one node of its graph.

A loop is one, which calls its compiled step as often as there are steps. So a program is as long for a thousand steps as for ten.
Its code knows a routine by its place in a list, which it gets whenever it runs: what is on disk serves other loops too.
"""

import functools
import itertools
import json
import operator
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

# Shape, dtype and device of a tensor.
Form: TypeAlias = tuple[tuple[int, ...], torch.dtype, torch.device]
Run: TypeAlias = Callable[[Sequence[Tensor], Sequence[bool], bool], Sequence[Tensor | None]]


class Routine:
    """A function of a list of tensors to one, that is not looked into by whoever traces or compiles.

    Attributes:
        run: what is computed, of the tensors, of which results are wanted, in place of others it may return None, and of whether
            nobody else gets what the first tensor holds. No result may lie in the memory of another, or of what it got.
        forms: of the results.
        parts: compiled functions that it calls.
    """

    def __init__(self, run: Run, forms: Sequence[Form], parts: Sequence[Any]) -> None:
        self.run, self.forms, self.parts = run, list(forms), list(parts)
        self.number = next(_numbers)
        _all[self.number] = self

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The call within a trace."""
        return RUN(list(tensors), self.number, _written(self.forms))


_all: weakref.WeakValueDictionary[int, Routine] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def routine_of(number: int) -> Routine:
    return _all[number]


class _Running(threading.local):
    """The routines of the programs that run in this thread, the innermost last."""

    def __init__(self) -> None:
        self.routines: list[Sequence[Routine]] = []


_running = _Running()


@contextmanager
def running_with(routines: Sequence[Routine]) -> Iterator[None]:
    """A program runs that has these routines."""
    _running.routines.append(routines)
    try:
        yield
    finally:
        _running.routines.pop()


# By its number in a trace, in a program by its place among those of the program. What its results are like is said, too: what is
# on disk is found by what is written in the graph. (Defined so, a call costs a third of what one of a `custom_op` does.)
torch.library.define(
    "functional_optim::run",
    "(Tensor[] tensors, int place, str forms, bool once=False) -> Tensor[]",
    tags=(torch.Tag.flexible_layout,),
)
RUN = torch.ops.functional_optim.run.default


@torch.library.impl("functional_optim::run", "default")
def _run(tensors: list[Tensor], place: int, forms: str, once: bool = False) -> list[Tensor]:
    wanted = tuple(form is not None for form in _read(forms))
    found = _running.routines[-1][place].run(tensors, wanted, once)
    return [torch.empty(0, device="cpu") if x is None else x for x in found]


@torch.library.register_fake("functional_optim::run")
def _(tensors: list[Tensor], place: int, forms: str, once: bool = False) -> list[Tensor]:
    nothing = ((0,), torch.float32, torch.device("cpu"))
    shapes = (nothing if form is None else form for form in _read(forms))
    return [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in shapes]


@functools.cache
def _read(forms: str) -> list[Form | None]:
    """The forms of those results that are wanted."""
    read = json.loads(forms)
    return [None if form is None else (tuple(form[0]), getattr(torch, form[1]), torch.device(form[2])) for form in read]


def _written(forms: Sequence[Form | None]) -> str:
    return json.dumps([form and (form[0], str(form[1]).removeprefix("torch."), str(form[2])) for form in forms])


def at_place(call: fx.Node, place: int) -> None:
    """Make the call of a routine in a trace one in a program, which wants those results that it uses."""
    tensors, _, forms, *_ = call.args
    first = tensors[0] if isinstance(tensors, list | tuple) and tensors else None
    once = isinstance(first, fx.Node) and first.target is operator.getitem and [*first.users] == [call]
    used = [user.args[1] for user in call.users if user.target is operator.getitem]
    if len(used) == len(call.users):
        forms = _written([form if i in used else None for i, form in enumerate(_read(str(forms)))])
        call.meta["val"] = [x if i in used else x.new_empty(0) for i, x in enumerate(call.meta["val"])]
    call.args = (tensors, place, forms, once)


HOLDER: Form = ((0,), torch.uint8, torch.device("cpu"))


def holding(kept: Any) -> Tensor:
    """A tensor without elements by which one routine hands to another what is no tensor; it lives as long as the tensor."""
    token = torch.empty(0, dtype=torch.uint8, device="cpu")
    vars(token)["kept"] = kept
    return token


def held(token: Tensor) -> Any:
    """What a tensor of `holding` holds."""
    return vars(token)["kept"]
