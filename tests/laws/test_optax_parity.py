"""Every rule that optax has, against optax: float64, a tree with a matrix, a vector and a () tensor, 20 steps.

Gradients are random and do not depend on the parameters, so differences do not grow: `FLOAT64` holds for all.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from trajectories import FLOAT64, assert_same_trajectory, optax_tree_run, random_tree, tree_run

import functional_optim as fo

STEPS = 20
# Between the bounds of the Polyak step and beyond them.
LOSSES = [5.0 - 0.3 * step for step in range(STEPS)]


@dataclass(frozen=True)
class Pair:
    """A transform of ours and its counterpart.

    Attributes:
        ours: our transform.
        theirs: `optax` to theirs.
        leaves: the leaves of the tree to run on.
        extra: keywords of `update`, to the value at each step.
    """

    ours: fo.Transform
    theirs: Any
    leaves: tuple[str, ...] = ("matrix", "vector", "scalar")
    extra: dict[str, Any] = field(default_factory=dict)


PAIRS = {
    # One link
    "add_decayed_weights": Pair(fo.add_decayed_weights(0.1), lambda o: o.add_decayed_weights(0.1)),
    "centralize": Pair(fo.centralize(), lambda o: o.centralize(), leaves=("matrix", "vector", "scalar", "filter")),
    "clip_by_block_rms": Pair(fo.clip_by_block_rms(0.7), lambda o: o.clip_by_block_rms(0.7)),
    "clip_by_value": Pair(fo.clip_by_value(0.5), lambda o: o.clip(0.5)),
    "ema": Pair(fo.ema(0.8), lambda o: o.ema(0.8)),
    "ema without correction": Pair(fo.ema(0.8, debias=False), lambda o: o.ema(0.8, debias=False)),
    "identity": Pair(fo.identity(), lambda o: o.identity()),
    "keep_params_nonnegative": Pair(fo.keep_params_nonnegative(), lambda o: o.keep_params_nonnegative()),
    "normalize_by_update_norm": Pair(fo.normalize_by_update_norm(2.0, 0.1), lambda o: o.normalize_by_update_norm(2.0, 0.1)),
    "scale": Pair(fo.scale(-0.3), lambda o: o.scale(-0.3)),
    "scale_by_adam": Pair(fo.scale_by_adam((0.8, 0.9), 1e-6), lambda o: o.scale_by_adam(0.8, 0.9, 1e-6)),
    # With b2 = 0.5: see `scale_by_adan`.
    "scale_by_adan": Pair(fo.scale_by_adan((0.9, 0.5, 0.95)), lambda o: o.scale_by_adan(0.9, 0.5, 0.95)),
    "scale_by_lion": Pair(fo.scale_by_lion((0.8, 0.9)), lambda o: o.scale_by_lion(0.8, 0.9)),
    "scale_by_novograd": Pair(
        fo.scale_by_novograd((0.8, 0.3), 1e-3, weight_decay=0.1),
        lambda o: o.scale_by_novograd(0.8, 0.3, 1e-3, weight_decay=0.1),
    ),
    "scale_by_optimistic_gradient": Pair(
        fo.scale_by_optimistic_gradient(0.7, 0.4), lambda o: o.scale_by_optimistic_gradient(0.7, 0.4)
    ),
    "scale_by_param_block_norm": Pair(fo.scale_by_param_block_norm(2.0), lambda o: o.scale_by_param_block_norm(2.0)),
    "scale_by_param_block_rms": Pair(fo.scale_by_param_block_rms(0.8), lambda o: o.scale_by_param_block_rms(0.8)),
    "scale_by_polyak": Pair(
        fo.scale_by_polyak(0.5, 0.3, 0.1), lambda o: o.scale_by_polyak(0.3, 0.5, 0.1), extra={"value": LOSSES}
    ),
    "scale_by_polyak sps+": Pair(
        fo.scale_by_polyak(0.5, 0.3, positive_part=True),
        lambda o: o.scale_by_polyak(0.3, 0.5, variant="sps+"),
        extra={"value": LOSSES},
    ),
    "scale_by_sign": Pair(fo.scale_by_sign(), lambda o: o.scale_by_sign()),
    # optax has no accumulator for a () tensor.
    "scale_by_sm3": Pair(fo.scale_by_sm3(0.8, 1e-3), lambda o: o.scale_by_sm3(0.8, eps=1e-3), ("matrix", "vector", "filter")),
    "scale_by_trust_ratio": Pair(
        fo.scale_by_trust_ratio(0.9, 0.1, 0.01), lambda o: o.scale_by_trust_ratio(0.9, trust_coefficient=0.1, eps=0.01)
    ),
    "scale_by_yogi": Pair(
        fo.scale_by_yogi((0.8, 0.9), 1e-2, 0.5), lambda o: o.scale_by_yogi(0.8, 0.9, 1e-2, initial_accumulator_value=0.5)
    ),
    "freeze": Pair(fo.freeze(), lambda o: o.set_to_zero()),
    "trace": Pair(fo.trace(0.8), lambda o: o.trace(0.8)),
    "trace nesterov": Pair(fo.trace(0.8, nesterov=True), lambda o: o.trace(0.8, nesterov=True)),
    "zero_nans": Pair(fo.zero_nans(), lambda o: o.zero_nans()),
    # Whole optimizers
    "adam": Pair(fo.adam(0.1), lambda o: o.adam(0.1)),
    "adamw": Pair(fo.adamw(0.1, weight_decay=0.2), lambda o: o.adamw(0.1, weight_decay=0.2)),
    "adamaxw": Pair(
        fo.chain(fo.scale_by_adamax(), fo.add_decayed_weights(0.2), fo.scale_by_learning_rate(0.1)),
        lambda o: o.adamaxw(0.1, weight_decay=0.2),
    ),
    "adan": Pair(
        fo.adan(0.1, (0.9, 0.5, 0.95), weight_decay=0.2),
        lambda o: o.adan(0.1, 0.9, 0.5, 0.95, eps_root=0.0, weight_decay=0.2),
    ),
    "fromage": Pair(fo.fromage(0.3), lambda o: o.fromage(0.3)),
    "lamb": Pair(fo.lamb(0.1, weight_decay=0.2), lambda o: o.lamb(0.1, weight_decay=0.2)),
    "lars": Pair(fo.lars(0.1, 0.8, 0.2, 0.01, 0.1), lambda o: o.lars(0.1, 0.2, trust_coefficient=0.01, eps=0.1, momentum=0.8)),
    "lars nesterov": Pair(fo.lars(0.1, nesterov=True), lambda o: o.lars(0.1, nesterov=True)),
    "lion": Pair(fo.lion(0.1, weight_decay=0.2), lambda o: o.lion(0.1, weight_decay=0.2)),
    # optax's momentum does not warm up.
    "nadamw": Pair(
        fo.nadam(0.1, weight_decay=0.2, momentum_decay=1e6, decoupled_weight_decay=True),
        lambda o: o.nadamw(0.1, weight_decay=0.2),
    ),
    "novograd": Pair(fo.novograd(0.1, weight_decay=0.2), lambda o: o.novograd(0.1, weight_decay=0.2)),
    "optimistic_adam": Pair(
        fo.optimistic_adam(0.1, alpha=0.7, beta=0.4),
        lambda o: o.optimistic_adam_v2(0.1, alpha=0.7, beta=0.4, nesterov=False),
    ),
    "optimistic_gradient_descent": Pair(
        fo.optimistic_gradient_descent(0.1, 0.7, 0.4), lambda o: o.optimistic_gradient_descent(0.1, 0.7, 0.4)
    ),
    "polyak_sgd": Pair(fo.polyak_sgd(0.5, 0.1, -1.0), lambda o: o.polyak_sgd(0.1, 0.5, -1.0), extra={"value": LOSSES}),
    "sgd": Pair(fo.sgd(0.1), lambda o: o.sgd(0.1)),
    "sgd nesterov": Pair(fo.sgd(0.1, 0.9, nesterov=True), lambda o: o.sgd(0.1, 0.9, nesterov=True)),
    "sign_sgd": Pair(fo.sign_sgd(0.1), lambda o: o.sign_sgd(0.1)),
    "signum": Pair(fo.signum(0.1, 0.8), lambda o: o.signum(0.1, 0.8)),
    "sm3": Pair(fo.sm3(0.1, 0.8), lambda o: o.sm3(0.1, 0.8), ("matrix", "vector", "filter")),
    "yogi": Pair(fo.yogi(0.1), lambda o: o.yogi(0.1)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_as_optax(name):
    pair = PAIRS[name]
    trees = [random_tree(seed, pair.leaves) for seed in range(STEPS + 1)]
    extras = [{key: values[step] for key, values in pair.extra.items()} for step in range(STEPS)]
    found, expected = tree_run(pair.ours, trees, extras), optax_tree_run(pair.theirs, trees, extras)
    for leaf in pair.leaves:
        assert_same_trajectory(found[leaf], expected[leaf], FLOAT64)


def transposed(trees):
    return [{name: x.T if x.ndim == 2 else x for name, x in tree.items()} for tree in trees]


@pytest.mark.parametrize("clipping", [0.1, 0.5, 1e9])
def test_adaptive_grad_clip_is_optaxs_of_transposed_matrices(clipping):
    """torch keeps weights as (outputs, inputs), optax's units are along the last axis."""
    trees = [random_tree(seed) for seed in range(STEPS + 1)]
    found = tree_run(fo.chain(fo.adaptive_grad_clip(clipping, 0.5), fo.scale(0.1)), trees)
    expected = optax_tree_run(lambda o: o.chain(o.adaptive_grad_clip(clipping, 0.5), o.scale(0.1)), transposed(trees))
    expected["matrix"] = expected["matrix"].reshape(STEPS, 4, 3).transpose(1, 2).flatten(1)
    for leaf in found:
        assert_same_trajectory(found[leaf], expected[leaf], FLOAT64)


@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1e9])
def test_per_example_global_norm_clip_is_optaxs(max_norm):
    import jax
    import optax

    examples = [random_tree(seed) for seed in range(8)]
    grads = {name: torch.stack([tree[name] for tree in examples]) for name in examples[0]}
    found, count = fo.per_example_global_norm_clip(grads, max_norm)
    with jax.enable_x64(True):
        theirs: Any = optax.per_example_global_norm_clip([jax.numpy.array(g.numpy()) for g in grads.values()], max_norm)
        assert count.item() == int(theirs[1])
        for ours, other in zip(found.values(), theirs[0], strict=True):
            # A sum of eight products, in another order.
            torch.testing.assert_close(ours, torch.tensor(other.tolist(), dtype=torch.float64), rtol=1e-14, atol=1e-14)
