"""`functional_state` and `load_functional_state`: a run goes from the optimizer to the pure functions and back."""

import copy

import pytest
import torch
from subjects import EAGER, advance, assert_same_bits, assert_same_run, each, params_in
from trajectories import drifting_gradient, start_params

import functional_optim as fo
from functional_optim import trees
from functional_optim.adapters import (
    SGD,
    Adam,
    AdamW,
    OptimizerAdapter,
    functional_state,
    load_by_name,
    load_functional_state,
    transform_of,
)
from functional_optim.hparams import PerLeaf


def named(params):
    return [(f"p{i}", p) for i, p in enumerate(params)]


def pure_steps(tx, run, first, steps, without=()):
    """Steps of the functional form, with the gradients that `advance` gives."""
    params, state, hparams = run
    for t in range(first, first + steps):
        grads = {name: None if name in without else drifting_gradient(p, t, int(name[1:])) for name, p in params.items()}
        updates, state = tx.update(grads, state, params, hparams)
        params = fo.apply_updates(params, updates)
    return params, state


# The optimizer and the pure form compute one formula; how each orders its operations, and so rounds, is its own business.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}


def assert_runs_close(ours, theirs, tolerance):
    for p, q in zip(params_in(ours), params_in(theirs), strict=True):
        found, expected = ({"p": x.detach(), **o.state[x]} for o, x in ((ours, p), (theirs, q)))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@each(EAGER)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_steps_of_the_optimizer_and_of_the_pure_form_alternate(subject, dtype):
    straight, mixed = (subject.make(named(subject.params(dtype))) for _ in range(2))
    advance(straight, 6)
    for first in (0, 3):
        advance(mixed, 2, first)
        run = functional_state(mixed)
        params, state = pure_steps(transform_of(mixed), run, first + 2, 1)
        load_functional_state(mixed, params, state, run.hparams)
    assert_runs_close(mixed, straight, ROUNDING[dtype])
    assert mixed.param_groups[0] | {"params": 0} == straight.param_groups[0] | {"params": 0}


@each(EAGER)
def test_the_way_through_the_optimizer_costs_no_bit(subject):
    """Pure steps, with and without a round trip after each; and steps of the optimizer likewise."""
    optimizer = subject.make(named(subject.params()))
    advance(optimizer, 1)
    tx, run = transform_of(optimizer), functional_state(optimizer)
    expected = pure_steps(tx, run, 1, 4)
    for t in range(1, 5):
        params, state = pure_steps(tx, functional_state(optimizer), t, 1)
        load_functional_state(optimizer, params, state, run.hparams)
    params, state, _ = functional_state(optimizer)
    assert_same_bits((params, trees.leaves(state)), (expected[0], trees.leaves(expected[1])))

    straight, interrupted = subject.pair()
    advance(straight, 4)
    for t in range(4):
        advance(interrupted, 1, first=t)
        load_functional_state(interrupted, *functional_state(interrupted))
    assert_same_run(interrupted, straight)


@each(EAGER)
def test_taking_a_run_out_and_putting_it_back_changes_nothing(subject):
    for steps in (0, 2):
        optimizer = subject.make(subject.params())
        advance(optimizer, steps)
        before, versions = copy.deepcopy(optimizer.state_dict()), [p._version for p in params_in(optimizer)]
        slots = [dict(optimizer.state.get(p, {})) for p in params_in(optimizer)]
        params, state, hparams = functional_state(optimizer)
        assert list(params) == ["0", "1", "2", "3"] and [p._version for p in params_in(optimizer)] == versions
        assert_same_bits(optimizer.state_dict(), before)
        load_functional_state(optimizer, params, state, hparams)
        load_functional_state(optimizer, params, state)
        assert_same_bits(optimizer.state_dict(), before)
        for p, then in zip(params_in(optimizer), slots, strict=True):  # In the same tensors.
            assert all(optimizer.state[p][name] is value for name, value in then.items())


def test_what_is_taken_out_is_in_the_form_of_init_state_and_a_copy():
    optimizer = AdamW(named(start_params(torch.float32)))
    advance(optimizer, 2)
    params, state, hparams = functional_state(optimizer)
    tx = transform_of(optimizer)
    fresh = tx.init_state(params, hparams)
    assert trees.flatten(state)[1] == trees.flatten(fresh)[1]
    for ours, theirs in zip(trees.leaves(state), trees.leaves(fresh), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert state["scale_by_adam"]["step"] == 2 and hparams == tx.hparams
    before = copy.deepcopy((params, state))
    advance(optimizer, 2, first=2)
    assert_same_bits((params, state), before)
    assert not any(p.requires_grad for p in params.values())


def test_groups_and_late_parameters_become_values_per_leaf():
    def make():
        a, b, c, d = start_params()
        groups = [{"params": [("p0", a), ("p1", b)], "lr": 0.1}, {"params": [("p2", c), ("p3", d)], "betas": (0.5, 0.6)}]
        return OptimizerAdapter(groups, fo.chain(fo.clip_by_global_norm(0.5), fo.adamw()))

    def steps(optimizer, first, count):
        for t in range(first, first + count):
            for i, p in enumerate(params_in(optimizer)):
                p.grad = drifting_gradient(p, t, i) if i or t > 1 else None  # The first parameter comes late.
            optimizer.step()

    straight, mixed = make(), make()
    steps(straight, 0, 7)
    steps(mixed, 0, 4)
    run = functional_state(mixed)
    assert run.hparams["lr"] == PerLeaf({"p0": 0.1, "p1": 0.1, "p2": 1e-3, "p3": 1e-3})
    assert run.hparams["betas"].tree["p3"] == (0.5, 0.6) and run.hparams["max_norm"] == 0.5
    assert {name: int(t) for name, t in run.state["adamw"]["scale_by_adam"]["step"].tree.items()} == dict(p0=2, p1=4, p2=4, p3=4)
    params, state = pure_steps(transform_of(mixed), run, 4, 1)
    load_functional_state(mixed, params, state, run.hparams)
    steps(mixed, 5, 2)
    assert_runs_close(mixed, straight, 1e-12)
    assert [group["lr"] for group in mixed.param_groups] == [0.1, 1e-3]


ROUTED = fo.partition(
    {"adam": fo.adam(0.05), "plain": fo.sgd(0.1, 0.9), "frozen": fo.freeze()},
    fo.by_name({"p0": "adam", "p[12]": "plain", ".*": "frozen"}),
)
WRAPPED = {
    "partition": ROUTED,
    "clip and partition": fo.chain(fo.clip_by_global_norm(0.5), ROUTED),
    "masked": fo.chain(fo.masked(fo.trace(0.5), fo.by_name({"p[02]": True, ".*": False})), fo.adamw(0.05)),
    "scheduled": fo.scheduled(fo.adamw(), lr=fo.warmup_cosine(0.1, 2, 9)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_that_leave_parameters_out(name):
    straight, mixed = (OptimizerAdapter(named(start_params()), WRAPPED[name]) for _ in range(2))
    advance(straight, 5)
    advance(mixed, 2)
    run = functional_state(mixed)
    params, state = pure_steps(transform_of(mixed), run, 2, 2)
    load_functional_state(mixed, params, state, run.hparams)
    again = OptimizerAdapter(named(p.detach().clone() for p in params_in(mixed)), WRAPPED[name])
    assert not load_by_name(again, mixed.state_dict())
    for optimizer in (mixed, again):
        advance(optimizer, 1, first=4)
        assert_runs_close(optimizer, straight, 1e-12)


def test_learned_hyper_parameters_are_written_into_their_groups():
    a, b, c, d = start_params()
    optimizer = AdamW([{"params": named([a, b])}, {"params": [("p2", c), ("p3", d)], "lr": torch.tensor(0.1)}])
    advance(optimizer, 1)
    params, state, hparams = functional_state(optimizer)
    rates = {name: torch.tensor(0.5 if name in ("p0", "p1") else 0.25, requires_grad=True) for name in params}
    shared = {"p0": rates["p0"], "p1": rates["p0"], "p2": rates["p2"], "p3": rates["p2"]}
    betas = (torch.tensor(0.75, requires_grad=True), 0.5)
    load_functional_state(optimizer, params, state, {**hparams, "lr": PerLeaf(shared), "betas": betas})
    first, second = optimizer.param_groups
    assert first["lr"] == 0.5 and isinstance(first["lr"], float) and first["betas"] == second["betas"] == (0.75, 0.5)
    assert torch.equal(second["lr"], torch.tensor(0.25)) and not second["lr"].requires_grad
    advance(optimizer, 1, first=1)


def test_frozen_parameters_stay_out():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    optimizer = AdamW(model.parameters())
    advance(optimizer, 1)
    model[0].requires_grad_(False)
    before = copy.deepcopy(dict(optimizer.state[model[0].weight]))
    params, state, hparams = functional_state(optimizer, model)
    assert list(params) == ["1.weight", "1.bias"]
    load_functional_state(optimizer, {name: p + 1 for name, p in params.items()}, state, hparams, model)
    assert_same_bits(dict(optimizer.state[model[0].weight]), before)
    assert torch.equal(model[1].weight.detach(), params["1.weight"] + 1)
    model[1].requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the optimizer requires a gradient"):
        functional_state(optimizer, model)


def test_a_few_steps_in_mid_training_are_differentiated():
    """The derivative of the loss after three steps by the rate, against a finite difference; then training goes on."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)
    optimizer = OptimizerAdapter(model.parameters(), fo.chain(fo.clip_by_global_norm(), fo.adamw(0.05)))

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()

    def loss(params):
        return (torch.func.functional_call(model, params, (x,)) - y).square().mean()

    train(4)
    params, state, hparams = functional_state(optimizer, model)
    tx = transform_of(optimizer)

    def unrolled(lr):
        p, s = params, state
        for _ in range(3):
            updates, s = tx.update(torch.func.grad(loss)(p), s, p, {**hparams, "lr": lr})
            p = fo.apply_updates(p, updates)
        return loss(p), (p, s)

    lr = torch.tensor(0.05, dtype=torch.float64)
    slope, (after, after_state) = torch.func.grad(unrolled, has_aux=True)(lr)
    h = 1e-6
    central = (unrolled(lr + h)[0] - unrolled(lr - h)[0]) / (2 * h)
    torch.testing.assert_close(slope, central, rtol=1e-6, atol=1e-9)  # Error of the difference: h² and 1e-16/h.

    load_functional_state(optimizer, after, after_state, {"lr": 0.05}, model)
    witness = copy.deepcopy((model, optimizer))
    load_functional_state(optimizer, params, state, None, model)
    train(3)
    assert_runs_close(optimizer, witness[1], 1e-12)


def test_a_run_of_one_optimizer_goes_into_another():
    source, target = (AdamW(named(start_params(torch.float32))) for _ in range(2))
    advance(source, 3)
    load_functional_state(target, *functional_state(source))
    advance(source, 2, first=3)
    advance(target, 2, first=3)
    assert_same_run(target, source)


@pytest.mark.parametrize(
    "tx",
    [
        fo.noisy_sgd(lr=0.1),
        fo.scheduled(fo.sgd(), lr=fo.linear(0.1, 0.0, 10)),
        fo.partition(
            {"a": fo.scheduled(fo.sgd(), lr=fo.linear(0.1, 0.0, 10)), "b": fo.adam()}, fo.by_name({"p1": "a", ".*": "b"})
        ),
        fo.chain(fo.sgd(lr=0.1), fo.reduce_on_plateau(factor=0.5, patience=1)),
    ],
    ids=lambda tx: tx.name,
)
def test_what_parameters_have_in_common_goes_into_another_optimizer_though_they_have_nothing_of_their_own(tx):
    source, target = (OptimizerAdapter(named(start_params(torch.float64)), tx) for _ in range(2))
    for t in range(6):
        if t == 3:
            load_functional_state(target, *functional_state(source))
        for optimizer in (source, target) if t >= 3 else (source,):
            for i, p in enumerate(params_in(optimizer)):
                p.grad = drifting_gradient(p.detach(), t, i)
            optimizer.step(value=2.0)
    assert_same_run(target, source)


def test_slots_that_start_as_the_parameter_have_no_graph_where_a_run_is_put_into_a_new_optimizer():
    w = torch.nn.Parameter(torch.ones(2))
    tx = fo.lookahead(fo.sgd())
    optimizer = OptimizerAdapter([("w", w)], tx)
    load_functional_state(optimizer, *advanced(tx, {"w": torch.ones(2)}))
    assert "slow_params" in optimizer.state[w]
    assert not any(x.requires_grad for x in optimizer.state[w].values())
    copy.deepcopy(optimizer)


def advanced(tx, params):
    updates, state = tx.update(params, tx.init_state(params), params)
    return fo.apply_updates(params, updates), state


def test_a_fused_optimizer_takes_a_run_back():
    straight, mixed = (OptimizerAdapter(named(start_params(torch.float32)), fo.adamw(0.05), fused=True) for _ in range(2))
    for optimizer in (straight, mixed):
        advance(optimizer, 2)
    run = functional_state(mixed)
    params, state = pure_steps(transform_of(mixed), run, 2, 1)
    load_functional_state(mixed, params, state, run.hparams)
    advance(mixed, 1, first=3)
    advance(straight, 2, first=2)
    for p, q in zip(params_in(mixed), params_in(straight), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)  # Eager and fused round differently, in float32.
        assert mixed.state[p]["step"] == straight.state[q]["step"] == 4


# What is refused; and nothing is changed.


@pytest.mark.parametrize(
    "replaced, message",
    [
        ({"params": lambda params: {**params, "p9": torch.ones(2)}}, "params: 'p9' is no parameter of the optimizer"),
        ({"params": lambda params: {k: v for k, v in params.items() if k != "p1"}}, "params: 'p1' is missing"),
        ({"params": lambda params: {**params, "p1": torch.ones(2)}}, r"params: 'p1' has shape \(2,\), expected \(5,\)"),
        ({"state": lambda state: {}}, "the state is not one of adamw"),
        ({"state": lambda state: fo.sgd(momentum=0.9).init_state({"p0": torch.ones(2)})}, "the state is not one of adamw"),
        (
            {"state": lambda state: {**state, "scale_by_adam": {**state["scale_by_adam"], "exp_avg": {"p0": torch.ones(3, 4)}}}},
            "the slot 'exp_avg': 'p1' is missing",
        ),
        ({"hparams": lambda hparams: {"lr": -1.0}}, r"lr = -1.0 is outside"),
        ({"hparams": lambda hparams: {"rate": 1.0}}, "adamw has no hyper-parameter 'rate'"),
        (
            {"hparams": lambda hparams: {"lr": PerLeaf({"p0": 0.1, "p1": 0.2, "p2": 0.1, "p3": 0.1})}},
            r"lr differs within param_groups\[0\]",
        ),
    ],
    ids=range(9),
)
def test_what_does_not_fit_is_refused_and_nothing_changes(replaced, message):
    optimizer = AdamW(named(start_params()))
    advance(optimizer, 2)
    run = functional_state(optimizer)._asdict()
    run["params"] = {name: p + 1 for name, p in run["params"].items()}
    before = copy.deepcopy((optimizer.state_dict(), [p.detach() for p in params_in(optimizer)]))
    for name, change in replaced.items():
        run[name] = change(run[name])
    with pytest.raises(ValueError, match=message):
        load_functional_state(optimizer, **run)
    assert_same_bits((optimizer.state_dict(), [p.detach() for p in params_in(optimizer)]), before)


def test_groups_with_different_transforms_have_no_common_form():
    a, b, c, d = start_params()
    optimizer = Adam([{"params": [a, b], "amsgrad": True}, {"params": [c, d]}])
    with pytest.raises(ValueError, match=r"param_groups\[0\] and param_groups\[1\] of Adam are stepped by different transforms"):
        functional_state(optimizer)
    assert transform_of(SGD([{"params": [a], "lr": 0.1}, {"params": [b]}])).name == "sgd"


def test_two_parameters_of_one_name_need_a_model():
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer = SGD([{"params": one.named_parameters()}, {"params": two.named_parameters()}])
    with pytest.raises(ValueError, match="two parameters of the optimizer are called 'weight'"):
        functional_state(optimizer)
    both = torch.nn.ModuleDict({"one": one, "two": two})
    assert list(functional_state(optimizer, both).params) == ["one.weight", "one.bias", "two.weight", "two.bias"]
