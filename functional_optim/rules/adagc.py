"""AdaGC: clip every tensor by the norm that it usually has.

    t < T:  ĝ ← g · min(1, λ_abs / ‖g‖_all)       ‖·‖_all over all parameters
            γ ← min(γ, ‖ĝ‖)                       the first: γ ← ‖ĝ‖
    later:  ĝ ← g · min(1, λ_rel γ / ‖g‖)         ‖·‖ over one tensor
            γ ← β γ + (1 − β) ‖ĝ‖

Wang et al. 2025, AdaGC: Improving Training Stability for Large Language Model Pretraining, https://arxiv.org/abs/2502.11034

A norm of 0 counts as "not known yet". By the paper's letter γ would stay 0, and so would the gradients of a tensor that had none
at some early step, such as one behind a layer that starts at 0.
"""

import torch

from functional_optim.hparams import FRACTION, Hparam, require_count
from functional_optim.lifting import OneNumber
from functional_optim.numerics import sqrt, where
from functional_optim.transform import numbered


def _bounded(limit, size):
    """min(1, limit / size), for a limit above 0 and a size that may be 0."""
    return limit / size.clamp(min=limit)


@numbered(
    own={"gamma": OneNumber(lambda hp: 0.0)},
    hparams={"lambda_abs": Hparam(1.0, "(0, inf)"), "lambda_rel": Hparam(1.05, "(0, inf)"), "beta": Hparam(0.98, FRACTION)},
    over_all=True,
)
def clip_by_adagc(hp, t, numbers, *, warmup_steps: int = 100):
    """Scale each tensor's gradient so that its norm is at most `lambda_rel` times its usual one, an average of past norms.

    Args:
        lambda_abs: the largest norm of all gradients together before `warmup_steps`, greater than 0.
        lambda_rel: by how much a norm may exceed the usual one later, greater than 0.
        beta: decay of the usual norm per step, in [0, 1).
        warmup_steps: T, the first step that is clipped by the usual norm; until then that is the least norm seen.

    State: `step` () int64; `gamma` (γ), a () float64 tensor for each parameter.

    Source: Wang et al. 2025, https://arxiv.org/abs/2502.11034, where AdamW follows; a norm of 0 is skipped here, see the module.
    Paddle's `ClipGradByAdaptiveNorm` remembers, until T, the least norm before clipping, and has 1.04 and 0.99 for λ_rel and β.
    Neither torch nor optax has a counterpart.
    """
    warmup_steps = require_count("warmup_steps", warmup_steps, 0)
    beta, usual = hp["beta"], numbers["gamma"]

    def terms(g, p):
        return g * g

    def finish(sums):
        size, known, early = sqrt(sums.own[0]), usual > 0, _bounded(hp["lambda_abs"], sqrt(sums.all[0]))
        late = torch.where(known, _bounded(hp["lambda_rel"] * torch.where(known, usual, 1.0), size), 1.0)
        factor = where(t < warmup_steps, early, late)
        clipped = factor * size
        least = torch.where(known & (clipped > 0), torch.minimum(usual, clipped), torch.maximum(usual, clipped))
        average = torch.where(known, beta * usual + (1 - beta) * clipped, clipped)
        return {"gamma": where(t < warmup_steps, least, average), "factor": factor}

    def rule(new, g, p):
        return new["factor"] * g

    return terms, finish, rule
