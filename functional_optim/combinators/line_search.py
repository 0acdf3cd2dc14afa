"""Go along a transform's update as far as a line search says."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.combined import Combined
from functional_optim.evaluate import evaluate_in, missing
from functional_optim.form import Needs, Path
from functional_optim.hparams import HParams, require_count
from functional_optim.lifting import device_of, new_count, widened
from functional_optim.numerics import Scalar, cond, double, inner_product, real
from functional_optim.recipe import recorded
from functional_optim.searches.more_thuente import zoom
from functional_optim.searches.scalars import Flag, can_read, is_finite, negate, pick
from functional_optim.searches.search import Search
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class LineSearched(Combined):
    """The form of a transform whose updates are directions."""

    inner: Transform
    search: Search
    max_evals: int

    @property
    def needs(self) -> Needs:
        """The loss, here and elsewhere."""
        return Needs(numbers=("value",), functions=("evaluate",))

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {("inner",): self.inner}

    @property
    def single(self) -> tuple[str, ...]:
        return ()

    def logs(self, state: Tree) -> Mapping[str, Tensor]:
        """The last length, and what has been counted."""
        return {name: state[name] for name in ("step_size", "evaluations", "failed_searches")}

    def remarks(self, state: Tree) -> Sequence[str]:
        """How many searches have failed."""
        count = int(state["failed_searches"])
        have = "1 search so far has" if count == 1 else f"{count} searches so far have"
        return (f"{have} found no lower value",) if count else ()

    def init(self, params: Tree, hp: HParams) -> Tree:
        """Nothing has been searched."""
        nothing = torch.zeros((), dtype=torch.float64, device=device_of(params))
        counts = {"evaluations": new_count(params), "failed_searches": new_count(params)}
        return {"step_size": nothing, **counts, "inner": self.inner.init_fn(params, self.inner.select(hp))}

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The inner update, times what the search finds."""
        evaluate = evaluate_in(extra, "with_line_search")
        if extra.get("value") is None:  # As of a closure that returns nothing.
            raise missing("value", "with_line_search")
        if params is None:
            raise ValueError("with_line_search needs the parameters: update(grads, state, params, value=..., evaluate=...).")
        towards, inner = self.inner.update_fn(updates, state["inner"], params, self.inner.select(hp), **extra)
        directions, spec = trees.flatten(towards)
        reads, device = can_read((updates, params, extra["value"])), device_of(params)

        def told(x: Any) -> Scalar:
            return float(x) if reads else double(x, device)

        def slope(grads: Tree) -> Scalar:
            pairs = [(real(g), real(d)) for g, d in zip(trees.leaves(grads), directions, strict=True)]
            both = [(widened(g), d) for g, d in pairs if g is not None and d is not None]
            return told(inner_product(*zip(*both, strict=True))) if both else told(0.0)

        def at(t: Scalar) -> tuple[Scalar, Scalar]:
            both = zip(trees.leaves(params), directions, strict=True)
            found = evaluate(trees.unflatten(spec, [p if d is None else p + _like(t, d) * d for p, d in both]))
            return told(found.value), slope(found.grads)

        f, s = told(extra["value"]), slope(updates)
        if reads and s > 0 and not state["evaluations"] and not state["failed_searches"]:
            warnings.warn(
                f"with_line_search: the first update of {self.inner.name} leads up, so that no step would ever be taken. "
                "What is added to parameters must point against the gradient: end with scale_by_learning_rate(1.0).",
                stacklevel=2,
            )
        kept, lowest, evals = self._searched(f, s, at, told(1.0))
        stays = kept == 0
        new = {
            "step_size": 0.0 * state["step_size"] + kept,
            "evaluations": state["evaluations"] + evals,
            "failed_searches": state["failed_searches"] + negate(lowest < f),
            "inner": inner,
        }
        # What does not go along a direction stays, though that may be NaN.
        return trees.map_leaves(lambda d: pick(stays, torch.zeros_like(d), _like(kept, d) * d), towards), new

    def _searched(self, f: Scalar, slope: Scalar, at: Any, one: Scalar) -> tuple[Scalar, Scalar, Any]:
        """The length to go, 0 if there is none, the value there, and how many evaluations that took."""
        goes: Flag = is_finite(f) & is_finite(slope) & (slope < 0)
        line = self.search.start(one, pick(goes, f, 0.0 * one), pick(goes, slope, -one))
        kept, lowest, evals = 0.0 * one, f, 0
        for _ in range(self.max_evals):
            if not isinstance(goes, Tensor) and not goes:
                break
            value, rise = at(line.t)
            heard = self.search.told(line, value, rise)
            keep = goes & heard.keep & is_finite(value)
            kept, lowest = pick(keep, line.t, kept), pick(keep, value, lowest)
            evals = evals + pick(goes, 1, 0)
            line = cond(goes, lambda heard=heard: heard.state, lambda line=line: line)
            goes = goes & negate(heard.done)
        return kept, lowest, evals


@recorded
def with_line_search(transform: Transform, search: Search | None = None, *, max_evals: int = 20) -> Transform:
    """Multiply a transform's updates by what a line search finds: t, such that the loss at `params + t · update` is low enough.

        tx = fo.with_line_search(fo.sgd(lr=1.0), fo.solvers.backtracking())

    The search begins at t = 1 and needs the loss elsewhere: `update(grads, state, params, value=loss, evaluate=evaluate)`, where
    `fo.meta.evaluate_of(loss)` is one; `unroll` gives both. Behind the adapter it takes a closure, `optimizer.step(closure)`,
    which is called once more for each evaluation. The gradients that arrive must be those of the loss: it goes around a whole
    optimizer, outside of what changes gradients.

    A loss that is infinite or NaN makes the step shorter. Where updates lead up, or the search keeps no point, parameters stay
    as they are; where values can be read, a first update that leads up is warned of. A search that has found no lower value
    counts as failed; close to a minimum that is to be expected.

    Args:
        transform: what says where to go, such as `sgd()` or `chain(scale_by_lbfgs(), scale_by_learning_rate(1.0))`.
        search: how far to go, one of `fo.solvers`; by default `zoom()`.
        max_evals: at most so many evaluations a step, at least 1. Under `vmap`, and where it is differentiated, there are as many
            in each step, and what has ended stays as it is.

    State: `step_size` () float64, the last t, 0 where the search has failed; `evaluations` and `failed_searches` () int64, of all
    steps; the transform's under `"inner"`. `log_values` shows them, and `explain` how many searches have failed.

    Raises:
        ValueError: no `evaluate`, `value` or params, and no closure.

    Source: Nocedal & Wright 2006, Numerical Optimization, chapter 3. As `optax.scale_by_backtracking_linesearch` and
    `optax.scale_by_zoom_linesearch`, which stand behind the direction in a chain; here reverse mode goes through, too.

    >>> from functional_optim import meta, sgd
    >>> loss = lambda w: (w**4).sum()
    >>> tx, w, evaluate = with_line_search(sgd(lr=1.0)), torch.tensor([3.0]), meta.evaluate_of(loss)
    >>> state = tx.init_state(w)
    >>> value, grads, _ = evaluate(w)
    >>> updates, state = tx.update(grads, state, w, value=value, evaluate=evaluate)
    >>> loss(w + updates) < value, state["evaluations"]
    (tensor(True), tensor(3))
    """
    require_transform(transform, "with_line_search")
    max_evals = require_count("max_evals", max_evals, 1)
    search = zoom() if search is None else search
    if not (hasattr(search, "start") and hasattr(search, "told")):
        raise TypeError(f"search is a {type(search).__name__}: expected one of fo.solvers, such as zoom(), or one like these.")
    return Transform.of(LineSearched(transform, search, max_evals), transform.declared, "with_line_search")


def _like(t: Scalar, d: Tensor) -> Scalar:
    """A length in the precision of what it multiplies."""
    return t.to(d.real.dtype) if isinstance(t, Tensor) else t
