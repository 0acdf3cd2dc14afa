"""Momentum: heavy ball and Nesterov, with dampening.

    m ← g                         at the first step
    m ← μ m + (1 − τ) g           later
    u ← m                         Nesterov:  u ← g + μ m

Polyak 1964, Some methods of speeding up the convergence of iteration methods, https://doi.org/10.1016/0041-5553(64)90137-5
Sutskever et al. 2013, On the importance of initialization and momentum in deep learning, https://proceedings.mlr.press/v28/sutskever13.html

The undampened first step is torch's. The slot starts at 0, so dampening is the only place where the first step differs.
"""

from functional_optim.hparams import ANY, NON_NEGATIVE, Hparam
from functional_optim.numerics import where
from functional_optim.transform import elementwise


@elementwise(
    slots=("momentum_buffer",),
    coded={"momentum_buffer": "signed"},
    hparams={"momentum": Hparam(0.9, NON_NEGATIVE), "dampening": Hparam(0.0, ANY)},
)
def trace(hp, t, *, nesterov: bool = False):
    """Accumulate gradients with momentum: `m ← μ m + (1 − τ) g`, the first step undampened.

    Args:
        momentum: μ, at least 0; a steady gradient is amplified by 1 / (1 − μ).
        dampening: τ, the share of each later gradient that is left out.
        nesterov: return `g + μ m`, the momentum looked ahead, instead of m.
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

    State: `step` () int64; `momentum_buffer` (m), like the parameters.

    Source: Polyak 1964; Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html. Retraces `torch.optim.SGD`;
    `optax.trace(decay)` is this without dampening.

    >>> import torch
    >>> tx = trace(momentum=0.5)
    >>> state = tx.init_state(torch.zeros(()))
    >>> for _ in range(3):
    ...     update, state = tx.update(torch.tensor(1.0), state)
    >>> update
    tensor(1.7500)
    """
    mu = hp["momentum"]
    share = where(t == 1, 1.0, 1 - hp["dampening"])

    def heavy_ball(g, p, m):
        m = mu * m + share * g
        return m, m

    def look_ahead(g, p, m):
        m = mu * m + share * g
        return g + mu * m, m

    return look_ahead if nesterov else heavy_ball
