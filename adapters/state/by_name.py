"""`load_by_name`: checkpoints whose parameters are matched by their names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from functional_optim.recipe import answering

from .fitting import StateDict, expected_slots, misfit_of
from .loading import OF_LR, require_state_dict
from .names import keys_of, names_of
from .own import require_own

if TYPE_CHECKING:
    from ..transform_optimizer import TransformOptimizer

Group: TypeAlias = dict[str, Any]


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
    problems = ((p, misfit_of(expected.get(key), found[p][1], p)) for key, p in keyed if p in found)
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
