"""Optimizers that step by a sign."""

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.combinators.rename import rename_hparams
from functional_optim.recipe import recorded
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.ema import ema
from functional_optim.rules.lion import scale_by_lion
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.rules.sign import scale_by_sign
from functional_optim.transform import Transform


@recorded
def lion(
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 1e-3,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Lion: `p ← p − η (sign(β₁ m + (1 − β₁) g) + λ p)`; see `scale_by_lion`.

    Args:
        lr: η, at least 0: every element moves by this much; it scales the decay too.
        betas: the share of the old momentum in the mix, and its decay, each in [0, 1).
        weight_decay: λ, at least 0.
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

    Source: Chen et al. 2023, https://arxiv.org/abs/2302.06675, who take lr 3 to 10 times smaller than AdamW's and weight_decay
    as many times larger. As `optax.lion`.
    """
    return chain(
        scale_by_lion(betas, state_dtype=state_dtype), add_decayed_weights(weight_decay), scale_by_learning_rate(lr), name="lion"
    )


@recorded
def sign_sgd(lr: float = 1e-3) -> Transform:
    """signSGD: `p ← p − η sign(g)`.

    Args:
        lr: η, at least 0: every element moves by this much.

    Source: Bernstein et al. 2018, https://arxiv.org/abs/1802.04434. As `optax.sign_sgd`.
    """
    return chain(scale_by_sign(), scale_by_learning_rate(lr), name="sign_sgd")


@recorded
def signum(lr: float = 1e-3, momentum: float = 0.9, *, state_dtype: torch.dtype | Codec | None = None) -> Transform:
    """Signum: `p ← p − η sign(m)`, with `m ← β m + (1 − β) g`.

    Args:
        lr: η, at least 0: every element moves by this much.
        momentum: β, in [0, 1).
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

    Source: Bernstein et al. 2018, https://arxiv.org/abs/1802.04434. As `optax.signum(beta)`.
    """
    average = rename_hparams(ema(momentum, debias=False, state_dtype=state_dtype), decay="momentum")
    return chain(average, scale_by_sign(), scale_by_learning_rate(lr), name="signum")
