"""RMSprop, and its centered form.

    v ← α v + (1 − α) g²
    u ← g / (√v + ε)                   centered:  a ← α a + (1 − α) g,  u ← g / (√(v − a²) + ε)

Hinton 2012, Neural Networks for Machine Learning, lecture 6e, https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf
Graves 2013, Generating Sequences With Recurrent Neural Networks, equations 38 to 41, https://arxiv.org/abs/1308.0850
"""

from functional_optim import numerics
from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.transform import elementwise

HPARAMS = {"alpha": Hparam(0.99, FRACTION), "eps": Hparam(1e-8, NON_NEGATIVE)}


@elementwise(slots=("square_avg",), coded={"square_avg": "positive"}, hparams=HPARAMS)
def scale_by_rms(hp, t, *, eps_in_sqrt: bool = False, bias_correction: bool = False):
    """Divide the gradient by its root mean square: `u = g / (√v + ε)`.

    Args:
        alpha: decay of v per step, in [0, 1).
        eps: at least 0; in units of |g|, or of g² with `eps_in_sqrt`.
        eps_in_sqrt: divide by `√(v + ε)` instead.
        bias_correction: divide v by `1 − αᵗ`, the weight that it has gathered; without, the first update is ±1/√(1 − α).
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

    State: `step` () int64; `square_avg` (v), like the parameters.

    Source: Hinton 2012. Retraces `torch.optim.RMSprop`; `optax.scale_by_rms` has the default `eps_in_sqrt=True`, calls alpha
    `decay` with the default 0.9, and may start v elsewhere than at 0.

    >>> import torch
    >>> tx = scale_by_rms(alpha=0.75)
    >>> tx.update(torch.tensor([3.0, 0.0, -0.1]), tx.init_state(torch.zeros(3)))[0]
    tensor([ 2.0000,  0.0000, -2.0000])
    """
    a, c = hp["alpha"], _weight(hp["alpha"], t, bias_correction)

    def rule(g, p, v):
        v = a * v + (1 - a) * g * g
        return g / numerics.root(v / c, hp["eps"], eps_in_sqrt=eps_in_sqrt), v

    return rule


@elementwise(slots=("square_avg", "grad_avg"), hparams=HPARAMS)
def scale_by_stddev(hp, t, *, eps_in_sqrt: bool = False, bias_correction: bool = False):
    """Divide the gradient by its standard deviation: `u = g / (√(v − a²) + ε)`.

    Args:
        alpha: decay of v and of the average gradient a per step, in [0, 1).
        eps: at least 0; in units of |g|, or of g² with `eps_in_sqrt`. A gradient that stays the same is divided by it.
        eps_in_sqrt: divide by `√(v − a² + ε)` instead.
        bias_correction: divide v and a by `1 − αᵗ`; the first variance is 0 then.
        state_dtype: dtype of the slots; the parameter's by default.

    State: `step` () int64; `square_avg` (v), `grad_avg` (a), like the parameters.

    Source: Graves 2013, https://arxiv.org/abs/1308.0850. Retraces `torch.optim.RMSprop(centered=True)` and, with `eps_in_sqrt`,
    `optax.scale_by_stddev`. Differs from both where rounding makes v − a² negative: 0 here, NaN there.

    >>> import torch
    >>> tx = scale_by_stddev(alpha=0.5)
    >>> tx.update(torch.tensor([3.0, 0.0, -0.1]), tx.init_state(torch.zeros(3)))[0]
    tensor([ 2.0000,  0.0000, -2.0000])
    """
    alpha, c = hp["alpha"], _weight(hp["alpha"], t, bias_correction)

    def rule(g, p, v, a):
        v = alpha * v + (1 - alpha) * g * g
        a = alpha * a + (1 - alpha) * g
        variance = (v / c - (a / c) * (a / c)).clamp(min=0.0)
        return g / numerics.root(variance, hp["eps"], eps_in_sqrt=eps_in_sqrt), v, a

    return rule


def _weight(alpha, t, corrected):
    return numerics.bias_correction(alpha, t) if corrected else 1.0
