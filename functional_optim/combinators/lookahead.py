"""Averages of the parameters: lookahead, which trains them, and the exponential moving average, which watches them."""

from torch import Tensor

from functional_optim.combinators.chain import chain
from functional_optim.hparams import FRACTION, Hparam, require_count
from functional_optim.lifting import copied
from functional_optim.numerics import where
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, elementwise, require_transform


def _kept(p: Tensor, slot: Tensor) -> Tensor:
    """What the slot holds."""
    del p
    return slot


@elementwise(
    slots={"slow_params": copied}, hparams={"slow_step_size": Hparam(0.5, "[0, 1]")}, evaluated_at=_kept, name="lookahead"
)
def _toward_slow(hp, t, *, sync_period):
    """Every few steps, pull the parameters and slow weights together: `φ ← φ + α (θ − φ), θ ← φ`."""
    share = where(t % sync_period == 0, 1.0, 0.0)

    def rule(u, p, slow):
        fast = p + u
        met = slow + hp["slow_step_size"] * (fast - slow)
        return u + share * (met - fast), slow + share * (met - slow)

    return rule


@recorded
def lookahead(transform: Transform, sync_period: int = 6, slow_step_size: float = 0.5) -> Transform:
    """Let fast weights run, and every few steps pull them back to slow weights that follow.

        θ ← θ + u                                 every step
        φ ← φ + α (θ − φ),  θ ← φ                 every k-th step

    Args:
        transform: what moves the fast weights θ, which are the parameters.
        sync_period: k, at least 1.
        slow_step_size: α, in [0, 1]; 1 is the transform itself. A hyper-parameter.

    State: the transform's under its name; under `"lookahead"`, `step` and `slow_params` (φ), where `evaluated` evaluates. What
    the transform remembers is kept when the weights meet.

    Source: Zhang et al. 2019, Lookahead Optimizer: k steps forward, 1 step back, https://arxiv.org/abs/1907.08610. As
    `optax.lookahead`, whose parameters are pairs of fast and slow ones.
    """
    require_transform(transform, "lookahead")
    sync_period = require_count("sync_period", sync_period, 1)
    return chain(transform, _toward_slow(sync_period, slow_step_size), name="lookahead")


@elementwise(slots={"ema_params": copied}, hparams={"ema_decay": Hparam(0.999, FRACTION)}, evaluated_at=_kept, name="ema")
def _follow(hp):
    """Keep an average of the parameters: `a ← d a + (1 − d) θ`."""
    d = hp["ema_decay"]

    def rule(u, p, average):
        return u, d * average + (1 - d) * (p + u)

    return rule


@recorded
def ema_params(transform: Transform, ema_decay: float = 0.999) -> Transform:
    """Keep an exponential moving average of the parameters beside the training: `a ← d a + (1 − d) θ` after each update.

    `evaluated(transform, state, params)` is the average, a tree like the parameters; behind an optimizer it takes their place
    inside `with fo.adapters.eval_params(optimizer):`.

    Args:
        transform: what trains; its updates pass unchanged.
        ema_decay: d, in [0, 1). A hyper-parameter.

    State: the transform's under its name; under `"ema"`, `ema_params` (a), which starts at the parameters.

    Source: Polyak & Juditsky 1992, https://doi.org/10.1137/0330046. As
    `torch.optim.swa_utils.AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(d))`.
    """
    require_transform(transform, "ema_params")
    return chain(transform, _follow(ema_decay), name="ema_params")
