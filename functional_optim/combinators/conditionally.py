"""`conditionally`: one transform in some steps, another in the rest; and `with_extra`, which provides what rules ask for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim.checks import misfit
from functional_optim.combinators.chain import chain
from functional_optim.combinators.combined import Combined
from functional_optim.combinators.gate import Acts, Gated
from functional_optim.form import Path
from functional_optim.hparams import HParams, merge
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class Conditional(Gated):
    """The form of a transform that runs in some steps only."""

    inner: Transform
    otherwise: Transform
    condition: Callable[[Any], Any]

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {("inner",): self.inner, ("otherwise",): self.otherwise}

    @property
    def clocks(self) -> tuple[str, ...]:
        """The steps."""
        return ("condition_step",)

    def opens(self, clocks: Mapping[str, Any], hp: HParams, found: Any) -> Any:
        """Whether the condition holds."""
        del hp, found
        step = clocks["condition_step"]
        holds = self.condition(step)
        return torch.as_tensor(holds, device=step.device) if isinstance(step, Tensor) else holds

    def advanced(self, clocks: Mapping[str, Any], opens: Any) -> dict[str, Any]:
        """Another step."""
        return {"condition_step": clocks["condition_step"] + 1}

    def acts(self, opens: bool) -> Acts:
        """The step of one of the two; the other's state stays as it is."""
        return [(("inner",), self.inner)] if opens else [(("otherwise",), self.otherwise)]


@recorded
def conditionally(transform: Transform, condition: Callable[[Any], Any], otherwise: Transform | None = None) -> Transform:
    """Run a transform in the steps in which a condition holds, and another one, or none, in the rest.

        conditionally(clip_by_global_norm(), lambda step: step < 1000)

    Args:
        transform: what runs where the condition holds. Its state, counts included, advances only then.
        condition: of the step, counted from 0: a () int64 tensor, or behind an optimizer a number. It returns a bool or a ()
            tensor, and reads no value.
        otherwise: what runs in the other steps; by default updates pass unchanged. `freeze()` makes them zero.

    State: `condition_step` () int64; the two states under `"inner"` and `"otherwise"`.

    As `optax.conditionally_transform`, and with `freeze()` as `optax.conditionally_mask`.

    >>> from functional_optim import freeze, scale
    >>> tx = conditionally(scale(-1.0), lambda step: step >= 1, otherwise=freeze())
    >>> state = tx.init_state(torch.zeros(()))
    >>> for _ in range(2):
    ...     update, state = tx.update(torch.tensor(5.0), state)
    ...     print(float(update))
    0.0
    -5.0
    """
    otherwise = chain() if otherwise is None else otherwise
    require_transform(transform, "conditionally")
    require_transform(otherwise, "conditionally, otherwise")
    if not callable(condition):
        raise TypeError(f"condition = {condition!r}: expected a function of the step, such as lambda step: step < 1000.")
    problem = misfit(condition, 0)
    if problem:
        raise TypeError(f"the condition is called with the step, as in lambda step: step < 1000, but takes {problem}.")
    form = Conditional(transform, otherwise, condition)
    declared = merge({transform.name: transform.declared, "otherwise": otherwise.declared})
    return Transform.of(form, declared, "conditionally")


@dataclass(frozen=True, eq=False)
class Provided(Combined):
    """The form of a transform that is given some of what it asks for."""

    inner: Transform
    provided: Mapping[str, Any]

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {(): self.inner}

    @property
    def provides(self) -> tuple[str, ...]:
        return tuple(self.provided)

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The inner state, unchanged."""
        return self.inner.init_fn(params, self.inner.select(hp))

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The inner update, with what is provided and what is given."""
        return self.inner.update_fn(updates, state, params, self.inner.select(hp), **{**self.provided, **extra})


@recorded
def with_extra(transform: Transform, **extra: Any) -> Transform:
    """The same transform, given some keyword arguments in every update.

        with_extra(sam(adam()), evaluate=fo.meta.evaluate_of(loss))

    What is passed to `update` itself takes precedence.

    >>> from functional_optim import elementwise
    >>> @elementwise(extra=("value",))
    ... def scale_by_value(hp):
    ...     return lambda g, p: hp["value"] * g
    >>> with_extra(scale_by_value(), value=3.0).update(torch.tensor(2.0), {})[0]
    tensor(6.)
    """
    require_transform(transform, "with_extra")
    form = Provided(transform, extra)
    return Transform.of(form, transform.declared, transform.name)
