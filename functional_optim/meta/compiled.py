"""Compiled functions and loops that can still be differentiated and batched from outside.

    compile     one step, and its transpose, for the shapes at hand; the loop around them stays a loop
    forward     run the step K times, keeping what the transpose wants
    backward    run the transpose K times, from the last step to the first

The graph is one step long whatever K, so compiling takes as long for 1000 steps as for 10. `torch.vmap` around the call goes into
the step before it is compiled; a call of what the compiler made costs some 5 µs, with nothing to guard. Inside another compiled
function the loop is one node of its graph, and the same Python. How a step becomes code: see `lowering`.
"""

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import inductor, torch_internals, trees
from functional_optim.meta.layers import composing
from functional_optim.meta.lowering import Part, forward_and_transpose, forward_part, shapes_of
from functional_optim.meta.packing import is_smooth, pack
from functional_optim.meta.remat import Arguments, Result, along, back, in_some, require_constant_closure
from functional_optim.meta.steps import Code, Tensors, plain, unchanged
from functional_optim.torch_internals import is_traced
from functional_optim.trees import Tree, distinct

log = logging.getLogger(__name__)

Step: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], tuple[Sequence[Tensor], Sequence[Tensor]]]


def compiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function as machine code, made at its first call with tensors of such shapes.

    Put it around the outermost function: one program then does everything inside, derivatives and batches included.

        meta_gradient = fo.meta.compiled(torch.func.grad(lambda p: torch.vmap(task_loss, (None, 0))(p, tasks).mean()))

    There, `loop` and `unroll(..., compile=True)` are loops: the program holds one step and its transpose, however many steps are
    taken. A function that is `compiled` itself is in the program once, however often it is called.
    Without `compile=True`, every step is written out, and compiling takes the longer. Of a loop with `remat`, the insides of a
    segment are in memory at a time; elsewhere `remat` has no say, as in `torch.compile`.

    Other values of the tensors are no other program: another learning rate, seed or data set compiles nothing, and another
    process finds what was compiled in the compiler's cache on disk. `logging.getLogger("functional_optim.meta")` says at the
    level INFO what is traced and compiled, and how long that takes.

    What `torch.compile` returns can't be called under `torch.func.grad` or `torch.vmap`; this can, at the price of their own work
    in Python. First derivatives in reverse mode are compiled too; forward mode and second derivatives work, at the speed of the
    function itself. (Within a compiled program, all of them are compiled.)

    Args:
        function: of trees of tensors and numbers to a tree of tensors. What is to be differentiated or batched outside must be an
            argument; tensors and numbers that it closes over, as those of functions that it calls and of steps of loops in it,
            are constants of the compiled code, with the values they had at the first call. Numbers among its arguments are
            constants too, each with code of its own: what changes from call to call should be a () tensor. Keep what this
            returns: it holds the compiled code.

    Raises:
        ValueError: the function draws random numbers or asks for the value of a tensor (`if x > 0`, `x[x > 0]`); or it, or one
            that is compiled inside, closes over a tensor that is being differentiated, batched or computed around it.

    The numbers agree with the function's to rounding: the compiler contracts multiplications and additions, and multiplies by
    the reciprocal of what several elements are divided by.

    Plays the part of `jax.jit`, with `unroll` for `lax.scan`.

    >>> square = compiled(lambda x: x * x)  # compiles when called
    """
    cache: dict[Any, Any] = {}
    called: Callable[..., Any] = function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return called(*args, **kwargs)
        require_constant_closure(function, batched=False)
        given = args, kwargs
        tensors, rebuild = pack(given)
        structure: list[Callable[[Sequence[Tensor]], Tree]] = []

        def step(carry: Any, constants: Sequence[Tensor], entries: Any) -> tuple[Any, Sequence[Tensor]]:
            args, kwargs = rebuild(constants)
            outputs, rebuild_outputs = pack(composing(called)(*args, **kwargs))
            structure.append(rebuild_outputs)
            return (), outputs

        name, key = getattr(function, "__qualname__", "a function"), structure_key(given)
        _, outputs, restore = run_loop(step, (), tensors, (), steps=1, cache=cache, key=key, structure=structure, name=name)
        return restore([x[0] for x in outputs])

    return call


def run_loop(
    step: Step,
    carry: Sequence[Tensor],
    constants: Sequence[Tensor],
    entries: Sequence[Tensor],
    *,
    steps: int,
    cache: dict[Any, Any],
    key: Any,
    structure: list[Any],
    stops: frozenset[int] = frozenset(),
    segment: int | None = None,
    name: str = "a step",
    settings: Mapping[str, Any] = MappingProxyType({}),
    ended: Callable[[Sequence[Tensor]], bool] | None = None,
) -> tuple[list[Tensor], list[Tensor], Any]:
    """`carry, logs = step(carry, constants, entries of this step)`, so many times, compiled.

    Args:
        step: of and to lists of tensors.
        carry: what goes from step to step.
        constants: the same at each step.
        entries: one per step along the first axis.
        steps: how many.
        cache: where compiled steps are kept.
        key: whatever `step` depends on beside the tensors; equal keys promise equal computations.
        structure: the step appends to it what goes with its results, at least once before it returns.
        stops: indices of steps before which derivatives end.
        segment: how many steps' insides a transpose has in memory at a time; it computes them again. None: those of all.
        name: of what is compiled, for those who watch it.
        settings: of the compiler, where no derivatives are taken.
        ended: whether further steps would change nothing in a carry; of a loop without logs. It is asked now and then.

    Returns:
        The last carry, the logs stacked along a new first axis, and what the step appended when it was compiled.
    """
    at_stop = (Tensor.detach,) * len(carry)
    key = key, steps > 1
    sizes = len(carry), len(constants), steps
    plan = Plan(step, *sizes, stops, at_stop, cache, key, structure, name, segment, settings, ended)
    outputs, tape = plan.applied((*carry, *constants, *entries))
    return list(outputs[: len(carry)]), list(outputs[len(carry) :]), tape.code.structure


def structure_key(tree: Tree) -> Any:
    """Equal for trees that differ in the values and shapes of their tensors alone."""
    leaves, spec = trees.flatten(tree)
    for x in leaves:
        if not isinstance(x, Tensor) and x.__hash__ is None:
            raise TypeError(
                f"an argument holds a {type(x).__name__}, which may change: it can't be a constant of compiled code. Make it a "
                "tensor."
            )
    return spec, tuple("tensor" if isinstance(x, Tensor) else distinct(x) for x in leaves)


@dataclass(eq=False)
class _Tape:
    """What a run of a loop keeps for its transpose.

    Attributes:
        rows: of each step, what its transpose wants and only it has, or of each segment, what it began with; a tensor that
            holds them, in a program.
        code: the compiled step.
        batches: for each `vmap` around the loop, innermost first, which tensors it batches.
        within: in which level of torch's transforms each of them is, None for the outermost.
    """

    rows: Any = None
    code: Any = None
    batches: tuple[Any, ...] = ()
    within: tuple[int | None, ...] = ()


@dataclass(frozen=True, eq=False)
class Plan:
    """A loop, and how it is batched; see `run_loop`.

    Attributes:
        at_stop: what becomes of each tensor of the carry where derivatives end.
        structure, name, segment, settings, ended: see `run_loop`.
        moving: which tensors derivatives are taken of.
        batches: for each `vmap` that has gone into the step, the axis of each tensor, None if it is not batched.
        within: see `_Tape`.
    """

    step: Step
    carried: int
    constant: int
    steps: int
    stops: frozenset[int]
    at_stop: tuple[Callable[[Tensor], Tensor], ...]
    cache: dict[Any, Any]
    key: Any
    structure: list[Any]
    name: str
    segment: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    ended: Callable[[Sequence[Tensor]], bool] | None = None
    moving: tuple[bool, ...] = ()
    batches: tuple[tuple[int | None, ...], ...] = ()
    within: tuple[int | None, ...] = ()

    def applied(self, tensors: Sequence[Tensor]) -> "tuple[Tensors, _Tape]":
        """The loop on these, and what it keeps for its transpose."""
        tape = _Tape()
        moving = tuple(is_smooth(x) and torch_internals.is_tracked(x) for x in tensors)
        # `apply` looks for who batches, differentiates or traces, for as long as two steps take
        is_alone = not (any(moving) or torch_internals.is_observed())
        run = _Loop.forward if is_alone else _Loop.apply
        return run(replace(self, moving=moving), tape, *tensors), tape

    def stopped(self, carry: Sequence[Tensor]) -> list[Tensor]:
        """The carry where derivatives end."""
        return [end(x) for end, x in zip(self.at_stop, carry, strict=True)]

    def parts(self, tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        """The carry, the constants and the entries."""
        return (
            tensors[: self.carried],
            tensors[self.carried : self.carried + self.constant],
            tensors[self.carried + self.constant :],
        )

    def segments(self) -> list[range]:
        """The steps, segment by segment."""
        length = self.segment or self.steps
        return [range(start, min(start + length, self.steps)) for start in range(0, self.steps, length)]

    def segment_to(self, k: int) -> range:
        """The steps of a segment up to this one."""
        return range(k - k % (self.segment or self.steps), k + 1)

    def axis(self, i: int) -> int:
        """Where the i-th tensor is batched: entries behind the axis of the steps."""
        return int(i >= self.carried + self.constant)

    def batched(self, axes: tuple[int | None, ...]) -> "Plan":
        """The plan whose step takes the batch, of the `vmap` that calls this, at these axes."""
        given = tuple(list(part) for part in self.parts([None if axis is None else 0 for axis in axes]))
        batches, within = (*self.batches, axes), (*self.within, torch_internals.maybe_current_level())
        return replace(self, step=torch.vmap(self.step, given), batches=batches, within=within)

    def run(self, *tensors: Tensor) -> Tensors:
        """The loop without the compiler, for derivatives that are not compiled."""
        carry, constants, entries = self.parts(tensors)
        rows = []
        for k in range(self.steps):
            if k in self.stops:
                carry = self.stopped(carry)
            carry, logs = self.step(list(carry), list(constants), [x[k] for x in entries])
            rows.append(logs)
        return *carry, *(torch.stack(column) for column in zip(*rows, strict=True))

    def pulled(self, count: int) -> Callable[..., Tensors]:
        """The transpose of `run`, as a function of `count` tensors and the cotangents."""
        moving = [i for i, moves in enumerate(self.moving) if moves]

        def pull(*inputs: Tensor) -> Tensors:
            tensors = inputs[:count]
            if is_traced():
                return transposed(self, tensors, moving, inputs[count:])
            return torch.func.vjp(in_some(self.run, tensors, moving), *(tensors[i] for i in moving))[1](inputs[count:])

        return pull


def tangent(plan: Plan, tensors: Sequence[Tensor], moving: Sequence[int], directions: Sequence[Tensor]) -> Tensors:
    """How the smooth results of a loop change as some of its tensors move: a loop over one step and its tangent."""
    slopes = dict(zip(moving, directions, strict=True))
    # what is carried moves from the first step on
    slopes |= {i: torch.zeros_like(x) for i, x in enumerate(tensors[: plan.carried]) if is_smooth(x) and i not in slopes}
    order = sorted(slopes)
    parts = plan.parts(tensors)
    sizes = [len(part) for part in parts]
    tangents = [[slopes[i] for i in part if i in slopes] for part in plan.parts(range(len(tensors)))]

    def step(*given: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        own = [x for part, size in zip(given, sizes, strict=True) for x in part[:size]]
        along = [x for part, size in zip(given, sizes, strict=True) for x in part[size:]]
        smooth = _smooth_step(plan, own, order)
        _, pushed, *aux = torch.func.jvp(smooth, tuple(own[i] for i in order), tuple(along), has_aux=True)
        (carry,) = aux
        count = sum(map(is_smooth, carry))
        return [*carry, *pushed[:count]], list(pushed[count:])

    carry, constants, entries = ([*part, *more] for part, more in zip(parts, tangents, strict=True))
    ends = [plan.at_stop[i] for i in order if i < plan.carried]
    at_stop = *plan.at_stop, *(unchanged if end is unchanged else torch.zeros_like for end in ends)
    loop = _derived(plan, "tangent of", step, len(carry), len(constants), plan.stops, at_stop, tuple(order))
    outputs, _ = loop.applied((*carry, *constants, *entries))
    return outputs[plan.carried :]


def transposed(plan: Plan, tensors: Sequence[Tensor], moving: Sequence[int], cotangents: Sequence[Tensor]) -> Tensors:
    """The slopes of some tensors of a loop: a loop that remembers what was carried, and one back over the steps' transposes."""

    def remembering(carry: Any, constants: Any, entries: Any) -> tuple[Any, list[Tensor]]:
        return plan.step(carry, constants, entries)[0], [x.clone() for x in carry]

    forward = _derived(plan, "states of", remembering, plan.carried, plan.constant, plan.stops, plan.at_stop, ())
    states = forward.applied(tensors)[0][plan.carried :]
    carry, constants, entries = plan.parts(tensors)
    carried = [i for i, x in enumerate(carry) if is_smooth(x)]
    of_constants = [i for i in moving if plan.carried <= i < plan.carried + plan.constant]
    of_entries = [i for i in moving if i >= plan.carried + plan.constant]
    order, sums = [*carried, *of_constants, *of_entries], len(of_constants)

    def step(given: Any, constants: Any, rows: Any) -> tuple[list[Tensor], list[Tensor]]:
        own = [*rows[: plan.carried], *constants, *rows[plan.carried : plan.carried + len(entries)]]
        smooth = _smooth_step(plan, own, order)
        pull = torch.func.vjp(smooth, *(own[i] for i in order), has_aux=True)[1]
        slopes = pull((*given[sums:], *rows[plan.carried + len(entries) :]))
        end = len(carried) + sums
        added = [a + b for a, b in zip(given[:sums], slopes[len(carried) : end], strict=True)]
        return [*added, *slopes[: len(carried)]], list(slopes[end:])

    ends = [unchanged if plan.at_stop[i] is unchanged else torch.zeros_like for i in carried]
    at_stop = *(unchanged for _ in of_constants), *ends
    stops = frozenset(plan.steps - k for k in plan.stops if k)
    size = sums + len(carried)
    loop = _derived(plan, "transpose of", step, size, plan.constant, stops, at_stop, tuple(order))
    first = [*(torch.zeros_like(tensors[i]) for i in of_constants), *cotangents[: len(carried)]]
    rows = [x.flip(0) for x in (*states, *entries, *cotangents[len(carried) :])]
    found = list(loop.applied((*first, *constants, *rows))[0])
    if 0 in plan.stops:
        found[:size] = loop.stopped(found[:size])
    slopes = dict(zip(of_constants, found[:sums], strict=True)) | dict(zip(carried, found[sums:size], strict=True))
    slopes |= {i: x.flip(0) for i, x in zip(of_entries, found[size:], strict=True)}
    return tuple(slopes[i] for i in moving)


def _derived(
    plan: Plan,
    kind: str,
    step: Step,
    carried: int,
    constant: int,
    stops: frozenset[int],
    at_stop: tuple[Callable[[Tensor], Tensor], ...],
    order: tuple[int, ...],
) -> Plan:
    """A loop of another step, made of that of a plan and kept where that is."""
    key, name = (kind, order, plan.key, plan.batches), f"{kind} {plan.name}"
    return Plan(step, carried, constant, plan.steps, stops, at_stop, plan.cache, key, plan.structure, name, plan.segment)


def _smooth_step(plan: Plan, tensors: Sequence[Tensor], places: Sequence[int]) -> Callable[..., tuple[Tensors, Tensors]]:
    """One step as a function of the tensors at some places, to its smooth results; beside them, the carry."""

    def smooth(*some: Tensor) -> tuple[Tensors, Tensors]:
        changed = dict(zip(places, some, strict=True))
        given = plan.parts([changed.get(i, x) for i, x in enumerate(tensors)])
        carry, logs = plan.step(*(list(part) for part in given))
        return tuple(filter(is_smooth, (*carry, *logs))), tuple(carry)

    return smooth


class _Loop(torch.autograd.Function):
    """The loop of a plan."""

    @staticmethod
    def forward(plan: Plan, tape: _Tape, *tensors: Tensor) -> Tensors:
        tensors = tuple(map(plain, tensors))
        code = _code(plan, tensors)
        tape.code, tape.batches, tape.within = code, plan.batches, plan.within
        outputs, tape.rows = (code.forward_routine if _is_routine(plan) else code.forward)(plan, tensors)
        return tuple(x.view_as(x) if any(x is given for given in tensors) else x for x in outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.plan, ctx.tape, tensors = inputs[0], inputs[1], inputs[2:]
        ctx.smooth = [is_smooth(x) for x in output]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.mark_non_differentiable(*(x for x in output if not is_smooth(x)))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensors, Tensors]:
        plan, tape, *tensors = args
        # what moves is batched, so that the transpose returns a derivative for each entry of the batch, never their sum
        axes = tuple(
            plan.axis(i) if i < plan.carried or plan.moving[i] or given is not None else None
            for i, given in enumerate(in_dims[2:])
        )
        moved = [_to_axis(x, given, axis, info.batch_size) for x, given, axis in zip(tensors, in_dims[2:], axes, strict=True)]
        outputs = _Loop.apply(plan.batched(axes), tape, *moved)
        return outputs, tuple(int(i >= plan.carried) for i in range(len(outputs)))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensors:
        kept = [x for x, smooth in zip(cotangents, ctx.smooth, strict=True) if smooth]
        slopes = iter(_Transpose.apply(ctx.plan, ctx.tape, *ctx.saved_tensors, *kept))
        return None, None, *(next(slopes) if moves else None for moves in ctx.plan.moving)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensors:
        tensors = ctx.saved_tensors
        moving = [i for i, tangent in enumerate(tangents[2:]) if tangent is not None]
        push = functools.partial(tangent, ctx.plan) if is_traced() else functools.partial(along, ctx.plan.run)
        pushed = iter(push(tensors, moving, [tangents[2 + i] for i in moving]))
        return tuple(next(pushed) if smooth else None for smooth in ctx.smooth)


class _Transpose(torch.autograd.Function):
    """The transpose of a loop that has run: its tensors and the cotangents to the slopes of the tensors that move."""

    @staticmethod
    def forward(plan: Plan, tape: _Tape, *inputs: Tensor) -> Tensors:
        inputs = tuple(map(plain, inputs))
        tensors, cotangents = inputs[: len(plan.moving)], inputs[len(plan.moving) :]
        if _is_routine(plan):
            return tape.code.backward_routine(plan, tape.rows, tensors, cotangents)
        return tape.code.backward(plan, list(tape.rows), tensors, cotangents)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.plan = inputs[0]
        ctx.save_for_backward(*inputs[2:])
        ctx.save_for_forward(*inputs[2:])

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensors, Tensors]:
        plan, tape, *inputs = args
        count, size, given = len(plan.moving), info.batch_size, in_dims[2:]
        done = len(plan.batches)
        if tape.within[done : done + 1] != (torch_internals.maybe_current_level(),):
            # more cotangents than the loop has run for, a Jacobian's say: one after another
            each = [
                _Transpose.apply(plan, tape, *(x if d is None else x.select(d, i) for x, d in zip(inputs, given, strict=True)))
                for i in range(size)
            ]
            return tuple(map(torch.stack, zip(*each, strict=True))), (0,) * sum(plan.moving)
        axes = tape.batches[done]
        smooth = plan.carried and sum(map(is_smooth, inputs[: plan.carried]))
        targets = *axes, *(int(i >= smooth) for i in range(len(inputs) - count))
        moved = [_to_axis(x, d, axis, size) for x, d, axis in zip(inputs, given, targets, strict=True)]
        slopes = _Transpose.apply(plan.batched(axes), tape, *moved)
        return slopes, tuple(plan.axis(i) for i, moves in enumerate(plan.moving) if moves)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensors:
        inputs = ctx.saved_tensors
        moving = [i for i, x in enumerate(inputs) if is_smooth(x) and ctx.needs_input_grad[2 + i]]
        slopes = back(ctx.plan.pulled(len(ctx.plan.moving)), inputs, moving, cotangents)
        found = dict(zip(moving, slopes, strict=True))
        return None, None, *(found.get(i) for i in range(len(inputs)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensors:
        inputs = ctx.saved_tensors
        moving = [i for i, tangent in enumerate(tangents[2:]) if tangent is not None]
        return along(ctx.plan.pulled(len(ctx.plan.moving)), inputs, moving, [tangents[2 + i] for i in moving])


def _to_axis(x: Tensor, given: int | None, axis: int | None, size: int) -> Tensor:
    """A tensor batched at one axis, or at none, batched at another."""
    if axis is None:
        return x
    if given is not None:
        return x.movedim(given, axis)
    return x.unsqueeze(axis).expand(*x.shape[:axis], size, *x.shape[axis:]).contiguous()


def _is_routine(plan: Plan) -> bool:
    """Whether the loop is to be a node of a program that is being made."""
    return plan.steps > 1 and is_traced()


def _code(plan: Plan, tensors: Tensors) -> Code:
    """The compiled step for tensors of these shapes, made at its first use."""
    key = (plan.key, plan.moving, plan.batches, tuple((x.shape, x.dtype, x.device) for x in tensors), _precision(tensors))
    with inductor.lock:
        if key not in plan.cache:
            plan.cache[key] = _compile(plan, tensors)
        return plan.cache[key]


def _precision(tensors: Tensors) -> Any:
    """What a trace takes from its surroundings: the dtype of new tensors, and of matrix products under `torch.autocast`."""
    kinds = filter(torch.amp.is_autocast_available, {x.device.type for x in tensors})
    autocast = {kind: torch.get_autocast_dtype(kind) for kind in kinds if torch.is_autocast_enabled(kind)}
    return torch.get_default_dtype(), tuple(autocast.items())


def _compile(plan: Plan, tensors: Tensors) -> Code:
    carry, constants, entries = plan.parts(tensors)
    given = (*carry, *constants, *(x[0] for x in entries))

    def step(*tensors: Tensor) -> Tensors:
        carry, logs = plan.step(*(list(part) for part in plan.parts(tensors)))
        return tuple(x.contiguous() for x in (*carry, *logs))

    start = time.perf_counter()
    log.info("tracing %s", plan.name)
    transpose, moving = None, ()
    if any(plan.moving):
        outputs = shapes_of(step, given)
        _require_kept(carry, outputs)
        moving = tuple(i for i, x in enumerate(given) if is_smooth(x) and (i < plan.carried or plan.moving[i]))
        forward, transpose = forward_and_transpose(step, given, outputs, moving, plan.name)
    else:
        forward, outputs = _forward(step, given, plan)
        _require_kept(carry, outputs)
    log.info("traced %s in %.1f s", plan.name, time.perf_counter() - start)
    saved, passed = forward.some_views(slice(len(outputs), None)), forward.some_views(slice(plan.carried)).arguments
    return Code(forward, saved, passed, transpose, plan.carried, tuple(outputs), moving, plan.structure[-1])


def _require_kept(carry: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(carry, outputs, strict=False)):
        raise ValueError("a step changed the shape or dtype of the parameters or the state: it can't be compiled as a loop.")


def _forward(step: Callable[..., Tensors], given: Tensors, plan: Plan) -> tuple[Part, list[Tensor]]:
    """A step as a part, and tensors like its results."""
    try:
        return forward_part(step, given, plan.name, plan.settings)
    except Exception:
        shapes_of(step, given)  # which has a better word for what fails there too
        raise
