"""SM3: Adagrad with one accumulator per row, per column, per slice of each axis.

    v ← min over axes i of aᵢ[…] + g²        the least of the accumulators that cover an element
    aᵢ ← max of v over all other axes
    u ← g / √(v + ε)
    m ← μ m + (1 − μ) u

Anil, Gupta, Koren & Singer 2019, Memory-Efficient Adaptive Optimization, https://arxiv.org/abs/1901.11150

This is the paper's SM3-II, with the slices of a tensor for cover sets. A vector has an accumulator per element and is Adagrad.
"""

import functools

import torch

from functional_optim.hparams import FRACTION, POSITIVE, Hparam
from functional_optim.lifting import zeros
from functional_optim.numerics import sqrt
from functional_optim.transform import per_tensor


def _accumulators(p, hp):
    return torch.zeros(sum(_shape(p)), dtype=p.dtype, device=p.device)


def _shape(x):
    return tuple(x.shape) or (1,)


def _largest_along(axis, v, old):
    """The largest v in each slice across this axis; the old accumulator where a slice is empty."""
    others = [i for i in range(v.ndim) if i != axis]
    if not others:
        return v
    return v.amax(others) if v.numel() else old


@per_tensor(
    slots={"accumulators": _accumulators, "exp_avg": zeros},
    coded={"exp_avg": "signed"},
    hparams={"momentum": Hparam(0.9, FRACTION), "eps": Hparam(1e-8, POSITIVE)},
)
def scale_by_sm3(hp):
    """Divide by the root of a bound on the sum of squares, then average: `m ← μ m + (1 − μ) g / √(v + ε)`.

    The bound v is kept as one number per slice of each axis. It is at least Adagrad's sum, and never falls.

    Args:
        momentum: μ, in [0, 1).
        eps: ε, greater than 0, in units of g².
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `accumulators`, 1-D: those of the first axis, then of the second, … (rows + columns of a matrix, one of a () tensor);
    `exp_avg` (m), like the parameters.

    Source: Anil et al. 2019, https://arxiv.org/abs/1901.11150. As `optax.scale_by_sm3` with its b2 = 1, the paper's case; that
    takes no () tensor.
    """
    mu = hp["momentum"]

    def rule(g, p, a, m):
        shape = _shape(g)
        old = a.split(shape)
        cover = [x.reshape([-1 if i == axis else 1 for i in range(len(shape))]) for axis, x in enumerate(old)]
        v = functools.reduce(torch.minimum, cover) + (g * g).reshape(shape)
        u = g / sqrt(v + hp["eps"]).reshape(g.shape)
        m = mu * m + (1 - mu) * u
        return m, torch.cat([_largest_along(axis, v, x) for axis, x in enumerate(old)]), m

    return rule
