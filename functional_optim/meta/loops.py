"""Loops of any step function, to be differentiated, batched and compiled: what `jax.lax.scan` is there.

    for k = 0 … K − 1:
        sₖ₊₁, yₖ ← step(sₖ, xₖ)

Without a compiler it is Python's loop, and all that torch can do with one it can do with this. Within `compiled` it is a loop of
the program: one step is compiled, and its transpose and tangent where derivatives are taken, whatever K is.
"""

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim import torch_internals, trees
from functional_optim.closures import constants_of
from functional_optim.hparams import require_count
from functional_optim.meta.compiled import structure_key
from functional_optim.meta.compiled_loop import run_loop
from functional_optim.meta.packing import detached, is_smooth, map_tensors, pack
from functional_optim.meta.parts import is_compiling
from functional_optim.meta.remat import remat as rematerialised
from functional_optim.meta.remat import require_constant_closure
from functional_optim.recipe import answering
from functional_optim.torch_internals import is_traced
from functional_optim.trees import Tree, distinct

Step = Callable[..., tuple[Tree, Tree]]

# The compiled steps of each step function, as long as somebody keeps that.
_caches: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


@answering
def loop(
    step: Step,
    state: Tree,
    steps: int,
    xs: Tree = None,
    *,
    args: tuple[Any, ...] = (),
    until: Callable[[Tree], Tensor] | None = None,
    truncate: int | None = None,
    remat: bool | int = False,
) -> tuple[Tree, Tree]:
    """`state, y = step(state, x, *args)`, so many times: the last state, and what each step returned beside it, stacked.

        average = lambda state, x, decay: (decay * state + (1 - decay) * x, None)
        last, _ = fo.meta.loop(average, torch.zeros(3), steps=100, xs=samples, args=(decay,))

    Differentiate it in the state, in `xs` and in `args`; batch it; nest such loops. `unroll` is this loop of a step of training.
    In a function that is `compiled`, one step is compiled instead of all, with its transpose and its tangent: so compiling takes
    as long for a thousand steps as for ten, whatever derivatives are taken inside.

    Args:
        step: `(state, x, *args) -> (state, y)`, of trees of tensors; the state keeps its structure, shapes and dtypes. Compiled
            code is kept for this function: give the same one again, not another lambda, where a program has several such loops.
            Where it closes over another number or tensor than before, or an attribute of its object is another, it is compiled
            anew; attributes of attributes are not looked at, nor whether a tensor has been written to. Within `compiled` it
            is as it was at the first call: what changes belongs in `args`.
        state: what goes from step to step.
        steps: how many, at least 1.
        xs: a tree of tensors with an entry for each step along their first axis, of which the step gets its own. None: it gets
            its index, a () tensor of integers. Batches that change, schedules, noise, the keys of a generator.
        args: what is the same at every step. A step may close over it too; but what is to be differentiated or batched must be an
            argument with `remat` and within `compiled`.
        until: `state -> ` a () tensor of booleans. As soon as it holds, the state stays as it is: under `vmap` each loop ends by
            itself. Steps are still computed, so that all take as long; their `y` are those of steps from the state that stays,
            and may be NaN there. No derivative in reverse mode goes through them, so that those of the steps that count stay
            right; what the step closes over should then be in `args`.
        truncate: stop derivatives before every step whose index is a multiple of this. None stops none.
        remat: keep the states between segments of √steps steps and compute the rest again when differentiated, as in `unroll`.
            An int is the length of a segment.

    Returns:
        The last state, and the tree of `y`, each of shape (steps, …).

    Raises:
        ValueError: steps is less than 1, a tensor of `xs` has another first axis, the step returns a state of another structure,
            shape or dtype, or closes over what should be in `args`.
        TypeError: a count is no whole number, or the step returns no pair.

    Plays the part of `jax.lax.scan` (with an index where there is nothing to scan, and `args`). torch's own `scan` has neither
    derivatives within `torch.func` nor forward mode, and its `while_loop` no batches (seen in 2.13).

    >>> last, seen = loop(lambda total, i: (total + i, total), torch.tensor(0), steps=4)
    >>> last, seen
    (tensor(6), tensor([0, 0, 1, 3]))
    """
    steps, truncate, remat = counts_of(steps, truncate, remat)
    if xs is None:
        device = next((x.device for x in pack(state)[0]), None)
        xs = torch.arange(steps, device=device)
    require_entry_per_step(xs, steps, "xs", advice="What is the same at every step goes into `args`.")
    compiles = is_compiling()
    if remat or compiles:
        for function in filter(None, (step, until)):
            require_constant_closure(function, batched=not compiles)
    return run(
        lambda state, x, *args: _checked(step, until, state, x, *args),
        state,
        args,
        xs,
        steps=steps,
        truncate=truncate,
        remat=remat,
        cache=_cache_of(step) if compiles else None,
        key=(until, constants_of(step), constants_of(until)) if compiles else None,
        name=getattr(step, "__qualname__", type(step).__name__) if compiles else "",
    )


def run(
    step: Step,
    state: Tree,
    args: tuple[Any, ...],
    xs: Tree,
    *,
    steps: int,
    truncate: int | None,
    remat: bool | int,
    cache: dict[Any, Any] | None,
    key: Any,
    name: str,
) -> tuple[Tree, Tree]:
    """What `loop` and `unroll` do, segment by segment.

    Args:
        cache: where compiled steps are kept; None does not compile.
        key: what tells steps apart that share a cache, beside what they get.
        name: for those who watch the compiler.
    """
    length = steps if remat is False else math.isqrt(steps - 1) + 1 if remat is True else remat
    ends = range(truncate, steps, truncate) if truncate else ()
    if cache is not None and is_traced():  # one operation of a program, which has the segments inside
        inside, stops = length if remat else None, frozenset(ends)
        return _compiled(step, steps, stops, state, args, xs, cache=cache, key=key, name=name, segment=inside)
    parts = []
    for start in range(0, steps, length):
        stop = min(start + length, steps)
        stops = frozenset(k - start for k in ends if start <= k < stop)

        def segment(state: Tree, args: Any, xs: Tree, count: int = stop - start, stops: Any = stops) -> tuple[Tree, Tree]:
            if cache is None:
                return _eager(step, count, stops, state, args, xs)
            return _compiled(step, count, stops, state, args, xs, cache=cache, key=key, name=name)

        own = xs if stop - start == steps else map_tensors(lambda x, start=start, stop=stop: x[start:stop], xs)
        state, ys = (rematerialised(segment) if remat else segment)(state, args, own)
        parts.append(ys)
    return state, _joined(torch.cat, parts) if len(parts) > 1 else parts[0]


def counts_of(steps: Any, truncate: Any, remat: Any) -> tuple[int, int | None, bool | int]:
    """What a loop is told of its steps: how many, before which derivatives end, and how many are a segment.

    Raises:
        TypeError: a count is no whole number.
        ValueError: it is less than 1.
    """
    steps = require_count("steps", steps, 1)
    truncate = None if truncate is None else require_count("truncate", truncate, 1)
    if remat is None or isinstance(remat, bool):
        return steps, truncate, bool(remat)
    return steps, truncate, require_count("remat", remat, 1)


def require_entry_per_step(tree: Tree, steps: int, name: str, advice: str) -> None:
    """Raise ValueError unless each tensor has one entry per step."""
    for x in pack(tree)[0]:
        if x.ndim == 0 or x.shape[0] != steps:
            found = f"{name} holds a tensor of shape {tuple(x.shape)}"
            raise ValueError(f"{found}: each needs a first axis of length {steps}, one entry per step. {advice}")


def _eager(step: Step, steps: int, stops: frozenset[int], state: Tree, args: tuple[Any, ...], xs: Tree) -> tuple[Tree, Tree]:
    """So many steps, with an end of derivatives before some."""
    tensors, rebuild = pack(xs)
    # unbind, not indexing: its derivative is one stack instead of a tensor of zeros per step.
    columns = zip(*(x.unbind() for x in tensors), strict=True) if tensors else [()] * steps
    rows = []
    for k, column in enumerate(columns):
        state, y = step(detached(state) if k in stops else state, rebuild(column), *args)
        rows.append(y)
    return state, _joined(torch.stack, rows)


def _compiled(
    step: Step,
    steps: int,
    stops: frozenset[int],
    state: Tree,
    args: tuple[Any, ...],
    xs: Tree,
    *,
    cache: dict[Any, Any],
    key: Any,
    name: str,
    segment: int | None = None,
) -> tuple[Tree, Tree]:
    """What `_eager` does, by a compiled step; with `segment`, the insides of so many steps are in memory at a time."""
    carry, rebuild_carry = pack(state)
    constants, rebuild_constants = pack(args)
    entries, rebuild_entry = pack(xs)
    structure = []

    def flat(carry: Sequence[Tensor], constants: Sequence[Tensor], entry: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        new, y = step(rebuild_carry(carry), rebuild_entry(entry), *rebuild_constants(constants))
        logs, rebuild_logs = pack(y)
        structure.append(rebuild_logs)
        _require_constant(new, state)
        return pack(new)[0], logs

    carry, logs, rebuild_logs = run_loop(
        flat,
        carry,
        constants,
        entries,
        steps=steps,
        cache=cache,
        key=(key, structure_key((state, args, xs))),
        structure=structure,
        stops=stops,
        segment=segment,
        name=name,
    )
    return rebuild_carry(carry), rebuild_logs(logs)


def _joined(function: Callable[[list[Tensor]], Tensor], rows: Sequence[Tree]) -> Tree:
    """Trees of tensors of the same structure as one; what is no tensor is that of the first."""
    rebuild = pack(rows[0])[1]
    return rebuild([function(list(column)) for column in zip(*(pack(row)[0] for row in rows), strict=True)])


def _checked(step: Step, until: Callable[[Tree], Tensor] | None, state: Tree, x: Tree, *args: Any) -> tuple[Tree, Tree]:
    """A step of a user's, whose state is one to go on with, and stays as it is where it is to."""
    ended = None if until is None else until(state)
    given = (state, x, *args)
    returned = step(*(given if ended is None else map_tensors(lambda t: _held(t, ended), given)))
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise TypeError(f"the step returned a {type(returned).__name__}: expected a pair (state, y), with y = None for nothing.")
    new, y = returned
    leaves = kept_leaves(new, state, "state", "step")
    if ended is None:
        return new, y
    old, spec = trees.flatten(state)
    kept = [torch.where(ended, a, b) if isinstance(a, Tensor) else b for a, b in zip(old, leaves, strict=True)]
    return trees.unflatten(spec, kept), y


def kept_leaves(new: Tree, old: Tree, name: str, function: str) -> list[Any]:
    """The leaves of what a step made of a tree; raise ValueError unless it has the old one's structure, shapes and dtypes."""
    before, spec = trees.flatten(old)
    leaves = trees.leaves_like(new, old, spec, f"the {name} that the {function} returned", f"the {name} it got")
    for i, (had, made) in enumerate(zip(map(_form, before), map(_form, leaves), strict=True)):
        if had != made and "shape" in had + made:
            raise ValueError(
                f"{trees.paths(old, name)[i]} has {had}, but the {function} made of it {made}: a {name} keeps its shapes and "
                "dtypes from step to step."
            )
    return leaves


def _require_constant(new: Tree, old: Tree) -> None:
    """Raise ValueError where a step made another value of what is no tensor, which compiled code would not see."""
    for path, had, made in zip(trees.paths(old, "state"), trees.leaves(old), trees.leaves(new), strict=True):
        if not isinstance(had, Tensor) and distinct(had) != distinct(made):
            raise ValueError(
                f"{path} is {had!r}, of which the step made {made!r}: what is no tensor is a constant of compiled code. Make "
                "what changes from step to step a () tensor."
            )


def _form(x: Any) -> str:
    return f"shape {tuple(x.shape)}, {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"


def _held(x: Tensor, ended: Tensor) -> Tensor:
    """The same tensor, a constant once the loop has ended: there a slope of 0 would meet infinite ones, and be NaN."""
    differentiates = is_smooth(x) and (torch.compiler.is_compiling() or torch_internals.is_tracked(x))
    return torch.where(ended, x.detach(), x) if differentiates else x


def _cache_of(step: Step) -> dict[Any, Any]:
    try:
        return _caches.setdefault(step, {})
    except TypeError:  # A function that nothing can refer to weakly, or with no hash.
        return {}
