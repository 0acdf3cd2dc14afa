"""The contract of torch.optim.Optimizer, on every drop-in class and three chains: schedulers, averaging, mixed precision."""

import copy
import inspect

import pytest
import torch
from subjects import advance, assert_same_bits, assert_same_run, every_counterpart, every_eager, every_one, params_in
from torch.optim import lr_scheduler, swa_utils
from trajectories import walk_together

FLOAT64 = 1e-12

# How to make each of torch's schedulers; one that is new to torch fails the test below until it is here.
SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 3], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, 1.0, 4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[3]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=cycles_momentum(o)),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8, cycle_momentum=cycles_momentum(o)),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=3),
}


def cycles_momentum(optimizer):
    """Whether there is something to cycle: these schedulers write `momentum`, or the first of `betas`."""
    return bool(optimizer.defaults.get("momentum") or optimizer.defaults.get("betas"))


def test_every_scheduler_of_torch_is_here():
    found = {
        name
        for name, each in {**vars(lr_scheduler), **vars(swa_utils)}.items()
        if inspect.isclass(each) and issubclass(each, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert found - {"LRScheduler"} == set(SCHEDULERS)


class Inert(torch.optim.Optimizer):
    """An optimizer of torch's with given groups, that does nothing."""

    def step(self, closure=None):
        """Nothing."""


def written_by(scheduler, optimizer, advanced):
    """What a scheduler writes into the group over some steps, each after `advanced(step)`."""
    found = []
    for t in range(6):
        advanced(t)
        scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        group = optimizer.param_groups[0]
        found.append({name: group[name] for name in ("lr", "momentum", "betas") if name in group})
    return found


@pytest.mark.parametrize("name", SCHEDULERS)
@every_eager
def test_what_a_scheduler_writes_is_what_the_steps_use(subject, name):
    scheduled, by_hand = (subject.make(subject.params(shapes=[(3,)]), lr=0.04) for _ in range(2))
    inert = Inert(subject.params(torch.float64), {**scheduled.defaults})
    expected = written_by(SCHEDULERS[name](inert), inert, lambda t: inert.step())
    scheduler = SCHEDULERS[name](scheduled)
    start = {key: scheduled.param_groups[0][key] for key in expected[0]}
    assert written_by(scheduler, scheduled, lambda t: advance(scheduled, 1, first=t)) == expected
    for t, numbers in enumerate([start, *expected[:-1]]):
        by_hand.param_groups[0].update(numbers)
        advance(by_hand, 1, first=t)
    assert_same_run(scheduled, by_hand)
    assert any(numbers["lr"] != 0.04 for numbers in expected)


@every_counterpart
@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_a_cycled_momentum_is_torchs(subject, name):
    ours, theirs = subject.make(subject.params(torch.float64), lr=0.04), subject.theirs(subject.params(torch.float64), lr=0.04)
    walk_together(ours, theirs, 5, subject.tolerance, [SCHEDULERS[name](o) for o in (ours, theirs)])
    for key in ("lr", "momentum", "betas"):
        assert ours.param_groups[0].get(key) == theirs.param_groups[0].get(key)
    if cycles_momentum(ours):
        key = "momentum" if "momentum" in ours.defaults else "betas"
        assert ours.param_groups[0][key] != ours.defaults[key]


@every_eager
def test_a_scheduler_resumes_from_its_own_checkpoint(subject):
    """The groups come from the optimizer's checkpoint, the schedule's place from the scheduler's."""
    straight, stopped = subject.pair(lr=0.04)
    schedulers = [lr_scheduler.OneCycleLR(o, 0.1, total_steps=9, cycle_momentum=cycles_momentum(o)) for o in (straight, stopped)]
    for t in range(4):
        for optimizer, scheduler in zip((straight, stopped), schedulers, strict=True):
            advance(optimizer, 1, first=t)
            scheduler.step()
    again = subject.make([torch.nn.Parameter(p.detach().clone()) for p in params_in(stopped)])
    resumed = lr_scheduler.OneCycleLR(again, 0.1, total_steps=9, cycle_momentum=cycles_momentum(again))
    resumed.load_state_dict(schedulers[1].state_dict())
    again.load_state_dict(stopped.state_dict())
    for t in range(4, 8):
        for optimizer, scheduler in ((straight, schedulers[0]), (again, resumed)):
            advance(optimizer, 1, first=t)
            scheduler.step()
    assert_same_run(again, straight)


@every_eager
def test_a_tensor_rate_is_filled_by_a_scheduler(subject):
    rate = torch.tensor(0.04)
    optimizer = subject.make(subject.params(), lr=rate)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    for t in range(3):
        advance(optimizer, 1, first=t)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == pytest.approx(0.04 * 0.5**3)


# Averages of the parameters.


@every_one
def test_stochastic_weight_averaging(subject):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    optimizer = subject.make(subject.of(model))
    mean = swa_utils.AveragedModel(model)
    ema = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    x, visited, moving = torch.linspace(-1, 1, 8).reshape(4, 2), [], None
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - 3).square().sum().backward()
        optimizer.step()
        mean.update_parameters(model)
        ema.update_parameters(model)
        visited.append(model[0].weight.detach().clone())
        moving = visited[-1] if moving is None else 0.9 * moving + 0.1 * visited[-1]
    swa_utils.update_bn([x], mean)
    torch.testing.assert_close(mean.module[0].weight.detach(), torch.stack(visited).mean(0))
    torch.testing.assert_close(ema.module[0].weight.detach(), moving)
    assert not torch.equal(visited[0], visited[1])


# Mixed precision.


def scaled(optimizer, scaler, factor=1.0, spoil=False):
    """One step through a GradScaler, of the loss whose gradient is the parameter times the factor."""
    optimizer.zero_grad()
    scaler.scale(sum((factor * p.square() / 2).sum() for p in params_in(optimizer))).backward()
    if spoil:
        params_in(optimizer)[1].grad[0] = float("inf")
    scaler.step(optimizer)
    scaler.update()


@every_one
def test_a_grad_scaler_skips_steps_with_infinities(subject):
    optimizer, plain = subject.pair()
    scaler, calls = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100), []
    optimizer.register_step_post_hook(lambda *arguments: calls.append(1))
    scaled(optimizer, scaler, spoil=True)
    # Like torch's fused ones, such an optimizer looks for infinities in its own step, so that hooks are called.
    looks = optimizer._step_supports_amp_scaling
    assert len(calls) == looks and optimizer.state == {} and scaler.get_scale() == 2.0
    assert_same_bits([p.detach() for p in params_in(optimizer)], [p.detach() for p in params_in(plain)])
    for t in range(3):
        scaled(optimizer, scaler)
        if t == 1:
            before = copy.deepcopy(optimizer.state_dict())
            scaled(optimizer, scaler, spoil=True)
            assert_same_bits(optimizer.state_dict(), before)
        for p in params_in(plain):
            p.grad = p.detach().clone()
        plain.step()
    # Scaling by powers of two rounds nothing.
    assert len(calls) == 3 + 2 * looks
    assert_same_run(optimizer, plain)


@every_one
def test_unscale_and_clip(subject):
    optimizer, plain = subject.pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(sum(p.square().sum() / 2 for p in params_in(optimizer))).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(params_in(optimizer), 0.3)
        scaler.step(optimizer)
        scaler.update()
        for p in params_in(plain):
            p.grad = p.detach().clone()
        torch.nn.utils.clip_grad_norm_(params_in(plain), 0.3)
        plain.step()
    assert_same_run(optimizer, plain)


@every_one
def test_autocast(subject):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer, before = subject.make(subject.of(model)), model.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.ones(3, 4))
        loss = output.float().square().sum()
    assert output.dtype == torch.bfloat16
    loss.backward()
    witness, _ = subject.pair()
    with torch.autocast("cpu", torch.bfloat16):  # A step inside, too: its arithmetic is no business of autocast.
        advance(witness, 2)
    outside, _ = subject.pair()
    advance(outside, 2)
    optimizer.step()
    assert model.weight.dtype == torch.float32 and not torch.equal(model.weight, before)
    assert_same_run(witness, outside)
