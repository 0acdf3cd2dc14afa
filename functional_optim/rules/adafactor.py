"""Adafactor: a second moment of rows and columns instead of elements, and steps relative to the parameter.

    β ← 1 − t^τ                              τ = −0.8
    R ← β R + (1 − β) row means of g²        C ← β C + (1 − β) column means of g²
    V ← R C / max(mean of R, ε₁)             vectors:  V ← β V + (1 − β) g²
    u ← g / max(√V, ε₁)
    u ← u / max(1, rms u / d)                `clip_by_block_rms`
    u ← u max(ε₂, rms p)                     `scale_by_param_block_rms`
    u ← u min(η, 1 / √t)

Shazeer & Stern 2018, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, Algorithm 5, https://arxiv.org/abs/1804.04235

The paper adds ε₁ to g² instead, and takes 0.01 for η; torch takes them as here.
"""

import torch

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.numerics import double, sqrt, where
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, elementwise, per_tensor


def _rows(p, hp):
    return p.new_zeros((*p.shape[:-1], 1) if p.ndim > 1 else (0,))


def _columns(p, hp):
    return p.new_zeros((*p.shape[:-2], 1, p.shape[-1]) if p.ndim > 1 else (0,))


def _elements(p, hp):
    return p.new_zeros((0,) if p.ndim > 1 else p.shape)


SLOTS = {"row_var": _rows, "col_var": _columns, "variance": _elements}
DECAY = Hparam(-0.8, "(-inf, 0]")


@per_tensor(slots=SLOTS, hparams={"beta2_decay": DECAY, "eps1": Hparam(1e-30, NON_NEGATIVE)}, name="scale_by_factored_rms")
def _with_epsilon(hp, t):
    return _rule(double(t) ** hp["beta2_decay"], lambda g: hp["eps1"])


@per_tensor(slots=SLOTS, hparams={"beta2_decay": DECAY}, name="scale_by_factored_rms")
def _with_machine_epsilon(hp, t):
    return _rule(double(t) ** hp["beta2_decay"], lambda g: torch.finfo(g.dtype).eps)


def _rule(share, epsilon):
    def rule(g, p, r, c, v):
        eps, square = epsilon(g), g * g
        if g.ndim > 1:
            r = r + share * (square.mean(-1, keepdim=True) - r)
            c = c + share * (square.mean(-2, keepdim=True) - c)
            v_hat = r @ c / r.mean(-2, keepdim=True).clamp(min=eps)
        else:
            v = v_hat = v + share * (square - v)
        return g / sqrt(v_hat).clamp(min=eps), r, c, v

    return rule


@recorded
def scale_by_factored_rms(
    beta2_decay: float = -0.8, eps1: float | None = None, *, state_dtype: torch.dtype | None = None
) -> Transform:
    """Divide a matrix by the root of the outer product of its mean squares, by row and by column: `u = g / √V`.

    Of more than two dimensions the last two are factored; vectors and () tensors keep a moment for each element.

    Args:
        beta2_decay: τ, at most 0: the t-th gradient enters the moments with the weight `t^τ`, the first with 1.
        eps1: ε₁, at least 0, in units of |g|; 0 gives NaN where a row has never had a gradient. None is the machine epsilon of
            the gradient's dtype, of at least float32, and then no hyper-parameter.
        state_dtype: dtype of the slots; the parameter's by default.

    State: `step` () int64; `row_var` (…, n, 1), `col_var` (…, 1, m) of a parameter (…, n, m); `variance` like a parameter of
    fewer dimensions. The slots that a parameter does without are empty.

    Source: Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235. The first half of `torch.optim.Adafactor`, where None is the
    machine epsilon of bfloat16 for a parameter of that dtype. `optax.scale_by_factored_rms` adds its ε to g², factors the two
    largest dimensions, and small matrices not at all.

    >>> tx = scale_by_factored_rms()
    >>> g = torch.tensor([[1.0, 2.0], [10.0, 20.0]])  # of rank 1, as its squares: the factors lose nothing
    >>> tx.update(g, tx.init_state(torch.zeros(2, 2)))[0]
    tensor([[1., 1.],
            [1., 1.]])
    """
    if eps1 is None:
        return _with_machine_epsilon(beta2_decay, state_dtype=state_dtype)
    return _with_epsilon(beta2_decay, eps1, state_dtype=state_dtype)


@elementwise(hparams={"lr": Hparam(1e-2, NON_NEGATIVE)})
def scale_by_relative_step(hp, t):
    """Adafactor's step size, which falls with time: `min(η, 1 / √t)`, as `min(1, 1 / (η √t))` here and η behind.

    Args:
        lr: η, shared with `scale_by_learning_rate`, at least 0.

    State: `step` () int64.

    Source: Shazeer & Stern 2018, section 8, https://arxiv.org/abs/1804.04235, as torch reads it.
    """
    excess = hp["lr"] * double(t) ** 0.5
    factor = 1 / where(excess > 1, excess, 1.0)

    def rule(u, p):
        return factor * u

    return rule
