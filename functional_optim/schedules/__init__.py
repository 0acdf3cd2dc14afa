"""Schedules: pure functions of the step, a Python number or a () tensor.

The first update sees step 0: where a rule counts updates t = 1, 2, …, its schedule is evaluated at t − 1. So a schedule that
rises from 0 makes a first update of 0, as in optax and under torch's schedulers. Steps are not negative.

Every schedule here is a value: equal schedules are equal, print as they are written, and pickle. Its arguments are numbers or
() tensors; in these, and in the step, it can be batched by `torch.vmap` and differentiated. Where two pieces meet, the
derivative in the step is that of the later piece. A tensor step gives a tensor. A number out of its range raises ValueError,
what is no number TypeError. Any function from step to value will do as a schedule, too.
"""

from typing import TYPE_CHECKING

from functional_optim import hints
from functional_optim.schedules.cycles import cosine_restarts, inverse_sqrt, noam, one_cycle, warmup_cosine, warmup_stable_decay
from functional_optim.schedules.decays import constant, cosine, exponential, linear, polynomial
from functional_optim.schedules.parts import Schedule
from functional_optim.schedules.pieces import join, piecewise_constant, piecewise_interpolate

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "join",
    "linear",
    "noam",
    "one_cycle",
    "piecewise_constant",
    "piecewise_interpolate",
    "polynomial",
    "warmup_cosine",
    "warmup_stable_decay",
]

if not TYPE_CHECKING:  # Type checkers would take it for a promise that the module has everything.
    __getattr__ = hints.module_getattr(__name__, __all__)
