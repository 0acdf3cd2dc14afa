"""A schedule as an object of `torch.optim.lr_scheduler`, for any optimizer.

The other way needs no bridge: torch's schedulers write into the groups of an optimizer, and behind the adapter the groups are
the hyper-parameters.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from functional_optim.hparams import unknown
from functional_optim.recipe import answering
from functional_optim.schedules import Schedule


@answering
def as_lr_scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule | Sequence[Schedule], name: str = "lr", last_epoch: int = -1
) -> LRScheduler:
    """A scheduler that writes the schedule's values into the groups of an optimizer.

    The value is the hyper-parameter itself, the same for every group; what stood in the groups before plays no part. After n
    calls of `scheduler.step()` it is `schedule(n)`, so the first update sees step 0. Other ways to treat several groups:
    a schedule for each, in a list; or, for a factor beside each group's own learning rate,
    `torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)`, which takes a schedule as it is.

    Several of these can run side by side, one for each name. Among the schedulers of a `SequentialLR` it is asked for its own
    steps only; in a `ChainedScheduler` it overrides those before it.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        schedule: a function of the step, or a list with one for each group. It gets Python integers. For a pair such as `betas`
            it returns a pair.
        name: of the hyper-parameter in the groups.
        last_epoch: the last step of a run that is resumed without a checkpoint of the scheduler, as in torch.

    Returns:
        An `LRScheduler`. Its `state_dict` holds numbers, not the schedule: make it with the same one before loading, and make it
        before the optimizer's state is loaded, as every scheduler of torch. A resumed run then continues exactly.

    Raises:
        TypeError: `optimizer` or `schedule` is none.
        ValueError: a group lacks the hyper-parameter, or there are not as many schedules as groups.

    >>> import functional_optim as fo
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    >>> scheduler = as_lr_scheduler(optimizer, fo.linear(0.5, 0.25, steps=2), name="momentum")
    >>> for _ in range(3):
    ...     print(optimizer.param_groups[0]["momentum"])
    ...     optimizer.step()
    ...     scheduler.step()
    0.5
    0.375
    0.25
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}: expected a torch.optim.Optimizer.")
    schedules = list(schedule) if isinstance(schedule, Sequence) else [schedule]
    for each in schedules:
        if not callable(each):
            raise TypeError(
                f"schedule = {each!r} is no function of the step: expected one, such as functional_optim.linear(...)."
            )
    for i, group in enumerate(optimizer.param_groups):
        # torch's base class reads the learning rate, whatever is scheduled.
        for needed in ("lr", name):
            if needed not in group:
                raise ValueError(unknown(needed, {key: None for key in group if key != "params"}, f"param_groups[{i}]"))
    if isinstance(schedule, Sequence):
        _require_one_each(schedules, optimizer)
    return ScheduleLR(optimizer, schedules if isinstance(schedule, Sequence) else schedules[0], name, last_epoch)


class ScheduleLR(LRScheduler):
    """What `as_lr_scheduler` returns."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule | list[Schedule], name: str, last_epoch: int) -> None:
        self.schedule = schedule
        self.name = name
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The value for each group at the present step."""
        if not isinstance(self.schedule, list):
            return [self.schedule(self.last_epoch)] * len(self.optimizer.param_groups)
        _require_one_each(self.schedule, self.optimizer)
        return [schedule(self.last_epoch) for schedule in self.schedule]

    def state_dict(self) -> dict[str, Any]:
        """Numbers only: how far it is."""
        return {key: value for key, value in super().state_dict().items() if key not in ("schedule", "name")}

    def _update_lr(self, epoch: int | None = None) -> None:
        # torch's own would write to "lr" only.
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        for group, value in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group[self.name], Tensor):
                group[self.name].fill_(_plain(value))
            else:
                group[self.name] = _plain(value)
        values = [group[self.name] for group in self.optimizer.param_groups]
        self._last_lr = [value.clone() if isinstance(value, Tensor) else value for value in values]


def _require_one_each(schedules: list[Schedule], optimizer: torch.optim.Optimizer) -> None:
    groups = len(optimizer.param_groups)
    if len(schedules) != groups:
        raise ValueError(f"got {len(schedules)} schedules for {groups} parameter groups: expected one for each.")


def _plain(value: Any) -> Any:
    """A number, or a tuple of numbers, as optimizers expect it."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, Tensor) else value
