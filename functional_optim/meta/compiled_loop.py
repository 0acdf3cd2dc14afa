"""Loops whose step is compiled, as functions that torch differentiates and batches.

    forward     run the step K times, keeping what the transpose wants
    backward    run the transpose K times, from the last step to the first

The graph is one step long whatever K, so compiling takes as long for 1000 steps as for 10. `torch.vmap` around the call goes into
the step before it is compiled; a call of what the compiler made costs some 5 µs, with nothing to guard. Inside another compiled
function the loop is one node of its graph, and the same Python.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from functional_optim import torch_internals
from functional_optim.meta.compile_step import code_of
from functional_optim.meta.derived_loops import tangent, transposed
from functional_optim.meta.packing import is_smooth
from functional_optim.meta.plan import Plan, Step, Tape, Tensors
from functional_optim.meta.reach import batch_axes, to_axis
from functional_optim.meta.remat import along, back, in_some
from functional_optim.meta.steps import plain
from functional_optim.torch_internals import is_traced


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
    outputs, tape = apply(plan, (*carry, *constants, *entries))
    return list(outputs[: len(carry)]), list(outputs[len(carry) :]), tape.code.structure


def apply(plan: Plan, tensors: Sequence[Tensor]) -> tuple[Tensors, Tape]:
    """The loop of a plan on these, and what it keeps for its transpose."""
    tape = Tape()
    moving = tuple(is_smooth(x) and torch_internals.is_tracked(x) for x in tensors)
    # `apply` looks for who batches, differentiates or traces, for as long as two steps take
    is_alone = not (any(moving) or torch_internals.is_observed())
    run = _Loop.forward if is_alone else _Loop.apply
    return run(replace(plan, moving=moving), tape, *tensors), tape


def _applied(plan: Plan, tensors: Sequence[Tensor]) -> Tensors:
    """What its loop returns alone."""
    return apply(plan, tensors)[0]


def _pulled(plan: Plan) -> Callable[..., Tensors]:
    """The transpose of a plan's loop, as a function of its tensors and the cotangents, for derivatives of it."""
    moving, count = [i for i, moves in enumerate(plan.moving) if moves], len(plan.moving)

    def pull(*inputs: Tensor) -> Tensors:
        tensors = inputs[:count]
        if is_traced():
            return transposed(_applied, plan, tensors, moving, inputs[count:])
        return torch.func.vjp(in_some(plan.run, tensors, moving), *(tensors[i] for i in moving))[1](inputs[count:])

    return pull


class _Loop(torch.autograd.Function):
    """The loop of a plan."""

    @staticmethod
    def forward(plan: Plan, tape: Tape, *tensors: Tensor) -> Tensors:
        tensors = tuple(map(plain, tensors))
        code = code_of(plan, tensors)
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
        axes, size = batch_axes(plan, in_dims[2:], tensors), info.batch_size
        moved = [to_axis(x, given, axis, size) for x, given, axis in zip(tensors, in_dims[2:], axes, strict=True)]
        outputs = _Loop.apply(plan.batched(axes), tape, *moved)
        return outputs, tuple(axes[i] if i < plan.carried else 1 for i in range(len(outputs)))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensors:
        kept = [x for x, smooth in zip(cotangents, ctx.smooth, strict=True) if smooth]
        slopes = iter(_Transpose.apply(ctx.plan, ctx.tape, *ctx.saved_tensors, *kept))
        return None, None, *(next(slopes) if moves else None for moves in ctx.plan.moving)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensors:
        tensors = ctx.saved_tensors
        moving = [i for i, tangent in enumerate(tangents[2:]) if tangent is not None]
        push = functools.partial(tangent, _applied, ctx.plan) if is_traced() else functools.partial(along, ctx.plan.run)
        pushed = iter(push(tensors, moving, [tangents[2 + i] for i in moving]))
        return tuple(next(pushed) if smooth else None for smooth in ctx.smooth)


class _Transpose(torch.autograd.Function):
    """The transpose of a loop that has run: its tensors and the cotangents to the slopes of the tensors that move."""

    @staticmethod
    def forward(plan: Plan, tape: Tape, *inputs: Tensor) -> Tensors:
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
        moved = [to_axis(x, d, axis, size) for x, d, axis in zip(inputs, given, targets, strict=True)]
        slopes = _Transpose.apply(plan.batched(axes), tape, *moved)
        return slopes, tuple(plan.axis(i) for i, moves in enumerate(plan.moving) if moves)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensors:
        inputs = ctx.saved_tensors
        moving = [i for i, x in enumerate(inputs) if is_smooth(x) and ctx.needs_input_grad[2 + i]]
        slopes = back(_pulled(ctx.plan), inputs, moving, cotangents)
        found = dict(zip(moving, slopes, strict=True))
        return None, None, *(found.get(i) for i in range(len(inputs)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensors:
        inputs = ctx.saved_tensors
        moving = [i for i, tangent in enumerate(tangents[2:]) if tangent is not None]
        return along(_pulled(ctx.plan), inputs, moving, [tangents[2 + i] for i in moving])


def _is_routine(plan: Plan) -> bool:
    """Whether the loop is to be a node of a program that is being made."""
    return plan.steps > 1 and is_traced()
