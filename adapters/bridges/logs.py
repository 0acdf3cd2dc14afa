"""`log_values`: the numbers that a run behind an optimizer is worth watching for."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from functional_optim.combinators import logs
from functional_optim.recipe import answering
from functional_optim.transform import Transform

from ..leaves import Leaf, Numbered
from ..state.names import keys_of
from ..state.own import require_own, unwrapped
from ..transform_optimizer import TransformOptimizer


@answering
def log_values(optimizer: TransformOptimizer) -> dict[str, Tensor]:
    """The hyper-parameters in force, and what the state holds for all parameters together, by flat names: for a logger.

    As `functional_optim.log_values`, of the optimizer's state and groups: the rates that the next step uses, scheduled ones and
    those of branches included; norms that monitors have kept; what gates and schedules count. Values in which groups differ are
    told apart by the number of the group, `group_1.lr`. Where the groups hold a factor of the learning rates, it is `lr_factor`.

    Args:
        optimizer: an `OptimizerAdapter`, or another class of this package, also inside the one that accelerate puts around it. It
            may not have stepped yet.

    Returns:
        Name to () tensor. Nothing is read or copied, and the state is left alone: these are its own tensors, which the next step
        writes to. `float(value)` reads one, and waits for the device if it lies on one.

    Raises:
        TypeError: this is no optimizer that steps with a transform.

    >>> import torch
    >>> import functional_optim as fo
    >>> w, v = torch.nn.Parameter(torch.tensor([3.0, 4.0])), torch.nn.Parameter(torch.zeros(1))
    >>> tx = fo.chain(fo.monitor("grad"), fo.sgd())
    >>> optimizer = fo.adapters.OptimizerAdapter([{"params": [w]}, {"params": [v], "lr": 0.5}], tx, lr=0.1)
    >>> (w @ w / 2).backward()
    >>> optimizer.step()
    >>> {name: float(value) for name, value in log_values(optimizer).items()}
    {'group_0.lr': 0.1, 'group_1.lr': 0.5, 'grad_norm': 5.0}
    """
    optimizer = unwrapped(optimizer)
    require_own(optimizer)
    found: dict[int, dict[str, Tensor]] = {}
    for transform, groups in optimizer._parts().items():
        found |= dict(_of_groups(optimizer, transform, groups))
    return _merged({index: found[index] for index in sorted(found)})


def _of_groups(
    optimizer: TransformOptimizer, transform: Transform, groups: list[Numbered]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The values of each group that has parameters: one of them holds a copy of whatever all share."""
    for index, group in groups:
        params = {key: p for key, p in keys_of(index, group) if not is_lazy(p)}
        if params:
            key = next((key for key, p in params.items() if optimizer.state.get(p)), None)
            # Where none has stepped, the smallest is given a state for the moment.
            key = key or min(params, key=lambda key: params[key].numel())
            leaf = Leaf(key, params[key], group)
            state = _state_of(optimizer, transform, groups, leaf)
            yield index, logs.log_values(transform, state, optimizer.hparams_of_leaves(transform, [leaf]))


def _state_of(optimizer: TransformOptimizer, transform: Transform, groups: list[Numbered], leaf: Leaf) -> Any:
    """The nested state of one parameter; not the whole is looked at where the last step has."""
    layout, state = optimizer._layouts.get(transform), optimizer.state.get(leaf.param, {})
    if layout is None or layout.unknown({leaf.key: leaf.param}) or not layout.is_complete(leaf.key, state):
        layout, states = optimizer.started(transform, groups, [leaf], on_host=not leaf.group.get("capturable"))
        state = states[leaf.key]
    return layout.read([leaf.key], {leaf.key: state}, counts_on_host=False)


def _merged(found: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The values of all groups: once, where all have the same, else with the group's number."""
    merged: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for values in found.values() for name in values):
        each = {index: values[name] for index, values in found.items() if name in values}
        if len(each) == len(found) and _agree(each.values()):
            merged[name] = next(iter(each.values()))
        else:
            merged |= {f"group_{index}.{name}": value for index, value in each.items()}
    return merged


def _agree(values: Iterable[Tensor]) -> bool:
    """Whether these are one tensor, or the same number on the host."""
    first, *rest = values
    return all(value is first or (_is_on_host(value) and _is_on_host(first) and bool(value == first)) for value in rest)


def _is_on_host(value: Tensor) -> bool:
    return value.device.type == "cpu" and not value.requires_grad
