"""SOAP's rotation: another transform's work, done in the eigenbasis of the gradients' second moments.

    R ← Qᴸᵀ G Qᴿ                          in the basis so far
    U ← the transform's update of R       for Adam:  M ← β₁ M + (1 − β₁) R,  V ← β₂ V + (1 − β₂) R²,  U ← M̂ / (√V̂ + ε)
    u ← Qᴸ U Qᴿᵀ
    L ← β L + (1 − β) G Gᵀ                and R ← β R + (1 − β) Gᵀ G
    Qᴸ ← qr(L Qᴸ)                         now and then, the columns by falling qᵀ L q; M then is turned into the new basis

The first step moves nothing: Qᴸ and Qᴿ are the eigenvectors of the first L and R.

KL-SOAP's moments:  L ← β L + (1 − β) G Qᴿ Dᴿ⁻¹ Qᴿᵀ Gᵀ / n  with Dᴿ = diag(Qᴿᵀ R Qᴿ), and R alike.

Vyas et al. 2024, SOAP: Improving and Stabilizing Shampoo using Adam, https://arxiv.org/abs/2409.11321
Lin et al. 2025, Understanding and Improving Shampoo and SOAP via Kullback-Leibler Minimization, https://arxiv.org/abs/2509.03378
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim.combinators.inside import Inside, require_inside
from functional_optim.decompositions import eigh
from functional_optim.dimensions import (
    added_gram,
    arranged,
    folded,
    followed,
    per_dimension,
    roots_along,
    sides,
    square_zeros,
    turned,
    whitened_gram,
)
from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam, HParams, read_if, require_count
from functional_optim.lifting import Leafwise
from functional_optim.numerics import cond, either, is_due, where
from functional_optim.recipe import recorded
from functional_optim.transform import Transform

# The slots that are directions, as the gradient is; others have a value per direction, which turns with nothing.
DIRECTIONS = ("exp_avg", "exp_avg_diff", "exp_avg_slow", "momentum_buffer", "grad_avg", "previous_grad")

# A basis per dimension of a stack of tensors, and the slots of the transform inside.
Bases = tuple[list[Tensor], list[Tensor]]


@recorded
def rotate(
    transform: Transform,
    shampoo_beta: float = 0.95,
    precondition_offset: float = 0,
    *,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10_000,
    precondition_1d: bool = False,
    dims: int = 2,
    directions: Sequence[str] = DIRECTIONS,
    kl: bool = False,
    kl_eps: float = 1e-8,
) -> Transform:
    """Let a rule work in the eigenbasis of the gradients' second moments, along rows and along columns: `rotate(scale_by_adam())`
    is SOAP's direction.

    The gradient is turned into the basis, the rule's update is turned back. The basis follows the running means of `G Gᵀ` and
    `Gᵀ G` by one step of the power iteration and a QR decomposition every `precondition_frequency` steps; in between it costs the
    products alone. It is always that of earlier gradients: the first step finds it, and moves nothing.

    Matrices of equal shapes are turned together. Scalars and vectors are left to the rule as they are, and so is a dimension
    larger than `max_precond_dim`.

    Args:
        transform: a rule of gradients and slots, `scale_by_adam()`, `scale_by_lion()`, `scale_by_muon()`, …, or a chain of such
            rules; without parameters.
        shampoo_beta: decay of the means of G Gᵀ and Gᵀ G per step, in [0, 1).
        precondition_offset: at least 0, rounded to a whole number: how many steps earlier each later basis is found. A
            hyper-parameter: with one of its own in each group, or `PerLeaf`, matrices take turns, and after the first step none
            pays for all of them. Those of one offset are turned together.
        precondition_frequency: in steps, at least 1.
        max_precond_dim: the largest dimension that is turned.
        precondition_1d: turn vectors, too: by the outer product of their gradient with itself.
        dims: how many dimensions have a basis each; of a tensor with more, such as a convolution's, the last ones are taken
            together as one. With 4, those of a convolution have one each.
        directions: names of the rule's slots that are directions, and are turned when the basis is. Others have a value for each
            direction of the basis, and are put in the order of the new one.
        kl: whiten the gradient along the other dimension before its second moment is taken, so that the two moments together
            come nearest to that of all elements, by the divergence of Kullback and Leibler: KL-SOAP's bases.
        kl_eps: the least eigenvalue by which that divides, at least 0. A hyper-parameter, with `kl`.

    State: `step` () int64; `GG.0`, `GG.1`, … (L, R) and `Q.0`, `Q.1`, … of each leaf, square matrices of its dimensions, in at
    least float32, empty for dimensions that are left out; the rule's slots, in the basis, those of a chain behind the names of
    its links: `trace.momentum_buffer`.

    Derivatives take the basis, `Q`, for a constant, though it is made of gradients: eigenvectors have none where two eigenvalues
    are equal. In the pure function, with a step that is batched, traced or on a GPU, a new basis is computed at each step, and
    thrown away in between.

    Raises:
        TypeError: this is no transform; or not rules of gradient and slots alone, for one tensor.
        ValueError: `directions` has a name that no slot has.

    Source: Vyas et al. 2024, https://arxiv.org/abs/2409.11321, and the authors' program; Lin et al. 2025,
    https://arxiv.org/abs/2509.03378, whose program keeps means of the eigenvalues, where here they are taken of the moments.
    Neither torch nor optax has it.

    >>> from functional_optim import scale_by_adam
    >>> tx = rotate(scale_by_adam(betas=(0.95, 0.95)))
    >>> g, state = torch.tensor([[2.0, 0.0], [0.0, -1.0]]), tx.init_state(torch.zeros(2, 2))
    >>> for _ in range(2):
    ...     update, state = tx.update(g, state)
    >>> update.round(decimals=4)
    tensor([[ 1.,  0.],
            [ 0., -1.]])
    """
    inner = require_inside(transform, "rotate")
    known = {*DIRECTIONS, *(name.rpartition(".")[2] for name in inner.slots)}
    if isinstance(directions, str) or not set(directions) <= known:
        raise ValueError(f"directions = {directions!r}: expected a tuple of names of slots, of {', '.join(inner.slots)}.")
    precondition_frequency = require_count("precondition_frequency", precondition_frequency, 1)
    max_precond_dim = require_count("max_precond_dim", max_precond_dim, 0)
    dims = require_count("dims", dims, 1)

    def sizes(shape: Sequence[int]) -> Sequence[int]:
        return sides(shape, dims, max_precond_dim, precondition_1d)

    slots = {
        **per_dimension("GG", dims, sizes, square_zeros),
        **per_dimension("Q", dims, sizes, torch.eye),
        **inner.slots,
    }
    form = Leafwise(
        name="rotate",
        scalars=_rotated,
        slots=slots,
        counts=True,
        elementwise=False,
        options={"inner": transform, "every": precondition_frequency, "dims": dims, "directions": tuple(directions), "kl": kl},
        batched=True,
        constants=tuple(f"Q.{i}" for i in range(dims)),
        coded=inner.coded,
    )
    own = {
        "shampoo_beta": Hparam(shampoo_beta, FRACTION),
        "precondition_offset": Hparam(precondition_offset, NON_NEGATIVE),
        **read_if(kl, kl_eps=Hparam(kl_eps, NON_NEGATIVE)),
    }
    return Transform.of(form, {**transform.declared, **own}, "rotate")


def _rotated(
    hp: HParams, t: Any, *, inner: Transform, every: int, dims: int, directions: Sequence[str], kl: bool
) -> Callable[..., Any]:
    beta, due = hp["shampoo_beta"], is_due(t - 1, every, hp["precondition_offset"])
    # The rule has seen a gradient less.
    inside = Inside(inner)
    rule_inside = inside.rule(hp, where(t > 1, t - 1, 1))
    turns = [name.rpartition(".")[2] in directions for name in inside.slots]

    def rule(g, p, *slots):
        shape = g.shape[:1] + folded(g.shape[1:], dims)
        ggs, qs, own = slots[:dims], slots[dims : 2 * dims], list(slots[2 * dims :])

        def stepped():
            u, new = rule_inside(turned(g.reshape(shape), qs).reshape(g.shape), own)
            return turned(u.reshape(shape), [q.mT for q in qs]).reshape(g.shape), new

        u, own = cond(t == 1, lambda: (torch.zeros_like(g), own), stepped)
        ggs = _moments(g.reshape(shape), ggs, qs, beta, hp["kl_eps"] if kl else None, t)
        known = [gg.detach() for gg in ggs]

        def later():
            return cond(due, lambda: _turned_on(known, list(qs), own, turns, shape), lambda: (list(qs), own))

        qs, own = cond(t == 1, lambda: ([eigh(gg)[1].flip(-1) for gg in known], own), later)
        # However they were turned, they lie in memory as they did.
        return [x.contiguous() for x in (u, *ggs, *qs, *own)]

    return rule


def _moments(x: Tensor, ggs: Sequence[Tensor], qs: Sequence[Tensor], beta: Any, kl_eps: Any, t: Any) -> list[Tensor]:
    """The second moments, with those of this step; empty where there are none."""
    if kl_eps is None:
        return [added_gram(gg, x, i, beta, 1 - beta) for i, gg in enumerate(ggs)]
    # Before there is a basis, the moments are 0.
    roots = [either(t == 1, torch.ones_like(root), root) for root in roots_along(ggs, qs, kl_eps)]
    new = [whitened_gram(x, i, qs, roots) if gg.shape[-1] else gg for i, gg in enumerate(ggs)]
    return [beta * gg + (1 - beta) * each for gg, each in zip(ggs, new, strict=True)]


def _turned_on(ggs: list[Tensor], qs: list[Tensor], own: list[Tensor], turns: list[bool], shape: Sequence[int]) -> Bases:
    """One step of the power iteration from the bases so far, and the slots of the rule in the new ones."""
    new_qs, orders = followed(ggs, qs)

    def moved(x: Tensor, turn: bool) -> Tensor:
        y = x.reshape(shape)
        if turn:
            return turned(turned(y, [q.mT for q in qs]), new_qs).reshape(x.shape)
        for i, order in orders.items():
            y = arranged(y, order, i)
        return y.reshape(x.shape)

    like = [x.numel() == math.prod(shape) for x in own]
    return new_qs, [moved(x, turn) if fits else x for x, turn, fits in zip(own, turns, like, strict=True)]
