"""Rules inside another one, which hands them its tensors in other coordinates: what `rotate` and `project` share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim.coding import require_plain
from functional_optim.combinators.chain import Chained
from functional_optim.combinators.rename import Renamed
from functional_optim.form import Path
from functional_optim.hparams import HParams
from functional_optim.lifting import Leafwise, SlotInit
from functional_optim.transform import Transform, require_transform


@dataclass(frozen=True)
class Inside:
    """A rule of one tensor's gradient and slots, or a chain of such rules, as one.

    Attributes:
        transform: the rule or the chain.
    """

    transform: Transform

    @property
    def slots(self) -> dict[str, SlotInit]:
        """The slots of all rules; those of a chain's behind the names of its links."""
        return {
            ".".join((*path, name)): _in_dtype(start, form.state_dtype)
            for path, form in _rules(self.transform)
            for name, start in form.slots.items()
        }

    @property
    def coded(self) -> dict[str, str]:
        """Which of them a codec may store, where they have the shape of what is outside."""
        rules = _rules(self.transform)
        return {".".join((*path, name)): kind for path, form in rules for name, kind in form.coded.items()}

    def rule(self, hp: HParams, t: Any) -> Callable[..., tuple[Tensor, list[Tensor]]]:
        """`(g, slots) -> (update, slots)`, under these hyper-parameters at this step."""
        rules = list(_prepared(self.transform, hp, t))

        def run(g: Tensor, slots: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            new: list[Tensor] = []
            for count, rule in rules:
                outputs = self._outputs(rule, g, slots[len(new) : len(new) + count])
                g, *own = (outputs,) if isinstance(outputs, Tensor) else outputs
                new += own
            return g, new

        return run

    def _outputs(self, rule: Callable[..., Any], g: Tensor, slots: list[Tensor]) -> Any:
        try:
            return rule(g, None, *slots)
        except (TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.transform.name} failed without the parameters, which have no place in other coordinates: what reads "
                "them, such as decay, goes behind, chain(rotate(...), add_decayed_weights(), ...)."
            ) from error


def require_inside(transform: Any, name: str) -> Inside:
    """What runs inside `name`, or TypeError."""
    require_transform(transform, name)
    for _, form in _rules(transform):
        require_plain(form, name)
        known = isinstance(form, Leafwise) and (form.elementwise or form.batched)
        if not known or form.finds or form.extra or form.leaf_extra:
            raise TypeError(
                f"{name} takes a rule of one tensor's gradient and slots, such as scale_by_adam(), or a chain of such rules, but "
                f"{transform.name} is none. What comes before and behind it, such as decay and the learning rate, goes around: "
                f"chain({name}(...), ...)."
            )
    return Inside(transform)


def _rules(transform: Transform, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    form = transform.form
    if not isinstance(form, Chained | Renamed):
        yield path, form
        return
    for keys, part in form.parts.items():
        yield from _rules(part, (*path, *keys))


def _prepared(transform: Transform, hp: HParams, t: Any) -> Iterator[tuple[int, Callable[..., Any]]]:
    """Each rule, and how many slots it has."""
    form = transform.form
    if isinstance(form, Leafwise):
        yield len(form.slots), form.rule(transform.select(hp), t, None)
        return
    for keys, part in form.parts.items():
        yield from _prepared(part, form.handed(keys, hp, {}), t)


def _in_dtype(start: SlotInit, dtype: torch.dtype | None) -> SlotInit:
    return start if dtype is None else lambda p, hp: start(p, hp).to(dtype)
