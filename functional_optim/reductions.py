"""Whole-tree quantities that are sums over elements, in a form that an engine can compute without storing the terms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim.sharded import total


@dataclass(frozen=True)
class SumOver:
    """A `reduce` of the form `finish(Σ term)`, the sum running over all elements of all leaves.

        elementwise(..., reduce=SumOver(lambda u, p: u * u, finish=sqrt))      # the global norm

    Any function of the lists of leaves can be a `reduce`. One written like this costs an engine a single read: it may sum over
    pieces and packed leaves in any order, in float64, and the terms are never stored.

    Args:
        term: `(update, param, **slots) -> tensor` of their shape, or a tuple of such; elementwise.
        finish: of the sums, one () tensor per term, what the rule gets; the sum itself by default.
    """

    term: Callable[..., Any]
    finish: Callable[..., Any] = lambda *sums: sums[0] if len(sums) == 1 else sums

    def terms(self, update: Tensor, param: Tensor | None, slots: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The terms of one leaf."""
        terms = self.term(update, param, **slots)
        return tuple(terms) if isinstance(terms, tuple | list) else (terms,)

    def __call__(self, updates: Sequence[Tensor], params: Sequence[Tensor | None], **slots: Sequence[Tensor]) -> Any:
        """The quantity of these leaves; of no leaf at all, that of one empty leaf."""
        if not updates:
            empty = [torch.zeros(0, device="cpu")]
            updates, params, slots = empty, empty, dict.fromkeys(slots, empty)
        sums = []
        for i, (update, param) in enumerate(zip(updates, params, strict=True)):
            terms = self.terms(update, param, {name: leaves[i] for name, leaves in slots.items()})
            sums.append([term.sum() for term in terms])
        return self.finish(*map(total, zip(*sums, strict=True)))
