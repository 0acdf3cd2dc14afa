"""PSGD with a Kronecker product for its preconditioner: momentum, whitened.

    M ← β M + (1 − β) G;  M̂ = M / (1 − βᵗ)
    Q ← a step of the fit to M̂ and a probe         now and then, see `whitening`
    u ← QᵀQ M̂, or shorter: its root mean square is at most 1.1

Li 2015, Preconditioned Stochastic Gradient Descent, https://arxiv.org/abs/1512.04202; Li & Pooladzandi 2024, Curvature-Informed
SGD via General Purpose Lie-Group Preconditioners, https://arxiv.org/abs/2402.04553; and kron_torch, with its schedule.
"""

import math
from typing import Any

import torch
from torch import Tensor

from functional_optim.dimensions import folded
from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam, HParams, require_count, validate_number
from functional_optim.lifting import Leafwise, widened, zeros
from functional_optim.numerics import ahead, bias_correction, cond, floor, sqrt, where
from functional_optim.philox import normal
from functional_optim.recipe import recorded
from functional_optim.rules.noise import SEEDS
from functional_optim.rules.whitening import balanced, fitted, preconditioned
from functional_optim.transform import Transform

# At each of the first steps there is something to fit, then at a share of them that falls by e in so many, down to the least.
FLAT, FALL, LEAST = 500, 1000.0, 0.03
# So many fits lie between two balancings.
BALANCE = 100


@recorded
def scale_by_psgd_kron(
    momentum: float = 0.9,
    precond_lr: float = 0.1,
    seed: float = 0,
    precondition_offset: float = 0,
    *,
    update_probability: float | None = None,
    max_size_triangular: int = 8192,
    min_ndim_triangular: int = 2,
    precond_init_scale: float = 1.0,
    dims: int = 2,
) -> Transform:
    """Whiten the momentum: multiply it, along each dimension, by QᵀQ of a triangular Q that is fitted to the momenta so far.

    The probes are a function of the seed, the step and the shape: matrices of equal shapes share them, a resumed run goes on as
    if it had not stopped.

    Args:
        momentum: β, in [0, 1).
        precond_lr: μ, at least 0: the step of the fit.
        seed: a whole number up to 2⁵³, of the probes.
        precondition_offset: at least 0, rounded to a whole number: how many steps earlier Q is fitted, so that matrices take
            turns; see `rotate`. A hyper-parameter. Where each step has a fit, as by default the first 500, there are no turns.
        update_probability: at which share of the steps Q is fitted; by default at each of the first 500, then at fewer and
            fewer, a share of e^(−(t − 500) / 1000), down to 3 %.
        max_size_triangular: larger dimensions have a diagonal Q, and so have those of size 1.
        min_ndim_triangular: tensors of fewer dimensions have diagonal ones.
        precond_init_scale: of the first product of all Q, greater than 0.
        dims: how many dimensions have a Q each; of a tensor with more, the last ones are taken together as one.

    State: `step` () int64; `momentum_buffer` (M), like the parameters; `Q.0`, `Q.1`, … of each leaf, upper triangular matrices
    or vectors, in at least float32; empty for dimensions that it has not.

    Derivatives go through the fit, too. In the pure function, with a step that is batched, traced or on a GPU, it is computed at
    each step, and thrown away where it is not due.

    Source: Li 2015, https://arxiv.org/abs/1512.04202, and kron_torch's `Kron`, but for: which steps have a fit is told by their
    number, not by a counter (up to step 500 it is each, in both); the factors are balanced after every 100th fit, not at random
    times; what is whitened has no probe mixed into it; a convolution is the matrix of its first dimension by all others. Given
    its probes, and balanced as often, the two are equal to rounding.

    >>> tx = scale_by_psgd_kron(precond_lr=0.0)
    >>> g = torch.tensor([[0.5, 0.0], [0.0, -0.1]])
    >>> tx.update(g, tx.init_state(g))[0]
    tensor([[ 0.5000,  0.0000],
            [ 0.0000, -0.1000]])
    """
    dims = require_count("dims", dims, 1)
    max_size_triangular = require_count("max_size_triangular", max_size_triangular, 0)
    min_ndim_triangular = require_count("min_ndim_triangular", min_ndim_triangular, 0)
    validate_number("precond_init_scale", precond_init_scale, "(0, inf)")
    if update_probability is not None:
        validate_number("update_probability", update_probability, "(0, 1]")
    form = Leafwise(
        name="scale_by_psgd_kron",
        scalars=_psgd,
        slots={"momentum_buffer": zeros, **_factors(dims, max_size_triangular, min_ndim_triangular, precond_init_scale)},
        coded={"momentum_buffer": "signed"},
        counts=True,
        elementwise=False,
        options={"share": update_probability, "dims": dims},
        batched=True,
    )
    return Transform.of(form, _declared(momentum, precond_lr, seed, precondition_offset), "scale_by_psgd_kron")


def _declared(momentum, precond_lr, seed, offset):
    own = {"momentum": Hparam(momentum, FRACTION), "precond_lr": Hparam(precond_lr, NON_NEGATIVE)}
    return {**own, "seed": Hparam(seed, SEEDS), "precondition_offset": Hparam(offset, NON_NEGATIVE)}


def _factors(dims, largest, least_dims, scale):
    def begins(i):
        def begin(p: Tensor, hp: HParams) -> Tensor:
            shape = folded(tuple(p.shape) or (1,), dims)
            size = shape[i] if i < len(shape) else 0
            is_diagonal = size == 1 or size > largest or len(shape) < least_dims
            make = torch.ones if is_diagonal else torch.eye
            return scale ** (1 / len(shape)) * make(size, dtype=widened(p.detach()).dtype, device=p.device)

        return begin

    return {f"Q.{i}": begins(i) for i in range(dims)}


def _psgd(hp, t, *, share, dims):
    beta, c = hp["momentum"], bias_correction(hp["momentum"], t)
    now, before = (_fits(ahead(step, hp["precondition_offset"]), share) for step in (t, t - 1))
    probes: dict[Any, Tensor] = {}

    def probe(like):
        key = like.shape[1:], like.dtype, like.device
        if key not in probes:
            probes[key] = normal((1, *key[0]), hp["seed"], t, 0, like.device).to(like.dtype)
        return probes[key]

    def rule(g, p, m, *qs):
        shape = folded(tuple(g.shape[1:]) or (1,), dims)
        m = beta * m + (1 - beta) * g
        x, own = (m / c).reshape(g.shape[0], *shape), list(qs[: len(shape)])

        def fit():
            new = fitted(own, x, probe(x).expand_as(x), hp["precond_lr"])
            return cond(now % BALANCE == 0, lambda: balanced(new), lambda: new)

        own = cond(now > before, fit, lambda: own)
        u = preconditioned(x, own)
        size = sqrt((u * u).mean(tuple(range(1, u.ndim)), keepdim=True))
        u = u * (1.1 / (size + 1e-12)).clamp(max=1.0)
        return [x.contiguous() for x in (u.reshape(g.shape), m, *own, *qs[len(shape) :])]

    return rule


def _fits(t, share):
    """How many there are in t steps."""
    if share is not None:
        return floor(share * t + 1e-9)
    end = FLAT + FALL * math.log(1 / LEAST)
    falling = FALL * (1 - math.e ** (-_between(t, FLAT, end) / FALL))
    return floor(_between(t, 0, FLAT) + falling + LEAST * _between(t, end, math.inf))


def _between(t, first, last):
    """How many of t steps lie between two."""
    t = where(t > first, t, first)
    return where(t < last, t, last) - first
