"""L-BFGS: a quasi-Newton direction from the last few steps.

    s = x⁺ − x,  y = g⁺ − g,  ρ = 1 / yᵀs,  γ = yᵀs / yᵀy           of each pair that is kept

    q ← g
    for the pairs, newest first:    α ← ρ sᵀq;  q ← q − α y
    r ← γ q
    for the pairs, oldest first:    r ← r + (α − ρ yᵀr) s

Liu & Nocedal 1989, On the limited memory BFGS method, https://doi.org/10.1007/BF01589116; Nocedal & Wright 2006, Algorithm 7.4.
A pair whose curvature yᵀs is not above a threshold is not kept, so that the matrix stays positive definite.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim.hparams import HParams, require_count
from functional_optim.numerics import global_norm, inner_product
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, whole_tree


def two_loops(
    pairs: Sequence[tuple[Any, Any, Any]],
    gamma: Any,
    g: Any,
    dot: Callable[[Any, Any], Any] = torch.dot,
    scale: Callable[[Any, Any], Any] = torch.mul,
    add: Callable[[Any, Any, Any], Any] = torch.addcmul,
) -> Any:
    """The approximate inverse Hessian times a vector.

    Args:
        pairs: (s, y, ρ), oldest first; of zeros, one changes nothing.
        gamma: γ of the newest, a () tensor.
        g: the vector.
        dot, scale, add: (x, y) -> xᵀy, (c, x) -> c x and (x, c, y) -> x + c y, for vectors that are no tensors.
    """
    q, alphas = g, []
    for s, y, rho in reversed(pairs):
        alpha = rho * dot(s, q)
        q = add(q, -alpha, y)
        alphas.append(alpha)
    r = scale(gamma, q)
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        r = add(r, alpha - rho * dot(y, r), s)
    return r


@recorded
def scale_by_lbfgs(history_size: int = 10) -> Transform:
    """Multiply gradients by the inverse Hessian that L-BFGS makes of the last steps.

        fo.with_line_search(fo.chain(fo.scale_by_lbfgs(), fo.scale_by_learning_rate(1.0)))

    is L-BFGS; whoever evaluates batches, or can't evaluate twice, takes a small learning rate instead of the search. The first
    update has the gradient's direction, and its length or 1 if that is shorter.

    Args:
        history_size: how many pairs of steps and changes of the gradient are kept, at least 1.

    State: `prev_param`, `prev_grad` like the parameters; `steps` and `changes` (history_size, …), oldest first, zeros where there
    are none yet; `step` () int64.

    Raises:
        ValueError: `update` was called without params.

    Source: Liu & Nocedal 1989, https://doi.org/10.1007/BF01589116. As `optax.scale_by_lbfgs`, but for pairs of curvature 0 or
    less, which are left out here. `fo.minimize` evaluates no point twice, and ends by itself.

    >>> tx, w = scale_by_lbfgs(history_size=1), torch.tensor([4.0, 1.0])
    >>> updates, state = tx.update(w, tx.init_state(w), w)  # of ½|w|², whose gradient is w
    >>> w = w - updates
    >>> updates, state = tx.update(w, state, w)
    >>> torch.allclose(updates, w)
    True
    """
    history_size = require_count("history_size", history_size, 1)

    def empty(p: Tensor, hp: HParams) -> Tensor:
        return torch.zeros_like(p).expand(history_size, *p.shape).clone()

    slots = {"prev_param": _zeros, "prev_grad": _zeros, "steps": empty, "changes": empty}
    return whole_tree(slots=slots, name="scale_by_lbfgs")(_lbfgs)()


def _zeros(p: Tensor, hp: HParams) -> Tensor:
    return torch.zeros_like(p)


def _lbfgs(hp: HParams, t: Any) -> Callable[..., Any]:
    def rule(gs: list[Any], ps: list[Any], shared: Any, *slots: list[Any]) -> Any:
        if not gs:
            return [], shared, *slots
        if ps[0] is None:
            raise ValueError("scale_by_lbfgs needs the parameters: update(grads, state, params).")
        before, slopes, steps, changes = slots
        s = [p - old for p, old in zip(ps, before, strict=True)]
        y = [g - old for g, old in zip(gs, slopes, strict=True)]
        ys, yy = inner_product(s, y), inner_product(y, y)
        keeps = (ys > torch.finfo(ys.dtype).eps * yy) & (t > 1)
        steps, changes = _pushed(keeps, steps, s), _pushed(keeps, changes, y)

        pairs = [_pair([x[i] for x in steps], [x[i] for x in changes]) for i in range(len(steps[0]))]
        s, y, _ = pairs[-1]
        square = inner_product(y, y)
        none = square == 0
        first = 1 / global_norm(gs).clamp(min=1.0)
        gamma = torch.where(none, first, inner_product(s, y) / torch.where(none, 1.0, square))
        return two_loops(pairs, gamma, gs, inner_product, _scaled, _added), shared, list(ps), list(gs), steps, changes

    return rule


def _pair(s: list[Tensor], y: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """With its ρ; of zeros, 0."""
    curvature = inner_product(s, y)
    none = curvature == 0
    return s, y, torch.where(none, 0.0, 1 / torch.where(none, 1.0, curvature))


def _pushed(keeps: Tensor, rows: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    """Each history with a row more and the oldest less, if that is to be."""
    return [torch.where(keeps, torch.cat([old[1:], x[None]]), old) for old, x in zip(rows, new, strict=True)]


def _scaled(c: Tensor, xs: list[Tensor]) -> list[Tensor]:
    return [(c * x).to(x.dtype) for x in xs]


def _added(xs: list[Tensor], c: Tensor, ys: list[Tensor]) -> list[Tensor]:
    return [(x + c * y).to(x.dtype) for x, y in zip(xs, ys, strict=True)]
