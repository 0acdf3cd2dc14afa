"""What an optimizer knows of how a step is run: whether a plan still fits, and what a step computes.

A transform is cut into stages, each of which is run in the best way there is for it: a compiled kernel where that is asked for,
torch's in-place operations over lists and blocks, the rules themselves; what is no rule is called as it is, on its own part of
the state. One link that can't be seen through costs itself, and not the rest.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from functional_optim.checks import check_gradients
from functional_optim.form import Path
from functional_optim.hparams import HParams, together
from functional_optim.lifting import Lifted
from functional_optim.sharded import local
from functional_optim.transform import Transform

from ..state.layout import Flat, Key, Layout, Value
from .buckets import Leaf, Way, parts_of
from .gates import gates_in
from .in_place import InPlacePlan, InPlaceRun
from .memory import PLAIN, are_same, on_host
from .on_device import HeldOnDevice
from .placement import Copies, misplaced
from .route import Link, Route, links_of, names_of, routes_of
from .snapshot import Held, Present, States, likeness
from .stages import Passage, passage_of
from .unscaling import FACTOR, unscaling
from .ways import Ways
from .work import Closed, Plan, Refused


class Request(NamedTuple):
    """What a step is made of.

    Attributes:
        present: the parameters and gradients.
        hparams: of each group, by its number.
        states: those of the optimizer.
        extra: what else the transform is given; trees by key.
        whole: the step of the transform itself.
        again: the step, computed anew of the gradients that are there then.
    """

    present: Present
    hparams: Mapping[int, HParams]
    states: States
    extra: Callable[[], Mapping[str, Any]]
    whole: Callable[[], Callable[[], None]]
    again: Callable[[], Callable[[], None]]


class Step(Protocol):
    """How the parameters of one transform are stepped.

    Attributes:
        fused: whether kernels are wanted.
        reasons: why something is not run as well as it might be.
        plan: how it is run; None where the transform itself is called.
    """

    fused: bool
    reasons: dict[str, None]
    plan: Plan | None

    def known(self) -> Mapping[Tensor, Tensor]:
        """By the parameters that it could step, tensors that are like their gradients."""
        ...

    def compute(self, request: Request) -> Callable[[], None] | None:
        """One step, of which what may fail is done; what is returned writes.

        None where it can't go on with these tensors: somebody added, replaced or moved one, or set a count.
        """
        ...

    def settle(self, states: States) -> None:
        """These are the states of the optimizer from now on; the step fits as long as they do."""
        ...


class WholeStep:
    """The transform itself is called; why it has to be is remembered while the tensors are what they are."""

    def __init__(self, present: Present, reason: str, *, fused: bool) -> None:
        self.plan: Plan | None = None
        self.fused, self.reasons = fused, {f"{reason}. This optimizer steps eagerly instead": None}
        self._params, self._groups = present.params, present.groups
        self._are_alike = likeness((*present.params, *present.grads))

    def known(self) -> Mapping[Tensor, Tensor]:
        """None."""
        return {}

    def compute(self, request: Request) -> Callable[[], None] | None:
        """See `Step`; it goes on as long as the reason may hold."""
        present = request.present
        alike = present.groups == self._groups and are_same(present.params, self._params)
        return request.whole() if alike and self._are_alike(*present.params, *present.grads) else None

    def settle(self, states: States) -> None:
        """Nothing is known of the states."""


class PlannedStep:
    """A step in stages.

    Where the transform has gates there is a plan for each way in which they may stand, made when they first stand like this.

    Args:
        transform: what is stepped with.
        layout: of the state.
        present: the parameters and gradients.
        everyone: these, and others that may have gradients again, with what is like those.
        states: of all parameters that have any; complete, those of the present ones.
        hparams: of each group, by its number.
        fused: whether kernels are wanted.
        copies: the processes that have the same parameters, and share out the rules that need shapes.
        capturable: whether counts lie on the device, and nothing is to be read there.

    Attributes:
        plan: that of the last step.
        reasons: why something is not run as kernels, where they are wanted.

    Raises:
        Refused: nothing would be gained, or something would come out otherwise.
        TypeError: a gradient is unfit.
    """

    def __init__(
        self,
        transform: Transform,
        layout: Layout,
        present: Present,
        everyone: Present,
        states: Mapping[Key, Flat],
        hparams: Mapping[int, HParams],
        *,
        fused: bool,
        copies: Copies | None = None,
        capturable: bool = False,
    ) -> None:
        self._copies, self._capturable = copies, capturable
        self.fused, self.reasons = fused, dict[str, None]()
        self._transform, self._layout, self._states = transform, layout, dict(states)
        self._kept: States | None = None
        check_gradients(dict(zip(present.keys, present.grads, strict=True)), dict(zip(present.keys, present.params, strict=True)))
        memory = list(map(local, present.params))
        if all(type(p) not in PLAIN for p in memory):
            raise Refused(f"a parameter is a {type(memory[0]).__name__} on {memory[0].device}, of layout {memory[0].layout}")
        reason = next(filter(None, map(misplaced, present.params, present.grads)), "")
        if reason:
            raise Refused(reason)
        self._gates = gates_in(transform, on_host=all(map(on_host, present.params)))
        self._has_gates = len(self._gates) > 0
        links = links_of(transform, dict(zip(everyone.keys, everyone.params, strict=True)))
        if capturable:
            self._require_capturable(links, present, states)
        self._waits = not self._has_gates and not capturable and all(map(_waits, links))
        if self._waits:
            present = everyone.among({key for key, state in states.items() if layout.is_complete(key, state)})
        self._params = dict(zip(present.keys, present.params, strict=True))
        waiting = {key: state for key, state in states.items() if key not in self._params}
        if waiting and self._has_gates:
            raise Refused(f"{transform.name} may have something to do for parameters without a gradient")
        kind = HeldOnDevice if capturable else Held
        self.held = kind(present, [states[key] for key in present.keys], self._slots(present.keys), layout, waiting)
        self._plans: dict[Any, InPlacePlan] = {}
        gates = self._gates.standing(next(iter(hparams.values())), self.held.table.of(0))
        self.plan: Plan | None = self._plan_for(gates, present, hparams)

    def known(self) -> dict[Tensor, Tensor]:
        """By the parameters that it knows, tensors that are like their gradients."""
        return self.held.known()

    def compute(self, request: Request) -> Callable[[], None] | None:
        """See `Step`; a parameter without a gradient may sit a step out."""
        present, held = request.present, self.held
        if not self._waits and len(present.params) < len(self._params):
            return None
        placed = held.placed(present)
        if placed is None or (self._kept is not None and not held.fits(placed, request.states)):
            return None
        grads, clocks = held.own(placed), dict[Path, float]()
        plan, run = self._started_gated(request, grads, clocks) if self._has_gates else self._started(request, grads, {})
        is_new = plan.is_new

        def write() -> None:
            run.write()
            torch.autograd.graph.increment_version(present.params)
            held.advance(plan.advances, grads, clocks)
            self.plan = plan
            if is_new and self._kept is not None:  # It may have laid out slots anew.
                held.settle(self._kept)

        return write

    def _started(
        self, request: Request, grads: Sequence[Tensor | None], gates: Mapping[Path, bool]
    ) -> tuple[InPlacePlan, InPlaceRun]:
        """A step with these gates, as far as it may fail."""
        plan = self._plan_for(gates, request.present, request.hparams)
        run = InPlaceRun(plan, grads, request.hparams, self.held.table, request.extra)
        run.meet()
        return plan, run

    def _started_gated(
        self, request: Request, grads: Sequence[Tensor | None], clocks: dict[Path, float]
    ) -> tuple[InPlacePlan, InPlaceRun]:
        """The same with the gates as they turn out to stand, and what they make of their clocks."""
        hparams = request.hparams
        if len(hparams) > 1:  # Of what decides for all there is one value.
            self._transform.select(together(hparams))
        numbers, counts = hparams[request.present.groups[0]], self.held.table.of(0)
        gates = self._gates.standing(numbers, counts)
        while True:
            try:
                started = self._started(request, grads, gates)
                break
            except Closed as closed:
                gates = self._gates.standing(numbers, counts, {**gates, closed.path: False})
        clocks |= {path: float(value) for path, value in self._gates.advanced(gates, counts).items()}
        return started

    def settle(self, states: States) -> None:
        """These are the states of the optimizer from now on; the plan holds as long as they do."""
        self._kept = states
        self._states |= {key: states[p] for key, p in self._params.items()}
        self.held.settle(states)

    def _require_capturable(self, links: Sequence[Link], present: Present, states: Mapping[Key, Flat]) -> None:
        """Raise Refused where something would be read, or a parameter's counts would have to be kept apart."""
        if any(map(on_host, present.params)):
            raise Refused("capturable=True keeps the step counts on the device")
        if self._has_gates or any(link.asks or link.rule is None for link in links):
            raise Refused("capturable=True, but a gate, or what is no rule, would have to read counts")
        if any(link.rule is not None and link.rule.shared for link in links):
            raise Refused("capturable=True, but the numbers that parameters share would have to be read")
        if len(states) > len(present.keys) and self._layout.has_clocks:
            raise Refused("capturable=True, but clocks go on for parameters without a gradient")

    def _plan_for(self, gates: Mapping[Path, bool], present: Present, hparams: Mapping[int, HParams]) -> InPlacePlan:
        key = (_is_scaled(hparams), *gates.items())
        if key not in self._plans or self._plans[key].is_outdated:
            self._plans[key] = self._planned(gates, present, hparams)
        return self._plans[key]

    def _planned(self, gates: Mapping[Path, bool], present: Present, hparams: Mapping[int, HParams]) -> InPlacePlan:
        links = links_of(self._transform, self._params, gates, self._layout.names)
        whole = [link for link in links if link.rule is None]
        waiting = [key for key in self._states if key not in self._params]
        for link in whole:
            if waiting and not _waits(link):
                raise Refused(f"{link} may have something to do for parameters without a gradient")
        advances = self.held.moving([value.path for value in self._layout.counts if _advances(value, links)])
        if _is_scaled(hparams):
            links = [unscaling(self._params), *links]
        if self.fused and self._capturable:
            self.reasons["capturable=True: a kernel's numbers are the host's, and would be those of the captured step"] = None
        ways = Ways(self.reasons, fused=self.fused and not self._capturable)
        ways.look_at(links)
        leaves, first = self._leaves(links, present), next(iter(hparams.values()))
        for leaf in leaves:
            leaf.go(ways.best(leaf, hparams.get(leaf.group, first)))
        # What is spread over processes goes the same way in all of them, also where one of them has no element.
        if not gates and all(leaf.way is Way.CALLED and leaf.placement is None for leaf in leaves):
            closed = f"{', '.join(names_of(links))} can only be called as a whole"
            raise Refused("; ".join(self.reasons) or closed)
        return InPlacePlan(parts_of(leaves), links, ways.backends, self._layout, self._states, advances)

    def _leaves(self, links: Sequence[Link], present: Present) -> list[Leaf]:
        routes = routes_of(links, present.keys)
        passages = {route: self._passage(route, key) for route, key in zip(routes, present.keys, strict=True)}
        leaves = []
        for i, (key, route) in enumerate(zip(present.keys, routes, strict=True)):
            state = self._states[key]
            leaves.append(
                Leaf(i, key, present.groups[i], passages[route], present.params[i], present.grads[i], state, self._copies)
            )
        return leaves

    def _passage(self, route: Route, key: Key) -> Passage:
        return passage_of(route, functools.partial(self._layout.slots_of, key))

    def _slots(self, keys: Sequence[Key]) -> list[list[str]]:
        """What the parameters call all their slots."""
        slots = [value.path for value in self._layout.values if value.kind == "slot"]
        names = [self._layout.names(key) for key in keys]
        return [[own[path] for path in slots if path in own] for own in names]


def _is_scaled(hparams: Mapping[int, HParams]) -> bool:
    """Whether gradients are to be multiplied by a factor first."""
    return FACTOR in next(iter(hparams.values()))


def _advances(value: Value, links: Sequence[Link]) -> bool:
    """Whether a count advances by 1 in each step in which these links are run; what is no rule sees to its own."""
    if any(link.rule is None and value.path[: len(link.path)] == link.path for link in links):
        return False
    if value.kind == "count":
        return any(link.step == value.path for link in links)
    return any(link.path[: len(value.owner)] == value.owner for link in links)


def _waits(link: Link) -> bool:
    """Whether it has nothing to do for a parameter without a gradient."""
    return link.rule is not None or isinstance(link.transform.form, Lifted)
