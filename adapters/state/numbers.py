"""The hyper-parameters of groups: complete, validated once while the entries of a group are the same objects."""

from collections.abc import Collection, Mapping, MutableSequence, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any

from functional_optim.hparams import one_or_each
from functional_optim.transform import Transform

if TYPE_CHECKING:
    from ..leaves import Group, Leaf, Numbered
    from ..stepping import Stepping


class Numbers:
    """What was read from the groups of an optimizer, which each call is told, as nothing here keeps it alive."""

    def __init__(self) -> None:
        self._entries: dict[Transform, list[str]] = {}
        self._validated: dict[tuple[Transform, int], tuple[Sequence[Any] | None, Mapping[str, Any]]] = {}

    def of_group(self, optimizer: "Stepping", transform: Transform, index: int, group: "Group") -> Mapping[str, Any]:
        """The complete hyper-parameters of a group, validated unless they are the very objects that the last step saw."""
        if transform not in self._entries:
            self._entries[transform] = [optimizer.entry_of(name) for name in transform.declared]
        values = list(map(group.get, self._entries[transform]))
        known, hparams = self._validated.get((transform, index), (None, {}))
        if known is None or not all(map(is_, values, known)):
            hparams = optimizer.hparams_of(transform, index, group)
            # What can be changed in place is looked at anew at every step.
            lasting = None if any(_may_change(value) for value in values) else values
            self._validated[transform, index] = lasting, hparams
        return hparams

    def of_leaves(self, optimizer: "Stepping", transform: Transform, leaves: "list[Leaf]") -> dict[str, Any]:
        """The complete hyper-parameters of these leaves, a `PerLeaf` where their groups differ."""
        groups = {leaf.key.group: leaf.group for leaf in leaves}
        _require_agreement(optimizer, transform, groups.values())
        each = {index: self.of_group(optimizer, transform, index, group) for index, group in groups.items()}
        return {
            name: one_or_each({leaf.key: each[leaf.key.group][name] for leaf in leaves})
            for name in transform.declared
            if any(name in hparams for hparams in each.values())
        }

    def of_groups(
        self, optimizer: "Stepping", transform: Transform, groups: "list[Numbered]", among: Collection[int]
    ) -> dict[int, Mapping[str, Any]]:
        """The complete hyper-parameters of each group among these, by its number; `of_group` has read all of them."""
        if len(groups) > 1:
            _require_agreement(optimizer, transform, [group for index, group in groups if index in among])
        return {index: self._validated[transform, index][1] for index in among}


def _require_agreement(optimizer: "Stepping", transform: Transform, groups: "Collection[Group]") -> None:
    """Raise ValueError where groups differ in which hyper-parameters they give at all."""
    for name, hparam in transform.declared.items():
        if hparam.optional and len({optimizer.entry_of(name) in group for group in groups}) == 2:
            raise ValueError(f"some groups give {name!r} and others don't: give it in all of them, or in none.")


def _may_change(value: Any) -> bool:
    """Whether a value of a group may be another the next time, though it is the same object."""
    return isinstance(value, MutableSequence) or getattr(value, "ndim", 0) > 0
