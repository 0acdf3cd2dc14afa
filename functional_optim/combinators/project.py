"""Low-rank projection: another transform's work, done on r rows or columns in place of all.

    R ← Pᵀ G          P (rows, r) of a matrix with fewer rows than columns; else R ← G P with P (columns, r)
    N ← the transform's update of R
    u ← s P N                                   "back", GaLore's
    u ← s P N + limited((G − P R) d)            "rest", Fira's:    d = ‖N‖ / (‖R‖ + 10⁻⁸) of each column; of a tall matrix, row
    u ← limited(√s G d)                         "channel", APOLLO's;  "tensor": one d for the matrix, APOLLO-Mini's

P are the first singular vectors of G, now and then anew, or normal numbers / √r. What is limited may not be longer than γ times
what it was in the step before.

Zhao et al. 2024, GaLore, https://arxiv.org/abs/2403.03507; Chen et al. 2024, Fira, https://arxiv.org/abs/2410.01623
Zhu et al. 2024, APOLLO: SGD-like Memory, AdamW-level Performance, https://arxiv.org/abs/2412.05270
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim.combinators.inside import Inside, require_inside
from functional_optim.decompositions import singular_vectors
from functional_optim.dimensions import folded
from functional_optim.hparams import NON_NEGATIVE, POSITIVE, Hparam, HParams, read_if, require_count
from functional_optim.lifting import Leafwise, SlotInit, widened
from functional_optim.numerics import Scalar, cond, either, is_due, sqrt
from functional_optim.philox import normal
from functional_optim.recipe import recorded
from functional_optim.rules.noise import SEEDS
from functional_optim.transform import Transform

# How the update comes from the projection.
WAYS = ("back", "rest", "channel", "tensor")
BASES = ("svd", "random")
EPS = 1e-8


@recorded
def project(
    transform: Transform,
    scale: float = 1.0,
    max_growth: float = 1.01,
    seed: float = 0,
    update_proj_offset: float = 0,
    *,
    rank: int = 128,
    update_proj_gap: int = 200,
    proj: str = "svd",
    way: str = "back",
) -> Transform:
    """Let a rule work in a projection of each matrix onto few dimensions, where its slots are as much smaller:
    `project(scale_by_adam())` is GaLore's direction.

    Matrices of equal shapes are projected together. Vectors and scalars are left to the rule as they are; a tensor of more than
    two dimensions is the matrix of its first dimension by all others together.

    Args:
        transform: a rule of gradients and slots, `scale_by_adam()`, `scale_by_lion()`, …, or a chain of such rules; without
            parameters.
        scale: s, at least 0. A hyper-parameter.
        max_growth: γ, greater than 0, of the ways that limit: how much longer the limited part may be than in the step before. A
            hyper-parameter of these ways.
        seed: a whole number up to 2⁵³, of random projections. A hyper-parameter of these.
        rank: r; at most the smaller dimension is taken.
        update_proj_offset: at least 0, rounded to a whole number: how many steps earlier each later projection is found, so that
            matrices take turns; see `rotate`. A hyper-parameter.
        update_proj_gap: how many steps pass between two projections. The rule's slots stay what they are then, in the authors'
            programs as here.
        proj: "svd", the singular vectors of the gradient; "random", normal numbers, the same for matrices of one shape.
        way: "back", the rule's update, turned back; "rest", and with it what the projection leaves of the gradient, scaled as
            the rule scales the projection; "channel", the gradient itself, scaled so: each column, or row of a tall matrix;
            "tensor", as one.

    State: `step` () int64; `ortho_matrix` (P), in at least float32; the rule's slots, of the projection; of the ways that limit
    `last_norm`, a number for each leaf.

    Derivatives take P for a constant, though singular vectors are made of the gradient: they have no derivative where two
    singular values are equal. In the pure function, with a step that is batched, traced or on a GPU, a new projection is
    computed at each step, and thrown away in between.

    Raises:
        TypeError: this is no transform; or not a rule of gradient and slots alone, for one tensor.
        ValueError: an unknown `proj` or `way`.

    Source: Zhao et al. 2024, https://arxiv.org/abs/2403.03507; Chen et al. 2024, https://arxiv.org/abs/2410.01623; Zhu et al.
    2024, https://arxiv.org/abs/2412.05270; as the authors' programs with `proj_type="std"`, of which Fira's takes `G − s P R` for
    the rest, and APOLLO's other random numbers. Neither torch nor optax has it.

    >>> from functional_optim import scale_by_sign
    >>> tx = project(scale_by_sign(), rank=1)
    >>> g = torch.tensor([[3.0, 0.0], [0.0, -0.1]])
    >>> tx.update(g, tx.init_state(g))[0]
    tensor([[1., 0.],
            [0., 0.]])
    """
    inner = require_inside(transform, "project")
    for name, value, known in (("proj", proj, BASES), ("way", way, WAYS)):
        if value not in known:
            raise ValueError(f"{name} = {value!r}: expected one of {', '.join(map(repr, known))}.")
    rank = require_count("rank", rank, 1)
    update_proj_gap = require_count("update_proj_gap", update_proj_gap, 1)
    limits = way != "back"
    slots = {
        "ortho_matrix": _first_projection(rank),
        **{name: _projected(start, rank) for name, start in inner.slots.items()},
        **({"last_norm": _no_norm} if limits else {}),
    }
    form = Leafwise(
        name="project",
        scalars=_projecting,
        slots=slots,
        counts=True,
        elementwise=False,
        options={"inner": transform, "every": update_proj_gap, "proj": proj, "way": way},
        batched=True,
        constants=("ortho_matrix",),
    )
    own = {
        "scale": Hparam(scale, NON_NEGATIVE),
        "update_proj_offset": Hparam(update_proj_offset, NON_NEGATIVE),
        **read_if(limits, max_growth=Hparam(max_growth, POSITIVE)),
        **read_if(proj == "random", seed=Hparam(seed, SEEDS)),
    }
    return Transform.of(form, {**transform.declared, **own}, "project")


def _low(shape: Sequence[int], rank: int) -> tuple[int, int]:
    """The shape of the projection of a tensor of this one."""
    rows, columns = folded(tuple(shape), 2)
    return (min(rank, rows), columns) if rows < columns else (rows, min(rank, columns))


def _first_projection(rank: int) -> SlotInit:
    def start(p: Tensor, hp: HParams) -> Tensor:
        del hp
        size = (min(folded(tuple(p.shape), 2)), min(_low(p.shape, rank))) if p.ndim > 1 else (0, 0)
        return torch.zeros(size, dtype=widened(p.detach()).dtype, device=p.device)

    return start


def _projected(start: SlotInit, rank: int) -> SlotInit:
    """How a slot of the rule starts: as that of the projection."""
    return lambda p, hp: start(p.detach().new_zeros(_low(p.shape, rank)) if p.ndim > 1 else p, hp)


def _no_norm(p: Tensor, hp: HParams) -> Tensor:
    del hp
    return torch.zeros((), dtype=widened(p.detach()).dtype, device=p.device)


def _projecting(hp: HParams, t: Any, *, inner: Transform, every: int, proj: str, way: str) -> Callable[..., Any]:
    inside, scale = Inside(inner), hp["scale"]
    rule_inside, count = inside.rule(hp, t), len(inside.slots)
    due = (t == 1) | is_due(t - 1, every, hp["update_proj_offset"])

    def rule(g, p, basis, *slots):
        own, last = list(slots[:count]), slots[count:]
        if g.ndim < 3:
            u, own = rule_inside(g, own)
            return [u, basis, *own, *last]
        x = g.flatten(2)
        is_left = x.shape[1] < x.shape[2]
        basis = cond(due, lambda: _new_basis(x.detach(), basis, hp, t, proj), lambda: basis)
        low = basis.mT @ x if is_left else x @ basis
        u, own = rule_inside(low, own)

        def back(y):
            return basis @ y if is_left else y @ basis.mT

        if way == "back":
            return [(scale * back(u)).reshape(g.shape), basis, *own]
        across = (1, 2) if way == "tensor" else (1,) if is_left else (2,)
        ratio = _lengths(u, across) / (_lengths(low, across) + EPS)
        part = (x - back(low)) * ratio if way == "rest" else scale**0.5 * x * ratio
        part, last = _limited(part, last[0], hp["max_growth"], t)
        return [(part + scale * back(u) if way == "rest" else part).reshape(g.shape), basis, *own, last]

    return rule


def _new_basis(x: Tensor, basis: Tensor, hp: HParams, t: Any, proj: str) -> Tensor:
    rank = basis.shape[2]
    if proj == "svd":
        return singular_vectors(x, rank, left=x.shape[1] < x.shape[2]).contiguous()
    drawn = normal((1, *basis.shape[1:]), hp["seed"], t, 0, x.device).to(x.dtype)
    return (drawn / math.sqrt(rank)).expand_as(basis).contiguous()


def _lengths(x: Tensor, across: tuple[int, ...]) -> Tensor:
    return sqrt((x * x).sum(across, keepdim=True))


def _limited(x: Tensor, last: Tensor, growth: Scalar, t: Any) -> tuple[Tensor, Tensor]:
    """Each of a stack of matrices no longer than `growth` times what the last one was, but for the first; and its length."""
    size = _lengths(x, (1, 2)).flatten()
    excess = (size / (last + EPS)).clamp(min=growth) / growth
    excess = either(t == 1, torch.ones_like(excess), excess)
    return x / excess.reshape(-1, 1, 1), size / excess
