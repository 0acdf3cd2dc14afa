"""Lifting: a rule for one tensor, or for all of them at once, brought to trees.

This alone holds the dtype policy, the `None` leaves, complex numbers as pairs of reals, sharded tensors, and the step count;
rules know nothing of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.checks import misfit, pair_advice
from functional_optim.evaluate import missing
from functional_optim.form import Form, Needs
from functional_optim.hparams import HParams, PerLeaf, Scalars, spread
from functional_optim.numerics import double, real
from functional_optim.reductions import SumOver
from functional_optim.sharded import is_sharded, on_one_mesh, placed_like, whole
from functional_optim.trees import Spec, Tree

if TYPE_CHECKING:
    from functional_optim.coding import Coding
    from functional_optim.transform import Transform

Rule: TypeAlias = Callable[..., Any]
SlotInit: TypeAlias = Callable[[Tensor, HParams], Tensor]
Reduction: TypeAlias = Callable[..., Any]


def zeros(p: Tensor, hp: HParams) -> Tensor:
    """A slot's usual start: zeros like the parameter."""
    del hp
    return torch.zeros_like(p, requires_grad=False)


def copied(p: Tensor, hp: HParams) -> Tensor:
    """A slot that starts as the parameter: a tensor of its own, so that no engine has to find out whether the two are one."""
    del hp
    return p.clone()


def filled(name: str) -> SlotInit:
    """A slot that starts at the value of a hyper-parameter, in both parts of a complex number."""

    def start(p: Tensor, hp: HParams) -> Tensor:
        slot = (torch.zeros_like(real(p), requires_grad=False) + hp[name]).to(p.dtype.to_real())
        return torch.view_as_complex(slot) if p.is_complex() else slot

    return start


@dataclass(frozen=True)
class OneNumber:
    """A slot that holds a single number for each leaf, whatever the leaf's shape: a () tensor of float64, real.

    It belongs to a leaf as the slots of its shape do: behind the adapter, a parameter that sits out a step keeps its number.

    Args:
        value: the first value, of the hyper-parameters.
    """

    value: Callable[[HParams], Any]

    def __call__(self, p: Tensor, hp: HParams) -> Tensor:
        """The first value, on the leaf's device; times 1 it is a tensor of its own, where it is a hyper-parameter."""
        return double(self.value(hp), p.device).to(p.device) * 1.0


@dataclass(frozen=True)
class Seed:
    """The start of a shared value that is a seed of random numbers: the hyper-parameter of this name.

    Where several rules of a transform have one, each but the first gets another number made of its own, so that two branches, or
    two links, don't draw the same; see `Transform.first_state`.
    """

    name: str

    def __call__(self, hp: HParams) -> Any:
        """The number given."""
        return hp[self.name]


@dataclass(frozen=True, eq=False)
class Lifted(Form):
    """What a rule is lifted with, whether it is for one tensor or for all.

    Attributes:
        name: of the transform.
        scalars: `(hp[, t][, reduced], **options) -> rule`.
        slots: how each slot of a leaf starts.
        counts: whether `scalars` takes the step `t`, so that the state holds a () count.
        elementwise: whether the rule treats every element alike, so that an engine may flatten, pack and fuse it.
        options: the constructor's static choices.
        state_dtype: the slots' dtype where it is not the parameter's.
        extra: names of the numbers beside the hyper-parameters that `update` has to be given, such as the loss.
        leaf_extra: names of the trees like the parameters that `update` has to be given, such as a Hessian's diagonal.
        shared: how each value that all leaves share starts: a number, or `hp -> number`.
        own: how each number starts that is kept for each leaf by itself, a () tensor.
        constants: names of slots that derivatives take for constants: what the rule returns for them depends on nothing.
        as_stored: names of the slots that reach the rule in the dtype in which they are stored, and so tell it the parameter's.
        dtypes: those of the parameters that it concerns; none for all. Updates of others it leaves as they are.
        only: `p -> bool`, which of these it concerns; None for all.
        least_dims: how many dimensions a parameter has at least.
        coded: names of the slots that a codec may store, each with the kind of its numbers, "signed" or "positive".
        coding: how they are stored, where a codec does; then `slots` are what is stored.
    """

    name: str
    scalars: Callable[..., Rule]
    slots: Mapping[str, SlotInit]
    counts: bool
    elementwise: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    state_dtype: torch.dtype | None = None
    extra: tuple[str, ...] = ()
    leaf_extra: tuple[str, ...] = ()
    shared: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, SlotInit] = field(default_factory=dict)
    constants: tuple[str, ...] = ()
    as_stored: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    only: Callable[[Tensor], bool] | None = None
    least_dims: int = 0
    coded: Mapping[str, str] = field(default_factory=dict)
    coding: "Coding | None" = None

    @property
    def packs(self) -> bool:
        """Whether an engine may flatten and pack the tensors: the rule is elementwise, and so are its slots."""
        return self.elementwise and not any(isinstance(start, OneNumber) for start in self.slots.values())

    def concerns(self, p: Tensor) -> bool:
        """Whether the parameter has one of its dtypes, and is among those that it is for."""
        return (not self.dtypes or p.dtype in self.dtypes) and (self.only is None or self.only(p))

    def check_each(self, params: Tree) -> None:
        """Raise ValueError where a parameter has too few dimensions."""
        if self.least_dims:
            for name, p in zip(trees.names(params), trees.leaves(params), strict=True):
                if p is not None and self.concerns(p):
                    require_dims(self.name, name or "a parameter", p.shape, self.least_dims)

    @property
    def unopened(self) -> list[bool]:
        """Of each slot, whether the rule sees it as it is stored."""
        return [self.coding is not None or name in self.as_stored for name in self.slots]

    @property
    def needs(self) -> Needs:
        """The numbers and trees that the rule asks for."""
        return Needs(self.extra, self.leaf_extra)

    def logs(self, state: Tree) -> Mapping[str, Tensor]:
        """What all leaves share, but for seeds."""
        return {name: state[name] for name in self.shared if name not in self.seeds}

    @property
    def state_names(self) -> set[str]:
        """The keys of the state."""
        return {*self.slots, *self.shared, *self.own, *(("step",) if self.counts else ())}

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The first state: `step` 0, and every slot at its start."""
        leaves, spec = trees.flatten(params)
        scalars = spread(hp, None, spec)
        state = {"step": new_count(params)} if self.counts else {}
        coded = [True] * len(leaves) if self.coding is None else self.coding.chosen(params)
        for name, start in self.slots.items():
            starts = [start if chosen else getattr(start, "plain", start) for chosen in coded]
            rows = zip(starts, leaves, scalars, strict=True)
            slots = [None if p is None else self._started(own_start, p, own.hp) for own_start, p, own in rows]
            state[name] = trees.unflatten(spec, slots)
        return state

    def _slot_leaves(self, state: Tree, updates: Tree, spec: Spec) -> list[list[Any]]:
        expected = self.state_names
        if not isinstance(state, Mapping) or set(state) != expected:
            found = sorted(state) if isinstance(state, Mapping) else f"a {type(state).__name__}"
            raise ValueError(
                f"the state of {self.name} holds {sorted(expected)}, but got {found}: pass what init_state or the last update of "
                f"this very transform returned, as in update(grads, state, params).{pair_advice(state)}"
            )
        slots = [trees.leaves_like(state[name], updates, spec, f"state[{name!r}]", "grads") for name in self.slots]
        for (name, start), slot in zip(self.slots.items(), slots, strict=True):
            if start is zeros:
                _require_shapes(slot, updates, f"state[{name!r}]")
        return slots

    def numbers_of(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        """The numbers that it asks for beside the hyper-parameters, of what `update` is given."""
        given = {name: self._given(name, extra) for name in self.extra}
        for name, value in given.items():
            is_number = value.ndim == 0 if isinstance(value, Tensor) else isinstance(value, Real) and not isinstance(value, bool)
            if not is_number:
                found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
                raise TypeError(f"{self.name} needs one number {name!r}, or a () tensor, but got {found}.")
        return given

    def _leaf_extras(self, extra: Mapping[str, Any], updates: Tree, spec: Spec) -> list[list[Any]]:
        """The leaves of the trees that the rule asks for beside the gradients; one that is None has only None leaves."""
        columns = []
        for name in self.leaf_extra:
            given = self._given(name, extra)
            column = [None] * spec.num_leaves if given is None else trees.leaves_like(given, updates, spec, name, "grads")
            _require_shapes([u if x is None else x for x, u in zip(column, trees.leaves(updates), strict=True)], updates, name)
            columns.append(column)
        return columns

    def _given(self, name: str, extra: Mapping[str, Any]) -> Any:
        if name not in extra:
            raise missing(name, self.name)
        return extra[name]

    def _opened(self, x: Tensor | None, column: int = 0) -> Tensor | None:
        """What the rule sees: at least float32, and complex numbers as pairs of reals; some slots, as they are stored.

        `column` counts the update, the parameter, the slots, and what is given beside them.
        """
        if x is not None and x.is_complex():
            if not self.elementwise:
                raise TypeError(f"{self.name} works on whole tensors and takes no complex ones, but got {x.dtype}.")
            x = real(x)
        is_slot = 2 <= column < 2 + len(self.slots)
        return x if is_slot and self.unopened[column - 2] else widened(x)

    def _shared_starts(self, params: Tree, hp: HParams) -> dict[str, Tensor]:
        """The first value of each that all leaves share, a () tensor of float64 where the parameters are."""
        device = device_of(params) or torch.device("cpu")
        starts: dict[str, Any] = {name: start(hp) if callable(start) else start for name, start in self.shared.items()}
        return {name: double(start, device) for name, start in starts.items()}

    def _started(self, start: SlotInit, p: Tensor, hp: HParams) -> Tensor:
        """A slot's first value; a rule that sees whole tensors sees them here too."""
        is_coded = self.coding is not None and hasattr(start, "codec")
        slot = start(p, hp) if self.elementwise or is_coded or start is zeros else placed_like(start(whole(p), hp), p)
        if not isinstance(slot, Tensor):
            raise TypeError(
                f"a slot of {self.name} starts as {slot!r}: expected a tensor, as in lambda p, hp: torch.zeros_like(p)."
            )
        if self.state_dtype is None or isinstance(start, OneNumber) or is_coded:
            return slot
        return slot.to(self.state_dtype.to_complex() if slot.is_complex() else self.state_dtype)

    def _run(self, rule: Rule, arguments: Sequence[Any], *, has_params: bool) -> Any:
        """What the rule returns, or the likely reason why it did not."""
        try:
            return rule(*arguments)
        except (TypeError, AttributeError) as error:
            self._require_rule(rule, arguments)
            if has_params:
                raise
            raise ValueError(
                f"{self.name} failed without the parameters. If its rule reads them, pass them: update(grads, state, params)."
            ) from error

    def _require_rule(self, rule: Any, arguments: Sequence[Any]) -> None:
        """Raise TypeError unless this can be called with so many arguments."""
        if not callable(rule):
            raise TypeError(
                f"the function of {self.name} takes scalars and returns the rule, a function rule(g, p, *slots) for one tensor, "
                f"but it returned {rule!r}."
            ) from None
        problem = misfit(rule, *arguments)
        if problem:
            first = ("gs", "ps", "shared") if isinstance(self, WholeTree) else ("g", "p")
            given = ", ".join((*first, *self.slots, *self.leaf_extra))
            raise TypeError(f"the rule of {self.name} is called with {given}, but takes {problem}.") from None

    def closed(self, name: str, new: Tensor, stored: Tensor) -> Tensor:
        """An output of the rule in the form that its input was stored in."""
        if stored.is_complex():
            new = torch.view_as_complex(new)
        new = placed_like(new, stored)
        if new.shape != stored.shape:
            raise ValueError(
                f"the rule of {self.name} returned {name} with shape {tuple(new.shape)} where it got {tuple(stored.shape)}: "
                "a rule keeps shapes."
            )
        return new if new.dtype == stored.dtype else new.to(stored.dtype)


@dataclass(frozen=True, eq=False)
class Leafwise(Lifted):
    """A transform that is a rule for one tensor, applied to every leaf: `rule(g, p, *slots) -> (update, *slots)`.

    Attributes:
        reduce: `(updates, params, **slots) -> reduced`, lists of leaves to () tensors; or None.
        batched: whether the rule gets leaves of equal shapes, dtypes and scalars together, stacked along a new first dimension.
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
        numbers = {**hp, **self.numbers_of(extra), **(self._places(u, slots, hp, spec) if self.places else {})}
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
        """The place of each leaf, unless an engine, which has some of the leaves only, gives it.

        Of which dtype a parameter is, a slot tells that is seen as it is stored; here parameters are in at least float32.
        """
        if "place" in hp:
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
        stacks = [None if column[0] is None else _stacked(column) for column in zip(*leaves, strict=True)]
        return list(zip(*(x.unbind() for x in self._called(rule, stacks)), strict=True))

    def _called(self, rule: Rule, arguments: Sequence[Any]) -> Sequence[Tensor]:
        """The rule's outputs, which are one tensor for the update and one for each slot."""
        outputs = self._run(rule, arguments, has_params=arguments[1] is not None)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        names = ("update", *self.slots)
        if not isinstance(outputs, tuple | list) or len(outputs) != len(names) or not all(isinstance(x, Tensor) for x in outputs):
            found = f"{len(outputs)} values" if isinstance(outputs, tuple | list) else repr(outputs)
            raise ValueError(f"the rule of {self.name} returned {found}: expected tensors for {', '.join(names)}.")
        return outputs


@dataclass(frozen=True, eq=False)
class WholeTree(Lifted):
    """A transform that is a rule for all tensors together, with () values that they share.

    `rule(gs, ps, shared, *slots) -> (updates, shared, *slots)`, lists of leaves and the shared values by name. What all leaves
    share can't be computed with a value for each, of the step or of a hyper-parameter that the rule does not ask for so.

    Attributes:
        each: names of the hyper-parameters of which the rule gets a list, a value for each leaf.
    """

    each: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[str, ...]:
        """The shared values that are seeds."""
        return tuple(name for name, start in self.shared.items() if isinstance(start, Seed))

    def takes_each(self, name: str) -> bool:
        """Where the rule gets a list."""
        return name in self.each

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The first state: the slots', and the shared values at their start, () tensors of float64."""
        return {**super().init(params, hp), **self._shared_starts(params, hp)}

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """One step of the rule on the leaves that have a gradient; the other leaves' slots stay as they are."""
        u, spec = trees.flatten(updates)
        p = [None] * len(u) if params is None else trees.leaves(params)
        slots = self._slot_leaves(state, updates, spec)
        given = self._leaf_extras(extra, updates, spec)
        t = state["step"] + 1 if self.counts else None

        present = [i for i in range(len(u)) if u[i] is not None]
        columns = (u, p, *slots, *given)
        columns = [on_one_mesh([self._opened(column[i], k) for i in present]) for k, column in enumerate(columns)]
        own = spread(hp, None, spec)
        lists = {name: [own[i][0][name] for i in present] for name in self.each}
        rule = self.scalars({**hp, **lists, **self.numbers_of(extra)}, *([t] if self.counts else []), **self.options)
        shared = {name: state[name] for name in self.shared}
        arguments = (columns[0], columns[1], shared, *columns[2:])
        new_updates, new_shared, *new_slots = self._run(rule, arguments, has_params=params is not None)
        for name, leaves, new in zip(("update", *self.slots), (u, *slots), (new_updates, *new_slots), strict=True):
            for i, x in zip(present, new, strict=True):
                leaves[i] = self.closed(name, x, leaves[i])
        new_state = {name: trees.unflatten(spec, slot) for name, slot in zip(self.slots, slots, strict=True)}
        new_state |= {name: whole(new_shared[name]).to(state[name].dtype) for name in self.shared}
        return trees.unflatten(spec, u), {"step": t, **new_state} if self.counts else new_state


def places_of(shapes: Mapping[int, Any]) -> dict[int, int]:
    """The place of each leaf among those of its shape that have a gradient, in their order."""
    alike: dict[Any, list[int]] = {}
    for i in sorted(shapes):
        alike.setdefault(shapes[i], []).append(i)
    return {i: place for some in alike.values() for place, i in enumerate(some)}


@overload
def widened(x: Tensor) -> Tensor: ...
@overload
def widened(x: Tensor | None) -> Tensor | None: ...
def widened(x: Tensor | None) -> Tensor | None:
    """A tensor in at least float32, the precision that every rule computes in."""
    return x.float() if x is not None and x.dtype in (torch.float16, torch.bfloat16) else x


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape along a new first dimension; one alone is not copied."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tuple(tensors))


def _require_shapes(slot: Sequence[Tensor | None], updates: Tree, name: str) -> None:
    for i, (x, u) in enumerate(zip(slot, trees.leaves(updates), strict=True)):
        if u is not None and (x is None or x.shape != u.shape):
            found = "is missing" if x is None else f"has shape {tuple(x.shape)}"
            raise ValueError(
                f"{trees.paths(updates, name)[i]} {found}, its gradient has shape {tuple(u.shape)}: they must agree."
            )
        if u is not None and x is not None and x.device != u.device:
            raise ValueError(
                f"{trees.paths(updates, name)[i]} is on {x.device}, its gradient on {u.device}: they must agree. "
                "Move a model before its state is made, or load the state again, which moves it."
            )


def device_of(params: Tree) -> torch.device | None:
    """Where the parameters are: the device of the first; None where there is none."""
    return next((p.device for p in trees.leaves(params) if p is not None), None)


def require_dims(rule: str, parameter: str, shape: Sequence[int], least: int = 2) -> None:
    """Raise ValueError unless a tensor of this shape has so many dimensions."""
    if len(shape) < least:
        raise ValueError(
            f"{rule} takes parameters of at least {least} dimensions, but {parameter} has shape {tuple(shape)}. Give the others "
            "to another rule, as fo.partition(branches, labels) does, with labels by fo.by_role(model), for example."
        )


def new_count(params: Tree) -> Tensor:
    """A count of updates, at 0, where the parameters are."""
    return torch.zeros((), dtype=torch.int64, device=device_of(params))


def advanced(count: Any, updates: Sequence[Tensor | None], spec: Spec) -> Any:
    """A count after another update; of counts that leaves have for themselves, those of leaves with a gradient."""
    if not isinstance(count, PerLeaf):
        return count + 1
    counts = zip(count.values(spec, "step"), updates, strict=True)
    return PerLeaf(trees.unflatten(spec, [n if u is None else n + 1 for n, u in counts]))
