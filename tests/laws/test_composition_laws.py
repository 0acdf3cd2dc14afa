"""Laws of composition: what a combinator is when there is nothing to combine."""

import pytest
import torch
from trajectories import awkward_gradients, params_of, updates_of

import functional_optim as fo
from functional_optim import trees

ROWS = awkward_gradients(12)


def tree_run(tx, steps=6, hparams=None):
    """Parameters and state after some steps on a nested tree."""
    generator = torch.Generator().manual_seed(0)

    def draw():
        return {
            "w": [torch.randn(3, 2, generator=generator).double(), torch.randn(2, generator=generator).double()],
            "b": draw_one(),
        }

    def draw_one():
        return torch.randn((), generator=generator).double()

    params = draw()
    state = tx.init_state(params, hparams)
    for _ in range(steps):
        updates, state = tx.update(draw(), state, params, hparams)
        params = fo.apply_updates(params, updates)
    return params, state


def assert_equal(tree, other, tolerance=0.0):
    for a, b in zip(trees.leaves(tree), trees.leaves(other), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_the_empty_chain_is_the_identity():
    grads = {"w": torch.tensor([1.0, -2.0])}
    updates, state = fo.chain().update(grads, fo.chain().init_state(grads))
    assert_equal(updates, grads)
    assert state == {}


def test_nesting_a_chain_changes_only_the_keys_of_the_state():
    links = [fo.clip_by_global_norm(), fo.scale_by_adam(), fo.add_decayed_weights(), fo.scale_by_learning_rate()]
    flat, flat_state = tree_run(fo.chain(*links))
    nested, nested_state = tree_run(fo.chain(links[0], fo.chain(*links[1:3], name="middle"), links[3]))
    assert_equal(nested, flat)
    assert set(nested_state) == {"clip_by_global_norm", "middle", "scale_by_learning_rate"}
    assert_equal(nested_state["middle"]["scale_by_adam"], flat_state["scale_by_adam"])


def test_masked_with_all_true_is_the_link_itself():
    masked, state = tree_run(fo.masked(fo.adamw(lr=0.1), lambda name, leaf: True))
    plain, plain_state = tree_run(fo.adamw(lr=0.1))
    assert_equal(masked, plain)
    slots = state["masked"]["scale_by_adam"]["exp_avg"]
    assert_equal(
        [slots["w.0"], slots["w.1"], slots["b"]],
        [*plain_state["scale_by_adam"]["exp_avg"]["w"], plain_state["scale_by_adam"]["exp_avg"]["b"]],
    )


def test_masked_with_all_false_is_the_identity():
    assert_equal(tree_run(fo.masked(fo.adamw(lr=0.1), lambda name, leaf: False))[0], tree_run(fo.chain())[0])


@pytest.mark.parametrize("k", [1, 2, 4])
def test_accumulating_equal_gradients_is_one_step(k):
    steps = [row for row in ROWS[:6] for _ in range(k)]
    found = params_of(fo.accumulate(fo.adamw(lr=0.1), every=k), steps)[k - 1 :: k]
    # The running mean of equal numbers rounds when k is no power of 2; these are.
    assert_equal(found, params_of(fo.adamw(lr=0.1), ROWS[:6]))


def test_a_partition_with_one_label_is_that_transform():
    tx = fo.chain(fo.clip_by_global_norm(), fo.adamw(lr=0.1))
    assert_equal(tree_run(fo.partition({"all": tx}, lambda name, leaf: "all"))[0], tree_run(tx)[0])


def test_a_lookahead_all_the_way_is_its_base():
    found = params_of(fo.lookahead(fo.adam(lr=0.1), sync_period=2, slow_step_size=1.0), ROWS)
    # slow + (fast − slow) rounds once more than fast.
    assert_equal(found, params_of(fo.adam(lr=0.1), ROWS), tolerance=1e-14)


def test_scheduling_a_constant_is_setting_it():
    constant = fo.scheduled(fo.adamw(), lr=fo.constant(0.1), betas=lambda step: (0.8, 0.9))
    assert_equal(tree_run(constant)[0], tree_run(fo.adamw(), hparams={"lr": 0.1, "betas": (0.8, 0.9)})[0])
    assert_equal(tree_run(constant)[0], tree_run(fo.set_defaults(fo.adamw(), lr=0.1, betas=(0.8, 0.9)))[0])


def test_a_condition_that_always_holds_is_the_transform():
    assert_equal(tree_run(fo.conditionally(fo.adamw(), lambda step: True))[0], tree_run(fo.adamw())[0])
    assert_equal(tree_run(fo.conditionally(fo.freeze(), lambda step: False, otherwise=fo.adamw()))[0], tree_run(fo.adamw())[0])


@pytest.mark.parametrize("wrap", [fo.apply_if_finite, fo.skip_large_updates], ids=lambda f: f.__name__)
def test_where_nothing_is_skipped_skipping_is_the_transform(wrap):
    assert_equal(tree_run(wrap(fo.adamw()))[0], tree_run(fo.adamw())[0])


def test_sharpness_with_radius_0_is_the_base():
    def loss(p):
        return torch.stack([(x**2).sum() for x in trees.leaves(p)]).sum()

    params = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}
    grads = torch.func.grad(loss)(params)
    expected, _ = fo.sgd(lr=0.1).update(grads, fo.sgd().init_state(params), params, {"lr": 0.1})
    for wrap in (fo.sam, fo.asam):
        tx = wrap(fo.sgd(lr=0.1), rho=0.0)
        assert_equal(tx.update(grads, tx.init_state(params), params, value_fn=loss)[0], expected)


def test_a_monitor_changes_nothing():
    assert_equal(tree_run(fo.chain(fo.monitor("grad"), fo.adamw(), fo.monitor()))[0], tree_run(fo.adamw())[0])
    rows = updates_of(fo.monitor(), ROWS)
    assert_equal(rows, torch.tensor(ROWS, dtype=torch.float64))
