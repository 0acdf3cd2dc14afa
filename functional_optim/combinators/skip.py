"""Steps that are left out: where a gradient is not finite, or is too large."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from functional_optim.combinators.combined import choose
from functional_optim.combinators.gate import Acts, Gated, nothing
from functional_optim.form import Path
from functional_optim.hparams import POSITIVE, Hparam, HParams, require_count
from functional_optim.numerics import sqrt
from functional_optim.recipe import recorded
from functional_optim.reductions import SumOver
from functional_optim.transform import Transform, require_transform


@dataclass(frozen=True, eq=False)
class Skipping(Gated):
    """The form of a transform that runs only where a test of the gradients holds.

    `test(found, skipped, hp)` tells whether to step, `skipped` being the number of steps left out in a row.
    """

    inner: Transform
    sums: SumOver
    test: Callable[[Any, Any, HParams], Any]
    own: Mapping[str, Hparam]

    @property
    def single(self) -> tuple[str, ...]:
        return tuple(self.own)

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {("inner",): self.inner}

    @property
    def clocks(self) -> tuple[str, ...]:
        """The steps left out in a row, and all of them."""
        return ("skipped", "total_skipped")

    @property
    def reduce(self) -> SumOver:
        return self.sums

    def opens(self, clocks: Mapping[str, Any], hp: HParams, found: Any) -> Any:
        """Whether the test holds."""
        return self.test(found, clocks["skipped"], hp)

    def advanced(self, clocks: Mapping[str, Any], opens: Any) -> dict[str, Any]:
        """Another step left out, or none."""
        return {
            "skipped": choose(opens, 0, clocks["skipped"] + 1),
            "total_skipped": clocks["total_skipped"] + choose(opens, 0, 1),
        }

    def acts(self, opens: bool) -> Acts:
        """The inner step; or none: zero updates, and the inner state as it was."""
        return [(("inner",), self.inner)] if opens else [((), nothing())]


@recorded
def apply_if_finite(transform: Transform, max_consecutive_errors: int = 5) -> Transform:
    """Leave out the steps in which some gradient is NaN or infinite; after so many in a row, give up and let one through.

    In a step that is left out, updates are zero and the transform's state stays as it is, its counts included.

    Args:
        transform: what runs on finite gradients.
        max_consecutive_errors: how many steps in a row are left out, at least 0. The next one is taken whatever its gradients.

    State: `skipped` () int64, the steps left out in a row; `total_skipped`, all of them; the transform's under `"inner"`.

    As `optax.apply_if_finite`, which looks at the updates that come out rather than at the gradients.

    >>> import torch
    >>> from functional_optim import sgd
    >>> tx = apply_if_finite(sgd(lr=1.0))
    >>> update, state = tx.update(torch.tensor(float("nan")), tx.init_state(torch.zeros(())))
    >>> float(update), int(state["skipped"])
    (0.0, 1)
    """
    require_transform(transform, "apply_if_finite")
    max_consecutive_errors = require_count("max_consecutive_errors", max_consecutive_errors, 0)

    def test(flaws: Tensor, skipped: Any, hp: HParams) -> Tensor:
        del hp
        return (flaws == 0) | (skipped >= max_consecutive_errors)

    return _skipping(transform, SumOver(_flaw), test, {}, "apply_if_finite")


@recorded
def skip_large_updates(transform: Transform, largest_norm: float = 100.0) -> Transform:
    """Leave out the steps in which the norm of all gradients together exceeds a bound, or is NaN.

    Args:
        transform: what runs on gradients of at most that norm.
        largest_norm: in units of the gradient, greater than 0. A hyper-parameter.

    State: `skipped` () int64, the steps left out in a row; `total_skipped`, all of them; the transform's under `"inner"`.

    As `optax.skip_large_updates(max_squared_norm=largest_norm²)` as the test of `optax.MultiSteps`.

    >>> import torch
    >>> from functional_optim import sgd
    >>> tx = skip_large_updates(sgd(lr=1.0))
    >>> update, state = tx.update(torch.tensor(101.0), tx.init_state(torch.zeros(())))
    >>> float(update), int(state["skipped"])
    (0.0, 1)
    """
    require_transform(transform, "skip_large_updates")

    def test(norm: Tensor, skipped: Any, hp: HParams) -> Tensor:
        del skipped
        return norm <= hp["largest_norm"]

    own = {"largest_norm": Hparam(largest_norm, POSITIVE)}
    return _skipping(transform, SumOver(_square, finish=sqrt), test, own, "skip_large_updates")


def _flaw(u: Tensor, p: Any) -> Tensor:
    return (~u.isfinite()).to(u.dtype)


def _square(u: Tensor, p: Any) -> Tensor:
    return u * u


def _skipping(transform: Transform, sums: SumOver, test: Callable[..., Any], own: Mapping[str, Hparam], name: str) -> Transform:
    return Transform.of(Skipping(transform, sums, test, own), {**own, **transform.declared}, name)
