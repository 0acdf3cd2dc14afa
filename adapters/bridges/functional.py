"""Between an optimizer and the pure functions: `functional_state` takes a run out, `load_functional_state` puts it back.

tx = transform_of(optimizer)
params, state, hparams = functional_state(optimizer, model)
grads = torch.func.grad(loss)(params, batch)             # any number of steps, differentiated, batched
updates, state = tx.update(grads, state, params, hparams)
params = functional_optim.apply_updates(params, updates)
load_functional_state(optimizer, params, state, model=model)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.hparams import HParams, PerLeaf, one_or_each
from functional_optim.recipe import answering
from functional_optim.transform import Transform

from ..state.layout import Flat, Key, Layout
from ..state.names import keys_of, names_of
from ..state.own import require_own
from ..transform_optimizer import TransformOptimizer

Group: TypeAlias = dict[str, Any]


class FunctionalState(NamedTuple):
    """The parameters, the state and the hyper-parameters of a run, as `Transform.update` takes them.

    Attributes:
        params: the parameters that require gradients, by name.
        state: as `Transform.init_state` builds it. Counts are () int64 tensors, a `PerLeaf` of them where parameters differ.
        hparams: complete; a `PerLeaf` where groups differ.
    """

    params: dict[str, Tensor]
    state: Any
    hparams: dict[str, Any]


@answering
def transform_of(optimizer: TransformOptimizer) -> Transform:
    """The transform that an optimizer steps with, in every group.

    Raises:
        TypeError: this is no optimizer that steps with a transform.
        ValueError: the groups' options call for different ones.
    """
    require_own(optimizer)
    transforms = {optimizer.transform_for(group): i for i, group in enumerate(optimizer.param_groups)}
    if len(transforms) > 1:
        first, other = list(transforms.values())[:2]
        raise ValueError(
            f"param_groups[{first}] and param_groups[{other}] of {type(optimizer).__name__} are stepped by different transforms: "
            f"{', '.join(map(repr, transforms))}. Give the groups the same options."
        )
    return next(iter(transforms))


@answering
def functional_state(optimizer: TransformOptimizer, model: torch.nn.Module | None = None) -> FunctionalState:
    """Copies of a run's parameters, state and hyper-parameters, for the functional form to go on with.

    A parameter that has had no step yet has a fresh state. Of a tensor among the hyper-parameters you get the tensor itself.

    Args:
        optimizer: stepped by one transform, `transform_of(optimizer)`.
        model: names the parameters, as `torch.func.functional_call` wants them. Without it, the names that the optimizer was
            made with; or, where it has none, the numbers of the parameters, as in `state_dict`.

    Raises:
        ValueError: several transforms; or a parameter without a name in `model`, or names that are not unique.
    """
    run = _Run(optimizer, model)
    values = run.layout.flattened(run.layout.read(list(run.params), run.states, counts_on_host=True))
    device = next(iter(run.params.values())).device
    state = [
        _functional(_rekeyed(value, run.names), device if known.kind in ("count", "clock") else None)
        for known, value in zip(run.layout.values, values, strict=True)
    ]
    return FunctionalState(
        {run.names[key]: p.detach().clone() for key, p in run.params.items()},
        run.layout.rebuilt(state),
        {name: _rekeyed(value, run.names) for name, value in run.hparams.items()},
    )


@answering
def load_functional_state(
    optimizer: TransformOptimizer,
    params: Mapping[str, Tensor],
    state: Any,
    hparams: HParams | None = None,
    model: torch.nn.Module | None = None,
) -> None:
    """Put a run back: the reverse of `functional_state`, in place; the optimizer goes on from there.

    Args:
        optimizer: whose run it was, or one with the same names and the same transform.
        params: by name, in the parameters' shapes; their graph is left behind.
        state: of the same names.
        hparams: written into the groups, some or all, as numbers where the group has numbers; None leaves the groups alone.
        model: as for `functional_state`.

    Raises:
        TypeError, ValueError: names, structures or shapes disagree, or a hyper-parameter is unfit, or differs within a group.
            Nothing has been changed then.
    """
    run = _Run(optimizer, model)
    keys = {name: key for key, name in run.names.items()}
    _require_like("params", {keys.get(name, name): value for name, value in params.items()}, run.params, run.names)
    try:
        values = [_rekeyed(value, keys) for value in run.layout.flattened(state)]
    except ValueError as error:
        raise ValueError(f"the state is not one of {transform_of(optimizer)}: {error}") from None
    for known, value in zip(run.layout.values, values, strict=True):
        if known.kind == "slot":
            names = {key: run.layout.names(key).get(known.path) for key in run.params}
            kept = {key: run.states[key][name] for key, name in names.items() if name}
            _require_like(f"the slot {known.short!r}", value, kept, run.names)
    run.transform.complete(hparams)
    settings = _settings(optimizer, run, {name: _rekeyed(value, keys) for name, value in (hparams or {}).items()})

    with torch.no_grad():
        blank = {key: run.own(key) for key, p in run.params.items() if not optimizer.state.get(p)}
        run.layout.write(run.layout.rebuilt(values), list(run.params), run.states)
        for key, p in run.params.items():
            p.copy_(params[run.names[key]])
            # A parameter that has had no step keeps its state blank, as the optimizer does.
            if key not in blank or not _are_equal(run.own(key), blank[key]):
                optimizer.state[p].update(run.states[key])
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


class _Run:
    """The parameters that a run is about, by key, and what belongs to them; states are complete, but their owner's still."""

    def __init__(self, optimizer: TransformOptimizer, model: torch.nn.Module | None) -> None:
        self.transform = transform_of(optimizer)
        optimizer.evaluation.require_training("the functional state")
        everyone = [pair for index, group in enumerate(optimizer.param_groups) for pair in keys_of(index, group)]
        names = _names(optimizer, model)
        self.params = {key: p for key, p in everyone if p.requires_grad}
        if not self.params:
            raise ValueError("no parameter of the optimizer requires a gradient: there is nothing to differentiate.")
        self.names = {key: names[p] for key, p in self.params.items()}
        self.states: dict[Key, Flat] = {key: dict(optimizer.state.get(p, {})) for key, p in self.params.items()}
        others = {key: p for key, p in everyone if not p.requires_grad and optimizer.state.get(p)}
        groups = [optimizer.hparams_of(self.transform, index, group) for index, group in enumerate(optimizer.param_groups)]
        self.hparams = _spread(groups, self.params)
        self.layout = Layout(self.transform)
        for index, hparams in enumerate(groups):
            here = {key: p for key, p in {**self.params, **others}.items() if key.group == index}
            if here:
                self.layout.admit(here, hparams)
        self.states |= {key: optimizer.state[p] for key, p in others.items()}
        self.layout.start(self.params, self.hparams, self.states, counts_on_host=True)

    def own(self, key: Key) -> Flat:
        """Copies of what a parameter keeps for itself alone; where that is nothing, of what it keeps with all others."""
        names = self.layout.names(key)
        own = [names[value.path] for value in self.layout.values if value.path in names and not value.is_common]
        return {name: self.states[key][name].clone() for name in own or names.values()}


def _spread(groups: Sequence[Mapping[str, Any]], params: Iterable[Key]) -> dict[str, Any]:
    """The hyper-parameters of these parameters, each one value or a `PerLeaf`."""
    return {
        name: one_or_each({key: groups[key.group][name] for key in params})
        for name in groups[0]
        if all(name in group for group in groups)
    }


def _are_equal(slots: Flat, others: Flat) -> bool:
    return all(torch.equal(value, others[name]) for name, value in slots.items())


def _names(optimizer: TransformOptimizer, model: torch.nn.Module | None) -> Mapping[Tensor, str]:
    if model is None and not any("param_names" in group for group in optimizer.param_groups):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        return {p: str(i) for i, p in enumerate(params)}
    return names_of(optimizer, model)


def _rekeyed(value: Any, names: Mapping[Any, Any]) -> Any:
    """A tree of parameters, or a `PerLeaf` of one, under other keys; anything else as it is."""
    if isinstance(value, PerLeaf):
        return PerLeaf(_rekeyed(value.tree, names))
    return {names.get(key, key): leaf for key, leaf in value.items()} if isinstance(value, Mapping) else value


def _functional(value: Any, device: torch.device | None) -> Any:
    """A value of the state as the functional form has it: a copy; and a count, of which the device is given, () int64 tensors."""
    if isinstance(value, PerLeaf):
        return PerLeaf(_functional(value.tree, device))
    if device:
        return trees.map_leaves(lambda count: torch.tensor(int(count), dtype=torch.int64, device=device), value)
    return trees.map_leaves(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, value)


def _require_like(what: str, found: Any, expected: Mapping[Key, Any], names: Mapping[Key, str]) -> None:
    """Raise ValueError unless this is a dict with these keys and tensors of these shapes."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{what}: expected a tensor for each name, got a {type(found).__name__}.")
    for key in [*expected, *found]:
        name = names.get(key, key)
        if key not in found or key not in expected:
            raise ValueError(f"{what}: {name!r} is {'missing' if key in expected else 'no parameter of the optimizer'}.")
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else None for x in (found[key], expected[key])]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{what}: {name!r} has shape {shapes[0]}, expected {shapes[1]}.")


def _settings(optimizer: TransformOptimizer, run: _Run, hparams: HParams) -> list[dict[str, Any]]:
    """What to write into each group."""
    settings: list[dict[str, Any]] = [{} for _ in optimizer.param_groups]
    for name, value in hparams.items():
        for index, group in enumerate(optimizer.param_groups):
            own = [key for key in run.params if key.group == index]
            each = one_or_each({key: value.tree[key] for key in own}) if isinstance(value, PerLeaf) and own else value
            if isinstance(each, PerLeaf) and own:
                raise ValueError(f"{name} differs within param_groups[{index}], which has room for one: {each.tree}.")
            # A drop-in class may leave a number to its transform; unless it has changed, the group goes on without it.
            entry = optimizer.entry_of(name)
            if own and entry and (entry in group or isinstance(each, Tensor) or each != run.transform.hparams.get(name)):
                settings[index][entry] = _like(group.get(entry), each)
    return settings


def _like(old: Any, new: Any) -> Any:
    """A hyper-parameter without its graph, as a number where the old one is."""
    if isinstance(new, tuple | list) and isinstance(old, tuple | list):
        return tuple(map(_like, old, new))
    if not isinstance(new, Tensor) or new is old:
        return new
    return new.tolist() if new.ndim == 0 and not isinstance(old, Tensor) else new.detach().clone()
