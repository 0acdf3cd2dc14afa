"""Identity of `add_decayed_weights`: the sentence, optax, and its two places in a chain."""

import pytest
import torch
from trajectories import START, assert_same_trajectory, awkward_gradients, optax_params_of, params_of, torch_params_of

import functional_optim as fo

# Equal formulas in float64, over 30 to 50 steps.
FLOAT64 = 1e-12


@pytest.mark.parametrize("decay", [0.0, 0.01, 3.0])
def test_the_update_grows_by_decay_times_the_parameter(decay):
    tx = fo.add_decayed_weights()
    for row in awkward_gradients():
        u, state = tx.update(
            torch.tensor(row, dtype=torch.float64), {}, torch.tensor(START, dtype=torch.float64), {"weight_decay": decay}
        )
        assert state == {}
        # Two operations in the same order as Python's: the same bits.
        assert u.tolist() == [g + decay * p for g, p in zip(row, START, strict=True)]


def test_decay_is_optax():
    rows = awkward_gradients(50)
    expected = optax_params_of(lambda optax: optax.chain(optax.add_decayed_weights(0.3), optax.scale(-0.1)), rows)
    assert_same_trajectory(params_of(fo.chain(fo.add_decayed_weights(0.3), fo.scale(-0.1)), rows), expected, FLOAT64)


def test_before_the_moments_it_is_adams_l2_and_after_them_adamws_decay():
    rows = awkward_gradients(50)
    before = fo.chain(fo.add_decayed_weights(0.3), fo.scale_by_adam(), fo.scale_by_learning_rate(0.1))
    after = fo.chain(fo.scale_by_adam(), fo.add_decayed_weights(0.3), fo.scale_by_learning_rate(0.1))
    options = {"lr": 0.1, "weight_decay": 0.3}
    assert_same_trajectory(params_of(before, rows), torch_params_of(torch.optim.Adam, rows, **options), FLOAT64)
    assert_same_trajectory(params_of(after, rows), torch_params_of(torch.optim.AdamW, rows, **options), FLOAT64)


def test_without_decay_it_is_the_identity():
    g = torch.tensor(awkward_gradients()[0], dtype=torch.float64)
    u, _ = fo.add_decayed_weights(0.0).update(g, {}, torch.tensor(START, dtype=torch.float64))
    assert torch.equal(u, g)


def test_the_sign_shrinks():
    # Decay alone, through the one minus sign, pulls towards 0 from either side.
    tx = fo.chain(fo.add_decayed_weights(0.5), fo.scale_by_learning_rate(0.1))
    p = torch.tensor([2.0, -2.0], dtype=torch.float64)
    u, _ = tx.update(torch.zeros_like(p), tx.init_state(p), p)
    # 0.05 has no exact binary form: one rounding.
    torch.testing.assert_close(fo.apply_updates(p, u), 0.95 * p, rtol=1e-15, atol=0)


def test_a_parameter_without_gradient_does_not_decay():
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    u, _ = fo.add_decayed_weights(0.5).update({"a": torch.zeros(2), "b": None}, {}, params)
    assert u["b"] is None and torch.equal(u["a"], torch.full((2,), 0.5))
