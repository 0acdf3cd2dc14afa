"""`accumulate`: one step for several gradients."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.checks import misfit
from functional_optim.combinators.combined import choose
from functional_optim.combinators.gate import Acts, Gated
from functional_optim.form import Path
from functional_optim.hparams import HParams, require_count
from functional_optim.lifting import widened
from functional_optim.numerics import double
from functional_optim.recipe import recorded
from functional_optim.schedules import Schedule
from functional_optim.transform import Transform, elementwise, require_transform
from functional_optim.trees import Tree


def _empty(p: Tensor, hp: HParams) -> Tensor:
    return widened(torch.zeros_like(p, requires_grad=False))


@elementwise(slots={"mean_grad": _empty}, hparams={"n": 1}, name="gathered")
def _gathered(hp, *, steps):
    """The mean of n gradients, which goes on, and the next one starts at 0; or which stays, and nothing goes on."""

    def rule(g, p, m):
        m = m + (g - m) / hp["n"]
        return (m, torch.zeros_like(m)) if steps else (torch.zeros_like(g), m)

    return rule


@dataclass(frozen=True, eq=False)
class Accumulated(Gated):
    """The form of a transform that steps on the mean of several gradients."""

    inner: Transform
    every: int | Schedule

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {("inner",): self.inner}

    @property
    def clocks(self) -> tuple[str, ...]:
        """The gradients since the last step, and the steps."""
        return ("micro_step", "gradient_step")

    def opens(self, clocks: Mapping[str, Any], hp: HParams, found: Any) -> Any:
        """Whether enough gradients have come."""
        del hp, found
        return clocks["micro_step"] + 1 >= (self.every(double(clocks["gradient_step"])) if callable(self.every) else self.every)

    def advanced(self, clocks: Mapping[str, Any], opens: Any) -> dict[str, Any]:
        """Another gradient, or another step."""
        return {
            "micro_step": choose(opens, 0, clocks["micro_step"] + 1),
            "gradient_step": clocks["gradient_step"] + choose(opens, 1, 0),
        }

    def own_hparams(self, clocks: Mapping[str, Any]) -> dict[str, Any]:
        """How many gradients the mean is of."""
        return {"n": clocks["micro_step"] + 1}

    def fed(self, updates: Tree, state: Tree) -> Tree:
        """A gradient that is missing counts as 0."""
        return trees.map_leaves(lambda m, g: torch.zeros_like(m) if g is None else g, state["mean_grad"], updates)

    def acts(self, opens: bool) -> Acts:
        """The mean, and the inner step on it when it is time."""
        mean = ((), _gathered(steps=opens))
        return [mean, (("inner",), self.inner)] if opens else [mean]

    def init(self, params: Tree, hp: HParams) -> Tree:
        """No gradient yet, and the inner state."""
        mean = _gathered(steps=True).form.init(params, {"n": 1})
        return {**super().init(params, hp), **mean}


@recorded
def accumulate(transform: Transform, every: int | Schedule) -> Transform:
    """Step once for every k gradients, on their mean; between, updates are zero.

    The mean is kept in at least float32. The transform's own counts and schedules advance once per step, not per gradient. A leaf
    whose gradient is None counts as 0 in the mean, and is not updated at a step in which its gradient is None.

    Args:
        transform: what steps on the mean.
        every: k, at least 1; or a function of the number of steps taken, for a batch size that grows.

    State: `micro_step` () int64, the gradients since the last step; `gradient_step`, the steps taken; `mean_grad`, like the
    parameters; the transform's under `"inner"`.

    As `optax.MultiSteps`. Where the count is a tensor the step is computed every time and thrown away in between,
    so that it can be vmapped; behind an optimizer it is left out, and `backward` called k times before `step` costs less only by
    the mean.

    >>> from functional_optim import sgd
    >>> tx = accumulate(sgd(lr=1.0), every=2)
    >>> state = tx.init_state(torch.zeros(()))
    >>> for g in (1.0, 3.0):
    ...     update, state = tx.update(torch.tensor(g), state)
    ...     print(float(update))
    0.0
    -2.0
    """
    require_transform(transform, "accumulate")
    if not callable(every):
        every = require_count("every", every, 1)
    elif problem := misfit(every, 0):
        raise TypeError(f"every, a function, is called with the number of steps taken, but takes {problem}.")
    return Transform.of(Accumulated(transform, every), transform.declared, "accumulate")
