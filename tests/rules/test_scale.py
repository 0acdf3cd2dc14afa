"""Identity of the rules of scale.py: one product each, and the one minus sign."""

import pytest
import torch
from trajectories import (
    START,
    assert_same_trajectory,
    awkward_gradients,
    optax_updates_of,
    params_of,
    torch_params_of,
    updates_of,
)

import functional_optim as fo

# Equal formulas in float64: a product a step.
FLOAT64 = 1e-12


@pytest.mark.parametrize("factor", [0.0, 1.0, -2.5, 1e-30])
def test_scale_is_a_product(factor):
    rows = awkward_gradients()
    expected = [[factor * g for g in row] for row in rows]  # the same single product: the same bits
    assert updates_of(fo.scale(), rows, hparams={"factor": factor}).tolist() == expected
    assert updates_of(fo.scale(factor), rows).tolist() == expected
    assert torch.equal(updates_of(fo.scale(factor), rows), optax_updates_of(lambda optax: optax.scale(factor), rows))


@pytest.mark.parametrize("lr", [0.0, 1e-3, 2.0])
def test_scale_by_learning_rate_turns_the_sign(lr):
    rows = awkward_gradients()
    expected = [[-lr * g for g in row] for row in rows]
    assert updates_of(fo.scale_by_learning_rate(), rows, hparams={"lr": lr}).tolist() == expected
    expected = optax_updates_of(lambda optax: optax.scale_by_learning_rate(lr), rows)
    assert torch.equal(updates_of(fo.scale_by_learning_rate(lr), rows), expected)


def test_negate_is_optax_and_torchs_maximize():
    rows = awkward_gradients()
    assert torch.equal(updates_of(fo.negate(), rows), optax_updates_of(lambda optax: optax.scale(-1.0), rows))
    expected = torch_params_of(torch.optim.AdamW, rows, lr=0.1, maximize=True)
    assert_same_trajectory(params_of(fo.chain(fo.negate(), fo.adamw(0.1)), rows), expected, FLOAT64)


def test_the_only_minus_sign_is_the_learning_rates():
    g = torch.full((1,), 2.0, dtype=torch.float64)
    for tx in (
        fo.scale(),
        fo.trace(),
        fo.scale_by_adam(),
        fo.scale_by_adam(amsgrad=True),
        fo.clip_by_global_norm(),
        fo.clip_by_value(),
    ):
        assert tx.update(g, tx.init_state(g), g)[0].item() > 0, tx
    for tx in (fo.scale_by_learning_rate(), fo.sgd(), fo.adam(), fo.adamw()):
        assert tx.update(g, tx.init_state(torch.zeros_like(g)), torch.zeros_like(g))[0].item() < 0, tx


def test_scale_by_1_is_the_identity():
    rows = awkward_gradients()
    raw = torch.tensor(rows, dtype=torch.float64)
    assert torch.equal(updates_of(fo.scale(1.0), rows), raw)
    assert torch.equal(updates_of(fo.scale_by_schedule(lambda step: 1.0), rows), raw)


def test_the_first_update_of_a_schedule_sees_step_0():
    seen = []

    def schedule(step):
        seen.append(int(step))
        return 1.0

    updates_of(fo.scale_by_schedule(schedule), awkward_gradients(4))
    assert seen == [0, 1, 2, 3]


def test_scale_by_schedule_is_the_factor_times_the_gradient_to_float64():
    rows = awkward_gradients()

    def schedule(step):
        return 1 / (1 + 0.3 * step)

    expected = [[g / (1 + 0.3 * t) for g in row] for t, row in enumerate(rows)]
    assert_same_trajectory(updates_of(fo.scale_by_schedule(schedule), rows), expected, FLOAT64)


def test_scale_by_schedule_is_optax():
    rows = awkward_gradients(50)
    expected = optax_updates_of(lambda optax: optax.scale_by_schedule(lambda step: 0.5**step), rows)
    assert_same_trajectory(updates_of(fo.scale_by_schedule(lambda step: 0.5**step), rows), expected, FLOAT64)


def test_scale_by_schedule_is_torchs_lambda_lr():
    rows = awkward_gradients(50)

    def schedule(step):
        return 0.9 ** (1.0 * step)

    p = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    optimizer = torch.optim.AdamW([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    expected = []
    for row in rows:
        p.grad = torch.tensor(row, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
        expected.append(p.detach().clone())
    tx = fo.chain(fo.scale_by_adam(), fo.add_decayed_weights(), fo.scale_by_schedule(schedule), fo.scale_by_learning_rate(0.1))
    assert_same_trajectory(params_of(tx, rows), torch.stack(expected), FLOAT64)


@pytest.mark.parametrize("lr_decay", [0.0, 0.3, 10.0])
def test_scale_by_inverse_time_is_optax_and_adagrads_decay(lr_decay):
    rows = awkward_gradients()
    theirs = optax_updates_of(lambda optax: optax.scale_by_schedule(lambda step: 1 / (1 + lr_decay * step)), rows)
    assert_same_trajectory(updates_of(fo.scale_by_inverse_time(lr_decay), rows), theirs, FLOAT64)
    expected = torch_params_of(torch.optim.Adagrad, rows, lr=0.1, lr_decay=lr_decay)
    tx = fo.chain(fo.scale_by_rss(), fo.scale_by_inverse_time(lr_decay), fo.scale_by_learning_rate(0.1))
    assert_same_trajectory(params_of(tx, rows), expected, FLOAT64)


def test_scale_by_schedule_needs_its_schedule():
    with pytest.raises(TypeError, match="schedule"):
        fo.scale_by_schedule()
