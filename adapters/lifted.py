"""Rules that need tensors in their shapes, called as the transform calls them."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from functional_optim.hparams import HParams, one_or_each
from functional_optim.lifting import Leafwise

from .layout import detached_from

# Tensors by the numbers of their parameters.
Numbered: TypeAlias = Mapping[int, Tensor]


def lifted(
    form: Leafwise,
    updates: Numbered,
    params: Numbered,
    slots: Mapping[str, Numbered],
    values: Mapping[int, HParams],
    steps: Mapping[int, Any],
) -> tuple[Numbered, Mapping[str, Numbered]]:
    """A rule's own update of some parameters: their updates and new slots, none of them in the memory of what is to be written.

    Args:
        form: the rule.
        updates, params: in at least float32.
        slots: by the rule's names for them, as they are stored.
        values: the hyper-parameters of each.
        steps: the count of each before this step, where the rule counts.
    """
    hp = {name: one_or_each({i: own[name] for i, own in values.items()}) for name in next(iter(values.values()))}
    state = {**slots, "step": one_or_each(steps)} if form.counts else slots
    owned = [*params.values(), *(slot for column in slots.values() for slot in column.values())]
    return detached_from(owned, form.update(updates, state, params, hp))
