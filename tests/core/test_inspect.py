"""State by name, and the hyper-parameters in force."""

import pytest
import torch

import functional_optim as fo

PARAMS = {"w": torch.ones(2), "b": torch.ones(())}
TWO = fo.chain(fo.scale_by_adam(), fo.scale_by_adam(), fo.scale_by_learning_rate())


def test_a_slot_is_found_at_any_depth():
    tx = fo.apply_if_finite(fo.scheduled(fo.chain(fo.clip_by_global_norm(), fo.adamw()), lr=fo.constant(0.1)))
    state = tx.init_state(PARAMS)
    assert fo.state_get(state, "exp_avg_sq") is state["inner"]["inner"]["adamw"]["scale_by_adam"]["exp_avg_sq"]
    assert fo.state_get(state, "skipped") == 0


def test_of_several_a_longer_path_tells():
    state = TWO.init_state(PARAMS)
    with pytest.raises(KeyError, match=r"scale_by_adam\.exp_avg, scale_by_adam_1\.exp_avg. Give more of the path"):
        fo.state_get(state, "exp_avg")
    assert fo.state_get(state, "scale_by_adam_1.exp_avg") is state["scale_by_adam_1"]["exp_avg"]


def test_a_parameter_called_like_a_slot_is_no_obstacle():
    state = fo.scale_by_adam().init_state({"step": torch.ones(2)})
    assert fo.state_get(state, "step").ndim == 0
    assert fo.state_get(state, "exp_avg.step").shape == (2,)


def test_a_slot_of_one_parameter_is_found_by_its_dotted_name():
    tx = fo.partition({"a": fo.adam()}, lambda name, leaf: "a")
    state = tx.init_state({"layers": [{"w": torch.ones(2)}]})
    assert fo.state_get(state, "exp_avg.layers.0.w") is state["a"]["scale_by_adam"]["exp_avg"]["layers.0.w"]
    with pytest.raises(KeyError, match="no entry 'w'"):
        fo.state_get(state, "w")


def test_a_misspelt_name_gets_advice():
    with pytest.raises(KeyError, match=r"no entry 'exp_agv'.*Did you mean 'exp_avg'"):
        fo.state_get(fo.adam().init_state(PARAMS), "exp_agv")


def test_a_slot_is_set_and_the_old_state_left_alone():
    state = TWO.init_state(PARAMS)
    new = fo.state_set(state, "scale_by_adam_1.step", torch.tensor(7))
    assert new["scale_by_adam_1"]["step"] == 7 and state["scale_by_adam_1"]["step"] == 0
    assert new["scale_by_adam"] is state["scale_by_adam"]


def test_hparams_at_are_those_that_the_next_update_uses():
    schedule = fo.linear(1.0, 0.0, 4)
    tx = fo.scheduled(fo.sgd(), lr=schedule)
    state, p = tx.init_state(torch.zeros(())), torch.zeros(())
    for step in range(4):
        told = fo.hparams_at(tx, state)["lr"]
        update, state = tx.update(torch.tensor(1.0), state, p)
        assert told == schedule(step) == -update


def test_hparams_at_sees_through_every_combinator():
    tx = fo.chain(
        fo.rename_hparams(
            fo.scheduled(fo.clip_by_global_norm(), max_norm=fo.constant(2.0)),
        ),
        fo.partition(
            {"a": fo.scheduled(fo.adamw(), lr=fo.constant(0.5)), "b": fo.rename_hparams(fo.sgd(), lr="rate")},
            fo.by_ndim({1: "a"}, otherwise="b"),
        ),
    )
    found = fo.hparams_at(tx, tx.init_state(PARAMS), {"rate": 0.25, "a.weight_decay": 0.3})
    assert found["max_norm"] == 2.0 and found["a.lr"] == 0.5 and found["a.weight_decay"] == 0.3
    assert found["rate"] == found["b.rate"] == 0.25


def test_a_resumed_schedule_goes_on_exactly():
    tx = fo.scheduled(fo.adamw(), lr=fo.warmup_cosine(0.1, 2, 8), weight_decay=fo.linear(0.1, 0.0, 8))
    p = torch.tensor([1.0, -2.0], dtype=torch.float64)
    states, params, state = [], [p], tx.init_state(p)
    for t in range(8):
        states.append(state)
        update, state = tx.update(torch.sin(params[-1] + t), state, params[-1])
        params.append(params[-1] + update)
    for t in range(8):
        update, _ = tx.update(torch.sin(params[t] + t), states[t], params[t])
        assert torch.equal(params[t] + update, params[t + 1])
    assert [int(fo.state_get(state, "schedule_step")) for state in states] == list(range(8))


def test_a_schedule_behind_the_adapter_goes_on_after_a_checkpoint():
    def made(values):
        w = torch.nn.Parameter(values.clone())
        tx = fo.scheduled(fo.adamw(), lr=fo.warmup_cosine(0.1, 2, 8))
        return w, fo.adapters.OptimizerAdapter([w], tx)

    def run(w, optimizer, steps):
        for t in steps:
            w.grad = torch.sin(w.detach() + t)
            optimizer.step()

    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    w, optimizer = made(start)
    run(w, optimizer, range(8))
    half, first = made(start)
    run(half, first, range(4))
    rest, second = made(half.detach())
    second.load_state_dict(first.state_dict())
    run(rest, second, range(4, 8))
    assert torch.equal(rest, w)
