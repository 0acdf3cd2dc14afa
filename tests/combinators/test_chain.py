"""`chain`: composition and its laws, the names of the links, and the state that a person can read."""

import math

import pytest
import torch
from trajectories import START, awkward_gradients, params_of, updates_of

import functional_optim as fo


def test_a_chain_applies_its_links_in_order():
    # Clip, then scale is not scale, then clip: 3 → 1 → 10, or 3 → 30 → 1.
    g = torch.tensor([3.0])
    assert fo.chain(fo.clip_by_value(1.0), fo.scale(10.0)).update(g, {"clip_by_value": {}, "scale": {}})[0].item() == 10
    assert fo.chain(fo.scale(10.0), fo.clip_by_value(1.0)).update(g, {"clip_by_value": {}, "scale": {}})[0].item() == 1


def test_a_chain_is_its_links_by_hand():
    links = [fo.clip_by_global_norm(0.5), fo.scale_by_adam(), fo.add_decayed_weights(0.1), fo.scale_by_learning_rate(0.1)]
    tx = fo.chain(*links)
    p = by_hand = torch.tensor(START, dtype=torch.float64)
    state, states = tx.init_state(p), [link.init_state(p) for link in links]
    for row in awkward_gradients():
        u, state = tx.update(torch.tensor(row, dtype=torch.float64), state, p)
        p = fo.apply_updates(p, u)
        v = torch.tensor(row, dtype=torch.float64)
        for i, link in enumerate(links):
            v, states[i] = link.update(v, states[i], by_hand)
        by_hand = fo.apply_updates(by_hand, v)
        assert torch.equal(p, by_hand)
    assert torch.equal(state["scale_by_adam"]["exp_avg"], states[1]["exp_avg"])


def test_the_empty_chain_is_the_identity():
    rows = awkward_gradients()
    assert torch.equal(updates_of(fo.chain(), rows), torch.tensor(rows, dtype=torch.float64))
    assert fo.chain().init_state(torch.ones(2)) == {} and fo.chain().hparams == {}
    tx = fo.adamw(0.1)
    for padded in (fo.chain(fo.chain(), tx), fo.chain(tx, fo.chain()), fo.chain(tx)):
        assert torch.equal(params_of(padded, rows), params_of(tx, rows))


def test_nesting_changes_nothing():
    a, b, c = fo.clip_by_global_norm(0.5), fo.adamw(0.1), fo.scale(0.5)
    rows = awkward_gradients()
    flat = params_of(fo.chain(a, b, c), rows)
    assert torch.equal(params_of(fo.chain(fo.chain(a, b), c), rows), flat)
    assert torch.equal(params_of(fo.chain(a, fo.chain(b, c)), rows), flat)
    assert torch.equal(params_of(fo.chain(fo.chain(fo.chain(a)), fo.chain(b, fo.chain(c))), rows), flat)
    assert fo.chain(fo.chain(a, b), c).hparams == fo.chain(a, fo.chain(b, c)).hparams == fo.chain(a, b, c).hparams


def test_the_state_is_keyed_by_the_links_names():
    tx = fo.chain(fo.scale_by_adam(), fo.trace(), fo.scale_by_adam(), fo.scale_by_adam(), fo.scale_by_learning_rate())
    state = tx.init_state(torch.ones(2))
    assert list(state) == ["scale_by_adam", "trace", "scale_by_adam_1", "scale_by_adam_2", "scale_by_learning_rate"]
    assert set(state["scale_by_adam_1"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert state["scale_by_learning_rate"] == {}


def test_a_free_name_is_found_when_a_link_already_has_the_numbered_one():
    tx = fo.chain(fo.chain(name="x_1"), fo.chain(name="x"), fo.chain(name="x"), fo.chain(name="x"))
    assert len(tx.init_state(torch.ones(1))) == 4


def test_two_links_of_a_kind_keep_separate_states():
    # The impulse response of two filters with the same μ: (t + 1) μᵗ.
    tx = fo.chain(fo.trace(0.5), fo.trace(0.5))
    found = updates_of(tx, [[1.0]] + [[0.0]] * 9)
    assert found.flatten().tolist() == pytest.approx([(t + 1) * 0.5**t for t in range(10)], rel=1e-15)


def test_a_name_that_links_share_is_one_knob():
    tx = fo.chain(fo.scale(3.0), fo.scale(3.0))
    assert tx.hparams == {"factor": 3.0}
    u, _ = tx.update(torch.ones(1), tx.init_state(torch.ones(1)), None, {"factor": 5.0})
    assert u.item() == 25


def test_a_chain_sees_the_gradient_once_in_low_precision():
    # Rounded to bfloat16 between the links, 1e-3 more would be lost: the chain computes in float32 from end to end.
    g = torch.tensor([1.0], dtype=torch.bfloat16)

    @fo.elementwise()
    def plus_little(hp):
        return lambda u, p: u + 1e-3

    tx = fo.chain(plus_little(), fo.chain(plus_little(), fo.chain(plus_little())), plus_little())
    u, _ = tx.update(g, tx.init_state(g))
    assert u.dtype == torch.bfloat16
    # Steps of bfloat16 above 1 are 2**-7 = 0.0078; 0.004 rounds up to it, four times 0.001 alone to nothing.
    assert u.item() == 1 + 2**-7


def test_extra_arguments_reach_the_links_that_want_them():
    seen = []

    def update(updates, state, params, hparams, *, value=None, **extra):
        seen.append(value)
        return updates, state

    watcher = fo.Transform(lambda params, hparams: {}, update, name="watcher")
    tx = fo.chain(fo.scale(), fo.chain(watcher, fo.rename_hparams(fo.chain(watcher))), fo.scale())
    tx.update(torch.ones(1), tx.init_state(torch.ones(1)), value=7.0)
    assert seen == [7.0, 7.0]


def test_a_hand_written_transform_is_a_link():
    def init(params, hparams):
        return {"count": torch.zeros((), dtype=torch.int64)}

    def update(updates, state, params, hparams):
        return updates * hparams["gain"], {"count": state["count"] + 1}

    tx = fo.chain(fo.scale(2.0), fo.Transform(init, update, {"gain": fo.Hparam(3.0, "[0, inf)")}, "gain"), fo.sgd(1.0))
    state = tx.init_state(torch.ones(1))
    u, state = tx.update(torch.ones(1), state)
    assert u.item() == -6 and state["gain"]["count"].item() == 1
    with pytest.raises(ValueError, match=r"gain = -1 is outside \[0, inf\)"):
        tx.update(torch.ones(1), state, None, {"gain": -1})


def test_the_order_of_links_decides_what_decay_means():
    p = torch.tensor([1.0], dtype=torch.float64)
    g = torch.tensor([1e-3], dtype=torch.float64)
    decayed_first = fo.chain(fo.add_decayed_weights(1.0), fo.clip_by_value(0.5))
    u, _ = decayed_first.update(g, decayed_first.init_state(p), p)
    assert u.item() == 0.5
    decayed_last = fo.chain(fo.clip_by_value(0.5), fo.add_decayed_weights(1.0))
    u, _ = decayed_last.update(g, decayed_last.init_state(p), p)
    assert math.isclose(u.item(), 1.001, rel_tol=1e-15)
