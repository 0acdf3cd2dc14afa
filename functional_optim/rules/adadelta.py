"""Adadelta: Adagrad with a window, and steps in the parameter's own units.

    v ← ρ v + (1 − ρ) g²
    u ← √(d + ε) / √(v + ε) · g
    d ← ρ d + (1 − ρ) u²

Zeiler 2012, ADADELTA: An Adaptive Learning Rate Method, https://arxiv.org/abs/1212.5701
"""

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.numerics import sqrt
from functional_optim.transform import elementwise


@elementwise(
    slots=("square_avg", "acc_delta"),
    coded={"square_avg": "positive", "acc_delta": "positive"},
    hparams={"rho": Hparam(0.9, "[0, 1]"), "eps": Hparam(1e-6, NON_NEGATIVE)},
)
def scale_by_adadelta(hp, t):
    """Scale the gradient by the ratio of two root mean squares, that of past updates over that of gradients.

    Args:
        rho: decay of both averages per step, in [0, 1].
        eps: at least 0, in units of g²; its root is about the size of the first updates, which grow from there. With 0, no
            update ever differs from 0.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64, which only checkpoints of torch need; `square_avg` (v), `acc_delta` (d), like the parameters.

    Source: Zeiler 2012, https://arxiv.org/abs/1212.5701. Retraces `torch.optim.Adadelta` and `optax.scale_by_adadelta`.

    >>> import torch
    >>> tx = scale_by_adadelta(eps=1e-4)
    >>> tx.update(torch.tensor([3.0, -0.1]), tx.init_state(torch.zeros(2)))[0]
    tensor([ 0.0316, -0.0302])
    """
    del t
    rho, eps = hp["rho"], hp["eps"]

    def rule(g, p, v, d):
        v = rho * v + (1 - rho) * g * g
        u = sqrt(d + eps) / sqrt(v + eps) * g
        d = rho * d + (1 - rho) * u * u
        return u, v, d

    return rule
