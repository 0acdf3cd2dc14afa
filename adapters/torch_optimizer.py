"""`OptimizerAdapter`: any transform behind `torch.optim.Optimizer`."""

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.checks import check_gradients
from functional_optim.combinators.combined import check
from functional_optim.combinators.innermost import innermost
from functional_optim.hparams import complete, one_or_each
from functional_optim.transform import Transform, require_transform

from .layout import Flat, Key, Layout, detached_from

if TYPE_CHECKING:
    from .fused import FusedStep

Group: TypeAlias = dict[str, Any]
Numbered: TypeAlias = tuple[int, Group]


class TransformOptimizer(torch.optim.Optimizer):
    """What all optimizers of this package share: groups of parameters, each with the transform that `transform_for` gives it.

    Groups with the same transform are one tree to it, with a hyper-parameter per leaf where the groups disagree.
    """

    def __init__(self, params: Iterable[Any], defaults: Mapping[str, Any]) -> None:
        self._layouts: dict[Transform, Layout] = {}
        self._engines: dict[Transform, FusedStep | None] = {}
        self._validated: dict[tuple[Transform, int], tuple[Sequence[Any], Mapping[str, Any]]] = {}
        super().__init__(params, dict(defaults))

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """The transform that steps the parameters of this group; the same object for groups that share one."""
        raise NotImplementedError

    def is_fused(self, group: Mapping[str, Any]) -> bool:
        """Whether this group asks for the compiled step; groups that share a transform get it if one of them asks."""
        return bool(group.get("fused"))

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
    def step(self, closure: Callable[[], Any] | None = None, **extra: Any) -> Any:
        """One update of every parameter that has a gradient; the others are skipped, and their counts stand still.

        Args:
            closure: recomputes the loss, with gradients enabled; its value is returned. Rules that ask for the loss, or for
                gradients at other parameters (`sam`), get them from it.
            extra: what else the transform asks for: `value`, or, as mappings from parameter to tensor, `hessian_diag`, ...

        Raises:
            TypeError, ValueError: a gradient or a hyper-parameter is unfit. No parameter and no state has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            extra = {"value": loss, **extra}
        parts: dict[Transform, list[Numbered]] = {}
        for index, group in enumerate(self.param_groups):
            parts.setdefault(self.transform_for(group), []).append((index, group))
        computed = [
            self._fused(transform, groups) or self._eager(transform, groups, closure, extra)
            for transform, groups in parts.items()
            if any(p.grad is not None for _, group in groups for p in group["params"])
        ]
        for write in computed:
            write()
        if self._engines.keys() - parts.keys():
            self._engines = {transform: engine for transform, engine in self._engines.items() if transform in parts}
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
        self._engines = {}
        self._validated = {}
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)
            for p in group["params"]:
                slots = self.state.get(p, {})
                for name, value in slots.items():
                    if isinstance(value, Boxed):
                        on_host = name.split(".")[-1] == "step" and not group.get("capturable")
                        slots[name] = value.opened(torch.device("cpu") if on_host else p.device)

    def _fused(self, transform: Transform, groups: list[Numbered]) -> Callable[[], None] | None:
        """The step of one transform, checked and planned; what is returned runs it. None where it has to be eager."""
        wanted = any(self.is_fused(group) for _, group in groups) and not torch.compiler.is_compiling()
        if not wanted or self._engines.get(transform, wanted) is None:
            return None
        params, grads, owners = [], [], []
        for index, group in groups:
            present = [p for p in group["params"] if p.grad is not None]
            params += present
            grads += [p.grad for p in present]
            owners += [index] * len(present)
        hparams = {index: self._hparams_of_group(transform, index, group) for index, group in groups}
        engine = self._engines.get(transform)
        if engine is None or not engine.fits(params, grads, owners, self.state):
            self._engines[transform] = engine = self._planned(transform, groups, (params, grads, owners), hparams)
        return None if engine is None else functools.partial(engine.run, grads, hparams)

    def _hparams_of_group(self, transform: Transform, index: int, group: Group) -> Mapping[str, Any]:
        """The complete hyper-parameters of a group, validated unless they are the very objects that the last step saw."""
        values = [group.get(name) for name in transform.declared]
        known, hparams = self._validated.get((transform, index), ((), {}))
        if len(known) != len(values) or not all(a is b and not isinstance(a, list) for a, b in zip(known, values, strict=True)):
            hparams = _hparams_of(transform, group)
            self._validated[transform, index] = values, hparams
        return hparams

    def _planned(
        self, transform: Transform, groups: list[Numbered], tensors: tuple[Any, Any, Any], hparams: Mapping[int, Any]
    ) -> "FusedStep | None":
        """A fused step that is ready to run; None, after a warning, where it can't be."""
        try:
            from .fused import FusedStep, Unsupported  # Half a second of the compiler's modules, for those who ask for it.
        except ImportError as problem:  # They are private to torch, and may move.
            warnings.warn(f"fused=True, but {problem}. This optimizer steps eagerly instead.", stacklevel=5)
            return None

        # The plan stores the state that new parameters get; so everything that may be refused is looked at before.
        everyone = _leaves(enumerate(self.param_groups))
        check_gradients({leaf.key: leaf.param.grad for leaf in everyone}, {leaf.key: leaf.param for leaf in everyone})
        for group in self.param_groups:
            _hparams_of(self.transform_for(group), group)
        leaves = _leaves(groups)
        try:
            if any(group.get("capturable") for _, group in groups):
                raise Unsupported("capturable=True keeps the step counts on the device")
            layout, states, _ = self._started(transform, groups, on_host=True)
            engine = self._engines.get(transform) or FusedStep(transform, layout)
            for leaf in leaves:
                self.state[leaf.param].update(states[leaf.key])
            engine.prepare(*tensors, self.state, hparams)
            return engine
        except Unsupported as problem:
            warnings.warn(f"fused=True, but {problem}. This optimizer steps eagerly instead.", stacklevel=5)
            return None

    def _eager(
        self, transform: Transform, groups: list[Numbered], closure: Callable[[], Any] | None, extra: Mapping[str, Any]
    ) -> Callable[[], None]:
        """The step of one transform, computed; what is returned writes it down."""
        leaves = _leaves(groups)
        extra = {name: _by_key(leaves, value) for name, value in extra.items()}
        if closure is not None:
            extra["grad_fn"] = functools.partial(_gradients_at, leaves, closure)
        params = {leaf.key: leaf.param for leaf in leaves}
        on_host = not torch.compiler.is_compiling() and not any(leaf.group.get("capturable") for leaf in leaves)
        hparams = _hparams_of_leaves(transform, leaves)

        layout, states, others = self._started(transform, groups, on_host)
        grads = {leaf.key: leaf.param.grad for leaf in leaves}
        old = layout.read(states, on_host)
        owned = [*params.values(), *(x for x in trees.leaves(old) if isinstance(x, Tensor))]
        updates, nested = detached_from(owned, transform.update(grads, old, params, hparams, **extra))

        def write() -> None:
            layout.write(nested, states, others)
            for key, p in params.items():
                self.state[p].update(states[key])
                p.add_(updates[key])

        return write

    def _started(self, transform: Transform, groups: list[Numbered], on_host: bool) -> tuple[Layout, dict[Key, Flat], list[Flat]]:
        """The layout of the state; the states of the leaves, complete, though what was missing is not in `self.state` yet;
        and those of the parameters that sit out this step."""
        leaves = _leaves(groups)
        params = {leaf.key: leaf.param for leaf in leaves}
        states: dict[Key, Flat] = {leaf.key: dict(self.state.get(leaf.param, {})) for leaf in leaves}
        others = [self.state[p] for _, group in groups for p in group["params"] if p.grad is None and p in self.state]
        if transform not in self._layouts:
            check(transform, dict(pair for index, group in groups for pair in _keyed(index, group)))
            self._layouts[transform] = Layout(transform, params, _hparams_of_leaves(transform, leaves))
        layout = self._layouts[transform]
        lacking = [leaf for leaf in leaves if not layout.is_complete(leaf.key, states[leaf.key])]
        if lacking:
            new = {leaf.key: leaf.param for leaf in lacking}
            incomplete = {key: states[key] for key in new}
            layout.start(new, _hparams_of_leaves(transform, lacking), incomplete, [*others, *states.values()], on_host)
        return layout, states, others


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
        fused: step with compiled kernels that touch every tensor once, compiled at the first step; the numbers are the same to
            rounding. Where that is impossible (no compiler, an unsupported device, a transform not made of rules for one
            tensor), it warns once and steps eagerly, as it does without `fused`. The slots of small parameters are then views of
            common buffers, which are packed again whenever another set of parameters has gradients.
        hparams: defaults for groups that don't give their own; the transform's for the rest.

    Raises:
        TypeError: `transform` or a hyper-parameter is not of the right type.
        ValueError: a hyper-parameter is unknown, or, here or in a group, out of range; or the transform is an empty chain.
            Keys of a group that are no hyper-parameters are kept and ignored, as in torch.

    >>> import functional_optim as fo
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> tx = fo.chain(fo.clip_by_global_norm(), fo.scale_by_learning_rate())
    >>> optimizer = OptimizerAdapter([w], tx, lr=1.0)
    >>> (w @ w).backward()
    >>> optimizer.step()
    >>> w.detach()
    tensor([2.4000, 3.2000])
    """

    def __init__(self, params: Iterable[Any], transform: Transform, *, fused: bool | None = None, **hparams: Any) -> None:
        _require_work(transform)
        self.transform = transform
        self.fused = fused
        super().__init__(params, complete(transform.declared, hparams, transform.name))

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """The one transform, for every group."""
        return self.transform

    def is_fused(self, group: Mapping[str, Any]) -> bool:
        """Whatever the group: how to execute is no hyper-parameter, and no checkpoint changes it."""
        return bool(self.fused)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "transform": self.transform, "fused": self.fused}


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


def _leaves(groups: Iterable[Numbered]) -> list[Leaf]:
    return [Leaf(key, p, group) for index, group in groups for key, p in _keyed(index, group) if p.grad is not None]


def _by_key(leaves: list[Leaf], value: Any) -> Any:
    """A mapping from parameter to tensor as a tree like the leaves; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    return {leaf.key: value.get(leaf.param) for leaf in leaves}


def _gradients_at(leaves: list[Leaf], closure: Callable[[], Any], params: Mapping[Key, Tensor]) -> dict[Key, Tensor | None]:
    """The gradients that a closure leaves in the parameters when they have other values; they get theirs back."""
    kept = [(leaf.param, leaf.param.clone(), leaf.param.grad) for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.param.copy_(params[leaf.key])
            leaf.param.grad = None  # What is kept must not be zeroed, nor added to.
        with torch.enable_grad():
            closure()
        return {leaf.key: leaf.param.grad for leaf in leaves}
    finally:
        for p, value, grad in kept:
            p.copy_(value)
            p.grad = grad


def _keyed(index: int, group: Group) -> Iterable[tuple[Key, Tensor]]:
    names = group.get("param_names") or [None] * len(group["params"])
    for i, (name, p) in enumerate(zip(names, group["params"], strict=True)):
        yield Key(index, i, name), p


def _hparams_of(transform: Transform, group: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: group[name] for name in transform.declared if name in group}
    return complete(transform.declared, given, transform.name)


def _hparams_of_leaves(transform: Transform, leaves: list[Leaf]) -> dict[str, Any]:
    for name, hparam in transform.declared.items():
        if hparam.optional and len({name in leaf.group for leaf in leaves}) == 2:
            raise ValueError(f"some groups give {name!r} and others don't: give it in all of them, or in none.")
    return {
        name: one_or_each({leaf.key: leaf.group.get(name, hparam.default) for leaf in leaves})
        for name, hparam in transform.declared.items()
        if not hparam.optional or any(name in leaf.group for leaf in leaves)
    }


def _require_work(transform: Any) -> None:
    require_transform(transform, "OptimizerAdapter(params, transform)")
    if not innermost(transform):
        raise ValueError(
            "the transform is an empty chain: it would add the raw gradients to the parameters. "
            "Give it links, the last of them scale_by_learning_rate()."
        )
