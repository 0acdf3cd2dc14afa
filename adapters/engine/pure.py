"""The engine of a pure transform: its `update`, of plain tensors, run as an optimizer's step is.

What is traced, batched or differentiated, or is no plain tensor, is left to the rules.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim import torch_internals, trees
from functional_optim.form import Path
from functional_optim.hparams import HParams
from functional_optim.sharded import is_sharded
from functional_optim.transform import Transform
from functional_optim.trees import Tree

from .. import user
from .anatomy import Anatomy
from .fresh import FreshPlan, FreshRun, Leaves
from .gates import Gates, gates_in
from .memory import PLAIN, on_host
from .planning import planned
from .snapshot import likeness
from .work import Closed, Refused

# So many structures are remembered, the last ones: of models, of which leaves have gradients, of dtypes and devices.
STRUCTURES = 16


class Structure:
    """Trees of one structure, of tensors that are alike; and how they are stepped.

    Attributes:
        anatomy: where everything is; None where a part of the transform keeps something else than engines know of.
        gates: the gates that are decided on the host.
        plans: by what is asked for, who takes which numbers, and how gates stand; or why there is none.
    """

    def __init__(self, transform: Transform, key: Any, given: Leaves, spec: trees.Spec, state_spec: trees.Spec) -> None:
        tensors = _tensors(given)
        self.key = key
        self._are_alike = likeness(tensors)
        try:
            self.anatomy = Anatomy(transform, given, spec, state_spec)
        except Refused:
            self.anatomy = None
        # Elsewhere their clocks are tensors, for which nobody waits.
        self.gates = gates_in(transform, on_host=True) if all(map(on_host, tensors)) else Gates([])
        self.plans: dict[Any, FreshPlan | str] = {}
        self._hparams: HParams = {}
        self._numbers: Any = None

    def fits(self, key: Any, tensors: Sequence[Tensor]) -> bool:
        """Whether these are such trees."""
        return key == self.key and self._are_alike(*tensors)

    def lasting(self, hparams: HParams, numbers: Sequence[Any], names: trees.Spec) -> HParams:
        """The object that was there in the last step, where these hyper-parameters, of such leaves, are the very same numbers."""
        known = None if any([isinstance(x, Tensor) for x in numbers]) else (names, list(map(repr, numbers)))
        if known is None or known != self._numbers:
            self._hparams, self._numbers = hparams, known
        return self._hparams


class PureEngine:
    """The engine of one transform; see `functional_optim.form.Engine`.

    Args:
        transform: without an engine.
    """

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self._structures: list[Structure] = []
        self._told = dict[str, None]()
        self._lock = threading.RLock()

    def __call__(
        self, grads: Tree, state: Tree, params: Tree, hparams: HParams, extra: Mapping[str, Any], *, steps: bool
    ) -> tuple[Tree, Tree] | None:
        """One step; None where it is the rules' business."""
        if torch_internals.is_observed():
            return None
        numbers, names = trees.flatten(dict(hparams))
        if not all(map(_is_plain_number, numbers)):
            return None
        (g, spec), (p, param_spec), (s, state_spec) = map(trees.flatten, (grads, params, state))
        if spec != param_spec or not all(map(_is_fit, trees.leaves(dict(extra)))):
            return None
        if all(x is None for x in g):
            return None  # What leaves share may change nevertheless.
        given = Leaves(g, p, s)
        key = spec, state_spec, tuple(extra)
        with self._lock:
            structure = self._known(key, _tensors(given))
            if structure is None:
                if not _are_fit(given):
                    return None
                try:  # What is wrong, if anything is, the rules say best; of tensors without memory they are asked in no time.
                    self._transform.update(_sketched(grads), _sketched(state), _sketched(params), hparams, **extra)
                except Exception:  # It may as well be that they look at values.
                    run = self._transform.step if steps else self._transform.update
                    result = run(grads, state, params, hparams, **extra)
                    self._learn(key, given, spec, state_spec)
                    return result
                structure = self._learn(key, given, spec, state_spec)
            records = torch.is_grad_enabled()
            with torch.no_grad():  # Rules are simpler where nobody takes a derivative.
                lasting = structure.lasting(hparams, numbers, names)
                found = self._computed(structure, given, lasting, extra, steps=steps, records=records)
        return None if found is None else (trees.unflatten(spec, found[0]), trees.unflatten(state_spec, found[1]))

    def _known(self, key: Any, tensors: Sequence[Tensor]) -> Structure | None:
        """The structure of these, which comes first from then on."""
        for i, structure in enumerate(self._structures):
            if structure.fits(key, tensors):
                self._structures.insert(0, self._structures.pop(i))
                return structure
        return None

    def _learn(self, key: Any, given: Leaves, spec: trees.Spec, state_spec: trees.Spec) -> Structure:
        structure = Structure(self._transform, key, given, spec, state_spec)
        self._structures = [structure, *self._structures[: STRUCTURES - 1]]
        return structure

    def _computed(
        self,
        structure: Structure,
        given: Leaves,
        hparams: HParams,
        extra: Mapping[str, Any],
        *,
        steps: bool,
        records: bool,
    ) -> tuple[list[Any], list[Any]] | None:
        """The leaves of the result, and of the new state."""
        anatomy = structure.anatomy
        if anatomy is None:
            return None
        if len(structure.gates) and any(g is None and p is not None for g, p in zip(given.grads, given.params, strict=True)):
            return None  # A wrapper may have something to do for parameters without a gradient.
        groups, own = anatomy.groups(hparams)
        try:
            counts = anatomy.table(given)
        except Refused:
            return None
        first, known = own[groups[0]], counts.of(0)
        gates = structure.gates.standing(first, known)
        while True:
            key = steps, groups, tuple(gates.items())
            plan = structure.plans.get(key)
            try:
                if plan is None or (not isinstance(plan, str) and plan.is_outdated):
                    plan = structure.plans[key] = self._plan(anatomy, given, groups, own, gates, extra, steps)
                if isinstance(plan, str):
                    return None
                run = FreshRun(plan, given, own, counts, extra, records=records)
                run.meet()
                results = run.finish()
                break
            except Closed as closed:
                gates = structure.gates.standing(first, known, {**gates, closed.path: False})
            except Refused as reason:
                structure.plans[key] = str(reason)
                return None
        for path, value in structure.gates.advanced(gates, known).items():
            run.set(path, value)
        return results, run.state

    def _plan(
        self,
        anatomy: Anatomy,
        given: Leaves,
        groups: Sequence[int],
        hparams: Mapping[int, HParams],
        gates: Mapping[Path, bool],
        extra: Mapping[str, Any],
        steps: bool,
    ) -> FreshPlan:
        """A plan; the reasons why something is not run as kernels are told, once."""
        reasons = dict[str, None]()
        plan = planned(anatomy, _completed(given), groups, hparams, gates, reasons, gives=bool(extra), steps=steps)
        for reason in reasons.keys() - self._told.keys():
            self._told[reason] = None
            user.warn(f"{self._transform.name} is fused, but {reason}.")
        return plan


def _tensors(given: Leaves) -> list[Tensor]:
    return [x for column in _completed(given) for x in column if x is not None]


def _completed(given: Leaves) -> Leaves:
    """The same, with the parameter where a gradient is missing that may come again."""
    grads = given.grads
    if any(g is None for g in grads):
        rows = zip(grads, given.params, strict=True)
        grads = [p if g is None and isinstance(p, Tensor) and p.is_floating_point() | p.is_complex() else g for g, p in rows]
    return Leaves(grads, given.params, given.state)


def _are_fit(given: Leaves) -> bool:
    """Whether these are tensors with a memory of their own, of which no derivative is taken, as a step needs them."""
    pairs = [(g, p) for g, p in zip(given.grads, given.params, strict=True) if g is not None]
    return (
        all(map(_is_plain, _tensors(given)))
        and all(p is not None and g.device == p.device for g, p in pairs)
        and all(_is_wide(g) == _is_wide(p) for g, p in pairs)
    )


def _is_plain(x: Any) -> bool:
    return type(x) in PLAIN and x.layout == torch.strided and not is_sharded(x) and _is_fit(x)


def _is_fit(x: Any) -> bool:
    """Whether no derivative with respect to it is taken."""
    return not (isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled())


def _is_wide(x: Tensor) -> bool:
    return x.dtype.to_real() == torch.float64


def _is_plain_number(x: Any) -> bool:
    return not isinstance(x, Tensor) or (type(x) in PLAIN and on_host(x) and _is_fit(x))


def _sketched(tree: Tree) -> Tree:
    return trees.map_leaves(lambda x: torch.empty_like(x, device="meta"), tree)
