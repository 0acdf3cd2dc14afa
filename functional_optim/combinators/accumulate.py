"""`accumulate`: one step for several gradients."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from functional_optim import trees
from functional_optim.checks import misfit
from functional_optim.combinators.combined import Combined, choose, zero_unless
from functional_optim.form import Path
from functional_optim.hparams import HParams, require_count
from functional_optim.lifting import new_count, widened
from functional_optim.numerics import double
from functional_optim.recipe import recorded
from functional_optim.schedules import Schedule
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class Accumulated(Combined):
    """The form of a transform that steps on the mean of several gradients."""

    inner: Transform
    every: int | Schedule

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {("inner",): self.inner}

    def init(self, params: Tree, hp: HParams) -> Tree:
        """No gradient yet, and the inner state."""
        counts = {name: new_count(params) for name in ("micro_step", "gradient_step")}
        mean = trees.map_leaves(lambda p: widened(torch.zeros_like(p, requires_grad=False)), params)
        return {**counts, "mean_grad": mean, "inner": self.inner.init_fn(params, self.inner.select(hp))}

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """A zero update until enough gradients have come, then the inner step on their mean."""
        n, done = state["micro_step"] + 1, state["gradient_step"]
        mean = trees.map_leaves(lambda m, g: m + ((0 if g is None else g) - m) / n, state["mean_grad"], updates)
        given = trees.map_leaves(lambda g, m: m.to(g.dtype), updates, mean)
        stepped, inner = self.inner.update_fn(given, state["inner"], params, self.inner.select(hp), **extra)
        steps = n >= (self.every(double(done)) if callable(self.every) else self.every)
        return zero_unless(steps, stepped), {
            "micro_step": torch.where(steps, 0, n),
            "gradient_step": done + torch.where(steps, 1, 0),
            "mean_grad": trees.map_leaves(lambda m: torch.where(steps, torch.zeros_like(m), m), mean),
            "inner": choose(steps, inner, state["inner"]),
        }


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

    As `optax.MultiSteps`. The step is computed every time and thrown away in between, so that it can be vmapped; in an ordinary
    loop, calling `backward` k times before `step` costs less.

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
        require_count("every", every, 1)
    elif problem := misfit(every, 0):
        raise TypeError(f"every, a function, is called with the number of steps taken, but takes {problem}.")
    form = Accumulated(transform, every)
    return Transform.of(form, transform.declared, "accumulate")
