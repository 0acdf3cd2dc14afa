"""`step_in_backward`: each parameter is stepped as soon as backward has its gradient, which is gone before the next one comes."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from functional_optim.combinators.compared import ARRIVED
from functional_optim.combinators.innermost import gates_of, innermost
from functional_optim.form import Form
from functional_optim.lifting import Leafwise
from functional_optim.recipe import answering
from functional_optim.transform import Transform

from ..state.own import is_own

# Of one parameter, with its name, to what steps it.
Maker: TypeAlias = Callable[[list[tuple[str, Tensor]]], torch.optim.Optimizer]


class StepsInBackward(torch.optim.Optimizer):
    """What `step_in_backward` returns: the optimizers of a model, each of one parameter.

    It is an optimizer itself, so that torch's schedulers take it, and an ordinary loop runs as it stands: `step` and `zero_grad`
    find nothing left to do after backward.

    Attributes:
        optimizers: by the names of the parameters.
    """

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer], params: Mapping[str, Tensor]) -> None:
        # Not torch's, which would make groups of its own: these are the groups of the optimizers.
        super().__setstate__({"defaults": {}})
        self.optimizers = dict(optimizers)
        self._waits = False
        self._handles = [
            params[name].register_post_accumulate_grad_hook(functools.partial(self._step, optimizer))
            for name, optimizer in optimizers.items()
        ]

    def _step(self, optimizer: torch.optim.Optimizer, p: Tensor) -> None:
        if not self._waits:
            optimizer.step()
            p.grad = None
            self.step()  # A scheduler wants to have seen one before its own.

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of all optimizers: what is written there, a learning rate say, holds from the next backward on."""
        return [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:  # type: ignore[override]
        """The state of each parameter."""
        return {p: state for optimizer in self.optimizers.values() for p, state in optimizer.state.items()}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Nothing, since backward has done it; a closure is called, and its value returned."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop what `accumulating` has left; else there is nothing."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Not possible.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "each parameter has an optimizer of its own here: call step_in_backward with a module of the new parameters."
        )

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """A context in which backward adds to the gradients, which stay, and steps nothing.

        The first backward after it adds its own, and steps each parameter with the sum.
        """
        waited, self._waits = self._waits, True
        try:
            yield
        finally:
            self._waits = waited

    def state_dict(self) -> dict[str, Any]:
        """The state of each optimizer, by the name of its parameter."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: it is of other parameters. Nothing has been changed then.
        """
        if state_dict.keys() != self.optimizers.keys():
            strange = sorted(state_dict.keys() ^ self.optimizers.keys())
            raise ValueError(f"the checkpoint and the model differ in these parameters: {', '.join(strange)}.")
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state_dict[name])

    def remove(self) -> None:
        """Step no more; backward leaves gradients where they are, as without any of this."""
        for handle in self._handles:
            handle.remove()


@answering
def step_in_backward(model: nn.Module, make_optimizer: Maker) -> StepsInBackward:
    """Step each parameter during `backward`, as soon as its gradient is there, and free the gradient.

        steps = step_in_backward(model, lambda named: OptimizerAdapter(named, fo.adamw(), lr=1e-3))
        loss.backward()                              # there is no step(), and no zero_grad()

    Gradients then take the memory of a few parameters instead of that of the model. Each parameter has an optimizer of its own,
    with clocks of its own, all of which are in step, so that rules which treat parameters one by one give the very numbers that
    they give for all together.

    To accumulate, leave it to the transform, `fo.accumulate(tx, every=4)`, which keeps a mean of gradients as state; or have
    backward add to the gradients, `with steps.accumulating(): loss.backward()`, which then keeps them all.

    Under FSDP2 it works as for one process: apply `fully_shard` first. DistributedDataParallel averages gradients only after this
    would have stepped.

    Args:
        model: its parameters that require gradients are stepped; a parameter that is used twice, once.
        make_optimizer: called for each with `[(name, parameter)]`; any optimizer of torch's kind will do.

    Returns:
        An optimizer that holds these, with `param_groups` for schedules, `state_dict`, and `remove`. Any scheduler of torch, and
        `as_lr_scheduler`, take it: `scheduler = CosineAnnealingLR(steps, 100)`, `scheduler.step()` after backward.

    Raises:
        TypeError: no module, or `make_optimizer` returns no optimizer.
        ValueError: what would be computed is something else than the optimizer of all parameters does: a link asks for something
            of all gradients together, as `clip_by_global_norm` does, before the last of them is there; or for what backward does
            not give, the loss say; or nothing is known of what it does. Clip each tensor by itself, `clip_by_block_rms` or
            `adaptive_grad_clip`, or step after backward.

    As in torch's tutorial, https://docs.pytorch.org/tutorials/intermediate/optimizer_step_in_backward_tutorial.html.

    >>> import functional_optim as fo
    >>> from functional_optim.adapters import OptimizerAdapter
    >>> model = nn.Linear(2, 1, bias=False)
    >>> nn.init.ones_(model.weight)
    Parameter containing:
    tensor([[1., 1.]], requires_grad=True)
    >>> steps = step_in_backward(model, lambda named: OptimizerAdapter(named, fo.sgd(lr=0.5)))
    >>> model(torch.tensor([1.0, 3.0])).sum().backward()
    >>> model.weight, model.weight.grad
    (Parameter containing:
    tensor([[ 0.5000, -0.5000]], requires_grad=True), None)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: expected a module, whose parameters have names.")
    if not callable(make_optimizer):
        raise TypeError(
            f"make_optimizer is a {type(make_optimizer).__name__}: expected a function that makes an optimizer of one parameter, "
            "lambda named: OptimizerAdapter(named, transform, lr=1e-3)."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "model is a DistributedDataParallel, which averages gradients among processes only after they would have been used: "
            "step after backward, or shard the model by fully_shard."
        )
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizers = {name: _made(make_optimizer, name, p) for name, p in params.items()}
    for optimizer in optimizers.values():
        _require_apart(optimizer)
    return StepsInBackward(optimizers, params)


def _made(make_optimizer: Maker, name: str, p: Tensor) -> Any:
    try:
        optimizer = make_optimizer([(name, p)])
    except ValueError as error:
        raise ValueError(
            f"the optimizer of {name!r}, which has one of its own: {error} Where a partition is meant, choose by the name in "
            "make_optimizer."
        ) from error
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"make_optimizer returned a {type(optimizer).__name__}: expected an optimizer, OptimizerAdapter(named, tx)."
        )
    return optimizer


def _require_apart(optimizer: Any) -> None:
    """Raise ValueError unless it does to a parameter by itself what it would do to it among others; of ours, that can be told."""
    for group in optimizer.param_groups if is_own(optimizer) else ():
        reason = _reason_against(optimizer.transform_for(group))
        if reason:
            raise ValueError(f"{reason}, so it can't step a parameter during backward, when the others' gradients are not there.")


def _reason_against(transform: Transform) -> str:
    """What a transform does that takes all parameters, or more than gradients; or nothing."""
    gates = gates_of(transform)
    for gate in gates:
        if gate.form.reduce is not None:
            return f"{'.'.join(gate.path) or transform.name} looks at all gradients before it decides"
    for placed in innermost(transform, gates={gate.path: True for gate in gates}):
        form: Form = placed.transform.form
        if not isinstance(form, Leafwise):
            return f"{placed.transform.name} may look at all parameters together"
        if form.mixes_leaves:
            return f"{placed.transform.name} asks for a quantity of all gradients together"
        asked = [*form.extra, *(name for name in form.leaf_extra if name != ARRIVED)]
        if asked:
            return f"{placed.transform.name} asks for {', '.join(asked)} as well"
    return ""
