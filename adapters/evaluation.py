"""Parameters in the place where they are evaluated, for as long as that takes: `eval_params`, and the modes of an optimizer."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from functional_optim.combinators.evaluated import evaluated
from functional_optim.recipe import answering
from functional_optim.transform import Transform

from .state.names import keys_of
from .state.own import require_own, unwrapped

if TYPE_CHECKING:
    from .leaves import Numbered
    from .transform_optimizer import TransformOptimizer

# What a checkpoint calls the parameters that are trained, where those of the model were the ones to evaluate when it was saved.
TRAINED = "trained_params"


class Evaluation:
    """Where the parameters of an optimizer are: where they are trained, or where they are evaluated.

    Attributes:
        kept: of those that have been moved, what to give back; None while they are trained.
        is_lent: whether this lasts until a `with` is left.
    """

    def __init__(self) -> None:
        self.kept: dict[Tensor, Tensor] | None = None
        self.is_lent = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy is in no `with`: its own `train()` gives back what it has kept.
        return {**vars(self), "is_lent": False}

    def require_training(self, what: str) -> None:
        """Raise RuntimeError while the parameters are those to evaluate at."""
        if self.kept is not None:
            way_out = "Leave the `with eval_params(optimizer)` first." if self.is_lent else "Call optimizer.train() first."
            raise RuntimeError(f"{what}: the parameters are those to evaluate at, not those that are trained. {way_out}")

    @torch.no_grad()
    def begin(self, optimizer: "TransformOptimizer") -> None:
        """Move the parameters, unless they are there."""
        if self.kept is not None:
            return
        # All that may fail comes first; then each gets its place.
        moves = [move for transform, groups in optimizer._parts().items() for move in _moves(optimizer, transform, groups)]
        self.kept = {p: p.detach().clone() for p, _ in moves}
        for p, x in moves:
            p.copy_(x)

    def leave(self) -> None:
        """Give back what has been moved, unless leaving a `with` will do that.

        Raises:
            RuntimeError: it will.
        """
        if self.is_lent:
            self.require_training("train")
        self.end()

    @torch.no_grad()
    def end(self) -> None:
        """Give back what has been moved."""
        for p, trained in (self.kept or {}).items():
            p.copy_(trained)
        self.kept = None

    def noted(self, optimizer: "TransformOptimizer", state_dict: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint with the parameters that are trained, if those of the model are others."""
        if not self.kept:
            return state_dict
        state = dict(state_dict["state"])
        for number, p in _numbered(optimizer, state_dict):
            if p in self.kept:
                state[number] = {**state.get(number, {}), TRAINED: self.kept[p]}
        return {**state_dict, "state": state}

    @torch.no_grad()
    def resume(self, found: Mapping[Tensor, Tensor]) -> None:
        """Go on where a checkpoint was saved: its model's parameters are those to evaluate at, and these are trained."""
        if found:
            self.kept = {p: trained.detach().to(p.device, p.dtype, copy=True) for p, trained in found.items()}


def without_trained(
    optimizer: "TransformOptimizer", state_dict: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[Tensor, Tensor]]:
    """A checkpoint without the parameters that `noted` has put there, and these.

    Raises:
        ValueError: one has another shape than its parameter.
    """
    rest, found = dict(state_dict["state"]), {}
    for number, p in _numbered(optimizer, state_dict):
        slots = rest.get(number, {})
        if TRAINED in slots:
            found[p] = slots[TRAINED]
            rest[number] = {name: value for name, value in slots.items() if name != TRAINED}
            if found[p].shape != p.shape:
                raise ValueError(
                    f"parameter {number}: {TRAINED!r} of the checkpoint has shape {tuple(found[p].shape)}, "
                    f"the parameter {tuple(p.shape)}."
                )
    return {**state_dict, "state": rest}, found


@answering
@contextlib.contextmanager
def eval_params(optimizer: "TransformOptimizer") -> Iterator[None]:
    """Put the parameters to evaluate at, an average most often, into the model while a `with` lasts; then give back
    those that are trained, to the bit.

        with fo.adapters.eval_params(optimizer):
            validate(model)

    That is the average of a `schedule_free` optimizer, of `ema_params` and of `asgd`, and the slow weights of `lookahead`, also
    inside chains and branches; a parameter that nothing averages stays as it is. They are given back whatever happens inside.
    Inside, `step`, `train` and `load_state_dict` raise RuntimeError, and `state_dict` saves the trained parameters, too: with the
    model's own, which are then the ones to ship, a run is resumed.

    `optimizer.eval()` and `optimizer.train()` do the same without a block; Hugging Face's Trainer and accelerate call them.

    Args:
        optimizer: an `OptimizerAdapter`, or another class of this package. It takes the memory of another copy of what it moves.

    Raises:
        TypeError: this is no optimizer that steps with a transform.

    The pure function is `functional_optim.evaluated`.

    >>> import functional_optim as fo
    >>> w = torch.nn.Parameter(torch.tensor(1.0))
    >>> optimizer = fo.adapters.OptimizerAdapter([w], fo.ema_params(fo.sgd(), ema_decay=0.75), lr=1.0)
    >>> w.square().backward()
    >>> optimizer.step()
    >>> with eval_params(optimizer):
    ...     print(round(w.item(), 6))
    0.5
    >>> w.item()
    -1.0
    """
    optimizer = unwrapped(optimizer)
    require_own(optimizer)
    evaluation = optimizer.evaluation
    if evaluation.kept is not None:  # They are there already, and somebody else moves them back.
        yield
        return
    evaluation.begin(optimizer)
    evaluation.is_lent = True
    try:
        yield
    finally:
        evaluation.is_lent = False
        evaluation.end()


def _moves(optimizer: "TransformOptimizer", transform: Transform, groups: "list[Numbered]") -> Iterator[tuple[Tensor, Tensor]]:
    """The parameters that are evaluated elsewhere, and where."""
    # Before its first step a parameter is where it started.
    known = [(key, p) for index, group in groups for key, p in keys_of(index, group) if optimizer.state.get(p)]
    layout, states = optimizer.started(transform, groups, [], on_host=False)
    for key, p in known:
        if layout.is_complete(key, states[key]):
            state = layout.read([key], states, counts_on_host=False)
            x = evaluated(transform, state, {key: p})[key]
            if x is not p:
                yield p, x


def _numbered(optimizer: "TransformOptimizer", state_dict: Mapping[str, Any]) -> Iterator[tuple[Any, Tensor]]:
    """The parameters with what a checkpoint calls them."""
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=False):
        yield from zip(saved["params"], group["params"], strict=False)
