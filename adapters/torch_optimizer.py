"""`OptimizerAdapter`: any transform behind `torch.optim.Optimizer`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.chain import Chained
from functional_optim.combinators.rename import Renamed
from functional_optim.hparams import complete, one_or_each
from functional_optim.transform import Transform, require_transform

from .layout import Flat, Key, Layout, detached_from

Group: TypeAlias = dict[str, Any]


class TransformOptimizer(torch.optim.Optimizer):
    """What all optimizers of this package share: groups of parameters, each with the transform that `transform_for` gives it.

    Groups with the same transform are one tree to it, with a hyper-parameter per leaf where the groups disagree.
    """

    def __init__(self, params: Iterable[Any], defaults: Mapping[str, Any]) -> None:
        self._layouts: dict[Transform, Layout] = {}
        super().__init__(params, dict(defaults))

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """The transform that steps the parameters of this group; the same object for groups that share one."""
        raise NotImplementedError

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as in torch; its hyper-parameters are validated, and keys that are none are kept.

        Raises:
            TypeError, ValueError: as torch, and for a hyper-parameter of the wrong type or out of its range.
        """
        if isinstance(param_group, dict):
            index = len(self.param_groups)
            try:
                _hparams_of(self.transform_for({**self.defaults, **param_group}), {**self.defaults, **param_group})
            except (TypeError, ValueError) as error:
                raise type(error)(f"param_groups[{index}]: {error}") from None
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; the others are skipped, and their counts stand still.

        Args:
            closure: recomputes the loss, with gradients enabled; its value is returned.

        Raises:
            TypeError, ValueError: a gradient or a hyper-parameter is unfit. No parameter and no state has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parts: dict[Transform, list[Leaf]] = {}
        for index, group in enumerate(self.param_groups):
            leaves = [Leaf(key, p, group) for key, p in _keyed(index, group)]
            if leaves:
                parts.setdefault(self.transform_for(group), []).extend(leaves)
        computed = [self._computed(transform, leaves) for transform, leaves in parts.items()]
        for write in computed:
            write()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, of this class or of the torch class that it stands for.

        Differs from torch in that slots keep their dtype: the float32 moments of a bfloat16 parameter stay float32.
        """
        # torch casts every tensor it finds in the state to the parameter's dtype. What it can't look into, it leaves alone.
        handle = self.register_load_state_dict_pre_hook(_box_tensors)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._layouts = {}
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)
            for p in group["params"]:
                slots = self.state.get(p, {})
                for name, value in slots.items():
                    if isinstance(value, Boxed):
                        on_host = name.split(".")[-1] == "step" and not group.get("capturable")
                        slots[name] = value.opened(torch.device("cpu") if on_host else p.device)

    def _computed(self, transform: Transform, everyone: "list[Leaf]") -> Callable[[], None]:
        """The step of one transform over those leaves that have a gradient, computed; what is returned writes it down."""
        leaves = [leaf for leaf in everyone if leaf.param.grad is not None]
        if not leaves:
            return lambda: None
        params = {leaf.key: leaf.param for leaf in leaves}
        states: dict[Key, Flat] = {leaf.key: dict(self.state.get(leaf.param, {})) for leaf in leaves}
        others = [self.state[leaf.param] for leaf in everyone if leaf.param in self.state and leaf.key not in states]
        on_host = not torch.compiler.is_compiling() and not any(leaf.group.get("capturable") for leaf in leaves)
        hparams = _hparams_of_leaves(transform, leaves)

        if transform not in self._layouts:
            self._layouts[transform] = Layout(transform, params, hparams)
        layout = self._layouts[transform]
        lacking = [leaf for leaf in leaves if not states[leaf.key].keys() >= set(layout.names)]
        if lacking:
            keys = {leaf.key for leaf in lacking}
            own = (
                {key: params[key] for key in keys},
                _hparams_of_leaves(transform, lacking),
                {key: states[key] for key in keys},
            )
            layout.start(*own, [*others, *states.values()], on_host)

        grads = {leaf.key: leaf.param.grad for leaf in leaves}
        old = layout.read(states, on_host)
        owned = [*params.values(), *(x for x in trees.leaves(old) if isinstance(x, Tensor))]
        updates, nested = detached_from(owned, transform.update(grads, old, params, hparams))

        def write() -> None:
            layout.write(nested, states, others)
            for key, p in params.items():
                self.state[p].update(states[key])
                p.add_(updates[key])

        return write


class OptimizerAdapter(TransformOptimizer):
    """A `torch.optim.Optimizer` that steps with a transform.

    A parameter group is a mapping of hyper-parameters: whatever a scheduler or a person writes there is what the next step uses.
    Groups may differ in any hyper-parameter, yet they are one tree to the transform: a global norm spans them all.
    `state[p]` is a flat dict of tensors under torch's names, with a step count per parameter: one without a gradient is
    skipped, gets no state, and its count stands still.

    Args:
        params: tensors, (name, tensor) pairs such as `model.named_parameters()`, or groups: dicts with `params` and
            hyper-parameters of their own.
        transform: any transform, such as `chain(...)` or `adamw()`.
        hparams: defaults for groups that don't give their own; the transform's for the rest.

    Raises:
        TypeError: `transform` or a hyper-parameter is not of the right type.
        ValueError: a hyper-parameter is unknown, or out of range, here or in a group; or the transform is an empty chain.

    >>> import functional_optim as fo
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> tx = fo.chain(fo.clip_by_global_norm(), fo.scale_by_learning_rate())
    >>> optimizer = OptimizerAdapter([w], tx, lr=1.0)
    >>> (w @ w).backward()
    >>> optimizer.step()
    >>> w.detach()
    tensor([2.4000, 3.2000])
    """

    def __init__(self, params: Iterable[Any], transform: Transform, **hparams: Any) -> None:
        _require_work(transform)
        self.transform = transform
        super().__init__(params, complete(transform.declared, hparams, transform.name))

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """The one transform, for every group."""
        return self.transform

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "transform": self.transform}


@dataclass(frozen=True)
class Leaf:
    """A parameter with a gradient: the key that errors call it by, the tensor, and its group."""

    key: Key
    param: Tensor
    group: Group


@dataclass(frozen=True)
class Boxed:
    """A tensor of a checkpoint on its way past torch's cast."""

    value: Tensor

    def opened(self, device: torch.device) -> Tensor:
        """A copy of the tensor on this device."""
        return self.value.to(device, copy=True)


def _box_tensors(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    del optimizer
    state = {
        p: {
            name: Boxed(torch.as_tensor(value)) if isinstance(value, Tensor | int | float) else value
            for name, value in slots.items()
        }
        for p, slots in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _keyed(index: int, group: Group) -> Iterable[tuple[Key, Tensor]]:
    names = group.get("param_names") or [None] * len(group["params"])
    for i, (name, p) in enumerate(zip(names, group["params"], strict=True)):
        yield Key(index, i, name), p


def _hparams_of(transform: Transform, group: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: group[name] for name in transform.declared if name in group}
    return complete(transform.declared, given, transform.name)


def _hparams_of_leaves(transform: Transform, leaves: list[Leaf]) -> dict[str, Any]:
    return {
        name: one_or_each({leaf.key: leaf.group.get(name, default) for leaf in leaves})
        for name, default in transform.hparams.items()
    }


def _require_work(transform: Any) -> None:
    require_transform(transform, "OptimizerAdapter(params, transform)")
    if _does_nothing(transform):
        raise ValueError(
            "the transform is an empty chain: it would add the raw gradients to the parameters. "
            "Give it links, the last of them scale_by_learning_rate()."
        )


def _does_nothing(transform: Transform) -> bool:
    match transform.form:
        case Chained(links=links):
            return all(map(_does_nothing, links.values()))
        case Renamed(inner=inner):
            return _does_nothing(inner)
    return False
