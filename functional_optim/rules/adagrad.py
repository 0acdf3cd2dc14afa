"""Adagrad: each element divided by the root of the sum of its squared gradients.

    s ← s + g²
    u ← g / (√s + ε)

Duchi, Hazan & Singer 2011, Adaptive Subgradient Methods for Online Learning and Stochastic Optimization,
https://jmlr.org/papers/v12/duchi11a.html
"""

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.lifting import filled
from functional_optim.numerics import root
from functional_optim.transform import elementwise


@elementwise(
    slots={"sum": filled("initial_accumulator_value")},
    coded={"sum": "positive"},
    hparams={"initial_accumulator_value": Hparam(0.0, NON_NEGATIVE), "eps": Hparam(1e-10, NON_NEGATIVE)},
)
def scale_by_rss(hp, *, eps_in_sqrt: bool = False):
    """Divide the gradient by the root of the sum of squares so far: `u = g / (√s + ε)`.

    Args:
        initial_accumulator_value: of s, at least 0, in units of g². Read by `init_state` alone.
        eps: at least 0; in units of |g|, or of g² with `eps_in_sqrt`.
        eps_in_sqrt: divide by `√(s + ε)` instead.
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

    State: `sum` (s), like the parameters, of complex ones in both parts.

    Source: Duchi et al. 2011, https://jmlr.org/papers/v12/duchi11a.html. Retraces `torch.optim.Adagrad`.
    `optax.scale_by_rss()` is `scale_by_rss(0.1, 1e-7, eps_in_sqrt=True)`.

    >>> import torch
    >>> tx = scale_by_rss()
    >>> tx.update(torch.tensor([3.0, 0.0, -0.1]), tx.init_state(torch.zeros(3)))[0]
    tensor([ 1.,  0., -1.])
    """

    def rule(g, p, s):
        s = s + g * g
        return g / root(s, hp["eps"], eps_in_sqrt=eps_in_sqrt), s

    return rule
