"""What lifting is the same for a rule for one tensor and for one for all: checks, dtypes, complex numbers, sharded tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, overload

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.checks import misfit, pair_advice
from functional_optim.evaluate import missing
from functional_optim.form import Form, Needs
from functional_optim.hparams import HParams, spread
from functional_optim.lifting.counts import device_of, new_count
from functional_optim.lifting.slots import OneNumber, SlotInit, zeros
from functional_optim.numerics import LOW, double, real
from functional_optim.sharded import placed_like, whole
from functional_optim.trees import Spec, Tree

if TYPE_CHECKING:
    from functional_optim.coding import Coding

Rule: TypeAlias = Callable[..., Any]


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
        first: what its rule is called with before the slots.
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
    first: ClassVar[tuple[str, ...]] = ("g", "p")

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
        if self.coding is not None:
            self.coding.require_own(dict(zip(self.slots, slots, strict=True)), updates)
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
            given = ", ".join((*self.first, *self.slots, *self.leaf_extra))
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


@overload
def widened(x: Tensor) -> Tensor: ...
@overload
def widened(x: Tensor | None) -> Tensor | None: ...
def widened(x: Tensor | None) -> Tensor | None:
    """A tensor in at least float32, the precision that every rule computes in."""
    return x.float() if x is not None and x.dtype in LOW else x


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


def require_dims(rule: str, parameter: str, shape: Sequence[int], least: int = 2) -> None:
    """Raise ValueError unless a tensor of this shape has so many dimensions."""
    if len(shape) < least:
        raise ValueError(
            f"{rule} takes parameters of at least {least} dimensions, but {parameter} has shape {tuple(shape)}. Give the others "
            "to another rule, as fo.partition(branches, labels) does, with labels by fo.by_role(model), for example."
        )
