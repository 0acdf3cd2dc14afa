"""Between the template and the rules: a transform as a class with `step_param`, and such a class as a transform."""

import numbers
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.direction import warn_if_uphill
from functional_optim.form import nested
from functional_optim.hparams import ANY, FRACTION, NON_NEGATIVE, Hparam
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, per_tensor, require_transform

from ..state.groups import defaults_of
from ..state.layout import Key, Layout, detached_from
from ..state.loading import with_own_meaning_of_lr
from ..state.names import keys_of
from ..state.rates import Rates, Watch, rates_of
from .optimizer import GenericAdaptiveOptimizer

RANGES = {"lr": NON_NEGATIVE, "betas": FRACTION, "eps": NON_NEGATIVE, "weight_decay": NON_NEGATIVE}


def as_optimizer_class(transform: Transform) -> type[GenericAdaptiveOptimizer]:
    """A subclass of `GenericAdaptiveOptimizer` whose `init_state` and `step_param` are those of a transform.

    Its constructor takes the parameters and hyper-parameters of the transform, which are the entries of its groups; a subclass
    may override the two methods and call them by `super()`. Where a schedule gives the learning rate, or a constant, the groups'
    `lr` is a factor of it, 1 at first, as behind `OptimizerAdapter`. Each parameter is a tree of its own, so it takes only rules
    that treat parameters one by one, in chains, renamed or scheduled. For all others, and for speed, there is `OptimizerAdapter`.

    Raises:
        TypeError: this is no transform.
        ValueError: it is made of something else, which may look at all parameters together.

    >>> import functional_optim as fo
    >>> Lion = as_optimizer_class(fo.chain(fo.scale_by_lion(), fo.scale_by_learning_rate()))
    >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimizer = Lion([w], lr=0.5)
    >>> (w @ w).backward()
    >>> optimizer.step()
    >>> w.detach()
    tensor([ 0.5000, -1.5000])
    """
    require_transform(transform, "as_optimizer_class(transform)")
    for path, form in nested(transform):
        if form.mixes_leaves:
            where = ".".join([transform.name, *path])
            raise ValueError(f"{where} may look at all parameters together, but step_param sees one: use OptimizerAdapter.")
    return type(transform.name, (TransformSteps,), {"transform": transform, "__doc__": f"{transform!r}, parameter by parameter."})


class TransformSteps(GenericAdaptiveOptimizer):
    """What the classes of `as_optimizer_class` have in common."""

    transform: ClassVar[Transform]
    _rates: Rates
    _watch: Watch

    def __init__(self, params: Any, **hparams: Any) -> None:
        params = params if isinstance(params, Tensor) else list(params)
        self._layout: Layout | None = None
        self._rates = rates_of(self.transform, hparams, params)
        self._watch = Watch(self._rates)
        # The template's constructor asks for numbers that a transform may not have.
        torch.optim.Optimizer.__init__(self, params, {**defaults_of(self.transform, hparams), **self._rates.defaults})
        everyone = {key: p for index, group in enumerate(self.param_groups) for key, p in keys_of(index, group)}
        warn_if_uphill(self._rates.transform, everyone, self._hparams(self.defaults), stacklevel=2)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; see `GenericAdaptiveOptimizer`."""
        super().add_param_group(param_group)
        self._watch.admit(self.param_groups[-1])

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise unless the hyper-parameters of a group are of the right type and in their ranges."""
        self._hparams(group)

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """The transform's first state for this parameter, flat, under torch's names."""
        self._layout_for(group, param).start({KEY: param}, self._hparams(group), {KEY: state}, counts_on_host=True)

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """One update of the transform for this parameter."""
        for index, each in enumerate(() if self._watch.is_over else self.param_groups):
            if each is group:
                self._watch.look(index, group)
        layout = self._layout_for(group, param)
        old = layout.read([KEY], {KEY: state}, counts_on_host=True)
        owned = [param, *(x for x in trees.leaves(old) if isinstance(x, Tensor))]
        new = self._rates.transform.update({KEY: grad}, old, {KEY: param}, self._hparams(group))
        updates, after = detached_from(owned, new)
        layout.write(after, [KEY], {KEY: state})
        param.add_(updates[KEY])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; a checkpoint that means the other by `lr`, a rate or a factor, leaves it alone."""
        handle = self.register_load_state_dict_pre_hook(with_own_meaning_of_lr)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __reduce__(self) -> Any:
        cls = type(self)
        # A class that `as_optimizer_class` made can't be found by its name.
        blank = (_blank_of, (self.transform,)) if cls.__module__ == __name__ else (_blank, (cls,))
        return *blank, self.__getstate__()

    def _hparams(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return self._rates.hparams_of(group)

    def _layout_for(self, group: dict[str, Any], param: Tensor) -> Layout:
        if self._layout is None:
            self._layout = Layout(self._rates.transform)
            # What it keeps is the same for every parameter.
            self._layout.admit({KEY: param}, self._hparams(group))
        return self._layout


KEY = Key(0, 0)


@recorded
def as_transform(optimizer_class: Callable[..., GenericAdaptiveOptimizer], **options: Any) -> Transform:
    """The transform that a subclass of `GenericAdaptiveOptimizer` stands for, from its `init_state` and `step_param`.

    The two methods are called as they are, and what they write in place is turned into new tensors (`torch.func.functionalize`):
    the transform is pure, composes with others, and is batched by `vmap` and differentiated as far as the methods' own operations
    can be; `param.data` counts as the parameter. A derivative through √0 is what torch makes of it, NaN.

    Its hyper-parameters are the numbers, and the tuples of numbers, among the class's defaults (`lr`, `betas`, `eps`,
    `weight_decay`, ...). Its slots are what `init_state` leaves in the state, the same ones for every parameter: tensors, and
    numbers, which become () tensors of float64; `step` is called `steps`. The methods see numbers wherever a number can be
    read, that is outside of `vmap`, `torch.func.grad` and the compiler.

    Args:
        optimizer_class: the class, or a function that makes such an optimizer.
        options: its arguments beside the parameters; numbers among them become the defaults of the hyper-parameters.

    Raises:
        TypeError: it makes no `GenericAdaptiveOptimizer`, or its state holds neither tensors nor numbers.
        ValueError: when it is used: the state has other entries than those of a first, small parameter.

    >>> import functional_optim as fo
    >>> class Descent(GenericAdaptiveOptimizer):
    ...     def __init__(self, params, lr=0.1):
    ...         super().__init__(params, {}, lr, (0.9, 0.999), 1e-8)
    ...     def step_param(self, state, group, grad, param):
    ...         param.data.add_(grad, alpha=-group["lr"])
    >>> tx = fo.chain(fo.clip_by_global_norm(1.0), as_transform(Descent))
    >>> params = torch.tensor([1.0, 1.0])
    >>> tx.update(torch.tensor([3.0, 4.0]), tx.init_state(params), params)[0]
    tensor([-0.0600, -0.0800])
    """
    optimizer = optimizer_class([torch.nn.Parameter(torch.zeros(2, 2, device="cpu"))], **options)
    if not isinstance(optimizer, GenericAdaptiveOptimizer):
        raise TypeError(f"as_transform: a {type(optimizer).__name__} is no GenericAdaptiveOptimizer.")
    steps = Steps(optimizer)
    declared = {name: Hparam(value, RANGES.get(name, ANY)) for name, value in steps.group.items() if _is_hparam(value)}
    return per_tensor(slots=steps.slots(), hparams=declared, name=type(optimizer).__name__)(steps.scalars)()


class Steps:
    """The two methods of an optimizer as a rule for one tensor."""

    def __init__(self, optimizer: GenericAdaptiveOptimizer) -> None:
        self.optimizer = optimizer
        (group,) = optimizer.param_groups
        self.group = {name: value for name, value in group.items() if name != "params"}
        (param,) = group["params"]
        self.example = self.first_state(param.detach(), {})

    def first_state(self, param: Tensor, hp: Mapping[str, Any]) -> dict[str, Any]:
        """What `init_state` makes of a parameter."""
        state: dict[str, Any] = {}
        self.optimizer.init_state(state, {**self.group, **hp, "params": [param]}, param)
        for name, value in state.items():
            if not isinstance(value, Tensor | numbers.Real):
                raise TypeError(f"as_transform: state[{name!r}] is a {type(value).__name__}: expected a tensor or a number.")
        return state

    def slots(self) -> dict[str, Callable[[Tensor, Mapping[str, Any]], Tensor]]:
        """How each entry of the state starts."""

        def start_of(name: str) -> Callable[[Tensor, Mapping[str, Any]], Tensor]:
            def start(p: Tensor, hp: Mapping[str, Any]) -> Tensor:
                state = self.first_state(p, hp)
                self.require_same_entries(state, f"init_state of a parameter of shape {tuple(p.shape)}")
                return _stored(state[name], p)

            return start

        return {_slot(name): start_of(name) for name in self.example}

    def scalars(self, hp: Mapping[str, Any]) -> Callable[..., Any]:
        """The rule under these hyper-parameters."""

        def rule(g: Tensor, p: Tensor, *slots: Tensor) -> tuple[Tensor, ...]:
            state = {
                name: value if isinstance(like, Tensor) else _number(value, like)
                for (name, like), value in zip(self.example.items(), slots, strict=True)
            }
            tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}

            def step(g: Tensor, p: Tensor, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
                param = p.clone()
                new = {**state, **{name: value.clone() for name, value in tensors.items()}}
                self.optimizer.step_param(new, {**self.group, **hp, "params": [param]}, g, param)
                self.require_same_entries(new, "step_param")
                return param - p, *(_stored(new[name], p) for name in self.example)

            # The compiler does the same by itself, and can't look into this.
            pure = step if torch.compiler.is_compiling() else torch.func.functionalize(step)
            return pure(g, p, tensors)

        return rule

    def require_same_entries(self, state: Mapping[str, Any], where: str) -> None:
        """Raise ValueError unless the state has the entries of the example."""
        if state.keys() != self.example.keys():
            raise ValueError(
                f"{type(self.optimizer).__name__}: after {where} the state holds {sorted(state)}, for a parameter of shape "
                f"(2, 2) {sorted(self.example)} at first. A transform keeps the same entries for all parameters at all steps."
            )


def _slot(name: str) -> str:
    return "steps" if name == "step" else name


def _stored(value: Any, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64, device=like.device)


def _number(value: Tensor, like: Any) -> Any:
    """A number of the state as the methods know it; a tensor where it can't be read."""
    if torch.compiler.is_compiling():
        return value
    try:
        return type(like)(value.item())
    except RuntimeError:
        return value


def _is_hparam(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) > 0 and all(map(_is_hparam, value))
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _blank(cls: type[GenericAdaptiveOptimizer]) -> GenericAdaptiveOptimizer:
    return cls.__new__(cls)


def _blank_of(transform: Transform) -> GenericAdaptiveOptimizer:
    return _blank(as_optimizer_class(transform))
