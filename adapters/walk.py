"""The parameters of an eager step, and the way of those that a rule needs in their shapes: link by link, as in the transform."""

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim.combinators.origin import Counts
from functional_optim.hparams import HParams
from functional_optim.lifting import widened

from .lifted import lifted
from .links import Link, Route
from .memory import real

# The hyper-parameters of each link, and the counts before the step.
Numbers: TypeAlias = tuple[Mapping[Link, HParams], Counts]


@dataclass(frozen=True)
class Kind:
    """What parameters have in common that are stepped by one program.

    Attributes:
        group: the number of their group.
        route: the links that they go through.
        counts: of updates so far; those that they have not are of no consequence.
        dtype: in which they are computed.
        plain: whether they and all their tensors are stored in it, and real.
        walks: whether some link needs them in their shapes.
    """

    group: int
    route: Route
    counts: tuple[int, ...]
    dtype: torch.dtype
    plain: bool
    walks: bool


@dataclass(frozen=True, eq=False)
class Leaf:
    """One parameter of a plan.

    Attributes:
        index: its number.
        param: the tensor.
        slots: of each link, by the link's names for them.
        names: what the state calls all slots, in their order.
        kind: what it has in common with others.
    """

    index: int
    param: Tensor
    slots: Mapping[Link, Mapping[str, Tensor]]
    names: list[str]
    kind: Kind

    @property
    def stored(self) -> list[Tensor]:
        """All slots."""
        return [x for own in self.slots.values() for x in own.values()]


class Walk:
    """Parameters on their way; what comes of it is kept until `write`.

    Args:
        leaves: the parameters.
        links: all links that there are, in order.
        grads: the gradients of all parameters of the plan.
        numbers: of each kind.
    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        links: Sequence[Link],
        grads: Sequence[Tensor],
        numbers: Mapping[Kind, Numbers],
    ) -> None:
        self.leaves, self.links, self.numbers = leaves, deque(links), numbers
        self.dtypes = {leaf.index: torch.promote_types(grads[leaf.index].dtype, leaf.param.dtype) for leaf in leaves}
        self.updates = {i: widened(grads[i].to(dtype)) for i, dtype in self.dtypes.items()}
        self.new: list[tuple[Tensor, Tensor]] = []

    def go_on(self, until: Link | None, reduced: Mapping[Link, Any]) -> None:
        """Through all links before one of them, or through all that are left."""
        while self.links and self.links[0] is not until:
            link = self.links.popleft()
            leaves = [leaf for leaf in self.leaves if link in leaf.slots]
            if leaves:
                self._pass(link, leaves, reduced)

    def rows(self, link: Link) -> dict[int, list[Tensor]]:
        """What the reduction of the next link sees: the update, the parameter and the slots of each."""
        leaves = [leaf for leaf in self.leaves if link in leaf.slots]
        tensors = {leaf.index: (self.updates[leaf.index], leaf.param, *leaf.slots[link].values()) for leaf in leaves}
        return {i: [widened(real(x)) for x in own] for i, own in tensors.items()}

    def write(self) -> None:
        """Store the slots and update the parameters."""
        for slot, new in self.new:
            slot.copy_(new)
        for leaf in self.leaves:
            leaf.param.add_(self.updates[leaf.index].to(self.dtypes[leaf.index]))

    def _pass(self, link: Link, leaves: Sequence[Leaf], reduced: Mapping[Link, Any]) -> None:
        # A whole-tree quantity spans parameters that do not walk, too.
        form = dataclasses.replace(link.form, reduce=lambda *_, **__: reduced[link]) if link in reduced else link.form
        slots = {name: {leaf.index: leaf.slots[link][name] for leaf in leaves} for name in form.slots}
        updates, new = lifted(
            form,
            {leaf.index: self.updates[leaf.index] for leaf in leaves},
            {leaf.index: widened(leaf.param) for leaf in leaves},
            slots,
            {leaf.index: self.numbers[leaf.kind][0][link] for leaf in leaves},
            {leaf.index: self.numbers[leaf.kind][1].get(link.step) for leaf in leaves},
        )
        self.updates |= updates
        self.new += [(slot, new[name][i]) for name, column in slots.items() for i, slot in column.items()]
