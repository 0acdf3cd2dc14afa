"""The optimistic gradient: the gradient, corrected by how it changed.

    u ← (α + β) g − β g₋₁             α g at the first step

Rakhlin & Sridharan 2013, Optimization, Learning, and Games with Predictable Sequences, https://arxiv.org/abs/1311.1869
Mokhtari, Ozdaglar & Pattathil 2020, A Unified Analysis of Extra-gradient and Optimistic Gradient Methods for Saddle Point
Problems, https://arxiv.org/abs/1901.08511 (its generalised form, with α and β)
"""

from functional_optim.hparams import ANY, Hparam
from functional_optim.numerics import where
from functional_optim.transform import elementwise


@elementwise(slots=("previous_grad",), hparams={"alpha": Hparam(1.0, ANY), "beta": Hparam(1.0, ANY)})
def scale_by_optimistic_gradient(hp, t):
    """Extrapolate the gradient from its last change: `u = α g + β (g − g₋₁)`.

    Plain descent circles around the saddle point of a two-player game; with this it converges.

    Args:
        alpha: α, the weight of the gradient.
        beta: β, the weight of its change.
        state_dtype: dtype of the slot; the parameter's by default.

    State: `step` () int64; `previous_grad`, like the parameters.

    Source: Mokhtari et al. 2020, https://arxiv.org/abs/1901.08511. As `optax.scale_by_optimistic_gradient`.

    >>> import torch
    >>> tx = scale_by_optimistic_gradient()
    >>> state = tx.init_state(torch.zeros(()))
    >>> for g in (1.0, 3.0):
    ...     update, state = tx.update(torch.tensor(g), state)
    >>> update
    tensor(5.)
    """
    ahead = where(t == 1, 0.0, hp["beta"])

    def rule(g, p, old):
        return hp["alpha"] * g + ahead * (g - old), g

    return rule
