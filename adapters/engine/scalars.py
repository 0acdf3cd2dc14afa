"""The scalars of one step: hyper-parameters, counts, and what links find out on the way, as the rules of each part take them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.origin import Counts
from functional_optim.form import Path
from functional_optim.hparams import HParams

from .buckets import Leaf, Part
from .given import CountTable, Given
from .prologue import is_column
from .route import Link, scalars_of, values_of
from .stages import Passage
from .work import Lasting, Plan, Work

# The hyper-parameters of each link, and the counts before the step.
Numbers: TypeAlias = tuple[Mapping[Link, HParams], Counts]


class Scalars(ABC):
    """What the rules of one step are given beside tensors.

    Args:
        plan: what is stepped.
        hparams: of each group, by its number.
        counts: of each leaf, before the step.
        extra: what else the transform was given.

    Attributes:
        hparams: of each group.
        reduced: what links have reduced to.
    """

    def __init__(
        self,
        plan: Plan,
        hparams: Mapping[int, HParams],
        counts: CountTable,
        extra: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.plan, self.hparams, self.extra = plan, hparams, extra
        self.counts, self._extra = counts, extra() if plan.asks else {}
        self._values: dict[tuple[Passage, int], Mapping[Link, HParams]] = {}
        self._flat: dict[tuple[Passage, int], Mapping[Link, Sequence[Any]]] = {}
        self._given: dict[Part, Given] = {}
        self._steps: dict[Passage, dict[Path, int]] = {}
        if not plan.lasting.holds(hparams):
            plan.lasting = Lasting(hparams)
        self.reduced: dict[Link, Any] = {}
        self._own: dict[Part, dict[Link, Any]] = {}
        self._varying: set[Part] = set()

    @abstractmethod
    def shared(self, path: Path) -> Tensor:
        """The value at this path of the state, which all leaves share."""

    def waiting(self, work: Work) -> list[Link]:
        """The links of the next stage of a work that have something to find out yet."""
        if not work.stage.finding:
            return []
        found = self.found(work)
        return [link for link in work.stage.finding if link not in found]

    def found(self, work: Work) -> Mapping[Link, Any]:
        """What links have found out for this work."""
        own = self._own.get(work.part)
        return {**self.reduced, **own} if own else self.reduced

    def is_uniform(self, work: Work) -> bool:
        """Whether all leaves of a work are plainly given the same; `given` knows it of others, too."""
        is_one = self.counts.are_equal and len(work.part.groups) == 1
        return is_one and (work.part not in self._own or not self.varies(work))

    def flat(self, work: Work, links: Sequence[Link]) -> list[Any]:
        """The scalars of some links of the next stage of a work whose leaves are given the same, one after another."""
        leaf, found = work.part.leaves[0], self.found(work)
        own, row, flat = self._flat_of(leaf), self.counts.rows[leaf.index], []
        shared = self._shared_steps(leaf.passage) if leaf.passage.sharing else {}
        for link in links:
            flat += own[link]
            if link.rule and link.rule.counts:
                known = shared.get(link.step)
                flat.append(1.0 + (row[self.counts.paths.index(link.step)] if known is None else known))
            if link in found:
                flat += trees.leaves(found[link])
        return flat

    def given(self, work: Work) -> Given:
        """What the rules of a work are given."""
        if work.part not in self._given:
            self._given[work.part] = self.given_to(work.part)
        return self._given[work.part]

    def given_to(self, part: Part) -> Given:
        """What the rules of a part are given."""
        return Given(part.leaves, part.groups, self._values_of, self.counts, self._shared_steps(part.passage))

    def numbers(self, leaf: Leaf) -> Numbers:
        """What the rules of one leaf are given: the hyper-parameters of each link as its group has them, and its counts."""
        return self._values_of(leaf), self._counts_of(leaf)

    def _values_of(self, leaf: Leaf) -> Mapping[Link, HParams]:
        key = leaf.passage, leaf.group
        known = self.plan.lasting.values if leaf.passage.is_steady else self._values
        if key not in known:
            # What counts decide, such as a schedule's clock, is the same for all leaves.
            known[key] = values_of(leaf.passage.place, self.hparams[leaf.group], self._counts_of(leaf), self._extra)
        return known[key]

    def _flat_of(self, leaf: Leaf) -> Mapping[Link, Sequence[Any]]:
        key = leaf.passage, leaf.group
        known = self.plan.lasting.flat if leaf.passage.is_steady else self._flat
        if key not in known:
            known[key] = {link: trees.leaves(dict(own)) for link, own in self._values_of(leaf).items()}
        return known[key]

    def _counts_of(self, leaf: Leaf) -> Counts:
        return {**self.counts.of(leaf.index), **self._shared_steps(leaf.passage)}

    def owner(self, work: Work) -> Any:
        """Works of the same owner have the same numbers."""
        if work.part in self._own:
            return work.part
        if self.is_uniform(work):
            return work.passage, *work.part.groups
        return self.given(work).owner

    def varies(self, work: Work) -> bool:
        """Whether the leaves of a work have numbers of their own that links have found."""
        return work.part in self._varying

    def scalars(self, work: Work, links: Sequence[Link], given: Given | None = None) -> list[Any]:
        """Those of some links of the next stage of a work, or of those of its leaves that are given this."""
        return scalars_of(links, given or self.given(work), self.found(work))

    def learn(self, link: Link, work: Work, numbers: Any) -> None:
        """What a link has found out for the leaves of a work."""
        self._own.setdefault(work.part, {})[link] = numbers
        if any(map(is_column, trees.leaves(numbers))):
            self._varying.add(work.part)

    def _shared_steps(self, passage: Passage) -> dict[Path, int]:
        """The steps that all leaves share with other numbers, before this one."""
        if passage not in self._steps:
            self._steps[passage] = {link.step: int(self.shared(link.step)) for link in passage.sharing}
        return self._steps[passage]
