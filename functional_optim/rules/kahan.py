"""Kahan summation: what rounding takes from a parameter is added to the next update.

    c ← c + u
    u ← c, rounded to the parameter's dtype
    c ← c − ((p + u) − p)                          p + u as the parameter will store it

Kahan 1965, Pracniques: further remarks on reducing truncation errors, https://doi.org/10.1145/363707.363723
Zamirai et al. 2020, Revisiting BFloat16 Training, https://arxiv.org/abs/2010.06192
"""

from functional_optim.rules.arrival import rounded
from functional_optim.transform import elementwise


@elementwise(slots=("kahan_comp",), as_stored=("kahan_comp",))
def kahan_sum(hp):
    """Carry the rounding error of `parameter + update` over to the next step, so that bfloat16 parameters train as if wider.

    A bfloat16 parameter has 8 bits: an update below 1/512 of it is lost, step after step. With the error kept in a slot of the
    parameter's dtype the sum has about 16. It belongs at the end of the chain, after the learning rate:
    `chain(adamw(), kahan_sum())`. Parameters of float16, float32 and float64 gain bits in the same way.

    State: `kahan_comp` (c), like the parameters.

    Raises:
        ValueError: `update` was called without params.

    Source: Kahan 1965; Zamirai et al. 2020, https://arxiv.org/abs/2010.06192. As the `kahan_sum` of optimi, whose slot has the
    same name; neither torch nor optax has a counterpart.

    >>> import torch
    >>> p = torch.tensor(1.0, dtype=torch.bfloat16)
    >>> tx = kahan_sum()
    >>> state = tx.init_state(p)
    >>> for _ in range(512):
    ...     update, state = tx.update(torch.tensor(2.0**-10, dtype=torch.bfloat16), state, p)
    ...     p = p + update
    >>> p
    tensor(1.5000, dtype=torch.bfloat16)
    """
    del hp

    def rule(u, p, c):
        dtype = c.dtype
        total = c + u
        update = rounded(total, dtype)
        return update, total - (rounded(p + update, dtype) - p)

    return rule
