"""What an optimizer is made of, looked at: errors and warnings for what is often given in its place."""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim.combinators.innermost import innermost
from functional_optim.hints import MEANT
from functional_optim.transform import Transform, require_transform

from . import user
from .leaves import Group


def given_params(params: Any) -> list[Any]:
    """Tensors, pairs of names and tensors, or groups, as a list.

    Raises:
        TypeError: what is often given in the place of parameters.
        ValueError: there are none.
    """
    if isinstance(params, torch.nn.Module):
        raise TypeError(f"params is a module, a {type(params).__name__}: pass model.named_parameters().")
    if isinstance(params, Transform):
        raise TypeError("params is a Transform: parameters come first, OptimizerAdapter(model.named_parameters(), transform).")
    if isinstance(params, Tensor):
        raise TypeError("params is a tensor: the parameters of an optimizer are an iterable of Tensors or dicts, such as [p].")
    if isinstance(params, Mapping):
        raise TypeError(f"params is a mapping, a {type(params).__name__}: {_mapping_advice(params)}")
    if callable(params) and not isinstance(params, Iterable):
        raise TypeError(f"params is a function, {getattr(params, '__name__', params)!r}: call it.")
    if isinstance(params, set | frozenset):
        raise TypeError(
            "params is a set, whose order changes from run to run, while checkpoints number the parameters: pass a list."
        )
    if not isinstance(params, Iterable):
        raise TypeError(f"params is {params!r}: pass model.named_parameters(), a list of tensors, or groups.")
    found = list(params)
    if not found:
        raise ValueError(
            "optimizer got an empty parameter list. What model.parameters() returns gives its tensors once: call it for each "
            "optimizer anew, and not where it has been listed or looped over before."
        )
    return found


def require_work(transform: Any) -> None:
    """Raise TypeError for what is no transform, ValueError for one that does nothing."""
    require_transform(transform, "OptimizerAdapter(params, transform)")
    if not innermost(transform):
        raise ValueError(
            "the transform is an empty chain: it would add the raw gradients to the parameters. "
            "Give it links, the last of them scale_by_learning_rate()."
        )


def _mapping_advice(params: Mapping[Any, Any]) -> str:
    if "params" in params:
        return "pass a list of groups, [{'params': ..., 'lr': ...}, ...]."
    if any(isinstance(p, Tensor) and p.requires_grad for p in params.values()):
        return "pass its items(), pairs of names and tensors."
    return "no tensor in it requires a gradient, as in a model's state_dict(): pass model.named_parameters()."


def require_group(index: int, group: Group) -> None:
    """Raise for a group without parameters, or with a transform of its own, which would change nothing."""
    if "params" not in group:
        raise ValueError(
            f"param_groups[{index}] has no 'params', but {', '.join(map(repr, group)) or 'nothing'}: a group is a dict such as "
            "{'params': model.head.named_parameters(), 'lr': 1e-4}."
        )
    for name, value in group.items():
        if isinstance(value, Transform):
            raise TypeError(
                f"param_groups[{index}] has a transform, {name!r}, but all groups are stepped by the optimizer's own. "
                "fo.partition({'a': ..., 'b': ...}, fo.by_name({...})) is one that treats parameters differently."
            )


def refusal_of(error: ValueError, index: int, group: Group, groups: Sequence[Group]) -> str:
    """What torch says of a group that it refused, and which parameter it means."""
    taken = {p: number for number, other in enumerate(groups) for p in other["params"]}
    params = group["params"] if isinstance(group["params"], list) else []
    for i, p in enumerate(params if all(isinstance(p, Tensor) for p in params) else []):
        where = f"{error}: parameter {i} of param_groups[{index}]"
        if p in taken:
            return f"{where} is in param_groups[{taken[p]}], too. Leave it out of one of them."
        if not (p.is_leaf or p.retains_grad):
            return f"{where}, shape {tuple(p.shape)}, is computed from other tensors. Give those, or p.detach().requires_grad_()."
    return str(error)


def require_no_numbers(extra: Mapping[str, Any], transforms: Iterable[Transform]) -> None:
    """Raise TypeError for hyper-parameters among what a step is given."""
    for name in extra:
        if any(transform.is_hyper_parameter(name) for transform in transforms):
            raise TypeError(
                f"step got {name!r}, a hyper-parameter: those are in the groups, "
                f"for group in optimizer.param_groups: group[{name!r}] = {extra[name]!r}."
            )


def warn_without_gradients(groups: Sequence[Group], loss: Any) -> None:
    """Warn where a closure has returned a loss and no parameter has a gradient."""
    if loss is not None and all(p.grad is None for group in groups for p in group["params"]):
        user.warn("the closure left no parameter a gradient, so this step changes nothing: let it call loss.backward().")


# Keys that look like hyper-parameters, in which people and their schedulers keep what `lr` is computed from.
_OF_SCHEDULERS = ("base_lr", "max_lr")


def warn_of_misspellings(
    index: int, group: Group, known: Mapping[str, Any], kind: type[torch.optim.Optimizer], seen: dict[int, frozenset[str]]
) -> None:
    """Warn of keys of a group that look like hyper-parameters, or are arguments of the optimizer; but for those seen before.

    `seen` has the keys of each group, by its number; those of this one are added.
    """
    for name in group.keys() - known.keys() - {"params", "param_names", *_OF_SCHEDULERS, *seen.get(index, ())}:
        where = f"param_groups[{index}] has a key {name!r}, which is"
        if _is_argument(name, group[name], kind):
            user.warn(
                f"{where} an argument of the optimizer, for all groups, and changes nothing here: "
                f"{kind.__name__}(..., {name}={group[name]!r})."
            )
            continue
        is_number = isinstance(group[name], int | float | Tensor)
        meant = [word for word in MEANT.get(name, ()) if word in known and is_number]
        close = meant or difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.85)
        if close:
            user.warn(f"{where} no hyper-parameter and changes nothing. Did you mean {close[0]!r}?")
    seen[index] = frozenset(group)


def _is_argument(name: str, value: Any, kind: type[torch.optim.Optimizer]) -> bool:
    """Whether optimizers of this class are made with such a choice, and this is none that is off, as in torch's own groups."""
    if not isinstance(value, str | bool) or not value:
        return False
    argument = inspect.signature(kind).parameters.get(name)
    return argument is not None and argument.kind is not argument.VAR_KEYWORD and value != argument.default
