"""Where parameters are evaluated: each average against its own loop, and which one counts where there are several."""

import pytest
import torch

import functional_optim as fo

GRADS = [0.5, -1.0, 2.0, 0.25, 1.0]


def run(tx, start, grads=GRADS):
    """The parameters and the state after these gradients; a tree of them is made of each number."""
    params, state = start, tx.init_state(start)
    for g in grads:
        updates, state = tx.update(fo.trees.map_leaves(lambda p, g=g: torch.full_like(p, g), params), state, params)
        params = fo.apply_updates(params, updates)
    return params, state


def at(tx, start, grads=GRADS):
    params, state = run(tx, start, grads)
    return fo.evaluated(tx, state, params)


def point(value=1.0):
    return torch.tensor(value, dtype=torch.float64)


def walk(start=1.0, lr=0.1):
    """Where plain descent gets."""
    path = [start]
    for g in GRADS:
        path.append(path[-1] - lr * g)
    return path


def test_of_an_exponential_average_it_is_the_average():
    average = 1.0
    for p in walk()[1:]:
        average = 0.8 * average + 0.2 * p
    assert at(fo.ema_params(fo.sgd(lr=0.1), ema_decay=0.8), point()).item() == pytest.approx(average, rel=1e-14)


def test_of_lookahead_it_is_where_fast_and_slow_weights_met_last():
    slow = fast = 1.0
    for t, g in enumerate(GRADS, 1):
        fast -= 0.1 * g
        if t % 2 == 0:
            slow = fast = slow + 0.5 * (fast - slow)
    assert at(fo.lookahead(fo.sgd(lr=0.1), sync_period=2), point()).item() == pytest.approx(slow, rel=1e-14)
    assert slow != fast


def test_of_a_schedule_free_optimizer_it_is_the_mean_of_the_iterates():
    # With a constant learning rate all iterates z weigh the same, and z is what plain descent from these gradients is.
    iterates = walk()[1:]
    found = at(fo.schedule_free_sgd(lr=0.1), point())
    assert found.item() == pytest.approx(sum(iterates) / len(iterates), rel=1e-12)


@pytest.mark.parametrize("steps", range(6))
def test_of_averaged_descent_it_is_the_mean_from_its_start_on_and_the_parameter_before(steps):
    tx = fo.chain(fo.sgd(lr=0.1), fo.average_iterates(t0=1.0))
    path = walk()
    # At step t the newest point weighs 1 / max(1, t − 1 − t0): the mean of the points from step t0 + 2 on.
    expected = sum(path[3 : steps + 1]) / (steps - 2) if steps >= 3 else path[steps]
    assert at(tx, point(), GRADS[:steps]).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("tx", [fo.adamw(), fo.sam(fo.sgd()), fo.with_master_copy(fo.sgd()), fo.chain()], ids=lambda tx: tx.name)
def test_without_an_average_it_is_the_parameter_itself(tx):
    p = torch.ones(3)
    assert fo.evaluated(tx, tx.init_state(p), p) is p


def test_each_branch_tells_of_its_own_and_what_has_no_gradient_stays():
    start = {"a": [point(1.0)], "b": {"c": point(2.0)}, "d": point(3.0), "e": None}
    branches = {"mean": fo.ema_params(fo.sgd(lr=0.1), ema_decay=0.8), "slow": fo.lookahead(fo.sgd(lr=0.1)), "none": fo.sgd()}
    labels = fo.by_name({r"^a": "mean", r"^b": "slow", r".*": "none"})
    tx = fo.accumulate(fo.chain(fo.clip_by_value(clip_value=9.0), fo.partition(branches, labels)), every=1)
    params, state = run(tx, start)
    found = fo.evaluated(tx, state, params)
    assert found["a"][0] == at(branches["mean"], point(1.0)) and found["b"]["c"] == 2.0
    assert found["d"] is params["d"] and found["e"] is None


def test_of_several_averages_the_outermost_counts():
    inside = fo.schedule_free_sgd(lr=0.1)
    tx = fo.ema_params(inside, ema_decay=0.8)
    params, state = run(tx, point())
    assert fo.evaluated(tx, state, params) is fo.state_get(state, "ema.ema_params")
    tx = fo.chain(fo.ema_params(fo.sgd(lr=0.1)), fo.monitor())
    params, state = run(tx, point())
    assert fo.evaluated(tx, state, params) is fo.state_get(state, "ema.ema_params")


def test_the_average_of_a_master_copy_is_rounded_once():
    start = torch.tensor([1.0, 3.0], dtype=torch.bfloat16)
    tx = fo.with_master_copy(fo.ema_params(fo.sgd(lr=0.1), ema_decay=0.8))
    params, state = run(tx, start)
    found, average = fo.evaluated(tx, state, params), fo.state_get(state, "ema.ema_params")
    assert average.dtype == torch.float32 and found.dtype == torch.bfloat16
    assert torch.equal(found, average.bfloat16()) and not torch.equal(found, params)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_it_has_the_shape_and_dtype_of_the_parameter(dtype):
    start = torch.ones(2, 3).to(dtype)
    for tx in (fo.schedule_free_sgd(), fo.ema_params(fo.sgd()), fo.asgd(t0=0.0)):
        found = at(tx, start)
        assert found.dtype == dtype and found.shape == start.shape


def test_it_can_be_batched():
    tx = fo.schedule_free_sgd(lr=0.1)
    starts = torch.tensor([1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(lambda p: at(tx, p))(starts), torch.stack([at(tx, p) for p in starts]))


def test_a_rule_of_ones_own_says_it():
    @fo.elementwise(slots={"best": lambda p, hp: p.clone()}, evaluated_at=lambda p, best: best + 1)
    def remember(hp):
        return lambda u, p, best: (u, best)

    assert at(fo.chain(fo.sgd(), remember()), point(1.0)) == 2.0


def test_a_state_of_another_transform_is_an_error():
    with pytest.raises(ValueError, match="not one of ema_params, which has an entry 'sgd'"):
        fo.evaluated(fo.ema_params(fo.sgd()), fo.sgd().init_state(point()), point())
