"""The template of the annotated papers: an optimizer in two methods, one that fills the state and one that steps one tensor."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class GenericAdaptiveOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` that leaves two methods to its subclasses, and does the rest: groups, closure, lazy state.

    Args:
        params: tensors, (name, tensor) pairs or groups, as for every optimizer of torch.
        defaults: further entries of the groups.
        lr: the learning rate, at least 0.
        betas: two decay rates, or more, each in [0, 1).
        eps: at least 0.

    Raises:
        ValueError: one of these is out of its range, here or in a group.

    Differs from the original in that it leaves `defaults` as it was, checks the groups too, refuses a sparse gradient before
    anything has been changed, keeps attributes of subclasses in copies and pickles, and, in `load_state_dict`, the dtypes of
    the state.

    >>> class Momentum(GenericAdaptiveOptimizer):
    ...     def init_state(self, state, group, param):
    ...         state["m"] = torch.zeros_like(param)
    ...     def step_param(self, state, group, grad, param):
    ...         state["m"].mul_(group["betas"][0]).add_(grad)
    ...         param.data.add_(state["m"], alpha=-group["lr"])
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = Momentum([w], {}, lr=0.25, betas=(0.9, 0.999), eps=1e-8)
    >>> (w @ w).backward()
    >>> optimizer.step()
    >>> w.detach()
    tensor([0.5000, 1.0000])
    """

    def __init__(
        self, params: Iterable[Any], defaults: Mapping[str, Any], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        numbers = {"lr": lr, "betas": betas, "eps": eps}
        _check(numbers)
        super().__init__(params, {**defaults, **numbers})

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """Fill the state of a parameter, an empty dict, before its first step. To be overridden; without, it stays empty."""

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """Step one parameter: write to `param.data` and to the state. To be overridden; without, nothing happens.

        Args:
            state: what `init_state` and earlier steps have put there.
            group: the parameter's group, with its hyper-parameters.
            grad: the gradient, dense.
            param: the parameter.
        """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; its numbers are checked.

        Raises:
            ValueError: its `lr`, `betas` or `eps` is out of range.
        """
        if isinstance(param_group, Mapping):
            try:
                self.check_group({**self.defaults, **param_group})
            except (TypeError, ValueError) as error:
                raise type(error)(f"param_groups[{len(self.param_groups)}]: {error}") from None
        super().add_param_group(param_group)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError unless the numbers of a group are in their ranges."""
        _check(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One `step_param` for every parameter that has a gradient, after `init_state` if it has no state.

        Args:
            closure: recomputes the loss, with gradients enabled; its value is returned.

        Raises:
            RuntimeError: a gradient is sparse; nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, param) for group in self.param_groups for param in group["params"] if param.grad is not None]
        if any(param.grad.layout != torch.strided for _, param in work):
            raise RuntimeError("GenericAdaptiveOptimizer does not support sparse gradients, please consider SparseAdam instead")
        for group, param in work:
            state = self.state[param]
            if not state:
                self.init_state(state, group, param)
            self.step_param(state, group, param.grad.detach(), param)
        # Writing to `param.data` goes unnoticed by autograd, which would compute a wrong gradient with an old graph.
        torch.autograd.graph.increment_version([param for _, param in work])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; float32 moments of a bfloat16 parameter stay float32, other than in torch."""
        loaded: dict[str, Any] = {}
        handles = [
            self.register_load_state_dict_pre_hook(lambda _, found: loaded.update(found)),
            self.register_load_state_dict_post_hook(lambda _: self._restore_dtypes(loaded), prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        # torch's own keeps three attributes and loses those of subclasses. Hooks are left behind, as there, and so are methods
        # that somebody has put on the object, as schedulers do with `step`.
        return {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_optimizer_") and not callable(getattr(type(self), name, None))
        }

    def _restore_dtypes(self, loaded: Mapping[str, Any]) -> None:
        saved = [index for group in loaded["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(saved, params, strict=True):
            for name, value in loaded["state"].get(index, {}).items():
                cast = self.state[param][name]
                if isinstance(value, Tensor) and value.dtype != cast.dtype:
                    self.state[param][name] = value.to(cast.device, copy=True)


def _check(group: Mapping[str, Any]) -> None:
    """Raise ValueError unless the numbers that are there are in their ranges; NaN is in none."""
    if not group.get("lr", 0) >= 0:
        raise ValueError(f"Invalid learning rate: {group['lr']}")
    if not group.get("eps", 0) >= 0:
        raise ValueError(f"Invalid epsilon value: {group['eps']}")
    for i, beta in enumerate(group.get("betas", ())):
        if not 0 <= beta < 1:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
