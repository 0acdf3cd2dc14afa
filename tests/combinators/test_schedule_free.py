"""`schedule_free`: the paper's loop, optax, plain averaging, and what happens to the averages elsewhere."""

from typing import Any

import pytest
import torch
from trajectories import FLOAT64, START, assert_same_trajectory, awkward_gradients, columns, transposed

import functional_optim as fo

ROWS = [[min(max(g, -3.0), 3.0) for g in row] for row in awkward_gradients()]


def walk(tx, rows, hparams=lambda t: None, dtype=torch.float64):
    """The parameters and the averages after each step."""
    y = torch.tensor(START, dtype=dtype)
    state, ys, xs = tx.init_state(y, hparams(0)), [], []
    for t, row in enumerate(rows):
        updates, state = tx.update(torch.tensor(row, dtype=dtype), state, y, hparams(t))
        y = fo.apply_updates(y, updates)
        ys.append(y)
        xs.append(fo.eval_params(state, y))
    return torch.stack(ys), torch.stack(xs)


def paper_schedule_free_sgd(start, gs, lrs, betas, power, decay=0.0):
    """Defazio et al., equations 3 to 5 with x stored, and section 4's weights; decay at y."""
    x = z = start
    y, total, largest, path = start, 0.0, 0.0, []
    for g, lr, beta in zip(gs, lrs, betas, strict=True):
        z = z - lr * (g + decay * y)
        largest = max(largest, lr)
        total += largest**power
        c = largest**power / total if total else 0.0
        x = (1 - c) * x + c * z
        y = (1 - beta) * z + beta * x
        path.append((y, x))
    return path


LRS = [0.1 * min(1, t / 10) if t < 20 else 0.02 for t in range(30)]  # from 0, up, and down again


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_schedule_free_sgd_is_the_papers_loop(power):
    found = walk(fo.schedule_free_sgd(0.1, 0.8, 0.1, power), ROWS, lambda t: {"lr": LRS[t]})
    paths = [paper_schedule_free_sgd(p, gs, LRS, [0.8] * 30, power, 0.1) for p, gs in zip(START, columns(ROWS), strict=True)]
    for i in range(2):
        expected = transposed([each[i] for each in path] for path in paths)
        # x is computed from y and z, which divides their rounding by β.
        assert_same_trajectory(found[i], expected, FLOAT64)


def test_beta_may_change_on_the_way():
    # The y of the last step was made with the last β, whatever the present one: it is in the state.
    betas = [0.9 - 0.02 * t for t in range(30)]
    found, averages = walk(fo.schedule_free_sgd(0.1), ROWS, lambda t: {"momentum": betas[t], "lr": 0.1})
    paths = [paper_schedule_free_sgd(p, gs, [0.1] * 30, betas, 2.0) for p, gs in zip(START, columns(ROWS), strict=True)]
    assert_same_trajectory(found, transposed([y for y, _ in path] for path in paths), FLOAT64)
    assert_same_trajectory(averages, transposed([x for _, x in path] for path in paths), FLOAT64)


def optax_walk(make):
    import jax
    import optax

    with jax.enable_x64(True):
        tx = make(optax)
        y: Any = jax.numpy.array(START)
        state, ys, xs = tx.init(y), [], []
        for row in ROWS:
            updates, state = tx.update(jax.numpy.array(row), state, y)
            y = optax.apply_updates(y, updates)
            x: Any = optax.contrib.schedule_free_eval_params(state, y)
            ys.append(y.tolist())
            xs.append(x.tolist())
    return ys, xs


def test_schedule_free_is_optax():
    for ours, theirs in [
        (fo.schedule_free_sgd(0.3, 0.8, 0.1), lambda optax: optax.contrib.schedule_free_sgd(0.3, b1=0.8, weight_decay=0.1)),
        (
            fo.schedule_free_adamw(0.05, beta2=0.9, weight_decay=0.1),
            lambda optax: optax.contrib.schedule_free_adamw(0.05, b2=0.9, weight_decay=0.1),
        ),
        (
            fo.schedule_free(fo.chain(fo.clip_by_value(0.5), fo.adam(0.05, (0.0, 0.99))), 0.95, 1.0),
            lambda optax: optax.contrib.schedule_free(
                optax.chain(optax.clip(0.5), optax.adam(0.05, 0.0, 0.99)), 0.05, 0.95, weight_lr_power=1.0
            ),
        ),
    ]:
        for found, expected in zip(walk(ours, ROWS), optax_walk(theirs), strict=True):
            assert_same_trajectory(found, expected, FLOAT64)


def test_the_averaging_is_a_link_for_any_chain():
    # Behind a clip of the whole step, which schedule_free(...) around a chain can't have.
    tx = fo.chain(fo.sgd(0.1), fo.clip_by_value(0.05), fo.schedule_free_average(0.1, 0.8))
    ys, xs = walk(tx, ROWS)
    clipped = [[min(max(g, -0.5), 0.5) for g in row] for row in ROWS]
    paths = [paper_schedule_free_sgd(p, gs, [0.1] * 30, [0.8] * 30, 2.0) for p, gs in zip(START, columns(clipped), strict=True)]
    assert_same_trajectory(ys, transposed([y for y, _ in path] for path in paths), FLOAT64)
    assert_same_trajectory(xs, transposed([x for _, x in path] for path in paths), FLOAT64)


def test_with_momentum_1_it_is_the_mean_of_the_iterates():
    # β = 1: gradients are taken at the mean x, and z descends from there; Polyak's averaging of z is what is evaluated.
    ys, xs = walk(fo.schedule_free_sgd(0.1, 1.0), ROWS)
    z, total = torch.tensor(START, dtype=torch.float64), 0.0
    for t, row in enumerate(ROWS):
        z = z - 0.1 * torch.tensor(row, dtype=torch.float64)
        total = total + z
        # 30 sums of numbers up to 10.
        torch.testing.assert_close(xs[t], total / (t + 1), rtol=1e-13, atol=1e-13)
    assert torch.equal(xs, ys)


def test_without_a_learning_rate_yet_nothing_moves():
    ys, xs = walk(fo.schedule_free_sgd(), ROWS[:3], lambda t: {"lr": 0.0})
    # y goes through x = (y − (1 − β) z) / β and back.
    torch.testing.assert_close(ys, torch.tensor([START] * 3, dtype=torch.float64), rtol=1e-15, atol=0)
    torch.testing.assert_close(xs, ys, rtol=1e-15, atol=0)


def test_eval_params_finds_the_state_inside_other_transforms():
    tx = fo.chain(fo.clip_by_global_norm(), fo.rename_hparams(fo.schedule_free_sgd(0.5), lr="step_size"))
    params = {"w": torch.tensor([3.0, 4.0]), "frozen": None}
    state = tx.init_state(params)
    updates, state = tx.update({"w": torch.tensor([3.0, 4.0]), "frozen": None}, state, params)
    params = fo.apply_updates(params, updates)
    averages = fo.eval_params(state, params)
    # One step: x = z.
    torch.testing.assert_close(averages["w"], torch.tensor([2.7, 3.6]))
    assert averages["frozen"] is None


def test_eval_params_of_parameters_with_different_optimizers():
    # List entries are called by their number; two branches average, one does not.
    params = [torch.tensor([3.0]), {"bias": torch.tensor([3.0])}, torch.tensor([3.0])]
    branches = {"fast": fo.schedule_free_sgd(0.5), "slow": fo.schedule_free_sgd(0.1), "plain": fo.sgd(0.1)}
    tx = fo.partition(branches, fo.by_name({r"0": "fast", r"bias": "slow", r".*": "plain"}))
    state = tx.init_state(params)
    for _ in range(2):
        updates, state = tx.update([torch.tensor([1.0]), {"bias": torch.tensor([1.0])}, torch.tensor([1.0])], state, params)
        params = fo.apply_updates(params, updates)
    fast, slow, plain = fo.eval_params(state, params)
    # z: 2.5, 2 and 2.9, 2.8; their means. float32.
    assert [fast.item(), slow["bias"].item(), plain.item()] == pytest.approx([2.25, 2.85, 2.8], rel=1e-6)


def test_eval_params_of_a_scheduled_one():
    tx = fo.scheduled(fo.schedule_free_sgd(), lr=fo.constant(0.5))
    p = torch.tensor([3.0])
    updates, state = tx.update(torch.tensor([1.0]), tx.init_state(p), p)
    assert fo.eval_params(state, fo.apply_updates(p, updates)).tolist() == pytest.approx([2.5])


def test_eval_params_of_another_transform_or_other_parameters_is_an_error():
    p = torch.zeros(2)
    with pytest.raises(ValueError, match="an average of 'w', which is none of the parameters"):
        fo.eval_params(fo.schedule_free_sgd().init_state({"w": p}), {"v": p})
    with pytest.raises(ValueError, match="looks for the state of schedule_free"):
        fo.eval_params(fo.adamw().init_state(p), p)


def test_what_cannot_be_wrapped():
    with pytest.raises(ValueError, match="scale_by_adam has no hyper-parameter 'lr'"):
        fo.schedule_free(fo.scale_by_adam())
    with pytest.raises(ValueError, match="takes the place of momentum, but sgd has one"):
        fo.schedule_free(fo.sgd(momentum=0.9))
    constructor: Any = fo.sgd
    with pytest.raises(TypeError, match="not a Transform"):
        fo.schedule_free(constructor)
    with pytest.raises(ValueError, match=r"momentum = 0.0 is outside \(0, 1\]"):
        fo.schedule_free(fo.sgd(), 0.0)


def test_behind_the_adapter_each_group_has_its_own_weights():
    params = [torch.nn.Parameter(torch.tensor(START, dtype=torch.float64)) for _ in range(2)]
    groups = [{"params": params[0], "lr": 0.3}, {"params": params[1], "momentum": 0.5}]
    optimizer = fo.adapters.OptimizerAdapter(groups, fo.schedule_free_sgd(0.1))
    for t, row in enumerate(ROWS):
        optimizer.param_groups[1]["lr"] = LRS[t]
        for p in params:
            p.grad = torch.tensor(row, dtype=torch.float64)
        optimizer.step()
    for p, lrs, beta in [(params[0], [0.3] * 30, 0.9), (params[1], LRS, 0.5)]:
        paths = [paper_schedule_free_sgd(x, gs, lrs, [beta] * 30, 2.0) for x, gs in zip(START, columns(ROWS), strict=True)]
        s = optimizer.state[p]
        averages = p.detach().lerp(s["z"], (1 - 1 / s["beta"]).item())
        expected = torch.tensor([path[-1] for path in paths], dtype=torch.float64)
        # FLOAT64, as above.
        torch.testing.assert_close(torch.stack([p.detach(), averages], 1), expected, rtol=1e-12, atol=1e-12)


def test_z_may_be_wider_than_the_parameters_and_the_weights_always_are():
    tx = fo.schedule_free_sgd(state_dtype=torch.float32)
    slots = tx.init_state(torch.zeros(2, dtype=torch.bfloat16))["schedule_free_average"]
    assert {name: slot.dtype for name, slot in slots.items()} == {
        "z": torch.float32,
        "beta": torch.float64,
        "lr_max": torch.float64,
        "weight_sum": torch.float64,
    }
