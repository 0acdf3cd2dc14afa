"""`schedule_free`: any optimizer without a learning-rate schedule, and the parameters to evaluate it at."""

from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.chain import chain
from functional_optim.combinators.innermost import innermost
from functional_optim.hparams import HParams, complete, spread
from functional_optim.lifting import widened
from functional_optim.numerics import Scalar
from functional_optim.rules.schedule_free import average_iterates
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


def schedule_free(
    transform: Transform, momentum: float = 0.9, weight_lr_power: float = 2.0, *, state_dtype: torch.dtype | None = None
) -> Transform:
    """Run an optimizer schedule-free: an average of its iterates takes the place of a decaying learning rate, and of momentum.

    The parameters are y, where gradients are taken; `eval_params` gives x, the average, which is what to evaluate and ship:

        z ← z + u(∇f(y)),   x ← (1 − c) x + c z,   y ← β x + (1 − β) z

    with c the share of the newest weight, `(largest lr so far)^weight_lr_power`. Warm the learning rate up, then keep it; it may
    be larger than usual.

    Args:
        transform: an optimizer with a learning rate and no momentum of its own: `sgd()`, `adamw(betas=(0.0, 0.999))`.
        momentum: β, in (0, 1]. 0.9 as a rule, up to 0.98 in long runs.
        weight_lr_power: at least 0; above 0, iterates of the warm-up weigh less.
        state_dtype: dtype of the slot `z`; the parameter's by default.

    State: that of a chain: the optimizer's, and under `"average_iterates"` z and the two sums of weights.

    Raises:
        TypeError: this is no transform.
        ValueError: the transform has no hyper-parameter `lr`, or a `momentum` of its own.

    Source: Defazio et al. 2024, https://arxiv.org/abs/2405.15682. As `optax.contrib.schedule_free`, where the learning rate is
    given twice. The authors' wrapper evaluates weight decay at z; here as there in `AdamWScheduleFree` it is at y.

    >>> from functional_optim import apply_updates, sgd
    >>> tx = schedule_free(sgd(lr=0.5))
    >>> params = torch.tensor(1.0)
    >>> state = tx.init_state(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(params, state, params)  # the gradient of y²/2 is y
    ...     params = apply_updates(params, updates)
    >>> eval_params(tx, state, params)
    tensor(0.3750)
    """
    require_transform(transform, "schedule_free")
    if "lr" not in transform.declared:
        raise ValueError(f"schedule_free weighs iterates by the learning rate, but {transform.name} has no hyper-parameter 'lr'.")
    if "momentum" in transform.declared:
        raise ValueError(
            f"schedule_free takes the place of momentum, but {transform.name} has one. Leave it out: sgd(momentum=None)."
        )
    averaging = average_iterates(transform.hparams["lr"], momentum, weight_lr_power, state_dtype=state_dtype)
    return chain(transform, averaging, name="schedule_free")


def eval_params(transform: Transform, state: Tree, params: Tree, hparams: HParams | None = None) -> Tree:
    """The averaged parameters of a schedule-free optimizer, `x = (y − (1 − β) z) / β`, in the dtypes of `params`.

    Behind the adapter, `p.lerp(optimizer.state[p]["z"], 1 - 1 / momentum)` is the same for one parameter.

    Args:
        transform: with `schedule_free` somewhere inside.
        state: its state.
        params: the present parameters, y.
        hparams: those that `update` got; for `momentum`.

    Raises:
        ValueError: there is no `schedule_free` inside, or a hyper-parameter is unknown or out of range.

    As `optax.contrib.schedule_free_eval_params`.
    """
    hp = transform.select(complete(transform.declared, hparams, transform.name))
    for placed in innermost(transform):
        if placed.transform.name == "average_iterates":
            z = state
            for key in placed.path:
                z = z[key]
            return _averaged(params, z["z"], hp[placed.hparams["momentum"]])
    raise ValueError(f"{transform.name} is not schedule-free: eval_params looks for schedule_free(...) in it and found none.")


def _averaged(params: Tree, z: Tree, momentum: Any) -> Tree:
    leaves, spec = trees.flatten(params)
    scalars = spread({"momentum": momentum}, None, spec)
    return trees.unflatten(
        spec,
        [
            None if y is None else _average(y, z_of_y, hp["momentum"])
            for y, z_of_y, (hp, _) in zip(leaves, trees.leaves(z), scalars, strict=True)
        ],
    )


def _average(y: Tensor, z: Tensor, beta: Scalar) -> Tensor:
    wide_y, wide_z = widened(y), widened(z)
    return ((wide_y - (1 - beta) * wide_z) / beta).to(y.dtype)
