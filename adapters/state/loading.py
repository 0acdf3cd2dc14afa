"""Checkpoints on their way in: what they must agree in with the optimizer.

torch matches a checkpoint by position and looks at nothing but the number of parameters: momentum loaded into Adam fails at
some later step, or never. Here the slots of the two are compared first, by name and shape.
"""

import functools
import inspect
import itertools
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from functional_optim.combinators.innermost import innermost

from .. import user
from .adopting import Adopted
from .fitting import BY_NAME, Expected, StateDict, expected_slots, listed, misfit, present
from .groups import lenient_hparams_of
from .layout import Key
from .names import keys_of
from .recoding import SCALE, decoded

if TYPE_CHECKING:
    from ..transform_optimizer import TransformOptimizer

Group: TypeAlias = dict[str, Any]

# Hyper-parameters that say nothing about which optimizer a group was written for.
COMMON = ("lr", "weight_decay")

# Slots that hold a parameter, or digits of it: left in the state through steps that don't keep them up to date, and saved again,
# they would undo these steps.
OF_PARAMETERS = ("fp32_copy", "error_bits", "kahan_comp", "slow_params", "ema_params", "z")

# What a group says about its learning rate; torch's schedulers start from `initial_lr`.
OF_LR = ("lr", "lr_is_factor", "initial_lr")


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
        [name for group in groups for name in group.get("param_names") or ()]
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
        if optimizer.is_chain:
            remarks.others.update(dict.fromkeys(_other_choices(optimizer, saved)))
            if not any(present(state.get(number, {})) for number in saved["params"]):  # Slots would tell.
                remarks.others.update(dict.fromkeys(_other_numbers(optimizer, saved)))
        for (key, p), number in zip(keys_of(index, group), saved["params"], strict=False):
            try:
                slots, known = decoded(state.get(number, {}), p), expected.get(key)
            except ValueError as error:
                raise ValueError(f"param_groups[{index}], parameter {_called(number, key)}: {error}") from None
            problem = misfit(known, slots)
            if problem:
                raise ValueError(f"param_groups[{index}], parameter {_called(number, key)}: {problem}")
            # All slots of a parameter without elements are empty.
            if known and (present(slots) or slots and not p.numel()):
                taken = known.adopted(slots)
                remarks.note(repr(key.name) if key.name else str(number), known, taken, slots, optimizer.is_chain)
                saved_slots = state[number]
                stored = {name: (saved_slots[old], saved_slots.get(old + SCALE)) for name, old in taken.names.items()}
                own = {name: slots[old] for name, old in taken.names.items()}
                left = {name: slots[name] for name in taken.strange if name not in known.names and not _is_of_parameter(name)}
                state[number] = {**left, **known.stored(own, stored)}
        # Options switched in a group leave slots behind, and links added to a chain know no group of before.
        if not optimizer.is_chain:
            _check_group(optimizer, index, saved)
        _check_numbers(optimizer, index, saved)
    if remarks:
        user.warn(f"the checkpoint was saved by a somewhat different optimizer, and is loaded in part. {remarks}")
    return state


def _is_of_parameter(name: str) -> bool:
    return name.rpartition(".")[2] in OF_PARAMETERS


def _called(number: Any, key: Key) -> str:
    """The number of a parameter in the checkpoint, and its name here, where it has one."""
    return f"{number}" if key.name is None else f"{number}, {key.name!r}"


class _Remarks:
    """What to tell of a checkpoint that fits in part: of rules and slots by name, each once."""

    def __init__(self) -> None:
        self.loaded: dict[str, None] = {}
        self.anew: dict[str, tuple[set[str], list[str]]] = {}
        """What a rule lacks, and in which parameters."""
        self.left: dict[str, None] = {}
        self.others: dict[str, None] = {}

    def note(self, called: str, expected: Expected, taken: Adopted, slots: StateDict, is_chain: bool) -> None:
        """One parameter; of classes that choose their rules by the options of a group, only what is broken."""
        self.loaded.update(dict.fromkeys(taken.going_on))
        for rule, lacking in taken.afresh.items():
            if lacking or is_chain:
                known, params = self.anew.setdefault(rule, (set(), []))
                known.update(lacking)
                params.append(called)
        if is_chain:
            self.left.update(dict.fromkeys(map(repr, sorted(set(taken.strange) & present(slots)))))

    def __bool__(self) -> bool:
        return bool(self.anew or self.left or self.others)

    def __str__(self) -> str:
        parts = {
            "Loaded: {}.": self.loaded,
            "Starting anew: {}.": [self._begun(rule, *told) for rule, told in self.anew.items()],
            "Left out: {}, which nothing here keeps.": self.left,
            "Other options: {}.": self.others,
        }
        return " ".join(text.format(", ".join(names)) for text, names in parts.items() if names)

    def _begun(self, rule: str, lacking: set[str], params: list[str]) -> str:
        """A rule that starts anew; if it goes on in other parameters, of which."""
        more = f" and {len(params) - 3} more" if len(params) > 3 else ""
        whose = f" of {'parameter' if len(params) == 1 else 'parameters'} {', '.join(params[:3])}{more}"
        why = f" (the checkpoint lacks {listed(lacking)})" if lacking else ""
        return f"{rule}{whose if rule in self.loaded else ''}{why}"


def _check_group(optimizer: "TransformOptimizer", index: int, saved: Group) -> None:
    """Refuse a group that lacks most of this optimizer's hyper-parameters, or one and has those of another class of torch's."""
    own = _own_numbers(optimizer)
    foreign, of_torch = saved.keys() - optimizer.defaults.keys() - {"params", "param_names"}, _of_others(optimizer, saved)
    lacking = own - saved.keys()
    if foreign and 2 * len(lacking) > len(own) or of_torch and lacking:
        raise ValueError(
            f"param_groups[{index}] has {listed(of_torch or foreign)} and lacks {listed(lacking)}: this is no "
            f"checkpoint of {type(optimizer).__name__}. To keep nothing but the state, replace its param_groups by this "
            "optimizer's."
        )


def _check_numbers(optimizer: "TransformOptimizer", index: int, saved: Group) -> None:
    """Refuse a group with a value that every later step would refuse, as a pair is where this optimizer has a number."""
    group = {**optimizer.defaults, **saved}
    transform = optimizer.transform_for(group)
    for name in transform.declared:
        entry = optimizer.entry_of(name)
        try:
            lenient_hparams_of(transform, {name: group[entry]} if entry in group else {}, optimizer.lenient)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"param_groups[{index}] of the checkpoint has {entry} = {group[entry]!r}, which this optimizer can't take; its "
                f"own is {optimizer.param_groups[index].get(entry)!r}. To keep nothing but the state, replace its param_groups "
                "by this optimizer's, state_dict['param_groups'] = optimizer.state_dict()['param_groups']."
            ) from error


def _of_others(optimizer: "TransformOptimizer", saved: Group) -> set[str]:
    """The hyper-parameters of a group that some class of torch's has and this optimizer has not, and that are not off."""
    return {
        name
        for name in saved.keys() & _numbers_of_torch() - optimizer.defaults.keys() - set(COMMON)
        if isinstance(saved[name], Tensor) or saved[name]
    }


@functools.cache
def _numbers_of_torch() -> frozenset[str]:
    """What the hyper-parameters of torch's own classes are called."""
    classes = [x for x in vars(torch.optim).values() if isinstance(x, type) and issubclass(x, torch.optim.Optimizer)]
    arguments = itertools.chain.from_iterable(inspect.signature(each).parameters.values() for each in classes)
    return frozenset(argument.name for argument in arguments if _is_number(argument.default))


def _other_choices(optimizer: "TransformOptimizer", saved: Group) -> Iterator[str]:
    """Options of the group that a chain was built without: a drop-in class takes them from the group."""
    built: dict[str, list[Any]] = {"maximize": [False]}
    for placed in innermost(optimizer.transform_for(saved)):
        for name, value in placed.transform.form.options.items():
            built.setdefault(name, []).append(value)
    for name in built.keys() & saved.keys() - optimizer.defaults.keys():
        if saved[name] not in built[name]:
            yield f"its groups have {name}={saved[name]}, this one was built with {name}={built[name][0]}"


def _other_numbers(optimizer: "TransformOptimizer", saved: Group) -> Iterator[str]:
    """Hyper-parameters of another kind in the group, where the chain's own are missing."""
    foreign, lacking = _of_others(optimizer, saved), _own_numbers(optimizer) - saved.keys()
    if foreign and lacking:
        yield f"its groups have {listed(foreign)}, which nothing here takes, and lack {listed(lacking)}, which stay as they are"


def _own_numbers(optimizer: "TransformOptimizer") -> set[str]:
    """The hyper-parameters that say something about which optimizer this is."""
    return {name for name, value in optimizer.defaults.items() if _is_number(value)} - set(COMMON)


def _is_blank(value: Any) -> bool:
    """Whether this is what `torch.distributed.checkpoint` makes of a slot that a flat checkpoint lacks."""
    return isinstance(value, Mapping) and not value


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float | tuple | list | Tensor)
