"""CAME: Adafactor's factored moment, and a second one for how far the step can be trusted.

    r ← β₂ r + (1 − β₂) mean over columns of (g² + ε₁),   c ← the same over rows
    u ← g / √(r cᵀ / mean(r)),   u ← u / max(1, rms(u) / d)
    m ← β₁ m + (1 − β₁) u
    R ← β₃ R + (1 − β₃) mean over columns of ((u − m)² + ε₂),   C ← the same over rows
    u ← m / √(R Cᵀ / mean(R))

Luo et al. 2023, CAME: Confidence-guided Adaptive Memory Efficient Optimization, https://arxiv.org/abs/2307.02047

Vectors are not factored: they keep all of v, and their step is m. Nothing is corrected for its start at 0.
"""

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import root_mean_square
from functional_optim.transform import per_tensor


def _per_row(p, hp):
    return p.new_zeros(p.shape[:-1] if p.ndim > 1 else (0,))


def _per_column(p, hp):
    return p.new_zeros((*p.shape[:-2], p.shape[-1]) if p.ndim > 1 else (0,))


def _per_element(p, hp):
    return p.new_zeros(p.shape if p.ndim < 2 else (0,))


def _scaled(u, r, c):
    """u / √(r cᵀ / mean(r))."""
    return u * (r / r.mean(-1, keepdim=True)).rsqrt().unsqueeze(-1) * c.rsqrt().unsqueeze(-2)


@per_tensor(
    slots={
        "exp_avg": lambda p, hp: p.new_zeros(p.shape),
        "exp_avg_sq": _per_element,
        "exp_avg_sq_row": _per_row,
        "exp_avg_sq_col": _per_column,
        "exp_avg_res_row": _per_row,
        "exp_avg_res_col": _per_column,
    },
    coded={"exp_avg": "signed"},
    hparams={
        "betas": Hparam((0.9, 0.999, 0.9999), FRACTION),
        "eps": Hparam((1e-30, 1e-16), NON_NEGATIVE),
        "clip_threshold": Hparam(1.0, "(0, inf)"),
    },
)
def scale_by_came(hp):
    """Adafactor's step, averaged, and divided by the root of how much it differs from that average: memory for m alone.

    The rows and columns are those of the last two dimensions.

    Args:
        betas: decay of m, of the second moment and of the confidence per step, each in [0, 1).
        eps: ε₁, in units of g², and ε₂, in units of the squared step, which is about 1; each at least 0.
        clip_threshold: d, the largest root mean square of a step before it is averaged, greater than 0.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `exp_avg` (m), like the parameters. For matrices `exp_avg_sq_row`, `exp_avg_sq_col` (r, c) and `exp_avg_res_row`,
    `exp_avg_res_col` (R, C), for vectors `exp_avg_sq` (v); what does not apply is empty, of shape (0,).

    Source: Luo et al. 2023, https://arxiv.org/abs/2307.02047, and the authors' program, which clips as here and treats vectors
    so. Neither torch nor optax has a counterpart.
    """
    b1, b2, b3 = hp["betas"]
    eps1, eps2 = hp["eps"]

    def clipped(u):
        return u / (root_mean_square(u) / hp["clip_threshold"]).clamp(min=1.0)

    def rule(g, p, m, v, r, c, doubt_r, doubt_c):
        square = g * g + eps1
        if g.ndim < 2:
            v = b2 * v + (1 - b2) * square
            m = b1 * m + (1 - b1) * clipped(g * v.rsqrt())
            return m, m, v, r, c, doubt_r, doubt_c
        r = b2 * r + (1 - b2) * square.mean(-1)
        c = b2 * c + (1 - b2) * square.mean(-2)
        u = clipped(_scaled(g, r, c))
        m = b1 * m + (1 - b1) * u
        doubt = (u - m) * (u - m) + eps2
        doubt_r = b3 * doubt_r + (1 - b3) * doubt.mean(-1)
        doubt_c = b3 * doubt_c + (1 - b3) * doubt.mean(-2)
        return _scaled(m, doubt_r, doubt_c), m, v, r, c, doubt_r, doubt_c

    return rule
