"""The step of a loop, and its transpose, as code for the shapes at hand."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim import inductor
from functional_optim.meta.packing import is_smooth
from functional_optim.meta.parts import Part
from functional_optim.meta.plan import Plan, Tensors
from functional_optim.meta.steps import Code
from functional_optim.meta.tracing import forward_and_transpose, forward_part, shapes_of

log = logging.getLogger(__name__)


def code_of(plan: Plan, tensors: Tensors) -> Code:
    """The compiled step for tensors of these shapes, made at its first use."""
    key = (plan.key, plan.moving, plan.batches, tuple((x.shape, x.dtype, x.device) for x in tensors), _precision(tensors))
    with inductor.lock:
        if key not in plan.cache:
            plan.cache[key] = _compiled(plan, tensors)
        return plan.cache[key]


def _precision(tensors: Tensors) -> Any:
    """What a trace takes from its surroundings: the dtype of new tensors, and of matrix products under `torch.autocast`."""
    kinds = filter(torch.amp.is_autocast_available, {x.device.type for x in tensors})
    autocast = {kind: torch.get_autocast_dtype(kind) for kind in kinds if torch.is_autocast_enabled(kind)}
    return torch.get_default_dtype(), tuple(autocast.items())


def _compiled(plan: Plan, tensors: Tensors) -> Code:
    """The step, traced for tensors of these shapes, and its transpose, where anything is differentiated."""
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
