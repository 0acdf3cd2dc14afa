"""`scheduled`: hyper-parameters that are functions of the step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from functional_optim.checks import misfit
from functional_optim.combinators.combined import Transparent
from functional_optim.combinators.origin import Handed, Origin
from functional_optim.form import Path
from functional_optim.hparams import HParams, validate
from functional_optim.lifting import new_count
from functional_optim.numerics import double
from functional_optim.recipe import recorded
from functional_optim.schedules import Schedule
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class Scheduled(Transparent):
    """The form of a transform with scheduled hyper-parameters."""

    inner: Transform
    schedules: Mapping[str, Schedule]

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {("inner",): self.inner}

    @property
    def clocks(self) -> tuple[str, ...]:
        """The clock of the schedules."""
        return ("schedule_step",)

    def handed(self, keys: Path, hp: HParams, state: Tree) -> dict[str, Any]:
        """As `inner_hparams`."""
        return self.inner_hparams(state["schedule_step"], hp)

    def inner_hparams(self, step: Any, hp: HParams) -> dict[str, Any]:
        """What the inner transform gets at this step, counted from 0."""
        return self.inner.select({**hp, **{name: schedule(double(step)) for name, schedule in self.schedules.items()}})

    def origins(self, path: Path, outer: Mapping[str, Origin]) -> Handed:
        """Scheduled names come from the clock, the others are passed on."""
        clock = (*path, "schedule_step")
        timed = {name: Origin((), lambda counts, at=at: at(double(counts[clock]))) for name, at in self.schedules.items()}
        return {("inner",): {name: timed[name] if name in timed else outer[name] for name in self.inner.declared}}

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The clock at 0, and the inner state."""
        clock = new_count(params)
        inner = self.inner_hparams(clock, hp)
        for name in self.schedules:
            validate(f"the first value of the schedule of {name!r}", inner[name], self.inner.declared[name])
        return {"schedule_step": clock, "inner": self.inner.init_fn(params, inner)}

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The inner update under the values of this step."""
        step = state["schedule_step"]
        updates, inner = self.inner.update_fn(updates, state["inner"], params, self.inner_hparams(step, hp), **extra)
        return updates, {"schedule_step": step + 1, "inner": inner}


@recorded
def scheduled(transform: Transform, **schedules: Schedule) -> Transform:
    """The same transform with some of its hyper-parameters given by schedules, all on one clock.

        scheduled(adamw(), lr=warmup_cosine(3e-4, 500, 10_000), weight_decay=linear(0.1, 0.0, 10_000))

    Any hyper-parameter of any chain can be scheduled; what is scheduled can't be given in a call any more. The clock counts
    updates: the first one sees step 0. A resumed state continues the schedule exactly.

    Args:
        transform: any transform.
        schedules: name to a pure function of the step, a number or a () float64 tensor; for a pair such as `betas`, one that
            returns a pair.

    State: `schedule_step` () int64, and the transform's under `"inner"`. `hparams_at` tells the values in force.

    Raises:
        TypeError: a schedule is no function of one number.
        ValueError: the transform has no such hyper-parameter; or, from `init_state`, the first value does not lie in its range.

    Differs from `optax.inject_hyperparams` in taking a built transform. To drive a chain from a `torch.optim.lr_scheduler`
    object, put it behind the adapter.

    >>> import torch
    >>> from functional_optim import sgd
    >>> tx = scheduled(sgd(), lr=lambda step: 0.5 ** (step + 1))
    >>> state = tx.init_state(torch.zeros(()))
    >>> for _ in range(2):
    ...     update, state = tx.update(torch.tensor(1.0), state)
    >>> update
    tensor(-0.2500)
    """
    require_transform(transform, "scheduled")
    for name in schedules:
        if name not in transform.declared:
            raise ValueError(transform.refusal(name))
        _require_schedule(name, schedules[name])
    form = Scheduled(transform, schedules)
    declared = {name: hparam for name, hparam in transform.declared.items() if name not in schedules}
    return Transform.of(form, declared, transform.name)


def _require_schedule(name: str, schedule: Any) -> None:
    if not callable(schedule):
        advice = f"For a value that stays, set_defaults(transform, {name}=...)."
        if isinstance(schedule, LRScheduler):
            advice = "torch's schedulers drive an optimizer: give one to OptimizerAdapter(params, transform)."
        raise TypeError(f"the schedule of {name!r} is {schedule!r}: expected a function of the step. {advice}")
    if isinstance(schedule, type):
        own = f"call it, {name}={schedule.__name__}(...)."
        advice = (
            "torch's schedulers drive the optimizer that OptimizerAdapter makes." if issubclass(schedule, LRScheduler) else own
        )
        raise TypeError(f"the schedule of {name!r} is a class: {advice}")
    problem = misfit(schedule, 0)
    if problem:
        raise TypeError(f"the schedule of {name!r} is called with the step, but takes {problem}.")
