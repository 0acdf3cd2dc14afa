"""Steps that are left out: where a gradient is not finite, or is too large."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.combined import Combined, choose, zero_unless
from functional_optim.form import Path
from functional_optim.hparams import POSITIVE, Hparam, HParams, require_count
from functional_optim.lifting import new_count
from functional_optim.numerics import global_norm
from functional_optim.recipe import recorded
from functional_optim.sharded import total
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class Skipping(Combined):
    """The form of a transform that runs only where a test of the gradients holds.

    `test(updates, skipped, hp)` tells whether to step, `skipped` being the number of steps left out in a row.
    """

    inner: Transform
    test: Callable[[list[Tensor], Tensor, HParams], Tensor]
    own: Mapping[str, Hparam]

    @property
    def single(self) -> tuple[str, ...]:
        return tuple(self.own)

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {("inner",): self.inner}

    def init(self, params: Tree, hp: HParams) -> Tree:
        """Nothing skipped yet, and the inner state."""
        counts = {name: new_count(params) for name in ("skipped", "total_skipped")}
        return {**counts, "inner": self.inner.init_fn(params, self.inner.select(hp))}

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The inner step, or none: zero updates, and the inner state as it was."""
        present = [u for u in trees.leaves(updates) if u is not None]
        steps = self.test(present, state["skipped"], hp)
        # What is left out is computed nevertheless; on zeros, so that its derivative is finite too.
        clean = zero_unless(steps, updates)
        stepped, inner = self.inner.update_fn(clean, state["inner"], params, self.inner.select(hp), **extra)
        return zero_unless(steps, stepped), {
            "skipped": torch.where(steps, 0, state["skipped"] + 1),
            "total_skipped": state["total_skipped"] + torch.where(steps, 0, 1),
            "inner": choose(steps, inner, state["inner"]),
        }


@recorded
def apply_if_finite(transform: Transform, max_consecutive_errors: int = 5) -> Transform:
    """Leave out the steps in which some gradient is NaN or infinite; after so many in a row, give up and let one through.

    In a step that is left out, updates are zero and the transform's state stays as it is, its counts included.

    Args:
        transform: what runs on finite gradients.
        max_consecutive_errors: how many steps in a row are left out, at least 0. The next one is taken whatever its gradients.

    State: `skipped` () int64, the steps left out in a row; `total_skipped`, all of them; the transform's under `"inner"`.

    As `optax.apply_if_finite`, which looks at the updates that come out rather than at the gradients.

    >>> from functional_optim import sgd
    >>> tx = apply_if_finite(sgd(lr=1.0))
    >>> update, state = tx.update(torch.tensor(float("nan")), tx.init_state(torch.zeros(())))
    >>> float(update), int(state["skipped"])
    (0.0, 1)
    """
    require_transform(transform, "apply_if_finite")
    require_count("max_consecutive_errors", max_consecutive_errors, 0)

    def test(updates: list[Tensor], skipped: Tensor, hp: HParams) -> Tensor:
        flawed = [(~u.isfinite()).sum() for u in updates]
        finite = total(flawed) == 0 if flawed else skipped >= 0
        return finite | (skipped >= max_consecutive_errors)

    return _skipping(transform, test, {}, "apply_if_finite")


@recorded
def skip_large_updates(transform: Transform, largest_norm: float = 100.0) -> Transform:
    """Leave out the steps in which the norm of all gradients together exceeds a bound, or is NaN.

    Args:
        transform: what runs on gradients of at most that norm.
        largest_norm: in units of the gradient, greater than 0. A hyper-parameter.

    State: `skipped` () int64, the steps left out in a row; `total_skipped`, all of them; the transform's under `"inner"`.

    As `optax.skip_large_updates(max_squared_norm=largest_norm²)` as the test of `optax.MultiSteps`.

    >>> from functional_optim import sgd
    >>> tx = skip_large_updates(sgd(lr=1.0))
    >>> update, state = tx.update(torch.tensor(101.0), tx.init_state(torch.zeros(())))
    >>> float(update), int(state["skipped"])
    (0.0, 1)
    """
    require_transform(transform, "skip_large_updates")

    def test(updates: list[Tensor], skipped: Tensor, hp: HParams) -> Tensor:
        reals = [torch.view_as_real(u.resolve_conj()) if u.is_complex() else u for u in updates]
        return global_norm(reals) <= hp["largest_norm"]

    return _skipping(transform, test, {"largest_norm": Hparam(largest_norm, POSITIVE)}, "skip_large_updates")


def _skipping(transform: Transform, test: Callable[..., Tensor], own: Mapping[str, Hparam], name: str) -> Transform:
    form = Skipping(transform, test, own)
    return Transform.of(form, {**own, **transform.declared}, name)
