"""Yogi: Adam whose second moment moves by steps of a bounded size.

    m ← β₁ m + (1 − β₁) g
    v ← v − (1 − β₂) sign(v − g²) g²
    u ← m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε)

Zaheer, Reddi, Sachan, Kale & Kumar 2018, Adaptive Methods for Nonconvex Optimization,
https://papers.nips.cc/paper/2018/hash/90365351ccc7437a1309dc64e4db32a3-Abstract.html

The paper's Algorithm 2 corrects no bias; this does, as optax does, and starts both moments at a small value.
"""

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.lifting import filled
from functional_optim.numerics import bias_correction, sqrt
from functional_optim.transform import elementwise

START = "initial_accumulator_value"


@elementwise(
    slots={"exp_avg": filled(START), "exp_avg_sq": filled(START)},
    coded={"exp_avg": "signed", "exp_avg_sq": "positive"},
    hparams={"betas": Hparam((0.9, 0.999), FRACTION), "eps": Hparam(1e-3, NON_NEGATIVE), START: Hparam(1e-6, NON_NEGATIVE)},
)
def scale_by_yogi(hp, t):
    """Adam with a second moment that grows and shrinks by `(1 − β₂) g²`: `u = m̂ / (√v̂ + ε)`.

    Where Adam's v forgets a large gradient at the rate of v itself, and its rate of learning then jumps, Yogi's v falls no
    faster than the new g² allow.

    Args:
        betas: decay of m and size of v's steps, each in [0, 1).
        eps: at least 0, in units of |g|; larger than Adam's.
        initial_accumulator_value: where both moments start, at least 0; in units of g and of g². Read by `init_state` alone.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v), like the parameters.

    Source: Zaheer et al. 2018, https://papers.nips.cc/paper/2018/hash/90365351ccc7437a1309dc64e4db32a3-Abstract.html.
    As `optax.scale_by_yogi`, but for the slope of √ at 0.
    """
    b1, b2 = hp["betas"]
    c1, c2 = bias_correction(b1, t), bias_correction(b2, t)

    def rule(g, p, m, v):
        square = g * g
        m = b1 * m + (1 - b1) * g
        v = v - (1 - b2) * (v - square).sign() * square
        return m / c1 / (sqrt(v / c2) + hp["eps"]), m, v

    return rule
