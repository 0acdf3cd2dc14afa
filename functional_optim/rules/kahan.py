"""Kahan summation: what rounding takes from a parameter is added to the next update.

    c ← c + u
    u ← c, rounded to the parameter's dtype
    c ← c − ((p + u) − p)                          p + u as the parameter will store it

Kahan 1965, Pracniques: further remarks on reducing truncation errors, https://doi.org/10.1145/363707.363723
Zamirai et al. 2020, Revisiting BFloat16 Training, https://arxiv.org/abs/2010.06192
"""

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.recipe import recorded
from functional_optim.transform import Transform


@recorded
def kahan_sum() -> Transform:
    """Carry the rounding error of `parameter + update` over to the next step, so that bfloat16 parameters train as if wider.

    A bfloat16 parameter has 8 bits: an update below 1/512 of it is lost, step after step. With the error kept in a slot of the
    parameter's dtype the sum has about 16. It belongs at the end of the chain, after the learning rate:
    `chain(adamw(), kahan_sum())`. Parameters of float16, float32 and float64 gain bits in the same way.

    State: `kahan_comp` (c), like the parameters.

    Raises:
        ValueError: `update` was called without params.

    Source: Kahan 1965; Zamirai et al. 2020, https://arxiv.org/abs/2010.06192. As the `kahan_sum` of optimi, whose slot has the
    same name; neither torch nor optax has a counterpart.

    >>> p = torch.tensor(1.0, dtype=torch.bfloat16)
    >>> tx = kahan_sum()
    >>> state = tx.init_state(p)
    >>> for _ in range(512):
    ...     update, state = tx.update(torch.tensor(2.0**-10, dtype=torch.bfloat16), state, p)
    ...     p = p + update
    >>> p
    tensor(1.5000, dtype=torch.bfloat16)
    """

    def init(params, hparams):
        return {"kahan_comp": trees.map_leaves(lambda p: torch.zeros_like(p, requires_grad=False), params)}

    def update(updates, state, params, hparams, **extra):
        if params is None:
            raise ValueError("kahan_sum needs the parameters: update(grads, state, params).")
        leaves, spec = trees.flatten(updates)
        comps = trees.leaves_like(state["kahan_comp"], updates, spec, "state['kahan_comp']", "updates")
        stepped = [
            (None, c) if u is None else _compensated(u, p, c) for u, p, c in zip(leaves, trees.leaves(params), comps, strict=True)
        ]
        return (
            trees.unflatten(spec, [u for u, _ in stepped]),
            {"kahan_comp": trees.unflatten(spec, [c for _, c in stepped])},
        )

    return Transform(init, update, name="kahan_sum")


def _compensated(u: Tensor, p: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The update and the next compensation of one leaf; the slot's dtype says in which the parameter is stored."""
    total = c + u
    rounded = total.to(c.dtype).to(total.dtype)
    stored = (p + rounded).to(c.dtype).to(total.dtype)
    return rounded, (total - (stored - p)).to(c.dtype)
