"""`step_in_backward` gives the numbers of a step after backward, with hardly a gradient in memory at any time."""

import contextlib
import threading

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

import functional_optim as fo
from functional_optim.adapters import AdamW, OptimizerAdapter, as_lr_scheduler, step_in_backward

LAYERS = 8


def model():
    torch.manual_seed(0)
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(6, 6), nn.Tanh())]
    return nn.Sequential(*layers).double()


def loss_of(module, step):
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return (module(x) - x.flip(0)).square().mean()


TRANSFORMS = {
    "adamw": lambda: fo.adamw(lr=0.05),
    "a schedule": lambda: fo.scheduled(fo.adamw(), lr=fo.warmup_cosine(0.1, 2, 9)),
    "accumulated": lambda: fo.accumulate(fo.adamw(lr=0.05), every=2),
    "a norm of each": lambda: fo.lamb(lr=0.05),
    "a master copy": lambda: fo.with_master_copy(fo.lion(lr=0.05)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_it_retraces_steps_after_backward(name):
    after, during = model(), model()
    optimizer = OptimizerAdapter(after.named_parameters(), TRANSFORMS[name]())
    step_in_backward(during, lambda named: OptimizerAdapter(named, TRANSFORMS[name]()))
    for step in range(4):
        loss_of(after, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        loss_of(during, step).backward()
    assert_same(during, after)


def assert_same(found, expected):
    """To rounding: one parameter is stepped in a block of its own."""
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-13)


def test_at_most_two_gradients_are_in_memory():
    module, held = model(), []
    params = list(module.parameters())
    for p in params:  # Hooks are called in the order of their registration.
        p.register_post_accumulate_grad_hook(lambda _: held.append(sum(p.grad is not None for p in params)))
    step_in_backward(module, lambda named: OptimizerAdapter(named, fo.adamw()))
    loss_of(module, 0).backward()
    assert len(held) == 2 * LAYERS and max(held) <= 2
    assert all(p.grad is None for p in params)


def test_gradients_are_added_until_they_are_asked_for():
    after, during = model(), model()
    optimizer = OptimizerAdapter(after.parameters(), fo.adamw(lr=0.05))
    steps = step_in_backward(during, lambda named: OptimizerAdapter(named, fo.adamw(lr=0.05)))
    for step in range(6):
        loss_of(after, step).backward()
        with contextlib.nullcontext() if step % 3 == 2 else steps.accumulating():
            loss_of(during, step).backward()
        if step % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    assert_same(during, after)


def test_groups_drive_it_and_its_checkpoint_resumes():
    straight, first = model(), model()
    makers = lambda named: AdamW(named, lr=0.05)  # noqa: E731
    steps = [step_in_backward(module, makers) for module in (straight, first)]
    for module, own in zip((straight, first), steps, strict=True):
        loss_of(module, 0).backward()
        for group in own.param_groups:
            group["lr"] = 0.01
    second = model()
    second.load_state_dict(first.state_dict())
    resumed = step_in_backward(second, makers)
    resumed.load_state_dict(steps[1].state_dict())
    loss_of(straight, 1).backward()
    loss_of(second, 1).backward()
    assert all(torch.equal(p, q) for p, q in zip(second.parameters(), straight.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"differ in these parameters: 0\.weight"):
        resumed.load_state_dict({name: state for name, state in steps[1].state_dict().items() if name != "0.weight"})


@pytest.mark.parametrize("calls_step", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: CosineAnnealingLR(optimizer, 4),
        lambda optimizer: LambdaLR(optimizer, lambda step: 0.5**step),
        lambda optimizer: as_lr_scheduler(optimizer, fo.linear(0.1, 0.0, 4)),
    ],
    ids=["torch's", "torch's with a function", "a schedule of ours"],
)
def test_schedulers_drive_it_in_an_ordinary_loop(make, calls_step):
    after, during = model(), model()
    optimizer = OptimizerAdapter(after.named_parameters(), fo.adamw(lr=0.05))
    steps = step_in_backward(during, lambda named: OptimizerAdapter(named, fo.adamw(lr=0.05)))
    schedulers = [make(optimizer), make(steps)]
    for step in range(4):
        optimizer.zero_grad()
        loss_of(after, step).backward()
        optimizer.step()
        loss = loss_of(during, step)
        if calls_step:
            steps.zero_grad()
            assert steps.step(lambda loss=loss: (loss.backward(), loss)[1]) is loss
        else:
            loss.backward()
        for scheduler in schedulers:
            scheduler.step()
        if step == 1:  # What is loaded has groups of its own.
            steps.load_state_dict(steps.state_dict())
    assert_same(during, after)
    assert schedulers[0].get_last_lr() == schedulers[1].get_last_lr()[:1] and len(steps.param_groups) == 2 * LAYERS
    assert steps.state.keys() == set(during.parameters())
    with pytest.raises(TypeError, match="call step_in_backward"):
        steps.add_param_group({"params": []})


def test_any_optimizer_will_do_frozen_parameters_stay_and_remove_ends_it():
    module = model()
    module[0].weight.requires_grad_(False)
    steps = step_in_backward(module, lambda named: torch.optim.SGD([p for _, p in named], lr=0.1))
    assert "0.weight" not in steps.optimizers and len(steps.optimizers) == 2 * LAYERS - 1
    loss_of(module, 0).backward()
    steps.remove()
    before = [p.detach().clone() for p in module.parameters()]
    loss_of(module, 1).backward()
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    assert module[2].weight.grad is not None


@fo.elementwise(extra=("value",))
def divide_by_loss(hp):
    """A rule that takes a number which backward does not give."""
    return lambda u, p: u / hp["value"]


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (lambda: fo.chain(fo.clip_by_global_norm(), fo.adamw()), "clip_by_global_norm asks for a quantity of all gradients"),
        (lambda: fo.apply_if_finite(fo.adamw()), "apply_if_finite looks at all gradients"),
        (lambda: fo.chain(divide_by_loss(), fo.sgd(lr=0.1)), "divide_by_loss asks for value"),
        (lambda: fo.chain(fo.scale_by_sophia(), fo.sgd(lr=0.1)), "asks for hessian_diag"),
        (lambda: fo.Transform(lambda p, hp: {}, lambda u, s, p, hp: (u, s)), "may look at all parameters"),
        (lambda: fo.sam(fo.sgd(lr=0.1)), "may look at all parameters"),
        (lambda: fo.prodigy(), "asks for a quantity of all gradients"),
    ],
)
def test_what_takes_all_gradients_is_refused(transform, reason):
    module = model()
    with pytest.raises(ValueError, match=reason):
        step_in_backward(module, lambda named: OptimizerAdapter(named, transform()))
    loss_of(module, 0).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_only_modules_are_taken():
    with pytest.raises(TypeError, match="expected a module"):
        step_in_backward([nn.Parameter(torch.ones(2))], AdamW)


@pytest.mark.parametrize("fused", [False, True])
def test_two_optimizers_step_in_two_threads(fused):
    """Each as if it were alone; kernels are compiled by whoever comes first."""
    modules, alone = [model() for _ in range(2)], model()

    def train(module):
        optimizer = OptimizerAdapter(module.parameters(), fo.chain(fo.clip_by_global_norm(0.1), fo.adamw(lr=0.05)), fused=fused)
        for step in range(20):
            loss_of(module, step).backward()
            optimizer.step()
            optimizer.zero_grad()

    threads = [threading.Thread(target=train, args=(module,)) for module in modules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    train(alone)
    for module in modules:
        assert all(torch.equal(p, q) for p, q in zip(module.parameters(), alone.parameters(), strict=True))


def test_what_makes_no_optimizer_of_one_parameter_is_told_at_once():
    model = torch.nn.Linear(2, 1)
    with pytest.raises(TypeError, match="make_optimizer returned a Transform: expected an optimizer"):
        step_in_backward(model, lambda named: fo.adamw())
    branches = fo.partition({"matrices": fo.sgd(), "others": fo.adam()}, fo.by_ndim({2: "matrices"}, otherwise="others"))
    with pytest.raises(ValueError, match="the optimizer of 'bias', which has one of its own: .*choose by the name"):
        step_in_backward(model, lambda named: OptimizerAdapter(named, branches))
