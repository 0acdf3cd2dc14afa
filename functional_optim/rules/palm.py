"""Adam with PaLM's second moment, whose memory grows with the run.

    β₂ ← 1 − tᶜ,  c = −0.8
    m ← β₁ m + (1 − β₁) g
    v ← β₂ v + (1 − β₂) g²
    u ← m / (1 − β₁ᵗ) / (√v + ε)

Chowdhery et al. 2022, PaLM: Scaling Language Modeling with Pathways, https://arxiv.org/abs/2204.02311

β₂ is 0 at the first step, so v is a weighted mean from the start: no bias to correct. The schedule is Adafactor's (Shazeer &
Stern 2018, https://arxiv.org/abs/1804.04235); PaLM scaled the step by the size of the parameter as well, which is not done here.
"""

from functional_optim.hparams import FRACTION, NON_NEGATIVE, Hparam
from functional_optim.numerics import bias_correction, double, sqrt
from functional_optim.transform import elementwise


@elementwise(
    slots=("exp_avg", "exp_avg_sq"),
    coded={"exp_avg": "signed", "exp_avg_sq": "positive"},
    hparams={
        "beta1": Hparam(0.9, FRACTION),
        "beta2_decay": Hparam(-0.8, "(-inf, 0]"),
        "eps": Hparam(1e-8, NON_NEGATIVE),
    },
)
def scale_by_palm(hp, t):
    """Adam's step with `β₂ = 1 − t^beta2_decay`: quick to learn the scale of gradients early, slow to forget it late.

    Args:
        beta1: decay of m per step, in [0, 1).
        beta2_decay: at most 0; −1 makes v the mean of all squares so far, 0 the present square alone.
        eps: at least 0, in units of |g|.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: `step` () int64; `exp_avg` (m), `exp_avg_sq` (v), like the parameters.

    Source: Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311. `torch.optim.Adafactor` has the same `beta2_decay`.
    """
    b1, c1 = hp["beta1"], bias_correction(hp["beta1"], t)
    share = double(t) ** double(hp["beta2_decay"])

    def rule(g, p, m, v):
        m = b1 * m + (1 - b1) * g
        v = (1 - share) * v + share * g * g
        return m / c1 / (sqrt(v) + hp["eps"]), m, v

    return rule
