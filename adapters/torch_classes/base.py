"""What the classes with torch's names share: torch's slots in checkpoints, sparse gradients, differentiable steps."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from functional_optim.combinators.chain import chain
from functional_optim.combinators.rounding import require_rounding, with_rounding
from functional_optim.recipe import explained
from functional_optim.rules.scale import negate
from functional_optim.transform import Transform

from .. import user
from ..engine.step import Request
from ..leaves import Group, Leaf, Numbered, full_gradient, leaves_of
from ..state.groups import lenient_hparams_of
from ..state.layout import Flat
from ..transform_optimizer import TransformOptimizer

Write = Callable[[], None]


class TorchClass(TransformOptimizer):
    """An optimizer that stands for one of torch.optim.

    Its `state_dict` holds the slots that torch's class has, and no others, so that either loads what the other saved, through
    `torch.distributed.checkpoint` too, which wants the same keys on both sides.
    """

    counts: ClassVar[bool] = True
    """Whether torch's class keeps a step count."""
    takes_complex: ClassVar[bool] = True
    takes_sparse: ClassVar[bool] = False
    """Whether gradients may be sparse, as those of `torch.nn.Embedding(sparse=True)`."""
    takes_dense: ClassVar[bool] = True
    lenient: ClassVar[tuple[str, ...]] = ("betas",)

    rounding = "nearest"
    """How parameters of low precision are rounded after a step; see `with_rounding`."""

    _CACHES = (*TransformOptimizer._CACHES, "_warned")
    _warned: dict[str, bool]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            explained(cls)

    def __init__(self, params: Iterable[Any], defaults: Mapping[str, Any], rounding: str = "nearest") -> None:
        require_rounding(rounding, type(self).__name__)
        self.rounding = rounding
        super().__init__(params, defaults)

    def rounded(self, transform: Transform) -> Transform:
        """A transform with this optimizer's way of rounding parameters."""
        return _rounded(transform, self.rounding)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as in torch."""
        if isinstance(param_group, dict):
            group = {**self.defaults, **param_group}
            if group.get("fused") and group.get("differentiable"):
                raise RuntimeError(f"param_groups[{len(self.param_groups)}]: a differentiable step can't be fused: choose one.")
        super().add_param_group(param_group)

    def hparams_of(self, transform: Transform, index: int, group: Mapping[str, Any]) -> dict[str, Any]:
        """The complete hyper-parameters of a group.

        `betas` are held to their ranges in a new group only: torch's cyclic schedulers write what they are told into them, and
        torch's classes look at nothing then. A warning says so, once.
        """
        if index >= len(self.param_groups):
            return super().hparams_of(transform, index, group)
        hparams, odd = lenient_hparams_of(transform, group, self.lenient)
        if odd and not self._warned:
            self._warned["betas"] = True
            user.warn(
                f"param_groups[{index}]: betas = {tuple(group['betas'])} is out of range. Steps go on with it, as torch's would."
            )
        return hparams

    def computed(
        self, transform: Transform, groups: list[Numbered], closure: Callable[[], Any] | None, extra: Mapping[str, Any]
    ) -> Write:
        """The step of one transform, computed; what is returned writes it down."""
        if any([group.get("differentiable") for _, group in groups]) and (leaves := self._leaves(groups)):
            return self._differentiable(transform, groups, leaves)
        return super().computed(transform, groups, closure, extra)

    def computed_anew(self, transform: Transform, groups: list[Numbered], request: Request, fused: bool) -> Write:
        """Where some gradients are sparse, rows that these don't name may stay as they are."""
        leaves = self._leaves(groups)
        sparse = [leaf for leaf in leaves if gradient_of(leaf).is_sparse] if self.takes_sparse else []
        if not sparse:
            return super().computed_anew(transform, groups, request, fused)
        for leaf in sparse:
            if is_on(leaf.group.get("weight_decay", 0)):
                raise RuntimeError(f"{leaf.key} has a sparse gradient, and a weight_decay would make it dense: use 0.")
        touched = [leaf for leaf in sparse if not is_on(leaf.group.get("momentum", 0))]
        writes = [self._of_touched(transform, groups, leaf) for leaf in touched]
        kept = [(leaf.param, leaf.param.grad) for leaf in sparse]
        try:
            for leaf in sparse:
                # Momentum goes on moving elements that are not touched any more.
                leaf.param.grad = None if leaf in touched else gradient_of(leaf).to_dense()
            writes.append(request.again())
        finally:
            for p, grad in kept:
                p.grad = grad

        def write() -> None:
            for each in writes:
                each()

        return write

    def state_dict(self) -> dict[str, Any]:
        """The state and the groups, as torch's class returns them: what `load_state_dict` of either takes."""
        # The hooks of other people see what torch's class would show them.
        handle = self.register_state_dict_post_hook(lambda _, found: _torchs(self, found), prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `TransformOptimizer.load_state_dict`; what torch's class doesn't keep is made of what it does."""
        super().load_state_dict(state_dict)
        with contextlib.suppress(TypeError, ValueError):  # Of parameters that are unfit, the next step says so.
            self.start(p for p, slots in self.state.items() if slots)

    def has_slot(self, name: str, p: Tensor) -> bool:
        """Whether torch's class keeps this slot of our state; several counts of one parameter are one in torch.

        Of a rounding that torch's has not, all that it takes is kept.
        """
        del p
        return self.rounding != "nearest" or not name.endswith(".step") and (self.counts or name != "step")

    def _leaves(self, groups: list[Numbered]) -> list[Leaf]:
        """The parameters that have a gradient, none of them complex where torch's class takes none."""
        leaves = leaves_of(groups)
        for leaf in leaves if not self.takes_complex else ():
            if leaf.param.is_complex():
                raise RuntimeError(
                    f"{type(self).__name__} does not support complex parameters, but {leaf.key} is {leaf.param.dtype}. "
                    "torch.view_as_real shows its parts as one real tensor."
                )
        return leaves

    def _differentiable(self, transform: Transform, groups: list[Numbered], leaves: list[Leaf]) -> Write:
        """The step of the transform, part of the graph: of gradients, parameters, slots and hyper-parameters that are tensors."""
        for leaf in leaves:
            if leaf.param.is_leaf and leaf.param.requires_grad:
                raise RuntimeError(
                    f"differentiable=True, but {leaf.key} is a leaf of the graph, which can't be written to: pass clones, "
                    "[p.clone() for p in model.parameters()]."
                )
        on_host = not any(leaf.group.get("capturable") for leaf in leaves)
        with torch.enable_grad():
            layout, states = self.started(transform, groups, leaves, on_host)
            params = {leaf.key: leaf.param.clone() for leaf in leaves}  # What a graph has seen must not be written to.
            grads = {leaf.key: full_gradient(leaf.param) for leaf in leaves}
            hparams = self.hparams_of_leaves(transform, leaves)
            updates, nested = transform.update(grads, layout.read(list(params), states, on_host), params, hparams)
            new = {key: {name: x.detach().clone() for name, x in slots.items()} for key, slots in states.items()}
            layout.write(nested, list(params), new)

        def write() -> None:
            for leaf in leaves:
                with torch.enable_grad():
                    leaf.param.add_(updates[leaf.key])
                self.state[leaf.param].update(new[leaf.key])

        return write

    def _of_touched(self, transform: Transform, groups: list[Numbered], leaf: Leaf) -> Write:
        """The step of the elements that a sparse gradient names, of a rule that leaves all others as they are."""
        gradient = gradient_of(leaf).coalesce()
        where = gradient.indices().unbind()
        on_host = not leaf.group.get("capturable")
        layout, states = self.started(transform, groups, [leaf], on_host)
        slots, p = states[leaf.key], leaf.param
        hparams = self.hparams_of_leaves(transform, [leaf])
        own: Flat = {name: x[where] if x.shape == p.shape else x for name, x in slots.items()}
        old = layout.read([leaf.key], {leaf.key: own}, on_host)
        updates, nested = transform.update({leaf.key: gradient.values().to(p.dtype)}, old, {leaf.key: p[where]}, hparams)

        def write() -> None:
            layout.write(nested, [leaf.key], {leaf.key: own})
            for name, x in slots.items():
                if x.shape == p.shape:
                    x[where] = own[name]
            self.state[p].update(slots)
            p[where] += updates[leaf.key]

        return write


# The same object each time, by which steps are known.
_rounded = functools.cache(with_rounding)


def gradient_of(leaf: Leaf) -> Tensor:
    """Of a parameter that has one."""
    assert leaf.param.grad is not None
    return leaf.param.grad


def is_on(number: Any) -> bool:
    """Whether a number does anything; a tensor always might."""
    return isinstance(number, Tensor) or number != 0


def signed(transform: Transform, maximize: bool) -> Transform:
    """A transform that goes up instead of down, if asked to."""
    return chain(negate(), transform) if maximize else transform


def _torchs(optimizer: TorchClass, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state without what torch's class doesn't keep."""
    pairs = zip(optimizer.param_groups, state_dict["param_groups"], strict=True)
    params = {number: p for group, saved in pairs for number, p in zip(saved["params"], group["params"], strict=True)}
    state = {
        number: {name: x for name, x in slots.items() if number not in params or optimizer.has_slot(name, params[number])}
        for number, slots in state_dict["state"].items()
    }
    return {**state_dict, "state": state if any(state.values()) else {}}
