"""Clipping by the unit's weights, by the tensor's root mean square, and by the example, in plain floats."""

import math
import re

import pytest
import torch
from trajectories import random_tree

import functional_optim as fo

LEAVES = ("matrix", "vector", "scalar", "filter")


def units(x):
    return list(x) if x.ndim > 1 else [x]


def length(x):
    return math.sqrt(math.fsum(v * v for v in x.flatten().tolist()))


@pytest.mark.parametrize("clipping, eps", [(0.01, 1e-3), (0.5, 2.0), (1.0, 0.0), (math.inf, 1e-3)])
def test_adaptive_grad_clip_in_plain_floats(clipping, eps):
    params, grads = random_tree(0, LEAVES), random_tree(1, LEAVES)
    found, state = fo.adaptive_grad_clip(clipping, eps).update(grads, {}, params)
    assert state == {}
    for name in LEAVES:
        for p, g, u in zip(*map(units, (params[name], grads[name], found[name])), strict=True):
            bound = clipping * max(length(p), eps)
            torch.testing.assert_close(u, g * min(1.0, bound / length(g)), rtol=1e-14, atol=0)  # twelve squares
            assert length(u) <= bound * (1 + 1e-14)


def test_a_zero_gradient_and_zero_weights_have_finite_derivatives():
    zero, one = torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)

    def clipped(g, p):
        return fo.adaptive_grad_clip().update(g, {}, p)[0].sum()

    for g, p in ((zero, one), (one, zero), (zero, zero)):
        assert all(slope.isfinite().all() for slope in torch.func.grad(clipped, (0, 1))(g, p))
    # Below the bound it is the identity.
    assert torch.equal(torch.func.grad(clipped)(zero, one), one)


@pytest.mark.parametrize("threshold", [0.1, 1.0, math.inf])
def test_clip_by_block_rms_in_plain_floats(threshold):
    grads = random_tree(1, LEAVES)
    found, state = fo.clip_by_block_rms(threshold).update({**grads, "zero": torch.zeros(3)}, {})
    assert state == {} and torch.equal(found["zero"], torch.zeros(3))
    for name, g in grads.items():
        rms = length(g) / math.sqrt(g.numel())
        torch.testing.assert_close(found[name], g / max(1.0, rms / threshold), rtol=1e-14, atol=0)


def batched(seeds):
    trees = [random_tree(seed) for seed in seeds]
    return {name: torch.stack([tree[name] for tree in trees]) for name in trees[0]}


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 4.0, math.inf])
def test_per_example_clipping_in_plain_floats(max_norm):
    examples = [random_tree(seed) for seed in range(8)]
    norms = [math.sqrt(math.fsum(length(x) ** 2 for x in tree.values())) for tree in examples]
    found, count = fo.per_example_global_norm_clip({**batched(range(8)), "none": None}, max_norm)
    assert count.item() == sum(norm > max_norm for norm in norms)
    assert found.pop("none") is None
    for name, total in found.items():
        terms = [tree[name] * min(1.0, max_norm / norm) for tree, norm in zip(examples, norms, strict=True)]
        torch.testing.assert_close(total, torch.stack(terms).sum(0), rtol=1e-13, atol=1e-14)  # a sum in another order


def test_each_example_is_clipped_by_the_norm_over_all_leaves_as_one_gradient_would_be():
    grads = batched(range(8))
    total, _ = fo.per_example_global_norm_clip(grads, 3.0)
    one_by_one = [fo.clip_by_global_norm(3.0).update({name: g[i] for name, g in grads.items()}, {})[0] for i in range(8)]
    for name in grads:
        # The 1e-6 beside the norm of torch's clipping.
        torch.testing.assert_close(total[name], torch.stack([u[name] for u in one_by_one]).sum(0), rtol=1e-5, atol=1e-6)


def test_an_example_without_gradient_counts_as_unclipped_with_finite_derivatives():
    g = torch.zeros(2, 3, dtype=torch.float64)
    total, count = fo.per_example_global_norm_clip(g, 1.0)
    assert torch.equal(total, torch.zeros(3, dtype=torch.float64)) and count == 0
    one = torch.tensor(1.0, dtype=torch.float64)
    by_g, by_norm = torch.func.grad(lambda g, c: fo.per_example_global_norm_clip(g, c)[0].sum(), (0, 1))(g, one)
    assert torch.equal(by_g, torch.ones_like(g)) and by_norm == 0


def test_low_precision_is_summed_in_float32_and_returned_as_it_came():
    g = torch.full((4096, 1), 1.0, dtype=torch.bfloat16)
    total, _ = fo.per_example_global_norm_clip(g, 10.0)
    assert total.dtype == torch.bfloat16 and total.item() == 4096  # bfloat16 sums stop at 256


def test_max_norm_can_be_batched():
    grads = batched(range(4))
    bounds = torch.tensor([0.5, 2.0], dtype=torch.float64)
    together, counts = torch.vmap(lambda c: fo.per_example_global_norm_clip(grads, c))(bounds)
    for i, c in enumerate(bounds):
        alone, count = fo.per_example_global_norm_clip(grads, c)
        assert counts[i] == count
        torch.testing.assert_close({name: x[i] for name, x in together.items()}, alone, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    "grads, error, message",
    [
        (
            {"a": torch.zeros(2, 3), "b": torch.zeros(3)},
            ValueError,
            "grads['b'] has 3 examples along its first axis, grads['a'] has 2",
        ),
        ({"a": torch.zeros(())}, ValueError, "grads['a'] has shape (): its first axis must number the examples"),
        ({"a": None}, ValueError, "grads holds no gradient"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, TypeError, "takes real gradients"),
        ({"a": torch.zeros(2).long()}, TypeError, "grads['a'] is torch.int64"),
    ],
)
def test_unfit_gradients_are_errors(grads, error, message):
    with pytest.raises(error, match=re.escape(message)):
        fo.per_example_global_norm_clip(grads, 1.0)


def test_a_negative_bound_is_an_error():
    with pytest.raises(ValueError, match="max_norm = -1.0 is outside"):
        fo.per_example_global_norm_clip(torch.zeros(2), -1.0)


def test_an_example_without_bounds_has_no_part_in_the_sum():
    """Infinite elements leave no direction; large ones, whose squares exceed float32, do; a NaN is not hidden."""
    g = {
        "w": torch.tensor([[3.0, 4.0], [math.inf, 1.0], [3e30, 4e30], [0.0, 0.0]]),
        "b": torch.tensor([0.0, 1.0, 0.0, -math.inf]),
    }
    total, count = fo.per_example_global_norm_clip(g, 1.0)
    torch.testing.assert_close(total, {"w": torch.tensor([1.2, 1.6]), "b": torch.tensor(0.0)})
    assert count == 3 + 1
    total, count = fo.per_example_global_norm_clip(g, math.inf)
    assert total["w"][0] == math.inf and total["b"] == -math.inf and count == 0
    total, _ = fo.per_example_global_norm_clip({"w": torch.tensor([[1.0], [math.nan]])}, 1.0)
    assert total["w"].isnan().all()


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0,), (2,)])
def test_examples_may_be_empty_or_single_numbers(shape):
    total, count = fo.per_example_global_norm_clip([torch.zeros(shape)], 1.0)
    assert total[0].shape == shape[1:] and not total[0].any() and count == 0
