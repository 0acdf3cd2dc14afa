"""Sophia: momentum divided by an estimate of the Hessian's diagonal, and clipped.

    m ← β₁ m + (1 − β₁) g
    h ← β₂ h + (1 − β₂) ĥ                   at steps that bring an estimate ĥ, every tenth or so
    u ← clip(m / max(ρ h, ε), −1, 1)

Liu et al. 2023, Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training, https://arxiv.org/abs/2305.14342

ρ is the paper's γ, under the name of its authors' program.
"""

from typing import Any

from functional_optim import trees
from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.transform import elementwise
from functional_optim.trees import Tree


@elementwise(
    slots=("exp_avg", "hessian"),
    coded={"exp_avg": "signed"},
    hparams={
        "betas": Hparam((0.965, 0.99), FRACTION),
        "rho": Hparam(0.04, NON_NEGATIVE),
        "eps": Hparam(1e-12, NON_NEGATIVE),
    },
    leaf_extra=("hessian_diag",),
)
def scale_by_sophia(hp):
    """Newton's step, element by element, where it is short and the curvature positive; elsewhere ±1, as Lion.

    Every `update` takes the keyword `hessian_diag`: a tree like the parameters with an estimate of the Hessian's diagonal, or
    None at the steps that bring none. `gauss_newton_bartlett` makes the estimate that makes this Sophia-G.

    Args:
        betas: decay of m per step, and of h per estimate, each in [0, 1).
        rho: ρ, at least 0: the larger, the more elements take Newton's step, divided by ρ.
        eps: at least 0, in units of the Hessian; before the first estimate h is 0, and every element moves by ±1.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `exp_avg` (m), `hessian` (h), like the parameters.

    Raises:
        ValueError: `update` was called without `hessian_diag`.

    Source: Liu et al. 2023, https://arxiv.org/abs/2305.14342. `optax.contrib.sophia` makes the estimate itself, and corrects the
    bias of m; torch has no counterpart.

    >>> import torch
    >>> tx = scale_by_sophia(betas=(0.0, 0.0), rho=1.0)
    >>> g, h = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([4.0, 0.5, -2.0])
    >>> tx.update(g, tx.init_state(g), hessian_diag=h)[0]
    tensor([0.2500, 1.0000, 1.0000])
    """
    b1, b2 = hp["betas"]

    def rule(g, p, m, h, estimate):
        m = b1 * m + (1 - b1) * g
        h = h if estimate is None else b2 * h + (1 - b2) * estimate
        return (m / (hp["rho"] * h).clamp(min=hp["eps"])).clamp(-1.0, 1.0), m, h

    return rule


def gauss_newton_bartlett(grads: Tree, batch_size: int) -> Any:
    """The Gauss-Newton-Bartlett estimate of the Hessian's diagonal: `B ĝ²`, never negative.

    Args:
        grads: ĝ, the gradient of the mean loss over a batch whose labels were drawn from the model's own predictions.
        batch_size: B, how many losses the mean is of: the tokens of the batch, for a language model.

    Returns:
        A tree like `grads`, for the keyword `hessian_diag`.

    Source: Liu et al. 2023, Algorithm 2, https://arxiv.org/abs/2305.14342.

    >>> import torch
    >>> gauss_newton_bartlett({"w": torch.tensor([0.5, -2.0])}, batch_size=4)
    {'w': tensor([ 1., 16.])}
    """
    return trees.map_leaves(lambda g: batch_size * g * g, grads)
