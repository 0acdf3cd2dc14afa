"""`TransformOptimizer`: a `torch.optim.Optimizer` whose groups are stepped by transforms, which all of this package are."""

import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from functional_optim import torch_internals
from functional_optim.explain import Explanation
from functional_optim.torch_internals import version_of

from .arguments import given_params, refusal_of, require_group, require_no_numbers, warn_without_gradients
from .bridges.explained import explanation_of
from .bridges.grad_scaler import factor_of_gradients
from .evaluation import Evaluation
from .leaves import Group
from .state.boxed import checked_and_boxed, open_boxes
from .state.loading import require_state_dict
from .stepping import Stepping


class TransformOptimizer(Stepping):
    """What all optimizers of this package share: torch's interface to groups of parameters that transforms step."""

    # What no copy takes along.
    _CACHES = (*Stepping._CACHES, "_shown")
    _is_stepping = False
    _shown: dict[Tensor, list[tuple[Tensor, float]]]

    def __init__(self, params: Iterable[Any], defaults: Mapping[str, Any]) -> None:
        given = given_params(params)
        self._forget()
        self.evaluation = Evaluation()
        super().__init__(given, dict(defaults))

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
            self._seen.pop(index, None)  # Of a group that was refused.
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
        Differs from torch in that slots keep their dtype (the float32 moments of a bfloat16 parameter stay float32), but those in
        16 bits get that of this optimizer's rule where it keeps more; that they are spread over processes as their parameters
        are, whether they were saved so or whole; and in that a checkpoint has to fit.
        A chain loads what it can of one whose rules or options differ in part: a rule goes on with all its slots and its count,
        or starts afresh with none of them. A warning says which.

        Raises:
            TypeError: it is none of an optimizer, but a model's, say.
            ValueError: as torch; or another kind of optimizer saved it, a slot has another shape than its parameter's, or a group
                has a number that steps would refuse. Nothing has been changed then.
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

    def _forget_shown(self) -> None:
        """Let parameters start anew whose state has been made to be shown, under a learning rate of 0, and is as it was."""
        for p, seen in self._shown.items():
            found = [(x, version_of(x)) for x in self.state.get(p, {}).values()]
            if len(found) == len(seen) and all(a is b and v == w for (a, v), (b, w) in zip(found, seen, strict=True)):
                del self.state[p]
        self._shown = {}


def _without_autocast() -> AbstractContextManager[Any]:
    """A context in which matrix products keep their precision; that of the forward is no business of the step's."""
    kinds = list(filter(torch.is_autocast_enabled, ("cpu", "cuda", "mps", "xpu")))
    if not kinds:
        return nullcontext()
    stack = ExitStack()
    for kind in kinds:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack
