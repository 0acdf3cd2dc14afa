"""A rule for one tensor, brought to every leaf of a tree."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.hparams import HParams, PerLeaf, Scalars, spread
from functional_optim.lifting.counts import advanced
from functional_optim.lifting.lifted import Lifted, Rule
from functional_optim.reductions import SumOver
from functional_optim.sharded import is_sharded, on_one_mesh, whole
from functional_optim.torch_internals import is_observed
from functional_optim.trees import Spec, Tree

if TYPE_CHECKING:
    from functional_optim.transform import Transform

Reduction: TypeAlias = Callable[..., Any]

# On the host, bytes of what a rule takes together: stacks that fit into a cache cost less than the calls that they save.
LARGEST_STACK = 1 << 21


@dataclass(frozen=True, eq=False)
class Leafwise(Lifted):
    """A transform that is a rule for one tensor, applied to every leaf: `rule(g, p, *slots) -> (update, *slots)`.

    Attributes:
        reduce: `(updates, params, **slots) -> reduced`, lists of leaves to () tensors; or None.
        batched: whether the rule gets leaves of equal shapes, dtypes and scalars together, stacked along a new first dimension;
            on the host as many in one call as a cache holds.
        places: whether the rule gets the leaf's place among those of its shape, `hp["place"]`; see `places_of`.
        evaluated_at: `(p, *slots, *own) -> x`, where a leaf is evaluated; None for where it is trained.
        in_turn: the rules that this one is, where it is no more than those one after another; each keeps its slots among these.
        by_shape: of parameters, the rules that together do to them what this one does, each to those that it concerns: where a
            rule takes nothing of a shape but a number, there is one for each number that treats every element alike.
    """

    reduce: Reduction | None = None
    batched: bool = False
    places: bool = False
    evaluated_at: Callable[..., Tensor] | None = None
    in_turn: "tuple[Transform, ...]" = ()
    by_shape: "Callable[[Sequence[Tensor]], Sequence[Transform]] | None" = None

    @property
    def own_counts(self) -> tuple[str, ...]:
        """The step, where the rule counts."""
        return ("step",) if self.counts else ()

    @property
    def mixes_leaves(self) -> bool:
        """Whether the rule asks for a whole-tree quantity."""
        return self.reduce is not None

    @property
    def sees_shapes(self) -> bool:
        """Unless it treats every element alike, and of all together asks for sums at most."""
        return not self.elementwise or self.coding is not None or not isinstance(self.reduce, SumOver | None)

    @property
    def finds(self) -> bool:
        """Whether something has to be found out, of all leaves that it sees, before the rule can be run on one."""
        return self.reduce is not None

    @property
    def sums_all_only(self) -> bool:
        """Whether of the sums that it asks for only those over all leaves together matter."""
        return True

    def terms(self, hp: HParams, t: Any, old: Any) -> Callable[..., Sequence[Any]] | None:
        """The terms of the sums that it asks for, `(u, p, *slots) -> terms`; None where it asks for no sums."""
        del hp, t, old
        reduce = self.reduce
        if not isinstance(reduce, SumOver):
            return None
        return lambda u, p, *slots: reduce.terms(u, p, dict(zip(self.slots, slots, strict=True)))

    def takes_each(self, name: str) -> bool:
        """True: leaves of different values get rules of their own."""
        del name
        return True

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """One step of the rule on every leaf that has a gradient; the other leaves' slots stay as they are."""
        u, spec = trees.flatten(updates)
        p = [None] * len(u) if params is None else trees.leaves(params)
        slots = self._slot_leaves(state, updates, spec)
        given = self._leaf_extras(extra, updates, spec)
        t = advanced(state["step"], u, spec) if self.counts else None

        columns = (u, p, *slots, *given)
        present = [i for i in range(len(u)) if u[i] is not None]
        work = {i: [self._opened(column[i], k) for k, column in enumerate(columns)] for i in present}
        reduced = self._reduced(list(work.values()))
        numbers = {**hp, **self.numbers_of(extra), **self._places(u, slots, hp, spec)}
        scalars = spread(numbers, t, spec)
        rules: dict[int, Rule] = {}
        for members in self._batches(work, scalars):
            own = scalars[members[0]]
            if own.number not in rules:
                rules[own.number] = self.rule(own.hp, own.t, reduced)
            for i, outputs in zip(members, self._outputs(rules[own.number], [work[i] for i in members]), strict=True):
                for name, column, new in zip(("update", *self.slots), (u, *slots), outputs, strict=True):
                    column[i] = self.closed(name, new, column[i])

        new_state = {name: trees.unflatten(spec, slot) for name, slot in zip(self.slots, slots, strict=True)}
        return trees.unflatten(spec, u), {"step": t, **new_state} if self.counts else new_state

    def _places(self, updates: Sequence[Any], slots: Sequence[Sequence[Any]], hp: HParams, spec: Spec) -> dict[str, Any]:
        """The place of each leaf, if it is asked for, unless an engine, which has some of the leaves only, gives it.

        Of which dtype a parameter is, a slot tells that is seen as it is stored; here parameters are in at least float32.
        """
        if not self.places or "place" in hp:
            return {}
        told = next((slot for slot, kept in zip(slots, self.unopened, strict=True) if kept), None)
        shapes = {i: u.shape for i, u in enumerate(updates) if u is not None and (told is None or self.concerns(told[i]))}
        found = places_of(shapes)
        return {"place": PerLeaf(trees.unflatten(spec, [found.get(i, 0) for i in range(len(updates))]))}

    def evaluated(self, state: Tree, params: Tree) -> Tree:
        """As `evaluated_at` tells of each leaf."""
        leaves, spec = trees.flatten(params)
        at = self.evaluated_at
        if at is None:
            return trees.unflatten(spec, [None] * len(leaves))
        slots = [trees.leaves_like(state[name], params, spec, f"state[{name!r}]", "params") for name in (*self.slots, *self.own)]
        rows = zip(leaves, *slots, strict=True)
        return trees.unflatten(spec, [None if row[0] is None else self._evaluated(at, row) for row in rows])

    def _evaluated(self, at: Callable[..., Tensor], row: Sequence[Any]) -> Tensor:
        opened = [self._opened(x, 0 if k == 0 else k + 1) for k, x in enumerate(row)]
        return self.closed("a parameter to evaluate at", at(*on_one_mesh(opened)), row[0])

    def rule(self, hp: HParams, t: Any, reduced: Any) -> Rule:
        """The rule for one tensor under these scalars."""
        arguments = [hp, *([t] if self.counts else []), *([reduced] if self.reduce else [])]
        return self.scalars(*arguments, **self.options)

    def _reduced(self, work: Sequence[Sequence[Any]]) -> Any:
        """The whole-tree quantities that the rule asks for: global quantities first, leaves second."""
        if self.reduce is None:
            return None
        columns = list(zip(*work, strict=True)) or [()] * (2 + len(self.slots))
        reduced = self.reduce(columns[0], columns[1], **dict(zip(self.slots, columns[2:], strict=False)))
        return trees.map_leaves(whole, reduced)

    def _batches(self, work: Mapping[int, Sequence[Any]], scalars: Sequence[Scalars]) -> list[list[int]]:
        """The leaves that the rule gets together: those alike if it is batched, else each by itself.

        Sharded leaves stay by themselves: gathered together, those of a large model may not fit on one device.
        """
        if not self.batched:
            return [[i] for i in work]
        batches: dict[Any, list[int]] = {}
        for i, arguments in work.items():
            kinds = [None if x is None else (x.shape, x.dtype, x.device) for x in arguments]
            batches.setdefault((i if is_sharded(arguments[0]) else None, scalars[i].number, *kinds), []).append(i)
        return list(batches.values())

    def _outputs(self, rule: Rule, leaves: Sequence[Sequence[Any]]) -> list[Sequence[Tensor]]:
        """What the rule returns for each of these leaves, of which there is one unless it is batched."""
        leaves = leaves if self.elementwise else [[whole(x) for x in arguments] for arguments in leaves]
        if not self.batched:
            return [self._called(rule, leaves[0])]
        most = _most_together(leaves[0]) or len(leaves)
        return [row for first in range(0, len(leaves), most) for row in self._together(rule, leaves[first : first + most])]

    def _together(self, rule: Rule, leaves: Sequence[Sequence[Any]]) -> list[Sequence[Tensor]]:
        """What a batched rule returns for each of these leaves, in one call."""
        columns = list(zip(*leaves, strict=True))
        stacks = [None if column[0] is None else _stacked(column) for column in columns]
        # A slot that the rule hands back as it got it is the leaves' own tensors, which need not be written.
        given = zip((None, *stacks[2:]), ((), *columns[2:]), strict=True)
        outputs = zip(self._called(rule, stacks), given, strict=False)
        return list(zip(*(column if x is stack else x.unbind() for x, (stack, column) in outputs), strict=True))

    def _called(self, rule: Rule, arguments: Sequence[Any]) -> Sequence[Tensor]:
        """The rule's outputs, which are one tensor for the update and one for each slot."""
        outputs = self._run(rule, arguments, has_params=arguments[1] is not None)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        names = ("update", *self.slots)
        if not isinstance(outputs, tuple | list) or len(outputs) != len(names) or not all(isinstance(x, Tensor) for x in outputs):
            found = f"{len(outputs)} values" if isinstance(outputs, tuple | list) else repr(outputs)
            raise ValueError(f"the rule of {self.name} returned {found}: expected tensors for {', '.join(names)}.")
        return outputs


def places_of(shapes: Mapping[int, Any]) -> dict[int, int]:
    """The place of each leaf among those of its shape that have a gradient, in their order."""
    alike: dict[Any, list[int]] = {}
    for i in sorted(shapes):
        alike.setdefault(shapes[i], []).append(i)
    return {i: place for some in alike.values() for place, i in enumerate(some)}


def _most_together(arguments: Sequence[Any]) -> int | None:
    """Of leaves like this one, how many a rule takes in one call; None for all, as where somebody watches."""
    tensors = [x for x in arguments if x is not None]
    if is_observed() or not all(x.is_cpu for x in tensors):
        return None
    return max(1, LARGEST_STACK // max(1, sum(x.nbytes for x in tensors)))


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape along a new first dimension; one alone is not copied."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tuple(tensors))
