"""The state of a transform as `optimizer.state` holds it: a flat dict of tensors per parameter, under torch's names."""

import functools
import operator
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.form import Path
from functional_optim.hparams import HParams, PerLeaf, one_or_each
from functional_optim.sharded import local
from functional_optim.torch_internals import memory_of
from functional_optim.transform import Transform

Flat: TypeAlias = dict[str, Any]


class Key(NamedTuple):
    """What a parameter is called in the trees that a transform sees: its place, and in messages its name."""

    group: int
    number: int
    name: str | None = None

    def __str__(self) -> str:
        return self.name or f"group {self.group}, parameter {self.number}"

    def __repr__(self) -> str:
        return repr(str(self))


Params: TypeAlias = Mapping[Key, Tensor]

# The keys to the state of a part of a transform, the part, and what it sees of the parameters.
Holder: TypeAlias = tuple[Path, Transform, Params]


@dataclass(frozen=True)
class Value:
    """A value of the nested state.

    Attributes:
        path: the keys to it.
        owner: the keys to the state of the rule or wrapper that keeps it.
        kind: "slot", a tree like the parameters, of which each parameter keeps its leaf; "count", the steps of a rule, which each
            parameter keeps for itself; "clock", a wrapper's count, or "shared", any other value, which are one for all: each
            parameter keeps a copy.
    """

    path: Path
    owner: Path
    kind: str

    @property
    def short(self) -> str:
        """Its last name, with the numbers behind it where it is part of a tuple."""
        last = max((i for i, key in enumerate(self.path) if not key.isdigit()), default=0)
        return ".".join(self.path[last:])

    @property
    def endings(self) -> list[str]:
        """Its dotted names, from the shortest to the whole path: a rule keeps its own whatever is around it."""
        digits = len(self.path) - 1 - max((i for i, key in enumerate(self.path) if not key.isdigit()), default=0)
        return [".".join(self.path[i:]) for i in range(len(self.path) - digits - 2, -1, -1)]

    @property
    def is_common(self) -> bool:
        """Whether it is one value for all parameters."""
        return self.kind in ("clock", "shared")


class Layout:
    """The way between the nested state of a transform and one flat dict per parameter.

    A value is called by the last key of its path; by as many as tell it apart, joined by dots, where the parameter has several of
    that name, so that no rule ever takes another's slot out of a checkpoint. Of several counts the first is `step`, as in torch.
    What rules that a parameter doesn't go through are called is of no consequence to it.

    A parameter that a part of the transform leaves out keeps none of that part's slots and counts; of what all share it keeps
    copies, so that none is lost while those whom it concerns sit out.
    """

    def __init__(self, transform: Transform) -> None:
        self.transform = transform
        self.values: list[Value] = []
        self._spec: Any = None
        self._names: dict[Key, Mapping[Path, str]] = {}
        self._own: dict[Key, tuple[Path, ...]] = {}
        self._known: dict[Key, weakref.ref[Tensor]] = {}
        self._parts: dict[Path, str] = {}
        self._wrappers: set[Path] = set()
        self._distinct: dict[tuple[Path, ...], Mapping[Path, str]] = {}
        self._inside: dict[Path, tuple[list[Value], Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Of a copy, the parameters are others.
        return {**vars(self), "_known": {}}

    def unknown(self, params: Params) -> list[Key]:
        """The parameters that `admit` has to see before anything is asked about them."""
        return [key for key, p in params.items() if key not in self._known or self._known[key]() is not p]

    def admit(self, params: Params, hparams: HParams) -> None:
        """Learn what these parameters keep; nothing of their size is made unless the transform looks at values."""
        state = self._sketched(params, hparams)
        # An empty tree is one like the parameters, too: of a part that has none so far.
        values, spec = trees.flatten(state, lambda x: isinstance(x, dict) and x.keys() <= params.keys())
        paths = [tuple(map(str, path)) for path in spec.paths()]
        holders = list(_holders(self.transform, params))
        if self._spec is None:
            self._spec, self.values = spec, [_value(path, value, holders) for path, value in zip(paths, values, strict=True)]
            self._parts = {owner: part.name for owner, part, _ in holders}
            self._wrappers = {owner for owner, part in {owner: part for owner, part, _ in holders}.items() if part.form.parts}
        shares = {owner: share for owner, _, share in holders}
        for key, p in params.items():
            own = [
                value.path
                for value, tree in zip(self.values, values, strict=True)
                if key in (tree if value.kind == "slot" else shares[value.owner])
            ]
            self._own[key] = tuple(own)
            self._names[key], self._known[key] = self._names_of(tuple(own)), weakref.ref(p)

    def names(self, key: Key) -> Mapping[Path, str]:
        """What a parameter calls each value that it keeps."""
        return self._names[key]

    def slots_of(self, key: Key, path: Path, slots: Iterable[str]) -> list[str]:
        """What a parameter calls the slots of the rule at this path."""
        return [self._names[key][(*path, slot)] for slot in slots]

    @property
    def counts(self) -> list[Value]:
        """Counts and clocks."""
        return [value for value in self.values if value.kind in ("count", "clock")]

    @property
    def has_clocks(self) -> bool:
        """Whether parameters that sit out a step have something to count all the same."""
        return any(value.kind == "clock" for value in self.values)

    def rules_of(self, key: Key) -> list[list[Value]]:
        """The values that concern a parameter, those of one rule or wrapper together."""
        rules: dict[Path, list[Value]] = {}
        for value in self.values:
            if value.path in self._own[key]:
                rules.setdefault(value.owner, []).append(value)
        return list(rules.values())

    def kept_for_others(self, key: Key) -> list[Value]:
        """Those that a parameter keeps copies of though it doesn't go through what has them."""
        return [value for value in self.values if value.path in self._names[key] and value.path not in self._own[key]]

    def count_together(self, path: Path, other: Path) -> bool:
        """Whether two counts are of links of one optimizer that has a name, such as `adafactor`: torch keeps one for both."""
        return path[:-2] == other[:-2] and len(path) > 1 and self._parts[path[:-2]] != "chain"

    def called(self, rule: Sequence[Value]) -> str:
        """What messages call a rule: by the keys to its state; or a wrapper, by what it keeps."""
        owner = rule[0].owner
        if owner in self._wrappers:
            return ", ".join(repr(value.short) for value in rule)
        return ".".join(owner) or self.transform.name

    def is_complete(self, key: Key, state: Flat) -> bool:
        """Whether a parameter has everything that it keeps."""
        return all(state.get(name) is not None for name in self._names[key].values())

    def agree(self, states: Mapping[Key, Flat]) -> None:
        """Put clocks that differ, as an older version or a person may have left them, forward to the one that is ahead."""
        for value in self.values if self.has_clocks else ():
            names = {key: self._names[key][value.path] for key in states} if value.kind == "clock" else {}
            found = {float(states[key][name]) for key, name in names.items() if states[key].get(name) is not None}
            for key, name in names.items() if len(found) > 1 else ():
                states[key][name] = _count(max(found), torch.device("cpu"))

    @torch.no_grad()
    def start(self, new: Params, hparams: HParams, states: Mapping[Key, Flat], counts_on_host: bool) -> list[str]:
        """Complete the states of new parameters, and of those who have lost something.

        Args:
            new: the parameters; what is missing is put into their states.
            hparams: theirs.
            states: of all parameters that have any. A value that is one for all is what the others hold.
            counts_on_host: whether counts lie there, or beside the parameters.

        Returns:
            Which rules had something in a state and had to start afresh: a rule goes on with all its slots and its count, or
            with none of them.
        """
        fresh = dict(zip((value.path for value in self.values), self.flattened(self._initial(new, hparams)), strict=True))
        common = {value.path: self._common(value, states) for value in self.values if value.is_common}
        remarks: dict[str, None] = {}
        for key, p in new.items():
            device = torch.device("cpu") if counts_on_host else p.device
            first = {path: x[key] if isinstance(x, dict) and key in x else x for path, x in fresh.items()}
            for rule in [*self.rules_of(key), *([value] for value in self.kept_for_others(key))]:
                lacking = self._completed(rule, self._names[key], states[key], first, common, p, device)
                if lacking:
                    missing = ", ".join(map(repr, lacking))
                    remarks[f"{self.called(rule)} starts afresh, for {missing} of {key!r} is missing"] = None
        return list(remarks)

    def _completed(
        self,
        rule: Sequence[Value],
        names: Mapping[Path, str],
        state: Flat,
        first: Mapping[Path, Any],
        common: Mapping[Path, Any],
        p: Tensor,
        device: torch.device,
    ) -> list[str]:
        """Put what a rule lacks into the state of a parameter; what it lacked if it had something, and has to start afresh."""
        own = {value.path: state.get(names[value.path]) for value in rule}
        found = {path: common.get(path) if x is None else x for path, x in own.items()}
        for value in rule:
            # In its shape a parameter has no use for some slots, which are empty then.
            if value.kind == "slot" and own[value.path] is None and p.numel() and not first[value.path].numel():
                found[value.path] = first[value.path]
        lacking = _lacking(rule, found)
        had_slots = any(value.kind == "slot" and own[value.path] is not None for value in rule)
        for value in rule:
            name, old, new = names[value.path], found[value.path], first[value.path]
            if value.kind == "slot":
                # A slot that starts as the parameter itself must not change with it.
                state[name] = detached_from([p], new) if lacking else old
            elif value.kind == "count":
                state[name] = _count(float(not lacking and had_slots), device) if lacking or old is None else old
            elif own[value.path] is None and value.kind == "clock":
                state[name] = _count(0.0, device) if old is None else old.to(device, torch.float32, copy=True)
            elif own[value.path] is None:
                state[name] = (new if old is None else old).clone()
        had_some = any(own[value.path] is not None for value in rule if not value.is_common)
        return [names[path] for path in lacking] if had_some else []

    def read(
        self, keys: Sequence[Key], states: Mapping[Key, Flat], counts_on_host: bool, apart: bool = False, under: Path = ()
    ) -> Any:
        """The nested state of these parameters. On the host, a count is a Python number: exact, and free of small kernels.

        Args:
            keys: of parameters whose states are complete.
            states: theirs, and those of all others that have any.
            counts_on_host: whether counts lie there.
            apart: give each parameter a count of its own in any case, for they are not all about to count.
            under: the keys to a part of the state; that is what is returned, and taken of the states.
        """
        known, spec = self._part(under)
        values = []
        for value in known:
            if value.is_common:
                found = self._common(value, states)
                values.append(int(found) if value.kind == "clock" and counts_on_host else found)
                continue
            each = {key: states[key][self._names[key][value.path]] for key in keys if value.path in self._names[key]}
            if value.kind == "count":
                each = {key: int(count) for key, count in each.items()} if counts_on_host else each
                values.append(PerLeaf(each) if apart else one_or_each(each) if each else 0)
            else:
                values.append(each)
        return trees.unflatten(spec, values)

    def _part(self, under: Path) -> tuple[list[Value], Any]:
        """The values of a part of the state, and its structure."""
        if under not in self._inside:
            numbers = trees.unflatten(self._spec, list(range(len(self.values))))
            found, spec = trees.flatten(functools.reduce(operator.getitem, under, numbers))
            self._inside[under] = [self.values[i] for i in found], spec
        return self._inside[under]

    def flattened(self, nested: Any) -> list[Any]:
        """The values of a nested state, in the order of `values`."""
        return self._spec.flatten_up_to(nested)

    def rebuilt(self, values: Sequence[Any]) -> Any:
        """The reverse of `flattened`."""
        return trees.unflatten(self._spec, values)

    def write(self, nested: Any, keys: Sequence[Key], states: Mapping[Key, Flat], under: Path = ()) -> None:
        """Write a nested state of these parameters, or a part of it, into the tensors of the flat ones, in place.

        What all share is written into all states.
        """
        known, spec = self._part(under)
        for value, new in zip(known, spec.flatten_up_to(nested), strict=True):
            tree = new.tree if isinstance(new, PerLeaf) else new
            for key in states if value.is_common else keys:
                name = self._names[key].get(value.path)
                stored = None if name is None else states[key].get(name)
                if stored is not None:
                    _fill(stored, tree[key] if value.kind == "slot" or isinstance(new, PerLeaf) else tree)

    def shared(self, path: Path, states: Mapping[Key, Flat]) -> Tensor:
        """The value at this path, which all share."""
        return self._common(next(value for value in self.values if value.path == path), states)

    def holders(self, path: Path, states: Mapping[Key, Flat]) -> list[Tensor]:
        """The tensors that hold the value at this path, which all share, one in each state."""
        named = ((self._names[key].get(path), state) for key, state in states.items())
        return [x for name, state in named if name is not None and (x := state.get(name)) is not None]

    def _common(self, value: Value, states: Mapping[Key, Flat]) -> Any:
        """The value that all share; of clocks that differ, as older versions have left them, the one that is ahead."""
        named = ((self._names[key][value.path], state) for key, state in states.items())
        found = (state[name] for name, state in named if state.get(name) is not None)
        if value.kind != "clock":
            return next(found, None)
        clocks = list(found)
        ahead = all(x.device.type == "cpu" for x in clocks)
        return max(clocks, key=float, default=None) if ahead else next(iter(clocks), None)

    def _initial(self, params: Params, hparams: HParams) -> Any:
        # Not `init_state`: these may be some of the parameters only, and what it checks holds for all of them.
        return self.transform.first_state(params, hparams)

    def _sketched(self, params: Params, hparams: HParams) -> Any:
        """The first state, of tensors without memory where that is possible."""
        like = {key: torch.empty(p.shape, dtype=p.dtype, device="meta") for key, p in params.items()}
        try:
            return self._initial(like, hparams)
        except Exception:  # Whatever a transform by hand makes of tensors without values.
            return self._initial(params, hparams)

    def _names_of(self, own: tuple[Path, ...]) -> Mapping[Path, str]:
        """What a parameter calls the values that concern it, and those that it keeps for others."""
        if own not in self._distinct:
            kept = [value for value in self.values if value.path in own]
            foreign = {value.path: ".".join(value.path) for value in self.values if value.is_common and value.path not in own}
            names: dict[Path, str] = {}
            for value in kept:
                others = [other for other in kept if other is not value]
                if value.kind in ("count", "clock"):
                    # Where a path is a single key, no other has that name.
                    is_taken = value.short in names.values() or any(other.path == (value.short,) for other in others)
                else:
                    is_taken = any(other.short == value.short for other in others)
                taken = {*foreign.values(), *(ending for other in others for ending in other.endings)}
                names[value.path] = (
                    next((x for x in value.endings if x not in taken), ".".join(value.path)) if is_taken else value.short
                )
            self._distinct[own] = {**names, **foreign}
        return self._distinct[own]


def detached_from(owned: Iterable[Tensor], tree: Any) -> Any:
    """The tree, with copies of the tensors that share memory with one of `owned`, which is about to be written to."""
    owners = {_storage(x) for x in owned}
    return trees.map_leaves(lambda x: x.clone() if isinstance(x, Tensor) and _storage(x) in owners else x, tree)


def _holders(transform: Transform, params: Params, path: Path = ()) -> Iterator[Holder]:
    """Each part of a transform, with the keys to its state and the parameters that it sees; outermost first."""
    yield path, transform, params
    for keys, share in transform.form.shares(params).items():
        yield from _holders(transform.form.parts[keys], share, (*path, *keys))


def _value(path: Path, value: Any, holders: Sequence[Holder]) -> Value:
    inside = [(owner, part.form) for owner, part, _ in holders if path[: len(owner)] == owner]
    depth = max(len(owner) for owner, _ in inside)
    owner, form = [each for each in inside if len(each[0]) == depth][-1]
    if isinstance(value, dict):
        return Value(path, owner, "slot")
    name = ".".join(path[depth:])
    return Value(path, owner, "count" if name in form.own_counts else "clock" if name in form.clocks else "shared")


def _lacking(rule: Sequence[Value], found: Mapping[Path, Any]) -> list[Path]:
    """What a rule can't go on without, of what was not found; nothing, if it has no slots that would have to agree with a count.

    Momentum has no use for a count but to know its first step: torch's SGD keeps none.
    """
    slots = sum(value.kind == "slot" for value in rule)
    needed = [value.path for value in rule if slots and not (value.kind == "count" and slots == 1)]
    return [path for path in needed if found[path] is None]


def _count(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=device)


def _fill(stored: Tensor, new: Any) -> None:
    if not isinstance(new, Tensor):
        stored.fill_(new)
    elif new is not stored:
        stored.copy_(new)


def _storage(x: Tensor) -> int:
    return memory_of(local(x))
