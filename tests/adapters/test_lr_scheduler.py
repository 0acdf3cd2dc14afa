"""Schedules behind torch's schedulers' interface, and torch's schedulers in front of chains."""

import copy
import io

import pytest
import torch
from trajectories import FLOAT64, assert_params_close, set_gradients, start_params, walk_together

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter, as_lr_scheduler

LR = torch.optim.lr_scheduler
SCHEDULE = fo.warmup_cosine(0.3, warmup_steps=4, total_steps=20, end=0.01)


def two_groups():
    a, b, c, d = start_params()
    return [{"params": [a, b], "lr": 0.1}, {"params": [c, d], "lr": 0.02, "weight_decay": 0.2}]


def params_in(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def values(optimizer, name="lr"):
    return [group[name] for group in optimizer.param_groups]


def walk(optimizer, schedulers, steps, first=0, record=lambda: None):
    found = []
    for t in range(first, first + steps):
        set_gradients(params_in(optimizer), t)
        found.append(record())
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


OPTIMIZERS = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=7.0, momentum=0.9),
    "Adam": lambda groups: torch.optim.Adam(groups, lr=7.0),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=7.0),
    "our AdamW": lambda groups: fo.adapters.AdamW(groups, lr=7.0),
    "a chain": lambda groups: OptimizerAdapter(groups, fo.chain(fo.clip_by_global_norm(), fo.adamw()), lr=7.0),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


# A schedule drives an optimizer.


@every_optimizer
def test_every_group_gets_the_value_itself_from_step_0(make):
    optimizer = make(two_groups())
    scheduler = as_lr_scheduler(optimizer, SCHEDULE)
    found = walk(optimizer, [scheduler], 25, record=lambda: (values(optimizer), scheduler.get_last_lr()))
    assert found == [([SCHEDULE(step)] * 2,) * 2 for step in range(25)]
    assert isinstance(scheduler, LR.LRScheduler)


@every_optimizer
def test_the_updates_are_those_of_the_learning_rate_set_by_hand(make):
    scheduled, by_hand = make(two_groups()), make(two_groups())
    scheduler = as_lr_scheduler(scheduled, SCHEDULE)
    for step in range(25):
        walk(scheduled, [scheduler], 1, step)
        for group in by_hand.param_groups:
            group["lr"] = SCHEDULE(step)
        walk(by_hand, [], 1, step)
        assert_params_close(params_in(scheduled), params_in(by_hand), 0)


@pytest.mark.parametrize(
    "tx",
    [
        fo.chain(fo.scale_by_adam(), fo.scale_by_schedule(SCHEDULE), fo.scale(-1.0)),
        fo.scheduled(fo.adam(), lr=SCHEDULE),
    ],
    ids=["scale_by_schedule", "scheduled"],
)
def test_it_is_the_schedule_within_the_chain(tx):
    outside = OptimizerAdapter(start_params(), fo.adam())
    scheduler = as_lr_scheduler(outside, SCHEDULE)
    walk_together(outside, OptimizerAdapter(start_params(), tx), 25, FLOAT64, [scheduler])


def test_any_hyper_parameter_and_several_at_once():
    optimizer = OptimizerAdapter(two_groups(), fo.adamw())
    decay, beta = fo.linear(0.1, 0.0, 10), fo.linear(0.95, 0.85, 5)
    schedulers = [
        as_lr_scheduler(optimizer, decay, name="weight_decay"),
        as_lr_scheduler(optimizer, SCHEDULE),
        as_lr_scheduler(optimizer, lambda step: (beta(step), 0.99), name="betas"),
    ]
    found = walk(optimizer, schedulers, 12, record=lambda: [values(optimizer, name) for name in ("weight_decay", "lr", "betas")])
    assert found == [[[decay(t)] * 2, [SCHEDULE(t)] * 2, [(beta(t), 0.99)] * 2] for t in range(12)]
    assert schedulers[0].get_last_lr() == [0.0, 0.0] and schedulers[2].get_last_lr() == [(0.85, 0.99)] * 2


def test_a_schedule_for_each_group():
    optimizer = torch.optim.SGD(two_groups())
    scheduler = as_lr_scheduler(optimizer, [SCHEDULE, fo.constant(0.5)])
    assert walk(optimizer, [scheduler], 9, record=lambda: values(optimizer)) == [[SCHEDULE(t), 0.5] for t in range(9)]


def test_a_factor_beside_each_groups_own_rate_is_lambda_lr():
    optimizer = torch.optim.SGD(two_groups())
    scheduler = LR.LambdaLR(optimizer, fo.warmup_cosine(1.0, 2, 9))
    factor = fo.warmup_cosine(1.0, 2, 9)
    assert walk(optimizer, [scheduler], 12, record=lambda: values(optimizer)) == [
        [0.1 * factor(t), 0.02 * factor(t)] for t in range(12)
    ]
    state = through_a_file(scheduler.state_dict())
    other = LR.LambdaLR(torch.optim.SGD(two_groups()), fo.warmup_cosine(1.0, 2, 9))
    other.load_state_dict(state)
    assert other.last_epoch == 12


def test_a_tensor_in_the_group_is_filled_and_tensors_of_a_schedule_become_numbers():
    lr = torch.tensor(7.0)
    optimizer = torch.optim.Adam(start_params(), lr=lr)
    other = torch.optim.Adam(start_params(), lr=7.0)
    peak = torch.tensor(0.5, requires_grad=True)
    schedulers = [as_lr_scheduler(o, fo.linear(peak, 0.25, 2)) for o in (optimizer, other)]
    for expected in (0.5, 0.375, 0.25):
        assert optimizer.param_groups[0]["lr"] is lr and lr.item() == expected
        assert type(other.param_groups[0]["lr"]) is float and other.param_groups[0]["lr"] == expected
        (last,) = schedulers[0].get_last_lr()
        assert torch.equal(last, lr) and last is not lr
        walk(optimizer, schedulers[:1], 1)
        walk(other, schedulers[1:], 1)


def test_a_group_added_later_is_scheduled_too():
    optimizer = torch.optim.SGD(start_params(), lr=7.0)
    scheduler = as_lr_scheduler(optimizer, SCHEDULE)
    walk(optimizer, [scheduler], 3)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    walk(optimizer, [scheduler], 1, 3)
    assert values(optimizer) == [SCHEDULE(4)] * 2


# Among torch's own.


def sequence(optimizer, order):
    ours = as_lr_scheduler(optimizer, fo.linear(0.3, 0.1, 5))
    theirs = LR.StepLR(optimizer, 2, 0.5)
    return LR.SequentialLR(optimizer, [ours, theirs] if order == "ours first" else [theirs, ours], [4])


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_in_a_sequence_it_sees_its_own_steps(order):
    optimizer = torch.optim.SGD(start_params(), lr=0.8)
    scheduler = sequence(optimizer, order)
    found = walk(optimizer, [scheduler], 9, record=lambda: values(optimizer)[0])
    line = [fo.linear(0.3, 0.1, 5)(t) for t in range(5)]
    if order == "ours first":
        # In a sequence, StepLR starts from the rate that the group had before any scheduler.
        assert found == [*line[:4], 0.8, 0.8, 0.4, 0.4, 0.2]
    else:
        assert found == [0.8, 0.8, 0.4, 0.4, *line]


def test_in_a_chain_of_schedulers_it_overrides_those_before_it():
    optimizer = torch.optim.SGD(start_params(), lr=0.8)
    scheduler = LR.ChainedScheduler([LR.ExponentialLR(optimizer, 0.5), as_lr_scheduler(optimizer, SCHEDULE)])
    assert walk(optimizer, [scheduler], 9, record=lambda: values(optimizer)[0]) == [SCHEDULE(t) for t in range(9)]


# Checkpoints and copies.


def restarted(make, build, optimizer, scheduler):
    """A new optimizer and scheduler, loaded from files, on copies of the parameters."""
    groups = [{**group, "params": [torch.nn.Parameter(p.detach().clone()) for p in group["params"]]} for group in two_groups()]
    new = make(groups)
    for p, old in zip(params_in(new), params_in(optimizer), strict=True):
        p.data.copy_(old.data)
    new_scheduler = build(new)
    new.load_state_dict(through_a_file(optimizer.state_dict()))
    new_scheduler.load_state_dict(through_a_file(scheduler.state_dict()))
    return new, new_scheduler


@pytest.mark.parametrize(
    "build",
    [
        lambda o: as_lr_scheduler(o, SCHEDULE),
        lambda o: as_lr_scheduler(o, [SCHEDULE, fo.constant(torch.tensor(0.2))]),
        lambda o: as_lr_scheduler(o, fo.linear(0.3, 0.0, 9), name="weight_decay"),
        lambda o: sequence(o, "theirs first"),
    ],
    ids=["one", "each group", "weight_decay", "sequence"],
)
@every_optimizer
@pytest.mark.parametrize("steps", [1, 7])
def test_a_resumed_run_goes_on_exactly(make, build, steps):
    optimizer = make(two_groups())
    scheduler = build(optimizer)
    walk(optimizer, [scheduler], steps)
    other, its = restarted(make, build, optimizer, scheduler)
    assert {"schedule", "name"}.isdisjoint(scheduler.state_dict())
    for t in range(steps, steps + 12):
        assert values(other) == values(optimizer) and its.get_last_lr() == scheduler.get_last_lr()
        for pair in ((optimizer, scheduler), (other, its)):
            walk(pair[0], [pair[1]], 1, t)
        assert_params_close(params_in(other), params_in(optimizer), 0)


def test_resumed_by_the_number_of_the_last_step():
    groups = [{**group, "initial_lr": group["lr"]} for group in two_groups()]
    optimizer = torch.optim.SGD(groups)
    as_lr_scheduler(optimizer, SCHEDULE, last_epoch=6)
    assert values(optimizer) == [SCHEDULE(7)] * 2


def test_a_deep_copy_goes_on_with_a_copy_of_the_optimizer():
    optimizer = torch.optim.Adam(two_groups())
    scheduler = as_lr_scheduler(optimizer, SCHEDULE)
    walk(optimizer, [scheduler], 3)
    other = copy.deepcopy(scheduler)
    other.step()
    assert values(other.optimizer) == [SCHEDULE(4)] * 2 and values(optimizer) == [SCHEDULE(3)] * 2


# torch's schedulers drive a chain.

DRIVERS = {
    "LambdaLR": lambda o: LR.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: LR.MultiplicativeLR(o, lambda step: 0.9 + 0.01 * step),
    "StepLR": lambda o: LR.StepLR(o, 5),
    "MultiStepLR": lambda o: LR.MultiStepLR(o, [3, 9]),
    "ConstantLR": lambda o: LR.ConstantLR(o),
    "LinearLR": lambda o: LR.LinearLR(o),
    "ExponentialLR": lambda o: LR.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: LR.PolynomialLR(o, 12, 2.0),
    "CosineAnnealingLR": lambda o: LR.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: LR.CosineAnnealingWarmRestarts(o, 4, 2),
    "CyclicLR": lambda o: LR.CyclicLR(o, 0.01, 0.1, 4, cycle_momentum=True),
    "OneCycleLR": lambda o: LR.OneCycleLR(o, [0.1, 0.03], 20),
    "SequentialLR": lambda o: LR.SequentialLR(o, [LR.ConstantLR(o, 0.1, 3), LR.ExponentialLR(o, 0.9)], [3]),
    "ChainedScheduler": lambda o: LR.ChainedScheduler([LR.ConstantLR(o, 0.1, 3), LR.ExponentialLR(o, 0.9)]),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, 5),
}


def test_every_scheduler_of_torch_is_among_the_drivers():
    public = {name for name in LR.__all__ if name not in ("LRScheduler", "ReduceLROnPlateau")}
    assert public <= DRIVERS.keys()


@pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS.keys())
def test_a_scheduler_of_torch_drives_a_chain_as_it_drives_torch(driver):
    ours, theirs = OptimizerAdapter(two_groups(), fo.adamw()), torch.optim.AdamW(two_groups())
    walk_together(ours, theirs, 18, FLOAT64, [driver(ours), driver(theirs)])
    assert values(ours) == values(theirs) and values(ours, "betas") == values(theirs, "betas")


def test_reduce_on_plateau_drives_a_chain_too():
    ours, theirs = OptimizerAdapter(two_groups(), fo.adamw()), torch.optim.AdamW(two_groups())
    schedulers = [LR.ReduceLROnPlateau(o, patience=1) for o in (ours, theirs)]
    for t, loss in enumerate([3.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0]):
        for optimizer, scheduler in zip((ours, theirs), schedulers, strict=True):
            walk(optimizer, [], 1, t)
            scheduler.step(loss)
        assert_params_close(params_in(ours), params_in(theirs), FLOAT64)
    assert values(ours) == values(theirs) and values(ours)[0] < 0.1


# Bad input.


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda o: as_lr_scheduler([o], SCHEDULE), TypeError, "optimizer is a list: expected a torch.optim.Optimizer"),
        (lambda o: as_lr_scheduler(o, 0.1), TypeError, "schedule = 0.1 is no function of the step"),
        (lambda o: as_lr_scheduler(o, [SCHEDULE, 0.1]), TypeError, "schedule = 0.1 is no function of the step"),
        (
            lambda o: as_lr_scheduler(o, SCHEDULE, name="wieght_decay"),
            ValueError,
            r"param_groups\[0\] has no hyper-parameter 'wieght_decay'; .* Did you mean 'weight_decay'\?",
        ),
        (
            lambda o: as_lr_scheduler(o, [SCHEDULE] * 3),
            ValueError,
            "got 3 schedules for 2 parameter groups: expected one for each",
        ),
    ],
)
def test_bad_input(call, error, message):
    optimizer = torch.optim.AdamW(two_groups())
    with pytest.raises(error, match=message):
        call(optimizer)
    assert values(optimizer) == [0.1, 0.02] and values(optimizer, "weight_decay") == [0.01, 0.2]
    assert "initial_lr" not in optimizer.param_groups[0]


def test_a_group_added_later_has_no_schedule_of_its_own():
    optimizer = torch.optim.SGD(two_groups())
    scheduler = as_lr_scheduler(optimizer, [SCHEDULE, SCHEDULE])
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    walk(optimizer, [], 1)
    with pytest.raises(ValueError, match="got 2 schedules for 3 parameter groups"):
        scheduler.step()


def test_a_rate_of_another_name_is_driven_by_that():
    optimizer = OptimizerAdapter(start_params(), fo.rename_hparams(fo.adamw(), lr="step_size"))
    scheduler = as_lr_scheduler(optimizer, SCHEDULE, name="step_size")
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["step_size"] == SCHEDULE(1) and optimizer.param_groups[0]["lr"] == 1.0


def test_an_optimizer_without_learning_rate_is_refused():
    optimizer = torch.optim.Optimizer(start_params(), {"step_size": 0.1})
    with pytest.raises(ValueError, match=r"param_groups\[0\] has no hyper-parameter 'lr'"):
        as_lr_scheduler(optimizer, SCHEDULE, name="step_size")
