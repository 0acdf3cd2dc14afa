"""The Polyak step: as far along the gradient as a linear function would take to reach the least value.

    u ← u · min((f − f*) / (‖u‖² + ε), γ)         ‖u‖ over all parameters; f the loss, f* its least value

Polyak 1987, Introduction to Optimization; Loizou, Vaswani, Laradji & Lacoste-Julien 2021, Stochastic Polyak Step-size for SGD,
https://arxiv.org/abs/2002.10542
Garrigos, Gower & Schaipp 2023, Function Value Learning, https://arxiv.org/abs/2307.14528 (SPS₊)
"""

import torch

from functional_optim.hparams import ANY, NON_NEGATIVE, POSITIVE, Hparam
from functional_optim.reductions import SumOver
from functional_optim.transform import elementwise

# A squared norm below this counts as a gradient of 0; optax's value.
NOTHING = torch.finfo(torch.float64).eps


def _square(u, p):
    return u * u


@elementwise(
    hparams={"max_lr": Hparam(1.0, POSITIVE), "f_min": Hparam(0.0, ANY), "eps": Hparam(0.0, NON_NEGATIVE)},
    reduce=SumOver(_square),
    extra=("value",),
)
def scale_by_polyak(hp, square, *, positive_part: bool = False):
    """Scale all updates by the Polyak step, `min((f − f*) / (‖u‖² + ε), γ)`; it wants no learning rate.

    Where the model reaches f* on every example, as an overparametrised one does, f may be the loss of a batch. A gradient of 0
    stays 0, with finite derivatives.

    Args:
        max_lr: γ, the longest step, greater than 0.
        f_min: f*, the least value of the loss.
        eps: ε, at least 0, in units of ‖u‖².
        positive_part: step by 0 where f is below f*, not backwards: the variant SPS₊.

    Extra: `update(..., value=f)`, the loss at `params`; behind an optimizer, `step(closure)` or `step(value=f)`.

    Raises:
        ValueError: `update` was called without `value`.

    Source: Loizou et al. 2021, https://arxiv.org/abs/2002.10542. As `optax.scale_by_polyak`; `positive_part` is its "sps+".

    >>> tx = scale_by_polyak()
    >>> x = torch.tensor([3.0, 4.0])  # of f(x) = |x|², a gradient 2x
    >>> tx.update(-2 * x, tx.init_state(x), x, value=x @ x)[0]
    tensor([-1.5000, -2.0000])
    """
    gap = hp["value"] - hp["f_min"]
    square = square + hp["eps"]
    nothing = square <= NOTHING
    step = (gap / torch.where(nothing, 1.0, square)).clamp(max=hp["max_lr"])
    step = torch.where(nothing, 0.0, step.clamp(min=0.0) if positive_part else step)

    def rule(u, p):
        return step * u

    return rule
