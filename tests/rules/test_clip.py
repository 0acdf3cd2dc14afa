"""Identity of the two clippings: Python floats, torch.nn.utils, optax, and what they reduce to."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trajectories import awkward_gradients, optax_updates_of, updates_of

import functional_optim as fo

NORMS = [1e-6, 0.1, 1.0, 5.0, 1e9, math.inf]


def tree_of(row, dtype=torch.float64):
    """The gradients of one step as a tree of leaves of several ranks, () included."""
    x = torch.tensor(row, dtype=dtype)
    return {"w": x[:4].reshape(2, 2), "b": [x[4], x[5:]], "none": None}


def torch_clipped(tree, clip, bound):
    """What a torch.nn.utils function leaves in `.grad`, as such a tree."""
    leaves = [tree["w"], *tree["b"]]
    params = [torch.nn.Parameter(torch.zeros_like(g)) for g in leaves]
    for p, g in zip(params, leaves, strict=True):
        p.grad = g.clone()
    clip(params, bound)
    w, b0, b1 = (p.grad for p in params)
    return {"w": w, "b": [b0, b1], "none": None}


@pytest.mark.parametrize("max_norm", NORMS)
def test_clip_by_global_norm_in_plain_floats(max_norm):
    tx = fo.clip_by_global_norm()
    for row in awkward_gradients():
        norm = math.sqrt(math.fsum(g * g for g in row))
        factor = min(1.0, max_norm / (norm + 1e-6))
        u, state = tx.update(tree_of(row), {}, hparams={"max_norm": max_norm})
        assert state == {} and u["none"] is None
        # A sum of eight squares in float64.
        torch.testing.assert_close(u, tree_of([factor * g for g in row]), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-14), (torch.float32, 1e-6)]
)  # eight squares, summed in some order
@pytest.mark.parametrize("max_norm", NORMS)
def test_clip_by_global_norm_is_torchs(max_norm, dtype, tolerance):
    for row in awkward_gradients():
        tree = tree_of(row, dtype)
        u, _ = fo.clip_by_global_norm(max_norm).update(tree, {})
        expected = torch_clipped(tree, torch.nn.utils.clip_grad_norm_, max_norm)
        torch.testing.assert_close(u, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("clip_value", [1e-9, 0.5, 1.0, 1e9, math.inf])
def test_clip_by_value_is_torchs_and_plain_floats(clip_value):
    for row in awkward_gradients():
        tree = tree_of(row)
        u, state = fo.clip_by_value(clip_value).update(tree, {})
        assert state == {} and u["none"] is None
        # Comparisons do not round.
        torch.testing.assert_close(u, tree_of([min(max(g, -clip_value), clip_value) for g in row]), rtol=0, atol=0)
        torch.testing.assert_close(u, torch_clipped(tree, torch.nn.utils.clip_grad_value_, clip_value), rtol=0, atol=0)


def test_clip_by_value_is_optax():
    rows = awkward_gradients(50)
    expected = optax_updates_of(lambda optax: optax.clip(0.7), rows)
    assert torch.equal(updates_of(fo.clip_by_value(0.7), rows), expected)


def test_with_an_infinite_bound_both_are_the_identity():
    rows = awkward_gradients()
    raw = torch.tensor(rows, dtype=torch.float64)
    assert torch.equal(updates_of(fo.clip_by_global_norm(math.inf), rows), raw)
    assert torch.equal(updates_of(fo.clip_by_value(math.inf), rows), raw)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), st.floats(1e-3, 1e3))
def test_the_clipped_norm_is_at_most_max_norm_and_the_direction_stays(row, max_norm):
    g = torch.tensor(row, dtype=torch.float64)
    u, _ = fo.clip_by_global_norm(max_norm).update(g, {})
    assert u.norm().item() <= max_norm * (1 + 1e-14)  # rounding of the product
    if g.norm() + 1e-6 <= max_norm:
        assert torch.equal(u, g)
    else:
        # Parallel, up to rounding relative to the lengths.
        assert (u @ g).item() == pytest.approx((u.norm() * g.norm()).item(), rel=1e-12, abs=1e-300)


def test_the_norm_spans_all_leaves():
    # 3-4-5: per leaf, each would be scaled to 1.
    u, _ = fo.clip_by_global_norm(1.0).update({"a": torch.tensor(3.0).double(), "b": torch.tensor(4.0).double()}, {})
    # The 1e-6 in the denominator: 5 / (5 + 1e-6).
    assert u["a"].item() == pytest.approx(0.6 / (1 + 2e-7), rel=1e-14)
    assert u["b"].item() == pytest.approx(0.8 / (1 + 2e-7), rel=1e-14)


def test_leaves_of_several_dtypes_share_one_norm():
    tree = [torch.tensor([3.0], dtype=torch.bfloat16), torch.tensor([4.0], dtype=torch.float64), torch.tensor([12.0])]
    u, _ = fo.clip_by_global_norm(6.5).update(tree, {})  # the norm is 13
    assert [x.dtype for x in u] == [torch.bfloat16, torch.float64, torch.float32]
    # bfloat16 rounds to 2**-9; 1.5, 2 and 6 are exact but for the 1e-6 in the denominator.
    assert [x.item() for x in u] == pytest.approx([1.5, 2.0, 6.0], rel=2**-8)


def test_complex_gradients_are_pairs_of_reals():
    z = torch.tensor([3 + 4j, 0j], dtype=torch.complex128)
    u, _ = fo.clip_by_global_norm(2.5).update(z, {})
    p = torch.nn.Parameter(torch.zeros_like(z))
    p.grad = z.clone()
    torch.nn.utils.clip_grad_norm_([p], 2.5)
    torch.testing.assert_close(u, p.grad, rtol=1e-14, atol=0)  # a product each
    u, _ = fo.clip_by_value(3.5).update(z, {})
    assert torch.equal(u, torch.tensor([3 + 3.5j, 0j], dtype=torch.complex128))


def test_zero_gradients_stay_zero_with_finite_derivatives():
    def clipped(g, max_norm):
        return fo.clip_by_global_norm().update(g, {}, hparams={"max_norm": max_norm})[0].sum()

    g, max_norm = torch.zeros(3, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    assert clipped(g, max_norm).item() == 0
    by_g, by_norm = torch.func.grad(clipped, argnums=(0, 1))(g, max_norm)
    # Below the bound the map is the identity: slope 1 in g, 0 in the bound.
    assert torch.equal(by_g, torch.ones(3, dtype=torch.float64)) and by_norm.item() == 0


def test_a_nan_anywhere_is_seen_everywhere():
    u, _ = fo.clip_by_global_norm(1.0).update([torch.tensor([1.0, math.nan]), torch.tensor(2.0)], {})
    assert u[0].isnan().all() and u[1].isnan()
    u, _ = fo.clip_by_value(1.0).update(torch.tensor([2.0, math.nan]), {})
    assert u[0] == 1 and u[1].isnan()


def test_nothing_to_clip():
    assert fo.clip_by_global_norm().update({}, {}) == ({}, {})
    assert fo.clip_by_global_norm().update({"a": None}, {}) == ({"a": None}, {})
    u, _ = fo.clip_by_global_norm().update([torch.zeros(0), torch.tensor([3.0])], {})
    assert u[0].shape == (0,)
    assert u[1].item() == pytest.approx(1.0, rel=1e-6)  # the 1e-6 in the denominator
