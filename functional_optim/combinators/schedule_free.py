"""`schedule_free`: any optimizer without a learning-rate schedule, and the parameters to evaluate it at."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.chain import chain
from functional_optim.recipe import answering, recorded
from functional_optim.rules.schedule_free import average, schedule_free_average
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@recorded
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

    State: that of a chain: the optimizer's, and under `"schedule_free_average"` z and the two sums of weights.

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
    >>> eval_params(state, params)
    tensor(0.3750)
    """
    require_transform(transform, "schedule_free")
    if "lr" not in transform.declared:
        raise ValueError(f"schedule_free weighs iterates by the learning rate, but {transform.name} has no hyper-parameter 'lr'.")
    if "momentum" in transform.declared:
        raise ValueError(
            f"schedule_free takes the place of momentum, but {transform.name} has one. Leave it out: sgd(momentum=None)."
        )
    averaging = schedule_free_average(transform.hparams["lr"], momentum, weight_lr_power, state_dtype=state_dtype)
    return chain(transform, averaging, name="schedule_free")


@answering
def eval_params(state: Tree, params: Tree) -> Tree:
    """The averaged parameters of a schedule-free optimizer, `x = (y − (1 − β) z) / β`, in the dtypes of `params`.

    With several such optimizers inside a `partition`, each parameter gets its own average. `evaluated` is the same for whatever
    keeps an average; behind an optimizer, evaluate inside `with fo.adapters.eval_params(optimizer):`.

    Args:
        state: that of a transform with `schedule_free` somewhere inside.
        params: the present parameters, y. One without a slot z stays as it is.

    Raises:
        ValueError: there is no state of `schedule_free_average` in this one.

    As `optax.contrib.schedule_free_eval_params`.
    """
    slots = {name: _by_key(state, name) for name in ("z", "beta")}
    if not slots["z"]:
        raise ValueError("eval_params looks for the state of schedule_free(...), under 'schedule_free_average', and found none.")
    keys, (leaves, spec) = trees.keys(params), trees.flatten(params)
    strange = [key for key in slots["z"] if key not in keys]
    if strange:
        raise ValueError(f"the state holds an average of {str(strange[0])!r}, which is none of the parameters: {keys}.")
    averages = [
        y if y is None or slots["z"].get(key) is None else _average(y, slots["z"][key], slots["beta"][key])
        for key, y in zip(keys, leaves, strict=True)
    ]
    return trees.unflatten(spec, averages)


def _by_key(state: Any, slot: str) -> dict[Any, Any]:
    """A slot of every schedule-free average inside, by what its parameter is called."""
    if not isinstance(state, Mapping):
        return {}
    if state.keys() >= {"z", "beta", "weight_sum"}:
        return dict(zip(trees.keys(state[slot]), trees.leaves(state[slot]), strict=True))
    return {key: value for part in state.values() for key, value in _by_key(part, slot).items()}


def _average(y: Tensor, z: Tensor, beta: Tensor) -> Tensor:
    wide = torch.promote_types(y.dtype, torch.float32)
    return average(y.to(wide), z.to(wide), beta).to(y.dtype)
