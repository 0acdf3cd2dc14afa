"""`OptimizerAdapter`: any transform behind `torch.optim.Optimizer`."""

import copy
import difflib
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, MutableSequence, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import compress
from operator import attrgetter, is_, itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from functional_optim import torch_internals
from functional_optim.combinators.innermost import innermost
from functional_optim.combinators.rounding import with_rounding
from functional_optim.direction import warn_if_uphill
from functional_optim.evaluate import LossAt
from functional_optim.explain import Explanation
from functional_optim.hints import MEANT
from functional_optim.hparams import PerLeaf, one_or_each
from functional_optim.lifting import widened
from functional_optim.recipe import explained
from functional_optim.sharded import placed_as
from functional_optim.torch_internals import version_of
from functional_optim.transform import Transform, require_transform

from . import user
from .bridges.explained import explanation_of
from .bridges.grad_scaler import factor_of_gradients
from .engine.memory import lacks_some
from .engine.placement import Copies
from .engine.snapshot import Present
from .engine.step import PlannedStep, Request, Step, WholeStep
from .engine.unscaling import FACTOR
from .engine.work import Refused
from .evaluation import Evaluation, without_trained
from .state.given import given_params
from .state.groups import defaults_of, hparams_of
from .state.layout import Flat, Key, Layout, detached_from
from .state.loading import adopted_state, keys_of, require_same_parameters, require_state_dict, with_own_meaning_of_lr
from .state.rates import Rates, Watch, rates_of

Group: TypeAlias = dict[str, Any]
Numbered: TypeAlias = tuple[int, Group]

_GRAD, _GROUP = attrgetter("grad"), itemgetter(1)


class TransformOptimizer(torch.optim.Optimizer):
    """What all optimizers of this package share: groups of parameters, each with the transform that `transform_for` gives it.

    Groups with the same transform are one tree to it, with a hyper-parameter per leaf where the groups disagree.
    """

    is_chain = False
    """Whether one transform, chosen by the user, steps all groups; else the options in a group choose it."""

    # What no copy takes along.
    _CACHES = ("_layouts", "_checked", "_steps", "_told", "_entries", "_validated", "_named", "_shown")
    _is_stepping = False
    _factor = 1.0
    _layouts: dict[Transform, Layout]
    _checked: dict[Transform, int]
    _steps: dict[Transform, Step]
    _told: dict[str, None]
    _entries: dict[Transform, list[str]]
    _validated: dict[tuple[Transform, int], tuple[Sequence[Any] | None, Mapping[str, Any]]]
    _named: dict[int, tuple[Any, list[Key]]]
    _shown: dict[Tensor, list[tuple[Tensor, float]]]

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
        whole = functools.partial(self._eager, transform, groups, closure, extra)
        if torch.compiler.is_compiling():
            return whole()
        present = self._present(groups)
        if not present.params:
            return _nothing
        hparams = self._hparams_of_groups(transform, groups, {*present.groups})
        if self._factor != 1:
            hparams = {index: {**own, FACTOR: self._factor} for index, own in hparams.items()}
        request = Request(present, hparams, self.state, functools.partial(self._given, groups, closure, extra), whole)
        step, fused = self._steps.get(transform), any(map(self.is_fused, map(_GROUP, groups)))
        write = None if step is None or step.fused != fused else step.compute(request)
        return write or self.computed_anew(transform, groups, request, fused, closure, extra)

    def computed_anew(
        self,
        transform: Transform,
        groups: list[Numbered],
        request: Request,
        fused: bool,
        closure: Callable[[], Any] | None,
        extra: Mapping[str, Any],
    ) -> Callable[[], None]:
        """The same where it has to be planned how to step, for the first time or because something is not what it was."""
        del closure, extra
        known = self._steps.pop(transform, None)
        others = {} if known is None else {p: like for p, like in known.known().items() if p.grad is None}
        del known  # It may hold the last references to tensors that were replaced.
        step, new = self._planned(transform, groups, request.present, self._present(groups, others), request.hparams, fused)
        write = step.compute(request)
        assert write is not None

        def write_all() -> None:
            self._store(groups, new)
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

        A key that is none, but looks like one, is kept with a warning.

        Raises:
            TypeError, ValueError: as torch, and for a hyper-parameter of the wrong type or out of its range.
        """
        if isinstance(param_group, dict):
            index = len(self.param_groups)
            transform = self._checked_transform(index, {**self.defaults, **param_group})
            _warn_of_misspellings(index, param_group, {**transform.declared, **self.defaults})
        super().add_param_group(param_group)

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
            TypeError, ValueError: a gradient or a hyper-parameter is unfit. No parameter and no state has been changed then.
            RuntimeError: the parameters are those to evaluate at, inside `eval_params` or after `eval()`.
        """
        self.evaluation.require_training("step")
        loss = None
        if closure is not None:
            if not callable(closure):
                raise TypeError(f"closure is a {type(closure).__name__}, no function. To give the loss itself, step(value=loss).")
            with torch.enable_grad():
                loss = closure()
            extra = {"value": loss, **extra}
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
            self._store(groups, states)

    def explain(self) -> Explanation:
        """What happens to each parameter, as `functional_optim.explain` tells it, with the numbers that are in force; and, after
        a step, how that was run: in which way and why, what is read and written, and bytes of state.

        >>> import functional_optim as fo
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = OptimizerAdapter([("w", w)], fo.chain(fo.scale_by_lion(), fo.scale_by_learning_rate()))
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
        trained: dict[Tensor, Tensor] = {}
        # The hooks of other people come first: they may make another optimizer's checkpoint into one of this.
        handle = self.register_load_state_dict_pre_hook(lambda _, found: _checked_and_boxed(self, found, trained))
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
            if name not in (*self._CACHES, "_is_stepping")
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
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)
            for p in group["params"]:
                slots = self.state.get(p, {})
                for name, value in slots.items():
                    if isinstance(value, Boxed):
                        on_host = name.split(".")[-1] == "step" and not group.get("capturable")
                        opened = value.opened(torch.device("cpu") if on_host else p.device)
                        slots[name] = opened if on_host else placed_as(opened, p)

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

    def _given(self, groups: list[Numbered], closure: Callable[[], Any] | None, extra: Mapping[str, Any]) -> dict[str, Any]:
        """What a transform is given beside the gradients."""
        leaves = leaves_of(groups)
        given = {name: _by_key(leaves, name, value) for name, value in extra.items()}
        return given if closure is None else {**given, **_elsewhere(leaves, closure)}

    def _forget(self) -> None:
        """Start with empty caches; everything in them is derived from the groups and the state."""
        for name in self._CACHES:
            setattr(self, name, {})

    def _parts(self) -> dict[Transform, list[Numbered]]:
        """The groups, whose numbers are in order, by the transform that steps them."""
        parts: dict[Transform, list[Numbered]] = {}
        for index, group in enumerate(self.param_groups):
            parts.setdefault(self._checked_transform(index, group), []).append((index, group))
        return parts

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
            self._hparams_of_group(transform, index, group)
        except (TypeError, ValueError) as error:
            raise type(error)(f"param_groups[{index}]: {error}") from None
        return transform

    def _hparams_of_group(self, transform: Transform, index: int, group: Group) -> Mapping[str, Any]:
        """The complete hyper-parameters of a group, validated unless they are the very objects that the last step saw."""
        if transform not in self._entries:
            self._entries[transform] = [self.entry_of(name) for name in transform.declared]
        values = list(map(group.get, self._entries[transform]))
        known, hparams = self._validated.get((transform, index), (None, {}))
        if known is None or not all(map(is_, values, known)):
            hparams = self.hparams_of(transform, index, group)
            # What can be changed in place is looked at anew at every step.
            lasting = None if any(_may_change(value) for value in values) else values
            self._validated[transform, index] = lasting, hparams
        return hparams

    def hparams_of_leaves(self, transform: Transform, leaves: "list[Leaf]") -> dict[str, Any]:
        """The complete hyper-parameters of these leaves, a `PerLeaf` where their groups differ."""
        groups = {leaf.key.group: leaf.group for leaf in leaves}
        self._require_agreement(transform, groups.values())
        each = {index: self._hparams_of_group(transform, index, group) for index, group in groups.items()}
        return {
            name: one_or_each({leaf.key: each[leaf.key.group][name] for leaf in leaves})
            for name in transform.declared
            if any(name in hparams for hparams in each.values())
        }

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

    def _hparams_of_groups(
        self, transform: Transform, groups: list[Numbered], among: Collection[int]
    ) -> dict[int, Mapping[str, Any]]:
        """The complete hyper-parameters of each group among these, by its number."""
        if len(groups) > 1:
            self._require_agreement(transform, [group for index, group in groups if index in among])
        # This step has looked at them.
        return {index: self._validated[transform, index][1] for index in among}

    def _require_agreement(self, transform: Transform, groups: Collection[Group]) -> None:
        """Raise ValueError where groups differ in which hyper-parameters they give at all."""
        for name, hparam in transform.declared.items():
            if hparam.optional and len({self.entry_of(name) in group for group in groups}) == 2:
                raise ValueError(f"some groups give {name!r} and others don't: give it in all of them, or in none.")

    def _eager(
        self, transform: Transform, groups: list[Numbered], closure: Callable[[], Any] | None, extra: Mapping[str, Any]
    ) -> Callable[[], None]:
        """The step of one transform, computed by itself; what is returned writes it down.

        It sees all parameters that have a state, for a wrapper may have something to do for those without a gradient, too.
        """
        leaves = leaves_of(groups)
        on_host = not torch.compiler.is_compiling() and not any(leaf.group.get("capturable") for leaf in leaves)
        hparams = self.hparams_of_leaves(transform, leaves)
        layout, states = self.started(transform, groups, leaves, on_host)
        involved = [leaf for leaf in leaves_of(groups, states) if layout.is_complete(leaf.key, states[leaf.key])]
        keys, apart = [leaf.key for leaf in involved], len(involved) > len(leaves)

        extra = {name: _by_key(involved, name, value) for name, value in extra.items()}
        if closure is not None:
            extra |= _elsewhere(involved, closure)
        params = {leaf.key: leaf.param for leaf in involved}
        grads = {leaf.key: _multiplied(full_gradient(leaf.param), self._factor) for leaf in involved}
        old = layout.read(keys, states, on_host, apart)
        # Nothing is written to what has no gradient, unless a wrapper has made something new of it.
        written = [leaf.key for leaf in leaves]
        owned = [*(params[key] for key in written), *(x for key in written for x in states[key].values())]
        computed = transform.update(grads, old, params, _for_all(hparams, keys), **extra)
        updates, nested = detached_from(owned, computed)

        def write() -> None:
            layout.write(nested, keys, states)
            for leaf in leaves:
                leaf.param.add_(updates[leaf.key])
            self._store(groups, states)

        return write

    def started(
        self, transform: Transform, groups: list[Numbered], leaves: "list[Leaf]", on_host: bool
    ) -> tuple[Layout, dict[Key, Flat]]:
        """The layout of the state, and the states of these leaves, complete, and of all other parameters that have one.

        What was missing is not in `self.state` yet.
        """
        layout = self._layouts.setdefault(transform, Layout(transform))
        everyone = {key: p for index, group in groups for key, p in keys_of(index, group)}
        if self._checked.get(transform) != len(everyone) and not any(map(is_lazy, everyone.values())):
            transform.form.check(everyone)  # Once, and again when there are more.
            self._checked[transform] = len(everyone)
        wanted = {leaf.key for leaf in leaves}
        states = {key: dict(self.state.get(p, {})) for key, p in everyone.items() if key in wanted or self.state.get(p)}
        unknown = layout.unknown({key: everyone[key] for key in states})
        for index, group in groups if unknown else ():
            here = {key: everyone[key] for key in unknown if key.group == index}
            if here:
                layout.admit(here, self._hparams_of_group(transform, index, group))
        if on_host:
            layout.agree(states)
        lacking = [leaf for leaf in leaves if not layout.is_complete(leaf.key, states[leaf.key])]
        if lacking:
            new = {leaf.key: leaf.param for leaf in lacking}
            for remark in layout.start(new, self.hparams_of_leaves(transform, lacking), states, on_host):
                user.warn(f"{remark}.")
        return layout, states

    def _store(self, groups: list[Numbered], states: Mapping[Key, Flat]) -> None:
        """Keep these states."""
        for index, group in groups:
            for key, p in keys_of(index, group):
                if key in states:
                    self.state[p].update(states[key])


@explained
class OptimizerAdapter(TransformOptimizer):
    """A `torch.optim.Optimizer` that steps with a transform.

    A parameter group is a mapping of hyper-parameters: whatever a scheduler or a person writes there is what the next step uses.
    Groups may differ in any hyper-parameter, yet they are one tree to the transform: a global norm spans them all.

    Every group has an `lr`, which torch's schedulers and other people's programs drive. It is the learning rate where the
    transform has one, or where you give one for all its branches. Else, where schedules give the rate or branches have rates of
    their own, it is a factor of them all, 1 at first: then `group["lr_is_factor"]` is True. See `with_lr_factor`. A checkpoint
    that means the other by `lr` leaves it alone, with a warning.

    On the host a step is cut into stages: elementwise rules run with torch's in-place operations, over lists of small tensors and
    blocks of large ones; a rule that needs a tensor's shape is called for each, and what is no rule is called as it is, on its
    own part of the state. Steps that `accumulate`, `apply_if_finite`, `skip_large_updates` or `conditionally` leave out are not
    computed. Where nothing else is there, or elsewhere than on the host, the transform itself is called. The numbers agree to
    rounding; `explain()` says what is run how, and why.

    `state[p]` is a flat dict of tensors under torch's names, with a step count per parameter: one without a gradient is
    skipped, gets no state, and its count stands still. What a wrapper keeps for all, such as the clock of a schedule, is one
    value for all parameters, whoever has a gradient, as in the pure function; each parameter's state holds a copy.

    Of sharded parameters (`DTensor`, from FSDP2's `fully_shard` or tensor parallelism) the slots are sharded alike. Elementwise
    rules run on the shards of each process, and send nothing; the sums that a link asks for, such as a global norm, take one
    message for each mesh of processes. Where a rule needs a tensor's shape, each tensor has an owner: the others send it their
    shards, and get theirs of the result. (What is cut along several dimensions of a mesh, and what is no rule, is gathered and
    computed by all.) Each process has to have gradients for the same parameters. `ZeroRedundancyOptimizer` shows a process some
    of the parameters only, whose norm a chain would take for that of all: clip before the step there.

    Args:
        params: tensors, (name, tensor) pairs such as `model.named_parameters()`, or groups: dicts with `params` and
            hyper-parameters of their own.
        transform: any transform, such as `chain(...)` or `adamw()`.
        fused: run elementwise rules as compiled kernels that touch every tensor once, compiled at the first step; the numbers are
            the same to rounding. Where that is impossible for a link, or for a parameter (no compiler, an unsupported device), it
            warns once, names what it concerns, and steps that eagerly, as it does without `fused`.
        owners: under DistributedDataParallel, where each process has all parameters, share rules that need shapes out among all
            processes: each computes some of the tensors, and sends the others what comes out. Of sharded parameters each has an
            owner anyway.
        rounding: how parameters of low precision are rounded after a step: `"nearest"`, `"stochastic"`, `"error_bits"`, `"kahan"`
            or `"master_copy"`; see `with_rounding`, which is what `transform` becomes.
        hparams: defaults for groups that don't give their own; the transform's for the rest.

    Raises:
        TypeError: `transform`, `fused`, `owners` or a hyper-parameter is not of the right type.
        ValueError: a hyper-parameter is unknown, or, here or in a group, out of range; the transform is an empty chain; or it
            does not take these parameters, such as one that a partition has no label for.
            Keys of a group that are no hyper-parameters are kept and ignored, as in torch; of a misspelt one it warns.

    It warns, `functional_optim.direction.UphillWarning`, of a transform whose updates point uphill: where no link turns the sign,
    or two do, or weight decay stands behind the learning rate. A chain that begins with `negate()` climbs on purpose.

    >>> import functional_optim as fo
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> tx = fo.chain(fo.clip_by_global_norm(), fo.scale_by_learning_rate())
    >>> optimizer = OptimizerAdapter([w], tx, lr=1.0)
    >>> (w @ w).backward()
    >>> optimizer.step()
    >>> w.detach()
    tensor([2.4000, 3.2000])
    """

    is_chain = True
    owners = False
    _is_made = False
    _rates: Rates
    _watch: Watch

    def __init__(
        self,
        params: Iterable[Any],
        transform: Transform,
        *,
        fused: bool | None = None,
        owners: bool = False,
        rounding: str = "nearest",
        **hparams: Any,
    ) -> None:
        params = given_params(params)
        _require_work(transform)
        transform = with_rounding(transform, rounding)
        for name, value in {"fused": fused, "owners": owners}.items():
            if not isinstance(value, bool | None):
                raise TypeError(f"{name} is {value!r}, a {type(value).__name__}: give True or False.")
        self.transform = transform
        self.fused = fused
        self.owners = owners
        defaults = defaults_of(transform, hparams)
        self._rates = rates_of(transform, hparams, params)
        self._watch = Watch(self._rates)
        super().__init__(params, {**defaults, **self._rates.defaults})
        everyone = self._checked_parameters()
        self._is_made = True
        if everyone is not None:
            warn_if_uphill(self._rates.transform, everyone, self._rates.hparams_of(self.defaults), stacklevel=2)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as in torch; see `TransformOptimizer`.

        Raises:
            TypeError, ValueError: also where the transform does not take these parameters, such as one that has no label.
        """
        factor = param_group.get("lr") if isinstance(param_group, dict) else None  # torch fills in the defaults.
        super().add_param_group(param_group)
        if self._is_made:
            try:
                self._checked_parameters()
            except Exception:
                self.param_groups.pop()
                raise
            if factor is not None and self._rates.factor and "lr" in self.transform.declared:
                user.warn(
                    f"param_groups[{len(self.param_groups) - 1}]: lr = {factor} is a factor of the branches' own rates, "
                    "as in the groups before, which gave none. For a rate, give one when the optimizer is made."
                )
        self._watch.admit(self.param_groups[-1])

    def _checked_parameters(self) -> dict[Key, Tensor] | None:
        """All parameters, which suit the transform; None while some have no shape yet, which then is for the first step."""
        everyone = {key: p for index, group in enumerate(self.param_groups) for key, p in keys_of(index, group)}
        if any(is_lazy(p) for p in everyone.values()):
            return None
        try:
            self.transform.form.check(everyone)
        except ValueError as error:
            advice = " Parameters have no names here: pass model.named_parameters()."
            raise ValueError(f"{error}{'' if any(key.name for key in everyone) else advice}") from None
        return everyone

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """The one transform, for every group: as given, or with a factor of its learning rates."""
        return self._rates.transform

    def hparams_of(self, transform: Transform, index: int, group: Mapping[str, Any]) -> dict[str, Any]:
        """The complete hyper-parameters of a group, validated; its `lr` may be a factor."""
        return self._rates.hparams_of(group)

    def entry_of(self, name: str) -> str:
        """What a hyper-parameter is called in a group: a factor of all rates `lr`."""
        return self._rates.entry(name)

    def computed(
        self, transform: Transform, groups: list[Numbered], closure: Callable[[], Any] | None, extra: Mapping[str, Any]
    ) -> Callable[[], None]:
        """The step, computed; what is returned writes it down. Of a factor that something drives it warns, once."""
        for index, group in () if self._watch.is_over else groups:
            self._watch.look(index, group)
        return super().computed(transform, groups, closure, extra)

    def eval(self) -> None:
        """Put the parameters where they are to be evaluated, until `train()`; see `eval_params`. `step` is refused there."""
        self.evaluation.begin(self)

    def train(self) -> None:
        """Put the parameters back where they are trained.

        Raises:
            RuntimeError: inside `eval_params`, which puts them back itself.
        """
        self.evaluation.leave()

    def copies(self, present: Present) -> Copies | None:
        """All processes, where owners are asked for."""
        if not self.owners:
            return None
        import torch.distributed as dist

        if not dist.is_initialized():
            raise RuntimeError("owners=True shares work out among processes: call torch.distributed.init_process_group first.")
        return Copies(dist.group.WORLD, present.params[0].device)

    def is_fused(self, group: Mapping[str, Any]) -> bool:
        """Whatever the group: how to execute is no hyper-parameter, and no checkpoint changes it."""
        return bool(self.fused)


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


def _checked_and_boxed(
    optimizer: TransformOptimizer, state_dict: dict[str, Any], trained: dict[Tensor, Tensor]
) -> dict[str, Any]:
    """The last hook before torch loads: refuse what can't be right, and hide the tensors from torch.

    torch casts every tensor it finds in the state to the parameter's dtype. What it can't look into, it leaves alone.
    Parameters that are no state are put into `trained`.
    """
    require_state_dict(state_dict)
    require_same_parameters(optimizer, state_dict)
    state_dict, found = without_trained(optimizer, state_dict)
    trained.update(found)
    state_dict = with_own_meaning_of_lr(optimizer, state_dict)
    state = {
        p: {name: _boxed(name, value) for name, value in slots.items()}
        for p, slots in adopted_state(optimizer, state_dict).items()
    }
    return {**state_dict, "state": state}


def _boxed(name: str, value: Any) -> Any:
    """A tensor or number in a form that torch does not look into: dense, and a count of one element as a () tensor."""
    if isinstance(value, int | float):
        return Boxed(torch.tensor(float(value), device="cpu"))
    if not isinstance(value, Tensor):
        return value
    is_count = name.split(".")[-1] == "step" and value.numel() == 1
    return Boxed(value.reshape(()) if is_count else value.to_dense() if value.layout == torch.sparse_coo else value)


def _warn_of_misspellings(index: int, group: Group, known: Mapping[str, Any]) -> None:
    for name in group.keys() - known.keys() - {"params", "param_names"}:
        meant = [word for word in MEANT.get(name, ()) if word in known and isinstance(group[name], int | float)]
        close = meant or difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.85)
        if close:
            user.warn(
                f"param_groups[{index}] has a key {name!r}, which is no hyper-parameter and changes nothing. "
                f"Did you mean {close[0]!r}?"
            )


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


def leaves_of(groups: Iterable[Numbered], others: Collection[Key] = ()) -> list[Leaf]:
    """The parameters that have a gradient, and those called `others`."""
    return [
        Leaf(key, p, group) for index, group in groups for key, p in keys_of(index, group) if p.grad is not None or key in others
    ]


def full_gradient(p: Tensor) -> Tensor | None:
    """The gradient in at least float32 and the parameter's precision: a transform returns updates in the precision of the
    gradients, and they are to be rounded no sooner than the parameter."""
    g = p.grad
    if g is None or g.is_complex() != p.is_complex() or not (g.is_floating_point() or g.is_complex()):
        return g  # What is unfit is for the transform to refuse.
    return widened(g.to(torch.promote_types(g.dtype, p.dtype)))


def _multiplied(grad: Tensor | None, factor: float) -> Tensor | None:
    return grad if grad is None or factor == 1 else widened(grad) * factor


def _by_key(leaves: list[Leaf], name: str, value: Any) -> Any:
    """A mapping from parameter to tensor as a tree like the leaves; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    for key in value:
        if not isinstance(key, Tensor):
            raise TypeError(
                f"{name} has the key {key!r}: expected a mapping from parameters, the tensors themselves, to tensors."
            )
    return {leaf.key: value.get(leaf.param) for leaf in leaves}


def _elsewhere(leaves: list[Leaf], closure: Callable[[], Any]) -> dict[str, Any]:
    """What a closure tells of the loss where the parameters have other values: `evaluate`, and the older `grad_fn`."""
    evaluate = functools.partial(_evaluated_at, leaves, closure)
    return {"evaluate": evaluate, "grad_fn": lambda params: evaluate(params).grads}


def _evaluated_at(leaves: list[Leaf], closure: Callable[[], Any], params: Mapping[Key, Tensor]) -> LossAt:
    """The loss, and the gradients that a closure leaves in the parameters, when they have other values; they get theirs back.

    A branch asks for its own parameters; those of others stay where they are.
    """
    kept = [(leaf.param, leaf.param.clone(), leaf.param.grad) for leaf in leaves]
    asked = [leaf for leaf in leaves if leaf.key in params]
    try:
        for leaf in asked:
            leaf.param.copy_(params[leaf.key])
        for leaf in leaves:
            leaf.param.grad = None  # What is kept must not be zeroed, nor added to.
        with torch.enable_grad():
            value = closure()
        value = value.detach() if isinstance(value, Tensor) else value
        return LossAt(value, {leaf.key: full_gradient(leaf.param) for leaf in asked}, None)
    finally:
        for p, value, grad in kept:
            p.copy_(value)
            p.grad = grad


def _may_change(value: Any) -> bool:
    """Whether a value of a group may be another the next time, though it is the same object."""
    return isinstance(value, MutableSequence) or getattr(value, "ndim", 0) > 0


def _for_all(hparams: Mapping[str, Any], keys: Sequence[Key]) -> dict[str, Any]:
    """Hyper-parameters of some of these leaves, with values for the others too, which have no gradient and so no use for them."""
    return {name: _for_each(value.tree, keys) if isinstance(value, PerLeaf) else value for name, value in hparams.items()}


def _for_each(values: Mapping[Key, Any], keys: Sequence[Key]) -> PerLeaf:
    of_group = {key.group: value for key, value in values.items()}
    any_value = next(iter(values.values()))
    return PerLeaf({key: values.get(key, of_group.get(key.group, any_value)) for key in keys})


def _require_work(transform: Any) -> None:
    require_transform(transform, "OptimizerAdapter(params, transform)")
    if not innermost(transform):
        raise ValueError(
            "the transform is an empty chain: it would add the raw gradients to the parameters. "
            "Give it links, the last of them scale_by_learning_rate()."
        )
