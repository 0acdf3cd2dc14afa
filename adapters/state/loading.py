"""Checkpoints on their way in: what they must agree in with the optimizer, and `load_by_name`, which matches them by names.

torch matches a checkpoint by position and looks at nothing but the number of parameters: momentum loaded into Adam fails at
some later step, or never. Here the slots of the two are compared first, by name and shape.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from functional_optim.combinators.innermost import innermost
from functional_optim.recipe import answering
from functional_optim.transform import Transform

from .. import user
from .adopting import Adopted, adopted
from .layout import Key, Layout
from .recoding import SCALE, Encoders, decoded, encoded, encoders, scales_of

if TYPE_CHECKING:
    from ..transform_optimizer import TransformOptimizer

StateDict: TypeAlias = Mapping[str, Any]
Group: TypeAlias = dict[str, Any]
Slots: TypeAlias = Mapping[str, tuple[int, ...]]

BY_NAME = "Parameters are matched by position; load_by_name(optimizer, state_dict, strict=False) matches them by their names."

# Hyper-parameters that say nothing about which optimizer a group was written for.
COMMON = ("lr", "weight_decay")

# What a group says about its learning rate; torch's schedulers start from `initial_lr`.
OF_LR = ("lr", "lr_is_factor", "initial_lr")


@dataclass(frozen=True)
class LoadReport:
    """What `load_by_name` could not match; empty lists where everything fitted.

    Attributes:
        missing: parameters of the optimizer that the checkpoint doesn't know. They start afresh.
        unexpected: parameters of the checkpoint that the optimizer doesn't have. They are left out.
        mismatched: parameters whose slots have another shape in the checkpoint. They start afresh.
        groups: numbers of the optimizer's groups that keep their own hyper-parameters, because the checkpoint has none for
            their parameters, or has them in several groups that disagree.
    """

    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    groups: list[int]

    def __bool__(self) -> bool:
        """Whether there is anything to report."""
        return any(vars(self).values())


@answering
def load_by_name(
    optimizer: "TransformOptimizer", state_dict: StateDict, strict: bool = True, model: torch.nn.Module | None = None
) -> LoadReport:
    """Load a checkpoint whose parameters are matched by their names, whatever their order and their groups.

    A group takes the hyper-parameters of the group that its parameters were in. Hooks are called as by `load_state_dict`.

    Args:
        optimizer: made with named parameters (`model.named_parameters()`), or else give `model`.
        state_dict: of an optimizer with named parameters; its groups hold them as `param_names`, or `params` holds names
            itself, as in the state dicts of `torch.distributed.checkpoint`.
        strict: raise unless everything fits; else load what does.
        model: has the names of the optimizer's parameters.

    Returns:
        What did not fit; nothing under `strict`.

    Raises:
        TypeError: the optimizer is none of this library, or the checkpoint none of an optimizer.
        ValueError: names are lacking or not unique; or, under `strict`, something doesn't fit. Nothing has been changed then.

    >>> from functional_optim.adapters import AdamW
    >>> small, large = torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> saved = AdamW((("0." + name, p) for name, p in small.named_parameters()), lr=0.5).state_dict()
    >>> load_by_name(AdamW(large.named_parameters()), saved, strict=False)
    LoadReport(missing=['1.weight', '1.bias'], unexpected=[], mismatched=[], groups=[])
    """
    require_own(optimizer)
    require_state_dict(state_dict)
    names = names_of(optimizer, model)
    saved = dict(_saved_params(state_dict))
    found = {p: saved[name] for p, name in names.items() if name in saved}
    keyed = [pair for index, group in enumerate(optimizer.param_groups) for pair in keys_of(index, group)]
    groups, kept = _regrouped(optimizer, found)
    expected = expected_slots(optimizer, groups)
    problems = ((p, _misfit_of(expected.get(key), found[p][1], p)) for key, p in keyed if p in found)
    mismatched = {p: problem for p, problem in problems if problem}
    report = LoadReport(
        [name for p, name in names.items() if p not in found],
        [name for name in saved if name not in names.values()],
        [names[p] for p in mismatched],
        kept,
    )
    if strict and report:
        raise ValueError(
            f"the checkpoint does not fit: {report}. strict=False loads what does. {' '.join(mismatched.values())}".rstrip()
        )
    state = {i: found[p][1] for i, (_, p) in enumerate(keyed) if p in found and p not in mismatched}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return report


def require_same_parameters(optimizer: torch.optim.Optimizer, state_dict: StateDict) -> None:
    """Raise ValueError unless the groups of a checkpoint have as many parameters as those of the optimizer."""
    saved, own = ([len(group["params"]) for group in groups] for groups in (state_dict["param_groups"], optimizer.param_groups))
    if saved != own:
        raise ValueError(
            f"the checkpoint has groups of {_counted(saved)} parameters, this optimizer of {_counted(own)}: it is of another "
            f"model, or of other groups. {BY_NAME}"
        )


def warn_of_another_order(optimizer: torch.optim.Optimizer, state_dict: StateDict) -> None:
    """Warn where a checkpoint has the names of the optimizer's parameters in another order, by which they are matched."""
    saved, own = (
        [name for group in groups for name in group.get("param_names", ())]
        for groups in (state_dict["param_groups"], optimizer.param_groups)
    )
    if saved != own and sorted(saved) == sorted(own):
        i = next(i for i, names in enumerate(zip(saved, own, strict=True)) if names[0] != names[1])
        user.warn(
            f"the checkpoint has this optimizer's parameters in another order: what it holds of {saved[i]!r} goes to {own[i]!r}. "
            f"{BY_NAME}"
        )


def _counted(sizes: list[int]) -> str:
    return " and ".join(map(str, sizes))


def is_own(optimizer: Any) -> bool:
    """Whether this is an optimizer that steps with a transform."""
    return hasattr(optimizer, "transform_for")


def unwrapped(optimizer: Any) -> Any:
    """The optimizer inside those that frameworks put around one, such as accelerate's."""
    while not is_own(optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def require_own(optimizer: Any) -> None:
    """Raise TypeError unless this is an optimizer that steps with a transform."""
    if not is_own(optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}: expected an OptimizerAdapter or another class of fo.adapters. "
            "Their load_state_dict takes what torch's classes saved."
        )


def require_state_dict(found: Any) -> None:
    """Raise TypeError unless this may be what an optimizer's `state_dict` returned."""
    if not isinstance(found, Mapping) or not {"state", "param_groups"} <= set(found):
        first = ", ".join(map(repr, itertools.islice(found, 3))) if isinstance(found, Mapping) else ""
        held = f" with {first}{', …' if len(found) > 3 else ''}" if first else ""
        raise TypeError(
            f"state_dict is a {type(found).__name__}{held}: expected what optimizer.state_dict() returned, a mapping with "
            "'state' and 'param_groups'."
            + (" torch.load(path) reads one from a file." if isinstance(found, str | os.PathLike) else "")
        )


def names_of(optimizer: torch.optim.Optimizer, model: torch.nn.Module | None = None) -> dict[Tensor, str]:
    """The name of every parameter of the optimizer: the model's, where one is given, or those it was made with.

    Raises:
        ValueError: a parameter has no name, or two have the same.
    """
    known = {} if model is None else {p: name for name, p in model.named_parameters()}
    advice = "pass model=, or make the optimizer with names" if model is None else f"it is not in the {type(model).__name__}"
    names = {}
    for index, group in enumerate(optimizer.param_groups):
        own = group.get("param_names", [None] * len(group["params"])) if model is None else map(known.get, group["params"])
        for i, (p, name) in enumerate(zip(group["params"], own, strict=True)):
            if name is None:
                raise ValueError(f"parameter {i} of param_groups[{index}] has no name: {advice}.")
            names[p] = name
    if len(set(names.values())) != len(names):
        twice = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise ValueError(f"two parameters of the optimizer are called {twice!r}: pass a model that holds them all as model=.")
    return names


def with_own_meaning_of_lr(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint with the optimizer's own `lr` where the two mean different things by it, a rate and a factor of rates.

    A checkpoint without any, of a chain in which a schedule gives the rate, leaves it alone too.
    """
    groups = list(state_dict["param_groups"])
    for index, (group, saved) in enumerate(zip(optimizer.param_groups, groups, strict=False)):
        is_factor, was_factor = "lr_is_factor" in group, "lr_is_factor" in saved
        if "lr" in saved and is_factor != was_factor:
            kinds = ("a learning rate", "a factor of learning rates")
            user.warn(
                f"param_groups[{index}]: lr = {saved['lr']} of the checkpoint is {kinds[was_factor]}, and here it is "
                f"{kinds[is_factor]}, which stays {group['lr']}."
            )
        if "lr" in group and ("lr" not in saved or is_factor != was_factor):
            rest = {name: value for name, value in saved.items() if name not in OF_LR}
            groups[index] = {**rest, **{name: group[name] for name in OF_LR if name in group}}
    return {**state_dict, "param_groups": groups}


def adopted_state(optimizer: "TransformOptimizer", state_dict: StateDict) -> dict[Any, dict[str, Any]]:
    """The state of a checkpoint under the names of this optimizer, of each rule all or nothing; with a warning of what is lost.

    Raises:
        ValueError: nothing in the checkpoint is of use to this optimizer, or a slot has the wrong shape.
    """
    groups = state_dict["param_groups"]
    expected = expected_slots(optimizer, groups)
    state = {
        number: {name: value for name, value in slots.items() if value is not None and not _is_blank(value)}
        for number, slots in state_dict["state"].items()
    }
    remarks = _Remarks()
    for index, (group, saved) in enumerate(zip(optimizer.param_groups, groups, strict=False)):
        # Options switched in a group leave slots behind, and links added to a chain know no group of before.
        if optimizer.is_chain:
            remarks.others.update(dict.fromkeys(_other_choices(optimizer, saved)))
        else:
            _check_group(optimizer, index, saved)
        for (key, p), number in zip(keys_of(index, group), saved["params"], strict=False):
            try:
                slots, known = decoded(state.get(number, {}), p), expected.get(key)
            except ValueError as error:
                raise ValueError(f"param_groups[{index}], parameter {_called(number, key)}: {error}") from None
            problem = _misfit(known, slots)
            if problem:
                raise ValueError(f"param_groups[{index}], parameter {_called(number, key)}: {problem}")
            if known and _present(slots):
                taken = known.adopted(slots)
                remarks.note(known, taken, slots, optimizer.is_chain)
                left = {name: value for name, value in slots.items() if name in taken.strange and name not in known.names}
                saved_slots = state[number]
                stored = {name: (saved_slots[old], saved_slots.get(old + SCALE)) for name, old in taken.names.items()}
                own = {name: slots[old] for name, old in taken.names.items()}
                state[number] = {**left, **encoded(own, stored, known.encoders)}
    if remarks:
        user.warn(f"the checkpoint was saved by a somewhat different optimizer, and is loaded in part. {remarks}")
    return state


def _called(number: Any, key: Key) -> str:
    """The number of a parameter in the checkpoint, and its name here, where it has one."""
    return f"{number}" if key.name is None else f"{number}, {key.name!r}"


@dataclass(frozen=True)
class Expected:
    """What a parameter will keep.

    Attributes:
        layout, key: by which the names are known.
        shapes: of the slots that are of use to it, counts left out; without codes.
        encoders: of those that it may keep in codes.
    """

    layout: Layout
    key: Key
    shapes: Slots
    encoders: Encoders

    @property
    def names(self) -> set[str]:
        """Everything that it will keep."""
        return set(self.layout.names(self.key).values())

    def adopted(self, slots: StateDict) -> Adopted:
        """What it takes over of these."""
        unused = {name for name in self.names if name not in self.shapes and not _is_count(name)}
        return adopted(self.layout, self.key, list(slots), unused)


class _Remarks:
    """What to tell of a checkpoint that fits in part: of rules and slots by name, each once."""

    def __init__(self) -> None:
        self.loaded: dict[str, None] = {}
        self.anew: dict[str, None] = {}
        self.left: dict[str, None] = {}
        self.others: dict[str, None] = {}

    def note(self, expected: Expected, taken: Adopted, slots: StateDict, is_chain: bool) -> None:
        """One parameter; of classes that choose their rules by the options of a group, only what is broken."""
        self.loaded.update(dict.fromkeys(taken.going_on))
        for rule, lacking in taken.afresh.items():
            if lacking or is_chain:
                self.anew[f"{rule} (the checkpoint lacks {_listed(lacking)})" if lacking else rule] = None
        if is_chain:
            self.left.update(dict.fromkeys(map(repr, sorted(set(taken.strange) & _present(slots)))))

    def __bool__(self) -> bool:
        return bool(self.anew or self.left or self.others)

    def __str__(self) -> str:
        parts = {
            "Loaded: {}.": self.loaded,
            "Starting anew: {}.": self.anew,
            "Left out: {}, which nothing here keeps.": self.left,
            "Other options: {}.": self.others,
        }
        return " ".join(text.format(", ".join(names)) for text, names in parts.items() if names)


def expected_slots(optimizer: "TransformOptimizer", groups: Sequence[Group]) -> dict[Key, Expected]:
    """What each parameter will keep under these groups.

    Parameters of which that can't be told without their values are not in it.
    """
    layouts: dict[Transform, Layout] = {}
    found: dict[Key, Expected] = {}
    for index, (group, saved) in enumerate(zip(optimizer.param_groups, groups, strict=False)):
        transform = optimizer.transform_for({**optimizer.defaults, **saved})
        layout = layouts.setdefault(transform, Layout(transform))
        own = {key: p for key, p in keys_of(index, group) if not is_lazy(p)}
        params = {key: torch.empty(p.shape, dtype=p.dtype, device="meta") for key, p in own.items()}
        states: dict[Key, dict[str, Any]] = {key: {} for key in params}
        try:
            layout.admit(params, transform.hparams)
            layout.start(params, transform.hparams, states, counts_on_host=False)
        except Exception:  # Whatever a transform by hand makes of tensors without values.
            continue
        for key, state in states.items():
            coded = encoders(transform, layout.names(key), state, own[key])
            shapes = {
                name: tuple((params[key] if name in coded else state[name]).shape) for name in _present(state) - scales_of(state)
            }
            found[key] = Expected(layout, key, shapes, coded)
    return found


def keys_of(index: int, group: Group) -> Iterator[tuple[Key, Tensor]]:
    """The parameters of a group, with what a transform and its errors call them."""
    names = group.get("param_names") or [None] * len(group["params"])
    for i, (name, p) in enumerate(zip(names, group["params"], strict=True)):
        yield Key(index, i, name), p


def _check_group(optimizer: "TransformOptimizer", index: int, saved: Group) -> None:
    """Refuse a group that has other hyper-parameters, and none of this optimizer's own."""
    own = {name for name, value in optimizer.defaults.items() if _is_number(value)} - set(COMMON)
    foreign = saved.keys() - optimizer.defaults.keys() - {"params", "param_names"}
    if own and foreign and not own & saved.keys():
        raise ValueError(
            f"param_groups[{index}] has {_listed(foreign)} and lacks {_listed(own)}: this is no checkpoint of "
            f"{type(optimizer).__name__}. To keep nothing but the state, replace its param_groups by this optimizer's."
        )


def _misfit(expected: Expected | None, slots: StateDict) -> str:
    """Why these slots can't be those of the parameter; or nothing."""
    found = _present(slots)
    if not expected or not expected.shapes or not found:
        return ""
    if not {name.split(".")[-1] for name in found} & {name.split(".")[-1] for name in expected.shapes}:
        return (
            f"the checkpoint holds {_listed(found)}, this optimizer keeps {_listed(expected.shapes)}: another kind saved "
            "it. Make the optimizer of the chain that saved it, or begin without this checkpoint."
        )
    for name, old in sorted(expected.adopted(slots).names.items()):
        shape = tuple(slots[old].shape) if isinstance(slots[old], Tensor) else ()
        if old in found and shape != expected.shapes.get(name, shape):
            return f"{old!r} has shape {shape}, expected {expected.shapes[name]}: it belongs to another parameter. {BY_NAME}"
    return ""


def _misfit_of(expected: Expected | None, stored: StateDict, p: Tensor) -> str:
    """Why this can't be what is stored of a parameter; or nothing."""
    try:
        return _misfit(expected, decoded(stored, p))
    except ValueError as error:
        return str(error)


def _other_choices(optimizer: "TransformOptimizer", saved: Group) -> Iterator[str]:
    """Options of the group that a chain was built without: a drop-in class takes them from the group."""
    built: dict[str, list[Any]] = {"maximize": [False]}
    for placed in innermost(optimizer.transform_for(saved)):
        for name, value in placed.transform.form.options.items():
            built.setdefault(name, []).append(value)
    for name in built.keys() & saved.keys() - optimizer.defaults.keys():
        if saved[name] not in built[name]:
            yield f"its groups have {name}={saved[name]}, this one was built with {name}={built[name][0]}"


def _present(slots: StateDict) -> set[str]:
    """The slots that hold something; empty ones stand for those that a parameter of this shape has no use for."""
    return {
        name
        for name, value in slots.items()
        if value is not None and not _is_count(name) and not (isinstance(value, Tensor) and not value.numel())
    }


def _is_blank(value: Any) -> bool:
    """Whether this is what `torch.distributed.checkpoint` makes of a slot that a flat checkpoint lacks."""
    return isinstance(value, Mapping) and not value


def _is_count(name: str) -> bool:
    return name.split(".")[-1] == "step"


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float | tuple | list | Tensor)


def _listed(names: Any) -> str:
    return ", ".join(map(repr, sorted(names)))


def _saved_params(state_dict: StateDict) -> Iterator[tuple[str, tuple[Group, StateDict]]]:
    """Name, group and slots of every parameter of a checkpoint."""
    seen: set[str] = set()
    for index, group in enumerate(state_dict["param_groups"]):
        numbers = group["params"]
        names = group.get("param_names") or (numbers if all(isinstance(each, str) for each in numbers) else None)
        if names is None:
            raise ValueError(
                f"param_groups[{index}] of the checkpoint has no param_names: the optimizer that saved it knew none."
            )
        for name, number in zip(names, numbers, strict=True):
            if name in seen:
                raise ValueError(f"two parameters of the checkpoint are called {name!r}.")
            seen.add(name)
            yield name, (group, state_dict["state"].get(number, {}))


def _regrouped(optimizer: torch.optim.Optimizer, found: Mapping[Tensor, tuple[Group, Any]]) -> tuple[list[Group], list[int]]:
    """The optimizer's groups with the numbers of the checkpoint; and which of them had to keep their own."""
    groups, kept, count = [], [], 0
    for index, group in enumerate(optimizer.param_groups):
        own = {name: value for name, value in group.items() if name != "params"}
        choices = []
        for p in group["params"]:
            if p in found:
                saved = {k: v for k, v in found[p][0].items() if k not in ("params", "param_names")}
                choices += [saved] if saved not in choices else []
        if len(choices) == 1:
            own = {name: value for name, value in own.items() if name not in OF_LR or "lr" not in choices[0]}
            own = {**own, **choices[0]}
        else:
            kept.append(index)
        groups.append({**own, "params": list(range(count, count + len(group["params"])))})
        count += len(group["params"])
    return groups, kept
