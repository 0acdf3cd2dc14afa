"""`Stepping`: groups of parameters that transforms step: their state, and how a step is planned and computed."""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from itertools import compress
from operator import attrgetter, itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from functional_optim.transform import Transform

from . import user
from .arguments import warn_of_misspellings
from .engine.memory import lacks_some
from .engine.placement import Copies
from .engine.snapshot import Present
from .engine.step import PlannedStep, Request, Step, WholeStep
from .engine.unscaling import FACTOR
from .engine.work import Refused
from .extra import extra_of
from .leaves import Group, Leaf, Numbered, leaves_of, stepped_of
from .state.groups import hparams_of
from .state.layout import Flat, Key, Layout
from .state.names import keys_of
from .state.numbers import Numbers
from .whole_step import whole_step

_GRAD, _GROUP = attrgetter("grad"), itemgetter(1)


class Stepping(torch.optim.Optimizer):
    """Groups of parameters, each with the transform that `transform_for` gives it, and the steps of these transforms.

    Groups with the same transform are one tree to it, with a hyper-parameter per leaf where the groups disagree.
    """

    is_chain = False
    """Whether one transform, chosen by the user, steps all groups; else the options in a group choose it."""
    lenient: ClassVar[tuple[str, ...]] = ()
    """Hyper-parameters that may be out of their ranges in the groups there are."""

    # What no copy takes along.
    _CACHES = ("_layouts", "_checked", "_steps", "_told", "_named", "_seen")
    _factor = 1.0
    _layouts: dict[Transform, Layout]
    _checked: dict[Transform, tuple[int, list[Key]]]
    _steps: dict[Transform, Step]
    _told: dict[str, None]
    _numbers: Numbers
    _named: dict[int, tuple[Any, list[Key]]]
    _seen: dict[int, frozenset[str]]

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """The transform that steps the parameters of this group; the same object for groups that share one."""
        raise NotImplementedError

    def hparams_of(self, transform: Transform, index: int, group: Mapping[str, Any]) -> dict[str, Any]:
        """The complete hyper-parameters of a group, validated."""
        del index
        return hparams_of(transform, group)

    def entry_of(self, name: str) -> str:
        """What a hyper-parameter is called in a group; "" for one that groups don't hold."""
        return name

    def computed(
        self, transform: Transform, groups: list[Numbered], closure: Callable[[], Any] | None, extra: Mapping[str, Any]
    ) -> Callable[[], None]:
        """The step of one transform, computed; what is returned writes it down."""
        whole = functools.partial(whole_step, self, transform, groups, closure, extra, self._factor)
        if torch.compiler.is_compiling():
            return whole()
        present = self._present(groups)
        if not present.params:
            return _nothing
        hparams = self._numbers.of_groups(self, transform, groups, {*present.groups})
        if self._factor != 1:
            hparams = {index: {**own, FACTOR: self._factor} for index, own in hparams.items()}
        again = functools.partial(self.computed, transform, groups, closure, extra)
        request = Request(present, hparams, self.state, functools.partial(_extra_of, groups, closure, extra), whole, again)
        step, fused = self._steps.get(transform), any(map(self.is_fused, map(_GROUP, groups)))
        write = None if step is None or step.fused != fused else step.compute(request)
        return write or self.computed_anew(transform, groups, request, fused)

    def computed_anew(self, transform: Transform, groups: list[Numbered], request: Request, fused: bool) -> Callable[[], None]:
        """The same where it has to be planned how to step, for the first time or because something is not what it was."""
        known = self._steps.pop(transform, None)
        others = {} if known is None else {p: like for p, like in known.known().items() if p.grad is None}
        del known  # It may hold the last references to tensors that were replaced.
        step, new = self._planned(transform, groups, request.present, self._present(groups, others), request.hparams, fused)
        write = step.compute(request)
        assert write is not None

        def write_all() -> None:
            self.store(groups, new)
            write()
            step.settle(self.state)
            self._steps[transform] = step

        return write_all

    def is_fused(self, group: Mapping[str, Any]) -> bool:
        """Whether this group asks for the compiled step; groups that share a transform get it if one of them asks."""
        return bool(group.get("fused"))

    def copies(self, present: Present) -> Copies | None:
        """The processes that have the same parameters, and are to share out the rules that need shapes; None for this one."""
        return None

    def hparams_of_leaves(self, transform: Transform, leaves: list[Leaf]) -> dict[str, Any]:
        """The complete hyper-parameters of these leaves, a `PerLeaf` where their groups differ."""
        return self._numbers.of_leaves(self, transform, leaves)

    @torch.no_grad()
    def start(self, params: Iterable[Tensor]) -> None:
        """Give these parameters the slots that they lack."""
        wanted = set(params)
        for transform, groups in self._parts().items():
            everyone = [Leaf(key, p, group) for index, group in groups for key, p in keys_of(index, group)]
            leaves = [leaf for leaf in everyone if leaf.param in wanted and not is_lazy(leaf.param)]
            _, states = self.started(transform, groups, leaves, not any(group.get("capturable") for _, group in groups))
            self.store(groups, states)

    def _planned(
        self,
        transform: Transform,
        groups: list[Numbered],
        present: Present,
        everyone: Present,
        hparams: Mapping[int, Mapping[str, Any]],
        fused: bool,
    ) -> tuple[Step, dict[Key, Flat]]:
        """How to step from now on, and the states that this takes, some of which may not be in `self.state` yet."""
        try:
            capturable = {bool(group.get("capturable")) for _, group in groups}
            if len(capturable) > 1:
                raise Refused("capturable=True keeps the step counts of some groups on the device")
            layout, states = self.started(transform, groups, leaves_of(groups), on_host=capturable == {False})
            options = {"fused": fused, "copies": self.copies(present), "capturable": capturable == {True}}
            step = PlannedStep(transform, layout, present, everyone, states, hparams, **options)
        except Refused as reason:
            step, states = WholeStep(present, str(reason), fused=fused), {}
        for reason in step.reasons if fused else ():
            if reason not in self._told:
                self._told[reason] = None
                user.warn(f"fused=True, but {reason}.")
        return step, states

    def _forget(self) -> None:
        """Start with empty caches; everything in them is derived from the groups and the state."""
        for name in self._CACHES:
            setattr(self, name, {})
        self._numbers = Numbers()

    def _parts(self) -> dict[Transform, list[Numbered]]:
        """The groups, whose numbers are in order, by the transform that steps them."""
        parts: dict[Transform, list[Numbered]] = {}
        for index, group in enumerate(self.param_groups):
            transform = self._checked_transform(index, group)
            if group.keys() != self._seen.get(index):
                self._look(index, group, transform)
            parts.setdefault(transform, []).append((index, group))
        return parts

    def _look(self, index: int, group: Group, transform: Transform) -> None:
        """Warn of keys that came into a group since the last look, and look like misspelt hyper-parameters."""
        known = {**transform.declared, **self.defaults}
        warn_of_misspellings(index, group, known, type(self), self._seen)

    def _checked_transform(self, index: int, group: Group) -> Transform:
        """The transform of a group whose numbers are in order."""
        try:
            transform = self.transform_for(group)
            self._numbers.of_group(self, transform, index, group)
        except (TypeError, ValueError) as error:
            raise type(error)(f"param_groups[{index}]: {error}") from None
        return transform

    def _present(self, groups: list[Numbered], others: Mapping[Tensor, Tensor] | None = None) -> Present:
        """The parameters that have a gradient, or something else in its place."""
        keys, params, grads, numbers = [], [], [], []
        for index, group in groups:
            own, called, found = group["params"], self._keys_of(index, group), list(map(_GRAD, group["params"]))
            if others:
                found = [others.get(p) if g is None else g for p, g in zip(own, found, strict=True)]
            if lacks_some(found):
                has = [g is not None for g in found]
                own, called, found = (list(compress(each, has)) for each in (own, called, found))
            keys += called
            params += own
            grads += found
            numbers += [index] * len(found)
        return Present(keys, params, grads, numbers)

    def _keys_of(self, index: int, group: Group) -> list[Key]:
        """What the parameters of a group are called: the keys of the last step, while their number and names are the same."""
        names = len(group["params"]), group.get("param_names")
        known = self._named.get(index)
        if known is None or known[0] != names:
            known = copy.deepcopy(names), [key for key, _ in keys_of(index, group)]
            self._named[index] = known
        return known[1]

    def started(
        self, transform: Transform, groups: list[Numbered], leaves: list[Leaf], on_host: bool
    ) -> tuple[Layout, dict[Key, Flat]]:
        """The layout of the state, and the states of these leaves, complete, and of all other parameters that have one.

        What was missing is not in `self.state` yet.
        """
        layout = self._layouts.setdefault(transform, Layout(transform))
        everyone = {key: p for index, group in groups for key, p in keys_of(index, group)}
        stepped = stepped_of(everyone)
        seen = len(everyone), list(stepped)
        if self._checked.get(transform) != seen and not any(map(is_lazy, everyone.values())):
            transform.form.check(everyone)  # Once, and again when there are more, or others are stepped.
            transform.form.check_each(stepped)
            self._checked[transform] = seen
        wanted = {leaf.key for leaf in leaves}
        states = {key: dict(self.state.get(p, {})) for key, p in everyone.items() if key in wanted or self.state.get(p)}
        unknown = layout.unknown({key: everyone[key] for key in states})
        for index, group in groups if unknown else ():
            here = {key: everyone[key] for key in unknown if key.group == index}
            if here:
                layout.admit(here, self._numbers.of_group(self, transform, index, group))
        if on_host:
            layout.agree(states)
        lacking = [leaf for leaf in leaves if not layout.is_complete(leaf.key, states[leaf.key])]
        if lacking:
            new = {leaf.key: leaf.param for leaf in lacking}
            for remark in layout.start(new, self.hparams_of_leaves(transform, lacking), states, on_host):
                user.warn(f"{remark}.")
        return layout, states

    def store(self, groups: list[Numbered], states: Mapping[Key, Flat]) -> None:
        """Keep these states."""
        for index, group in groups:
            for key, p in keys_of(index, group):
                if key in states:
                    self.state[p].update(states[key])


def _extra_of(groups: list[Numbered], closure: Callable[[], Any] | None, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a transform is given beside the gradients; of the parameters that have one."""
    return extra_of(leaves_of(groups), closure, extra)


def _nothing() -> None:
    """The step where no parameter has a gradient."""
