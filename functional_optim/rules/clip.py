"""Clipping: by the norm of the whole gradient, element by element, or by the size of each tensor.

    g ← g · min(1, c / (‖g‖ + 10⁻⁶))        ‖g‖ over all parameters
    g ← min(max(g, −c), c)
    g ← g / max(1, rms g / c)                rms g = ‖g‖ / √(number of elements), of each tensor

Pascanu, Mikolov & Bengio 2013, On the difficulty of training recurrent neural networks, https://arxiv.org/abs/1211.5063

The 10⁻⁶ is `torch.nn.utils.clip_grad_norm_`'s.
"""

from functional_optim.hparams import POSITIVE, Hparam
from functional_optim.numerics import sqrt
from functional_optim.reductions import SumOver
from functional_optim.transform import elementwise, numbered


def _square(g, p):
    return g * g


@elementwise(hparams={"max_norm": Hparam(1.0, POSITIVE)}, reduce=SumOver(_square, finish=sqrt))
def clip_by_global_norm(hp, norm):
    """Scale all gradients by one factor so that their common norm is at most `max_norm`: `g · min(1, c / ‖g‖)`.

    The norm spans every leaf; behind the adapter, every parameter group. A gradient of 0 stays 0, with finite derivatives.
    A NaN or an infinite gradient anywhere makes the factor NaN or 0 everywhere.

    Args:
        max_norm: in units of the gradient, greater than 0; infinity clips nothing.

    Source: Pascanu et al. 2013, https://arxiv.org/abs/1211.5063. Retraces `torch.nn.utils.clip_grad_norm_`, whose
    `norm + 1e-6` it keeps; `optax.clip_by_global_norm` divides by the norm itself.

    >>> import torch
    >>> tx = clip_by_global_norm(max_norm=1.0)
    >>> tx.update({"a": torch.tensor(3.0), "b": torch.tensor(4.0)}, {})[0]
    {'a': tensor(0.6000), 'b': tensor(0.8000)}
    """
    factor = (hp["max_norm"] / (norm + 1e-6)).clamp(max=1.0)

    def rule(g, p):
        return factor * g

    return rule


@elementwise(hparams={"clip_value": Hparam(1.0, POSITIVE)})
def clip_by_value(hp):
    """Clip every element to [−clip_value, clip_value]; complex ones in both parts.

    Args:
        clip_value: in units of the gradient, greater than 0.

    As `torch.nn.utils.clip_grad_value_` and `optax.clip(max_delta)`.
    """
    c = hp["clip_value"]

    def rule(g, p):
        return g.clamp(-c, c)

    return rule


@numbered(hparams={"threshold": Hparam(1.0, POSITIVE)})
def clip_by_block_rms(hp, numbers):
    """Scale each tensor so that its root mean square is at most `threshold`: `g / max(1, rms g / c)`.

    Args:
        threshold: c, in units of |g|, greater than 0; infinity clips nothing.

    Source: Shazeer & Stern 2018, Adafactor, section 6, https://arxiv.org/abs/1804.04235. As `optax.clip_by_block_rms`.

    >>> import torch
    >>> clip_by_block_rms(threshold=1.0).update([torch.tensor([6.0, 8.0]), torch.tensor(0.5)], {})[0]
    [tensor([0.8485, 1.1314]), tensor(0.5000)]
    """

    def finish(sums):
        return {"excess": (sqrt(sums.own[0] / sums.size) / hp["threshold"]).clamp(min=1.0)}

    def rule(new, g, p):
        return g / new["excess"]

    return _square, finish, rule
