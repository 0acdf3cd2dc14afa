"""Hyperball: steps of one angle, on the sphere on which each tensor started.

    R = ‖p₀‖
    q ← p − η R u / ‖u‖
    p ← R q / ‖q‖

As in the optimizers called AdamH and MuonH of the speed-runs of NanoGPT, and HeavyBall's `hyperball_step`.
"""

from torch import Tensor

from functional_optim.combinators.chain import chain
from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.lifting import widened
from functional_optim.numerics import norm, real, sqrt
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, numbered, require_transform

# Norms below this one count as this one.
LEAST = 1e-12


def _norm(p: Tensor, hp):
    return norm(widened(real(p))).double()


@numbered(own={"init_norm": _norm}, hparams={"lr": Hparam(1e-2, NON_NEGATIVE)}, name="hyperball")
def _on_the_ball(hp, numbers):
    radius = numbers["init_norm"]

    def terms(u, p):
        return u * u, u * p, p * p

    def finish(sums):
        uu, up, pp = sums.own
        step = hp["lr"] * radius / sqrt(uu).clamp(min=LEAST)
        length = sqrt((pp - 2 * step * up + step * step * uu).clamp(min=0.0)).clamp(min=LEAST)
        return {"init_norm": radius, "step": step, "scale": radius / length}

    def rule(new, u, p):
        return new["scale"] * (p - new["step"] * u) - p

    return terms, finish, rule


@recorded
def hyperball(transform: Transform, lr: float = 1e-2) -> Transform:
    """Step by one angle in the direction that a transform gives, and keep each tensor's norm at what it started with.

    The last link of an optimizer: it has the learning rate, and weight decay has no use beside it. `hyperball(scale_by_adam())`
    is AdamH. What starts at 0, such as most biases, stays there: give it to another rule, with `partition`.

    Args:
        transform: what gives a direction, before the learning rate turns its sign: `scale_by_adam()`, `chain(...)`.
        lr: η, at least 0: the step's length as a share of the radius, about the angle in radians.

    State: the transform's under its name; under `"hyperball"`, `init_norm` (R), a number for each leaf.

    Raises:
        TypeError: this is no transform.
        ValueError: `update` was called without params.

    Source: HeavyBall's `hyperball_step`, without decay and caution.

    >>> import torch
    >>> from functional_optim import identity
    >>> tx, p = hyperball(identity(), lr=1.0), torch.tensor([0.0, 2.0])
    >>> p + tx.update(torch.tensor([-5.0, 0.0]), tx.init_state(p), p)[0]
    tensor([1.4142, 1.4142])
    """
    require_transform(transform, "hyperball")
    return chain(transform, _on_the_ball(lr), name="hyperball")
