"""The state of a transform as `optimizer.state` holds it: a flat dict of tensors per parameter, under torch's names."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.hparams import HParams, PerLeaf, one_or_each
from functional_optim.sharded import local
from functional_optim.torch_internals import memory_of
from functional_optim.transform import Transform

Flat: TypeAlias = dict[str, Any]


@dataclass(frozen=True, order=True)
class Key:
    """What a parameter is called in the trees that a transform sees: its place, and in messages its name."""

    group: int
    index: int
    name: str | None = None

    def __str__(self) -> str:
        return self.name or f"group {self.group}, parameter {self.index}"

    def __repr__(self) -> str:
        return repr(str(self))


Params: TypeAlias = Mapping[Key, Tensor]


class Layout:
    """The way between the nested state of a transform and one flat dict per parameter.

    A value of the nested state is one of three kinds: a tree like the parameters, of which each parameter keeps its leaf; the
    step count of a rule, which each parameter keeps for itself; or a value shared by all parameters, of which each keeps a
    copy. It is called by the last key of its path; by the whole dotted path where several slots would have that name, so that
    no link ever takes another's slot out of a checkpoint. Of several counts the first is `step`, as in torch.

    A parameter that a part of the transform leaves out keeps none of that part's slots, and no count beside them.
    """

    def __init__(self, transform: Transform, params: Params, hparams: HParams) -> None:
        self.transform = transform
        self._absent: dict[Key, set[str]] = {}
        state = self._initial(params, hparams)
        values, self.spec = trees.flatten(state, lambda x: _is_tree_like(params, x))
        paths = [tuple(map(str, path)) for path in self.spec.paths()]
        counts = {path for path, _ in _count_holders(transform, params)}
        self.kinds = [
            "count" if path in counts else "leaf" if _is_tree_like(params, value) else "shared"
            for path, value in zip(paths, values, strict=True)
        ]
        self.names = _names(paths, counts)
        self.name_of = dict(zip(paths, self.names, strict=True))
        self.counts = {path: name for path, name in self.name_of.items() if path in counts}

    def slots_of(self, path: tuple[str, ...], slots: Iterable[str]) -> list[str]:
        """What the slots of the rule at this path are called."""
        return [self.name_of[(*path, slot)] for slot in slots]

    def is_complete(self, key: Key, state: Flat) -> bool:
        """Whether a parameter has every slot that it is known to keep."""
        absent = self._absent.get(key, ())
        return all(state.get(name) is not None or name in absent for name in self.names)

    def _initial(self, params: Params, hparams: HParams) -> Any:
        # Not `init_state`: these may be some of the parameters only, and what it checks holds for all of them.
        return self.transform.first_state(params, hparams)

    def _note_absent(self, params: Params, fresh: Sequence[Any]) -> None:
        holders = {self.name_of[path]: keys for path, keys in _count_holders(self.transform, params)}
        holders |= {name: value for name, kind, value in zip(self.names, self.kinds, fresh, strict=True) if kind == "leaf"}
        for key in params:
            self._absent[key] = {name for name, keys in holders.items() if key not in keys}

    def start(
        self, params: Params, hparams: HParams, states: Mapping[Key, Flat], others: Iterable[Flat], counts_on_host: bool
    ) -> None:
        """Give every state the slots that it lacks; a new parameter lacks all of them.

        A count that a foreign checkpoint lacks (torch's SGD keeps none) is that of `step`, or else 1: the first step is over.
        A shared value is the one that some state of `others` holds already.
        """
        fresh: list[Any] = self.spec.flatten_up_to(self._initial(params, hparams))
        values = list(zip(self.names, self.kinds, fresh, strict=True))
        self._note_absent(params, fresh)
        for key, state in states.items():
            count = float(state.get("step", any(state.get(name) is not None for name in self.names)))
            for name, kind, value in values:
                if state.get(name) is not None or name in self._absent[key]:
                    continue
                if kind == "count":
                    device = "cpu" if counts_on_host else params[key].device
                    state[name] = torch.tensor(count, dtype=torch.float32, device=device)
                elif kind == "leaf":
                    # A slot that starts as the parameter itself must not change with it.
                    state[name] = detached_from([params[key]], value[key])
                else:
                    state[name] = next((other[name] for other in others if other.get(name) is not None), value).clone()

    def read(self, states: Mapping[Key, Flat], counts_on_host: bool) -> Any:
        """The nested state of these parameters. On the host, a count is a Python number: exact, and free of small kernels."""
        values = []
        for name, kind in zip(self.names, self.kinds, strict=True):
            each = {key: state[name] for key, state in states.items() if name in state}
            if kind == "count":
                each = {key: int(count) for key, count in each.items()} if counts_on_host else each
                values.append(one_or_each(each) if each else 0)
            else:
                values.append(each if kind == "leaf" else next(iter(each.values())))
        return trees.unflatten(self.spec, values)

    def write(self, nested: Any, states: Mapping[Key, Flat], others: Iterable[Flat]) -> None:
        """Write a nested state into the tensors of the flat ones, in place; shared values into those of the others too."""
        for name, kind, value in zip(self.names, self.kinds, self.spec.flatten_up_to(nested), strict=True):
            each = value.tree if isinstance(value, PerLeaf) else value
            for key, state in states.items():
                if name not in state:
                    continue
                new = each[key] if kind == "leaf" or isinstance(value, PerLeaf) else each
                if isinstance(new, Tensor):
                    state[name].copy_(new)
                else:
                    state[name].fill_(new)
            for other in others if kind == "shared" else ():
                if other.get(name) is not None:
                    other[name].copy_(value)


def detached_from(owned: Iterable[Tensor], tree: Any) -> Any:
    """The tree, with copies of the tensors that share memory with one of `owned`, which is about to be written to."""
    owners = {_owner(x) for x in owned}
    return trees.map_leaves(lambda x: x.clone() if isinstance(x, Tensor) and _owner(x) in owners else x, tree)


def _count_holders(transform: Transform, params: Params, path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Params]]:
    """The path to each count, and the parameters that a part of the transform with that count sees."""
    for name in transform.form.own_counts:
        yield (*path, name), params
    for keys, share in transform.form.shares(params).items():
        yield from _count_holders(transform.form.parts[keys], share, (*path, *keys))


def _owner(x: Tensor) -> int:
    return memory_of(local(x))


def _names(paths: Sequence[tuple[str, ...]], counts: Collection[tuple[str, ...]]) -> list[str]:
    names: list[str] = []
    for path in paths:
        # Where a path is a single key, no other has that name.
        taken = path[-1] in names or path[-1:] in paths if path in counts else sum(o[-1] == path[-1] for o in paths) > 1
        names.append(".".join(path) if taken else path[-1])
    return names


def _is_tree_like(params: Params, value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and value.keys() <= params.keys()
