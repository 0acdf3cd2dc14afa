"""`TransformOptimizer`: a `torch.optim.Optimizer` whose groups are stepped by transforms, which all of this package are."""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import compress
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from functional_optim import torch_internals
from functional_optim.explain import Explanation
from functional_optim.torch_internals import version_of
from functional_optim.transform import Transform

from . import user
from .arguments import given_params, refusal_of, require_group, require_no_numbers, warn_of_misspellings, warn_without_gradients
from .bridges.explained import explanation_of
from .bridges.grad_scaler import factor_of_gradients
from .engine.memory import lacks_some
from .engine.placement import Copies
from .engine.snapshot import Present
from .engine.step import PlannedStep, Request, Step, WholeStep
from .engine.unscaling import FACTOR
from .engine.work import Refused
from .evaluation import Evaluation
from .extra import extra_of
from .leaves import Group, Leaf, Numbered, leaves_of, stepped_of
from .state.boxed import checked_and_boxed, open_boxes
from .state.groups import hparams_of
from .state.layout import Flat, Key, Layout
from .state.loading import require_state_dict
from .state.names import keys_of
from .state.numbers import Numbers
from .whole_step import whole_step

_GRAD, _GROUP = attrgetter("grad"), itemgetter(1)


class TransformOptimizer(torch.optim.Optimizer):
    """What all optimizers of this package share: groups of parameters, each with the transform that `transform_for` gives it.

    Groups with the same transform are one tree to it, with a hyper-parameter per leaf where the groups disagree.
    """

    is_chain = False
    """Whether one transform, chosen by the user, steps all groups; else the options in a group choose it."""

    # What no copy takes along.
    _CACHES = ("_layouts", "_checked", "_steps", "_told", "_named", "_shown", "_seen")
    _is_stepping = False
    _factor = 1.0
    _layouts: dict[Transform, Layout]
    _checked: dict[Transform, tuple[int, list[Key]]]
    _steps: dict[Transform, Step]
    _told: dict[str, None]
    _numbers: Numbers
    _named: dict[int, tuple[Any, list[Key]]]
    _shown: dict[Tensor, list[tuple[Tensor, float]]]
    _seen: dict[int, frozenset[str]]

    def __init__(self, params: Iterable[Any], defaults: Mapping[str, Any]) -> None:
        given = given_params(params)
        self._forget()
        self.evaluation = Evaluation()
        super().__init__(given, dict(defaults))

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """The transform that steps the parameters of this group; the same object for groups that share one."""
        raise NotImplementedError

    def hparams_of(self, transform: Transform, index: int, group: Mapping[str, Any]) -> dict[str, Any]:
        """The complete hyper-parameters of a group, validated."""
        del index
        return hparams_of(transform, group)

    def entry_of(self, name: str) -> str:
        """What a hyper-parameter is called in a group; "" for one that groups don't hold."""
        return name

    def computed(
        self, transform: Transform, groups: list[Numbered], closure: Callable[[], Any] | None, extra: Mapping[str, Any]
    ) -> Callable[[], None]:
        """The step of one transform, computed; what is returned writes it down."""
        whole = functools.partial(whole_step, self, transform, groups, closure, extra, self._factor)
        if torch.compiler.is_compiling():
            return whole()
        present = self._present(groups)
        if not present.params:
            return _nothing
        hparams = self._numbers.of_groups(self, transform, groups, {*present.groups})
        if self._factor != 1:
            hparams = {index: {**own, FACTOR: self._factor} for index, own in hparams.items()}
        again = functools.partial(self.computed, transform, groups, closure, extra)
        request = Request(present, hparams, self.state, functools.partial(_extra_of, groups, closure, extra), whole, again)
        step, fused = self._steps.get(transform), any(map(self.is_fused, map(_GROUP, groups)))
        write = None if step is None or step.fused != fused else step.compute(request)
        return write or self.computed_anew(transform, groups, request, fused)

    def computed_anew(self, transform: Transform, groups: list[Numbered], request: Request, fused: bool) -> Callable[[], None]:
        """The same where it has to be planned how to step, for the first time or because something is not what it was."""
        known = self._steps.pop(transform, None)
        others = {} if known is None else {p: like for p, like in known.known().items() if p.grad is None}
        del known  # It may hold the last references to tensors that were replaced.
        step, new = self._planned(transform, groups, request.present, self._present(groups, others), request.hparams, fused)
        write = step.compute(request)
        assert write is not None

        def write_all() -> None:
            self.store(groups, new)
            write()
            step.settle(self.state)
            self._steps[transform] = step

        return write_all

    def is_fused(self, group: Mapping[str, Any]) -> bool:
        """Whether this group asks for the compiled step; groups that share a transform get it if one of them asks."""
        return bool(group.get("fused"))

    def copies(self, present: Present) -> Copies | None:
        """The processes that have the same parameters, and are to share out the rules that need shapes; None for this one."""
        return None

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """What torch wraps the `step` of every class in, to call hooks: once, though a subclass may extend `step` and call ours.

        Inside `torch.compile` nothing of a step is traced, so no number recompiles anything; `fused=True` brings its own kernels.
        """
        hooked = torch.optim.Optimizer.profile_hook_step(func)

        @(torch_internals.get("disable_dynamo") or torch.compiler.disable)
        @functools.wraps(func)
        def step(self: "TransformOptimizer", *args: Any, **kwargs: Any) -> Any:
            if self._is_stepping:
                return func(self, *args, **kwargs)
            self._is_stepping = True
            try:
                return hooked(self, *args, **kwargs)
            finally:
                self._is_stepping = False

        return step

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as in torch; its hyper-parameters are validated, and keys that are none are kept.

        A key that is none, but looks like one, is kept with a warning; so is one that is written into a group later.

        Raises:
            TypeError, ValueError: as torch, and for a hyper-parameter of the wrong type or out of its range, a group without
                `params` or one with a transform of its own.
        """
        index = len(self.param_groups)
        if isinstance(param_group, dict):
            require_group(index, param_group)
            self._look(index, param_group, self._checked_transform(index, {**self.defaults, **param_group}))
        try:
            super().add_param_group(param_group)
        except ValueError as error:
            raise ValueError(refusal_of(error, index, param_group, self.param_groups)) from None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, **extra: Any) -> Any:
        """One update of every parameter that has a gradient; the others are skipped, and their counts stand still.

        Args:
            closure: recomputes the loss, with gradients enabled; its value is returned. Rules that ask for the loss, or for
                gradients at other parameters (`sam`), get them from it.
            extra: what else the transform asks for: `value`, or, as mappings from parameter to tensor, `hessian_diag`, ...

        With `fused=True` a `torch.amp.GradScaler` leaves unscaling to this step, as it does with torch's fused optimizers: the
        rules see unscaled gradients, the parameters keep scaled ones. A step with an infinite gradient does not count.

        Raises:
            TypeError, ValueError: a gradient or a hyper-parameter is unfit, or given here. No parameter and no state has been
                changed then.
            RuntimeError: the parameters are those to evaluate at, inside `eval_params` or after `eval()`.
        """
        self.evaluation.require_training("step")
        if extra:
            require_no_numbers(extra, self._parts())
        loss = None
        if closure is not None:
            if not callable(closure):
                raise TypeError(f"closure is a {type(closure).__name__}, no function. To give the loss itself, step(value=loss).")
            with torch.enable_grad():
                loss = closure()
            extra = {"value": loss, **extra}
            warn_without_gradients(self.param_groups, loss)
        factor = factor_of_gradients(self)
        if factor is None:
            return loss
        parts = self._parts()
        if not self.state and torch_internals.is_asked_for_state():
            self.init_state()
            self._shown = {p: [(x, version_of(x)) for x in slots.values()] for p, slots in self.state.items()}
            return None
        if self._shown:
            self._forget_shown()
        self._factor = factor
        try:
            with _without_autocast():
                computed = [self.computed(transform, groups, closure, extra) for transform, groups in parts.items()]
                for write in computed:
                    write()
        finally:
            del self._factor
        for transform in self._steps.keys() - parts.keys():
            del self._steps[transform]
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether `torch.amp.GradScaler` leaves gradients as they are: a kernel unscales them where it reads them."""
        return any(map(self.is_fused, self.param_groups))

    def hparams_of_leaves(self, transform: Transform, leaves: list[Leaf]) -> dict[str, Any]:
        """The complete hyper-parameters of these leaves, a `PerLeaf` where their groups differ."""
        return self._numbers.of_leaves(self, transform, leaves)

    def init_state(self) -> None:
        """Give every parameter that requires gradients the state that its first step would find; what is there already stays.

        Without it a parameter gets its state at its first step with a gradient, so that processes whose gradients differ in being
        None hold different keys. Call it before `torch.distributed.checkpoint` saves an optimizer or loads one; it is also what
        its own `get_optimizer_state_dict` ends in, with an optimizer that has not stepped.

        >>> from functional_optim.adapters import AdamW
        >>> optimizer = AdamW([torch.nn.Parameter(torch.ones(2))])
        >>> optimizer.init_state()
        >>> optimizer.state_dict()["state"][0]["exp_avg"]
        tensor([0., 0.])
        """
        self.start(p for group in self.param_groups for p in group["params"] if p.requires_grad)

    @torch.no_grad()
    def start(self, params: Iterable[Tensor]) -> None:
        """Give these parameters the slots that they lack."""
        wanted = set(params)
        for transform, groups in self._parts().items():
            everyone = [Leaf(key, p, group) for index, group in groups for key, p in keys_of(index, group)]
            leaves = [leaf for leaf in everyone if leaf.param in wanted and not is_lazy(leaf.param)]
            _, states = self.started(transform, groups, leaves, not any(group.get("capturable") for _, group in groups))
            self.store(groups, states)

    def explain(self) -> Explanation:
        """What happens to each parameter, as `functional_optim.explain` tells it, with the numbers that are in force; and, after
        a step, how that was run: in which way and why, what is read and written, and bytes of state. What is frozen is left out.

        >>> import functional_optim as fo
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = fo.adapters.OptimizerAdapter([("w", w)], fo.chain(fo.scale_by_lion(), fo.scale_by_learning_rate()))
        >>> w.sum().backward()
        >>> optimizer.step()
        >>> print(optimizer.explain())
        w: 2 numbers
          scale_by_lion: The sign of a mix of momentum and gradient: every element moves by ±1, before the learning rate.
              c ← β₁ m + (1 − β₁) g
              m ← β₂ m + (1 − β₂) g
              u ← sign(c)
              betas=(0.9, 0.99); keeps exp_avg (8 bytes)
          scale_by_learning_rate: Multiply updates by `−lr`, which turns their sign.
              lr=0.001
        <BLANKLINE>
        the last step
          group 0, 1 parameters: scale_by_lion → scale_by_learning_rate
              torch's in-place operations, over lists and blocks; 12 bytes read, 8 written, 4 of state, per element
        """
        return explanation_of(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, of this class, of the torch class it stands for, or of a chain with the same slots.

        Parameters are matched by position, as in torch; `load_by_name` matches them by their names. Hooks are called as in torch.
        Differs from torch in that slots keep their dtype (the float32 moments of a bfloat16 parameter stay float32), and are
        spread over processes as their parameters are, whether they were saved so or whole; and in that a checkpoint has to fit.
        A chain loads what it can of one whose rules or options differ in part: a rule goes on with all its slots and its count,
        or starts afresh with none of them. A warning says which.

        Raises:
            TypeError: it is none of an optimizer, but a model's, say.
            ValueError: as torch; or another kind of optimizer saved it, or a slot has another shape than its parameter's.
                Nothing has been changed then.
            RuntimeError: the parameters are those to evaluate at. If they were when the checkpoint was saved, they are thought to
                be so afterwards: call `train()`.
        """
        self.evaluation.require_training("load_state_dict")
        if not hasattr(state_dict, "copy"):  # torch's first act; what isn't a state dict yet, hooks may make one.
            require_state_dict(state_dict)
        trained: dict[Tensor, Tensor] = {}
        # The hooks of other people come first: they may make another optimizer's checkpoint into one of this.
        handle = self.register_load_state_dict_pre_hook(lambda _, found: checked_and_boxed(self, found, trained))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        self.evaluation.resume(trained)

    def state_dict(self) -> dict[str, Any]:
        """As in torch; with the parameters that are trained, where those of the model are the ones to evaluate at."""
        return self.evaluation.noted(self, super().state_dict())

    def __getstate__(self) -> dict[str, Any]:
        # torch's own keeps three attributes and loses those of subclasses. Hooks are left behind, as there; and so are methods
        # that somebody has put on the object, as schedulers do with `step`.
        own = {
            name: value
            for name, value in vars(self).items()
            if name not in (*self._CACHES, "_numbers", "_is_stepping")
            and not name.startswith("_optimizer_")
            and not callable(getattr(type(self), name, None))
        }
        return {**own, **super().__getstate__()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = set({**vars(self), **state}["defaults"])
        super().__setstate__(state)
        self._forget()
        if "evaluation" not in vars(self):  # An older version's pickle.
            self.evaluation = Evaluation()
        for name in self.defaults.keys() - names:  # torch adds `differentiable` to everything.
            del self.defaults[name]
        for index, group in enumerate(self.param_groups):
            for name, default in self.defaults.items():
                group.setdefault(name, default)
            self._seen[index] = frozenset(group)  # What came with a checkpoint may be another chain's.
            for p in group["params"]:
                open_boxes(self.state.get(p, {}), p, capturable=bool(group.get("capturable")))

    def _planned(
        self,
        transform: Transform,
        groups: list[Numbered],
        present: Present,
        everyone: Present,
        hparams: Mapping[int, Mapping[str, Any]],
        fused: bool,
    ) -> tuple[Step, dict[Key, Flat]]:
        """How to step from now on, and the states that this takes, some of which may not be in `self.state` yet."""
        try:
            capturable = {bool(group.get("capturable")) for _, group in groups}
            if len(capturable) > 1:
                raise Refused("capturable=True keeps the step counts of some groups on the device")
            layout, states = self.started(transform, groups, leaves_of(groups), on_host=capturable == {False})
            options = {"fused": fused, "copies": self.copies(present), "capturable": capturable == {True}}
            step = PlannedStep(transform, layout, present, everyone, states, hparams, **options)
        except Refused as reason:
            step, states = WholeStep(present, str(reason), fused=fused), {}
        for reason in step.reasons if fused else ():
            if reason not in self._told:
                self._told[reason] = None
                user.warn(f"fused=True, but {reason}.")
        return step, states

    def _forget(self) -> None:
        """Start with empty caches; everything in them is derived from the groups and the state."""
        for name in self._CACHES:
            setattr(self, name, {})
        self._numbers = Numbers()

    def _parts(self) -> dict[Transform, list[Numbered]]:
        """The groups, whose numbers are in order, by the transform that steps them."""
        parts: dict[Transform, list[Numbered]] = {}
        for index, group in enumerate(self.param_groups):
            transform = self._checked_transform(index, group)
            if group.keys() != self._seen.get(index):
                self._look(index, group, transform)
            parts.setdefault(transform, []).append((index, group))
        return parts

    def _look(self, index: int, group: Group, transform: Transform) -> None:
        """Warn of keys that came into a group since the last look, and look like misspelt hyper-parameters."""
        warn_of_misspellings(index, group, {**transform.declared, **self.defaults}, self._seen.get(index, ()))
        self._seen[index] = frozenset(group)

    def _forget_shown(self) -> None:
        """Let parameters start anew whose state has been made to be shown, under a learning rate of 0, and is as it was."""
        for p, seen in self._shown.items():
            found = [(x, version_of(x)) for x in self.state.get(p, {}).values()]
            if len(found) == len(seen) and all(a is b and v == w for (a, v), (b, w) in zip(found, seen, strict=True)):
                del self.state[p]
        self._shown = {}

    def _checked_transform(self, index: int, group: Group) -> Transform:
        """The transform of a group whose numbers are in order."""
        try:
            transform = self.transform_for(group)
            self._numbers.of_group(self, transform, index, group)
        except (TypeError, ValueError) as error:
            raise type(error)(f"param_groups[{index}]: {error}") from None
        return transform

    def _present(self, groups: list[Numbered], others: Mapping[Tensor, Tensor] | None = None) -> Present:
        """The parameters that have a gradient, or something else in its place."""
        keys, params, grads, numbers = [], [], [], []
        for index, group in groups:
            own, called, found = group["params"], self._keys_of(index, group), list(map(_GRAD, group["params"]))
            if others:
                found = [others.get(p) if g is None else g for p, g in zip(own, found, strict=True)]
            if lacks_some(found):
                has = [g is not None for g in found]
                own, called, found = (list(compress(each, has)) for each in (own, called, found))
            keys += called
            params += own
            grads += found
            numbers += [index] * len(found)
        return Present(keys, params, grads, numbers)

    def _keys_of(self, index: int, group: Group) -> list[Key]:
        """What the parameters of a group are called: the keys of the last step, while their number and names are the same."""
        names = len(group["params"]), group.get("param_names")
        known = self._named.get(index)
        if known is None or known[0] != names:
            known = copy.deepcopy(names), [key for key, _ in keys_of(index, group)]
            self._named[index] = known
        return known[1]

    def started(
        self, transform: Transform, groups: list[Numbered], leaves: list[Leaf], on_host: bool
    ) -> tuple[Layout, dict[Key, Flat]]:
        """The layout of the state, and the states of these leaves, complete, and of all other parameters that have one.

        What was missing is not in `self.state` yet.
        """
        layout = self._layouts.setdefault(transform, Layout(transform))
        everyone = {key: p for index, group in groups for key, p in keys_of(index, group)}
        stepped = stepped_of(everyone)
        seen = len(everyone), list(stepped)
        if self._checked.get(transform) != seen and not any(map(is_lazy, everyone.values())):
            transform.form.check(everyone)  # Once, and again when there are more, or others are stepped.
            transform.form.check_each(stepped)
            self._checked[transform] = seen
        wanted = {leaf.key for leaf in leaves}
        states = {key: dict(self.state.get(p, {})) for key, p in everyone.items() if key in wanted or self.state.get(p)}
        unknown = layout.unknown({key: everyone[key] for key in states})
        for index, group in groups if unknown else ():
            here = {key: everyone[key] for key in unknown if key.group == index}
            if here:
                layout.admit(here, self._numbers.of_group(self, transform, index, group))
        if on_host:
            layout.agree(states)
        lacking = [leaf for leaf in leaves if not layout.is_complete(leaf.key, states[leaf.key])]
        if lacking:
            new = {leaf.key: leaf.param for leaf in lacking}
            for remark in layout.start(new, self.hparams_of_leaves(transform, lacking), states, on_host):
                user.warn(f"{remark}.")
        return layout, states

    def store(self, groups: list[Numbered], states: Mapping[Key, Flat]) -> None:
        """Keep these states."""
        for index, group in groups:
            for key, p in keys_of(index, group):
                if key in states:
                    self.state[p].update(states[key])


def _extra_of(groups: list[Numbered], closure: Callable[[], Any] | None, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a transform is given beside the gradients; of the parameters that have one."""
    return extra_of(leaves_of(groups), closure, extra)


def _nothing() -> None:
    """The step where no parameter has a gradient."""


def _without_autocast() -> AbstractContextManager[Any]:
    """A context in which matrix products keep their precision; that of the forward is no business of the step's."""
    kinds = list(filter(torch.is_autocast_enabled, ("cpu", "cuda", "mps", "xpu")))
    if not kinds:
        return nullcontext()
    stack = ExitStack()
    for kind in kinds:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack
