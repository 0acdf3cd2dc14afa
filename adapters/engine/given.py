"""What the rules of some leaves are given in one step: their groups' hyper-parameters, and how many updates each has had.

Where the leaves agree that is numbers. Where they don't, because they are of several groups, or some have had no gradient for a
while, it is columns: tensors of one number for each leaf, so that they can be stepped together all the same.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.form import Path
from functional_optim.hparams import HParams

from .buckets import Leaf
from .memory import on_host
from .prologue import is_column
from .route import Link
from .stages import Passage


class CountTable:
    """The counts before a step.

    Attributes:
        paths: of each of them.
        rows: of each leaf, in their order; those that it has not are of no consequence.
        are_equal: whether all leaves have the same.
    """

    def __init__(self, paths: Sequence[Path], rows: Sequence[Sequence[float]]) -> None:
        self.paths, self.rows = paths, rows
        self.are_equal = rows.count(rows[0]) == len(rows)

    def of(self, row: int) -> dict[Path, int]:
        """Those of a leaf by their paths."""
        return {path: int(count) for path, count in zip(self.paths, self.rows[row], strict=True)}

    def column(self, path: Path, leaves: Sequence[Leaf]) -> list[int]:
        """One of them, of some leaves."""
        i, rows = self.paths.index(path), self.rows
        if self.are_equal:
            return [int(rows[0][i])] * len(leaves)
        return [int(rows[leaf.index][i]) for leaf in leaves]


class Given:
    """What the rules of some leaves of one passage are given.

    Args:
        leaves: in order.
        groups: of these, and a leaf of each.
        values: the hyper-parameters of every link, of a leaf's group.
        counts: of each leaf.
        shared: counts that all leaves share with other numbers.
    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        groups: Mapping[int, Leaf],
        values: Callable[[Leaf], Mapping[Link, HParams]],
        counts: CountTable,
        shared: Mapping[Path, int],
    ) -> None:
        self._leaves, self._groups, self._values, self._counts, self._shared = leaves, groups, values, counts, shared
        self._passage: Passage = leaves[0].passage
        self._of_links: dict[Link, tuple[HParams, Any]] = {}

    def __call__(self, link: Link) -> tuple[HParams, Any]:
        """The hyper-parameters of a link, pairs as tuples; and its step, counted from 1, None where it has none."""
        found = self._of_links.get(link)
        if found is None:
            found = self._hparams(link), self._step(link) if link.rule and link.rule.counts else None
            self._of_links[link] = found
        return found

    @cached_property
    def varies(self) -> bool:
        """Whether something is a column."""
        if any([is_column(self(link)[1]) for link in self._passage.counting]):
            return True
        return len(self._groups) > 1 and any(is_column(x) for link in self._passage.place for x in trees.leaves(self(link)[0]))

    @cached_property
    def owner(self) -> Any:
        """Equal for leaves that are given the same numbers."""
        return self if self.varies else (self._passage, *self._groups, *[self(link)[1] for link in self._passage.counting])

    @cached_property
    def _keys(self) -> list[tuple[int, ...]]:
        columns = [self._counts.column(link.step, self._leaves) for link in self._passage.counting]
        return list(zip([leaf.group for leaf in self._leaves], *columns, strict=True))

    @cached_property
    def kinds(self) -> "list[tuple[list[int], Given]]":
        """The leaves that are given the same numbers: their places, and what that is."""
        members: dict[Any, list[int]] = {}
        for i, key in enumerate(self._keys):
            members.setdefault(key, []).append(i)
        return [(rows, self._of(self._leaves[rows[0]])) for rows in members.values()]

    @cached_property
    def kind_count(self) -> int:
        """How many there are."""
        return len(set(self._keys))

    def _of(self, leaf: Leaf) -> "Given":
        return Given([leaf], {leaf.group: leaf}, self._values, self._counts, self._shared)

    @cached_property
    def _of_groups(self) -> list[Mapping[Link, HParams]]:
        return list(map(self._values, self._groups.values()))

    def _hparams(self, link: Link) -> HParams:
        groups = self._of_groups
        if len(groups) == 1:
            return groups[0][link]
        own = [values[link] for values in groups]
        return {name: self._together([values[name] for values in own]) for name in own[0]}

    def _step(self, link: Link) -> Any:
        if link.step in self._shared:
            return self._shared[link.step] + 1
        column = self._counts.column(link.step, self._leaves)
        if column.count(column[0]) == len(column):
            return column[0] + 1
        return torch.tensor(column, dtype=torch.float64, device="cpu") + 1

    def _together(self, values: Sequence[Any]) -> Any:
        """The values of the groups as one, or as a column."""
        first = values[0]
        if all(value is first for value in values):
            return first
        if isinstance(first, tuple):
            return tuple(map(self._together, zip(*values, strict=True)))
        if all(isinstance(value, Tensor) and not on_host(value) for value in values):
            return torch.stack([values[i] for i in self._places])
        numbers = [float(value) for value in values]
        if numbers.count(numbers[0]) == len(numbers):
            return first
        return torch.tensor([numbers[i] for i in self._places], dtype=torch.float64, device="cpu")

    @cached_property
    def _places(self) -> list[int]:
        """Where the group of each leaf is among the groups."""
        place = {group: i for i, group in enumerate(self._groups)}
        return [place[leaf.group] for leaf in self._leaves]


def of_leaf(scalars: Sequence[Any], i: int) -> list[Any]:
    """The scalars of links for one leaf, of some that may be columns."""
    return trees.map_leaves(lambda x: x[i] if is_column(x) else x, list(scalars))
