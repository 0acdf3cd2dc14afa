"""Checkpoints of `torch.distributed.checkpoint`: torch's classes and ours load each other's; asking for a state moves nothing."""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import functional_optim as fo
from functional_optim import adapters
from functional_optim.adapters import OptimizerAdapter

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning"),
    # torch 2.13's own code.
    pytest.mark.filterwarnings("ignore:Please use DTensor instead:FutureWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]

# With options that call for every slot.
CLASSES = {
    "SGD": [{"lr": 0.01, "momentum": 0.9, "dampening": 0.1}, {"lr": 0.01}],
    "Adam": [{"lr": 0.01, "amsgrad": True, "maximize": True}],
    "AdamW": [{"lr": 0.01}],
    "NAdam": [{"lr": 0.01}],
    "RAdam": [{"lr": 0.01}],
    "Adamax": [{"lr": 0.01}],
    "Adagrad": [{"lr": 0.01, "lr_decay": 0.1}],
    "Adadelta": [{"lr": 0.5}],
    "RMSprop": [{"lr": 0.01, "momentum": 0.9, "centered": True, "maximize": True}],
    "Rprop": [{"lr": 0.01}],
    "ASGD": [{"lr": 0.01, "t0": 2.0, "lambd": 0.1}],
    "Adafactor": [{"lr": 0.5, "weight_decay": 0.1}],
    "Muon": [{"lr": 0.01}],
}
EACH = [(name, options) for name, choices in CLASSES.items() for options in choices]
# torch keeps NAdam's product and ASGD's numbers in float32, 6e-8 off at each of eight steps; Muon iterates in bfloat16,
# where a rounding error that falls the other way is 0.4 % of an update of 0.01 at each of four steps.
TOLERANCE = {"Muon": 2e-4}


def model_of(name):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4, bias=name != "Muon"), torch.nn.Linear(4, 2, bias=name != "Muon"))


def train(model, optimizer, steps, first=0):
    for t in range(first, first + steps):
        optimizer.zero_grad()
        (model(torch.linspace(-1, 1, 6).view(2, 3) * (t + 1)) ** 2).mean().backward()
        optimizer.step()


def saved(folder, model, optimizer, how):
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer, options=how)}
    dcp.save(state, checkpoint_id=folder, no_dist=True)


def load(folder, model, optimizer, how):
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer, options=how)}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=how)


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("to_ours", [True, False], ids=["torch to ours", "ours to torch"])
@pytest.mark.parametrize("name, options", EACH, ids=str)
def test_either_goes_on_from_the_others_checkpoint(name, options, to_ours, flat, tmp_path):
    classes = [getattr(torch.optim, name), getattr(adapters, name)]
    source, target = classes if to_ours else classes[::-1]
    how = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, other, witness = model_of(name), model_of(name), model_of(name)
    optimizer, same = source(model.parameters(), **options), classes[0](witness.parameters(), **options)
    train(model, optimizer, 4)
    train(witness, same, 8)
    saved(tmp_path, model, optimizer, how)
    loaded = target(other.parameters(), **options)
    load(tmp_path, other, loaded, how)
    train(other, loaded, 4, first=4)
    for p, q in zip(other.parameters(), witness.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=TOLERANCE.get(name, 1e-6))


# The step by which get_optimizer_state_dict makes a state: no parameter moves, and no slot that is like one.

WITHOUT_A_RATE = fo.chain(fo.scale_by_adam(), fo.add_decayed_weights(0.1), fo.scale(-0.1))
CHAINS = {
    "a schedule": fo.scheduled(fo.adamw(weight_decay=0.1), lr=fo.linear(0.1, 0.2, 10)),
    "no learning rate": WITHOUT_A_RATE,
    "two": fo.partition({"w": fo.adamw(lr=0.1, weight_decay=0.5), "b": fo.sgd(lr=0.2)}, fo.by_name({"weight": "w", ".*": "b"})),
    "an average": fo.ema_params(fo.adamw(lr=0.1, weight_decay=0.5)),
    "lookahead": fo.lookahead(fo.adamw(lr=0.1, weight_decay=0.5), sync_period=1),
    "master copy": fo.with_master_copy(fo.adamw(lr=0.1, weight_decay=0.5)),
    "schedule-free": fo.schedule_free(fo.adamw(lr=0.1, weight_decay=0.5)),
    "momo": fo.momo(weight_decay=0.5),
    "sam": fo.sam(fo.sgd(lr=0.1)),
    "plateau": fo.chain(fo.adamw(lr=0.1, weight_decay=0.5), fo.reduce_on_plateau()),
    "polyak": fo.chain(fo.add_decayed_weights(0.5), fo.polyak_sgd()),
}


@pytest.mark.parametrize("name", CHAINS)
def test_to_ask_for_a_state_changes_nothing(name):
    model, twin = model_of(""), model_of("")
    optimizer, other = (OptimizerAdapter(m.named_parameters(), CHAINS[name]) for m in (model, twin))
    before = copy.deepcopy(optimizer.param_groups[0])
    state = get_optimizer_state_dict(model, optimizer)["state"]
    assert set(state) == {name for name, _ in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())
    assert {k: v for k, v in optimizer.param_groups[0].items() if k != "params"} == {
        k: v for k, v in before.items() if k != "params"
    }
    # It is as if it had not been asked.
    for m, each in ((model, optimizer), (twin, other)):
        for p in m.parameters():
            p.grad = torch.full_like(p, 0.3)
        needs_closure = name in ("sam",)
        each.step(lambda m=m: sum((p * p).sum() for p in m.parameters())) if needs_closure else each.step(value=1.0)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(x, other.state[q][key]) for key, x in optimizer.state[p].items())


@pytest.mark.parametrize("name, options", EACH, ids=str)
def test_to_ask_for_a_state_of_a_class_changes_nothing(name, options):
    model, twin = model_of(name), model_of(name)
    optimizer, other = (getattr(adapters, name)(m.parameters(), **options) for m in (model, twin))
    get_optimizer_state_dict(model, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    train(model, optimizer, 3)
    train(twin, other, 3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name, options", EACH, ids=str)
def test_a_first_step_at_a_rate_of_0_with_gradients_of_0_is_a_step(name, options):
    """As a warm-up from 0 has it, on a model that starts at a saddle: nothing but who calls tells it from the step above."""
    model, twin = model_of(name), model_of(name)
    ours, theirs = (getattr(kind, name)(m.parameters(), **options) for kind, m in ((adapters, model), (torch.optim, twin)))
    for m, optimizer in ((model, ours), (twin, theirs)):
        (group,) = optimizer.param_groups
        group["lr"] = 0.0
        for p in m.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        group["lr"] = options["lr"]
        assert name == "SGD" or all(float(optimizer.state[p].get("step", 1)) == 1 for p in m.parameters())
        train(m, optimizer, 3)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=TOLERANCE.get(name, 1e-6))


@pytest.mark.filterwarnings("ignore:.*something drives lr")
def test_a_schedule_counts_a_step_without_slope():
    tx = fo.scheduled(fo.sgd(), lr=lambda step: 1.0 * step)
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = OptimizerAdapter([p], tx)
    optimizer.param_groups[0]["lr"] = 0.0
    for gradient, lr in ((0.0, 0.0), (1.0, 1.0)):
        optimizer.param_groups[0]["lr"], p.grad = lr, torch.full((2,), gradient)
        optimizer.step()
    assert p.tolist() == [0.0, 0.0]  # 1 − 1 · 1: the second step, at the second value of the schedule


def test_init_state_makes_what_the_first_step_would_find():
    model = model_of("")
    frozen = model[0].bias.requires_grad_(False)
    tx = fo.chain(fo.clip_by_global_norm(), fo.adamw(amsgrad=True), fo.ema_params(fo.scale(1.0)))
    optimizer = OptimizerAdapter(model.named_parameters(), tx)
    optimizer.init_state()
    assert set(optimizer.state) == {p for p in model.parameters() if p.requires_grad} and frozen not in optimizer.state
    expected = tx.init_state({name: p.detach() for name, p in model.named_parameters()})
    for name, p in model.named_parameters():
        if p is not frozen:
            slots = optimizer.state[p]
            assert slots["step"] == 0
            assert torch.equal(slots["exp_avg"], expected["adamw"]["scale_by_adam"]["exp_avg"][name])
    kept = {p: dict(slots) for p, slots in optimizer.state.items()}
    optimizer.init_state()  # what is there stays
    assert all(optimizer.state[p][key] is x for p, slots in kept.items() for key, x in slots.items())


def test_a_state_made_ahead_leads_to_the_same_steps():
    tx = fo.adamw()
    runs = []
    for ahead in (False, True):
        for fused in (False, True):
            model = model_of("")
            optimizer = OptimizerAdapter(model.named_parameters(), tx, fused=fused)
            if ahead:
                optimizer.init_state()
            train(model, optimizer, 3)
            runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(runs[0], runs[2]) and torch.equal(runs[1], runs[3])
