"""Rprop: a step size for each element, which grows while the gradient keeps its sign.

    s = g · g₋                                   g₋: the last gradient, or 0 after a change of sign
    η ← min(η η₊, max)      where s > 0
    η ← max(η η₋, min)      where s < 0, and there g ← 0
    u ← η sign(g),  g₋ ← g

Riedmiller & Braun 1993, A direct adaptive method for faster backpropagation learning: the RPROP algorithm,
https://doi.org/10.1109/ICNN.1993.298623; the form without backtracking is iRprop⁻ of Igel & Hüsken 2000.

The sign of s is taken of the signs, since the product of two tiny gradients is 0.
"""

import torch

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.lifting import filled, zeros
from functional_optim.transform import elementwise


@elementwise(
    slots={"prev": zeros, "step_size": filled("lr")},
    hparams={
        "lr": Hparam(1e-2, NON_NEGATIVE),
        "etas": Hparam((0.5, 1.2), ("(0, 1)", "(1, inf)")),
        "step_sizes": Hparam((1e-6, 50.0), NON_NEGATIVE),
    },
)
def scale_by_rprop(hp, t):
    """Replace each element by a step size of its own, with the gradient's sign; only signs of gradients matter.

    For whole-batch gradients: the noise of small batches makes signs change at random. The result is a step, in units of the
    parameter: end the chain with `negate`, not with a learning rate.

    Args:
        lr: the first step size, at least 0. Only `init_state` reads it, and puts it into every element of `step_size`: give it
            there, `init_state(params, {"lr": ...})`, or as the default. What `update` is given, a schedule or a change of the
            learning rate, does nothing afterwards. Behind an optimizer, a parameter takes the `lr` that its group has at its
            first step, or when `init_state()` is called, as in torch.
        etas: the factors at a change of sign, in (0, 1), and without one, greater than 1.
        step_sizes: the smallest and the largest step size, at least 0; the first one is clipped to them too.
        state_dtype: dtype of the slots; the parameter's by default.

    State: `step` () int64, which only checkpoints of torch need; `prev` (g₋), `step_size` (η), like the parameters.

    Source: Riedmiller & Braun 1993; Igel & Hüsken 2000. Retraces `torch.optim.Rprop`;
    `optax.scale_by_rprop` returns the step of the update before, and clips a step size only when it changes.

    >>> import torch
    >>> tx = scale_by_rprop(lr=0.1)
    >>> state = tx.init_state(torch.zeros(3))
    >>> for g in ([3.0, 0.0, -0.1], [0.3, 7.0, 9.0]):
    ...     update, state = tx.update(torch.tensor(g), state)
    >>> update, state["step_size"]
    (tensor([0.1200, 0.1000, 0.0000]), tensor([0.1200, 0.1000, 0.0500]))
    """
    del t
    (shrink, grow), (smallest, largest) = hp["etas"], hp["step_sizes"]

    def rule(g, p, prev, eta):
        s = g.sign() * prev.sign()
        eta = torch.where(s > 0, grow * eta, torch.where(s < 0, shrink * eta, eta))
        eta = eta.clamp(min=smallest).clamp(max=largest)
        g = torch.where(s < 0, 0.0, g)
        return eta * g.sign(), g, eta

    return rule
