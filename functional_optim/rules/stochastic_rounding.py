"""Stochastic rounding of parameters: to one of the two neighbours, with such odds that the mean is right.

    w ← p + u
    p ← the number below w or the one above it, with odds as w is near to them

Gupta et al. 2015, Deep Learning with Limited Numerical Precision, https://arxiv.org/abs/1502.02551
Zamirai et al. 2020, Revisiting BFloat16 Training, https://arxiv.org/abs/2010.06192
"""

import torch
from torch import Tensor

from functional_optim.hparams import Hparam, HParams
from functional_optim.numerics import LOW, round_stochastically
from functional_optim.philox import halves
from functional_optim.rules.arrival import step_to
from functional_optim.rules.noise import SEEDS
from functional_optim.transform import per_tensor


def nothing(p: Tensor, hp: HParams) -> Tensor:
    """The start: no numbers, of the parameter's dtype."""
    del hp
    return torch.empty(0, dtype=p.dtype, device=p.device)


@per_tensor(slots={"rounded_to": nothing}, hparams={"seed": Hparam(0, SEEDS)}, as_stored=("rounded_to",), dtypes=LOW, places=True)
def stochastic_rounding(hp, t):
    """Round parameters of low precision up or down at random, so that updates too small for them arrive on average.

    It belongs at the end of the chain, after the learning rate: `chain(adamw(), stochastic_rounding())`. It costs no memory; the
    parameter walks around what float32 would give, by up to half a spacing √steps.

    The random numbers are a function of the seed, the step and the place of the element in its tensor, by Philox: the same bits
    in every run, for any number of threads, and of processes that share the tensor. Which tensor is which is told by its shape,
    then by its order among those of that shape that have a gradient: each gets numbers of its own. (Where every tensor has an
    optimizer of its own, as in `step_in_backward`, it is the first of its shape: give them different seeds.) `vmap` over `seed`
    gives independent runs. Parameters of float32 and more stay as they are. Of an update that is larger than
    what the parameter becomes, as many bits arrive as the dtype has.

    Args:
        seed: a whole number up to 2⁵³; of a larger one, such as `torch.initial_seed()`, give `seed % 2**53`.

    State: `step` () int64; `rounded_to`, which is empty, and tells by its dtype that of the parameter.

    Raises:
        TypeError: a parameter is complex.
        ValueError: `update` was called without params.

    Source: Gupta et al. 2015, https://arxiv.org/abs/1502.02551; Zamirai et al. 2020, https://arxiv.org/abs/2010.06192. optimi and
    torchao have it inside their steps, from torch's generator; neither torch nor optax has a counterpart.

    >>> import torch
    >>> p, tx = torch.ones(10_000, dtype=torch.bfloat16), stochastic_rounding()
    >>> update, _ = tx.update(torch.full_like(p, 2.0**-10), tx.init_state(p), p)
    >>> (p + update).unique()  # An eighth of them moves, for numbers are 2⁻⁷ apart here.
    tensor([1.0000, 1.0078], dtype=torch.bfloat16)
    """
    seed, place = hp["seed"], hp["place"]

    def rule(u, p, nothing):
        dtype = nothing.dtype
        if dtype not in LOW:
            return u, nothing
        w = round_stochastically(p + u, dtype, noise=halves(p.shape, seed, t, place, p.device))
        return step_to(p, w.to(p.dtype), dtype)[0], nothing

    return rule
