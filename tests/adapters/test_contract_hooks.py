"""The contract of torch.optim.Optimizer, on every drop-in class and three chains: hooks, profiler names, in the backward."""

import copy

import pytest
import torch
from subjects import advance, assert_same_bits, every_counterpart, every_eager, every_one, every_uncoupled, params_in
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from trajectories import set_gradients, start_params

from functional_optim.adapters import AdamW


@pytest.fixture
def everywhere():
    """Registers hooks that torch calls for the steps of all optimizers, and removes them."""
    handles = []

    def register(before, after):
        handles.append(register_optimizer_step_pre_hook(before))
        handles.append(register_optimizer_step_post_hook(after))

    yield register
    for handle in handles:
        handle.remove()


def calls_of_a_step(optimizer, everywhere):
    """What is called, in order, when all kinds of step hooks are registered, some twice."""
    calls = []

    def note(name):
        return lambda own, args, kwargs: calls.append((name, own is optimizer, args, kwargs))

    everywhere(note("pre, of all"), note("post, of all"))
    for number in (1, 2):
        optimizer.register_step_pre_hook(note(f"pre {number}"))
        optimizer.register_step_post_hook(note(f"post {number}"))
    set_gradients(params_in(optimizer), 0)
    optimizer.step()
    return [call[:2] for call in calls]


@every_one
def test_step_hooks_in_torchs_order_each_once(subject, everywhere):
    expected = ["pre, of all", "pre 1", "pre 2", "post 1", "post 2", "post, of all"]
    assert calls_of_a_step(subject.make(subject.params()), everywhere) == [(name, True) for name in expected]


def test_the_order_is_torchs(everywhere):
    calls = [calls_of_a_step(cls(start_params()), everywhere) for cls in (torch.optim.AdamW, AdamW)]
    # The hooks for all optimizers, registered twice by now, are called for each of them.
    assert [name for name, own in calls[0] if own] == [name for name, own in calls[1] if own]


@every_one
def test_a_hook_sees_the_step_done_and_may_change_its_arguments(subject):
    optimizer, seen = subject.make(subject.params()), []
    before = params_in(optimizer)[0].detach().clone()
    optimizer.register_step_pre_hook(lambda own, args, kwargs: (args, {"closure": lambda: seen.append("called")}))
    optimizer.register_step_post_hook(lambda own, args, kwargs: seen.append(torch.equal(params_in(own)[0], before)))
    advance(optimizer, 1)
    assert seen == ["called", False]


@every_eager
def test_state_dict_hooks_each_once(subject):
    optimizer = subject.make(subject.params())
    advance(optimizer, 1)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda own: calls.append("saving"))
    optimizer.register_state_dict_post_hook(lambda own, found: {**found, "note": "saved"})
    optimizer.register_load_state_dict_pre_hook(lambda own, found: calls.append("loading") or found)
    optimizer.register_load_state_dict_post_hook(lambda own: calls.append(int(own.param_groups[0]["mark"])))
    saved = optimizer.state_dict()
    assert saved["note"] == "saved" and calls == ["saving"]
    saved["param_groups"][0]["mark"] = 7
    optimizer.load_state_dict(saved)
    optimizer.load_state_dict(saved)
    assert calls == ["saving", "loading", 7, "loading", 7]
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


class Sealed:
    """What is no mapping before a hook has made one of it. torch copies it first."""

    def __init__(self, found):
        self.found = found

    def copy(self):
        return self


@every_eager
def test_a_load_hook_may_rewrite_the_checkpoint(subject):
    source, target = subject.pair()
    advance(source, 2)
    saved = source.state_dict()
    foreign = {"slots": saved["state"], "settings": saved["param_groups"]}
    target.register_load_state_dict_pre_hook(lambda own, sealed: sealed.found)
    target.register_load_state_dict_pre_hook(lambda own, found: {"state": found["slots"], "param_groups": found["settings"]})
    target.load_state_dict(Sealed(foreign))
    assert_same_bits(target.state_dict(), saved)


@every_one
def test_hooks_of_an_object_are_not_those_of_its_copy(subject):
    optimizer, calls = subject.make(subject.params()), []
    optimizer.register_step_post_hook(lambda *arguments: calls.append(1))
    advance(copy.deepcopy(optimizer), 1)
    assert not calls
    advance(optimizer, 1)
    assert calls == [1]


class Counting(AdamW):
    """A subclass that takes a part in the step."""

    steps = 0

    def step(self, closure=None):
        """Count, and step."""
        self.steps += 1
        return super().step(closure)


def test_a_subclass_that_extends_the_step_calls_every_hook_once():
    advance(AdamW(start_params()), 1)  # Whose class has its step wrapped by now.
    optimizer, calls = Counting(start_params()), []
    optimizer.register_step_pre_hook(lambda *arguments: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *arguments: calls.append("post"))
    advance(optimizer, 2)
    assert calls == ["pre", "post"] * 2 and optimizer.steps == 2


@every_counterpart
def test_the_profiler_finds_the_names_that_torch_gives(subject):
    def names(optimizer):
        set_gradients(params_in(optimizer), 0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            optimizer.step()
            optimizer.zero_grad()
        return [event.name for event in profile.events() if event.name.startswith("Optimizer.")]

    found = names(subject.make(subject.params()))
    assert sorted(found) == sorted(names(subject.theirs(subject.params())))
    name = type(subject.make(subject.params(torch.float64))).__name__
    assert sorted(found) == [f"Optimizer.step#{name}.step", f"Optimizer.zero_grad#{name}.zero_grad"]


@every_uncoupled
def test_an_optimizer_in_the_backward(subject):
    """One optimizer for each parameter, stepped as soon as its gradient is there: the numbers of one for all."""

    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    at_once, after = model(), model()
    optimizers = {p: subject.make([p]) for p in subject.of(at_once)}

    def step(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step)
    whole, x = subject.make(subject.of(after)), torch.linspace(-1, 1, 6).reshape(2, 3)
    for _ in range(3):
        at_once(x).square().sum().backward()
        whole.zero_grad()
        after(x).square().sum().backward()
        whole.step()
        assert all(p.grad is None for p in subject.of(at_once))
        for p, q in zip(subject.of(at_once), subject.of(after), strict=True):
            # Packed with others, a kernel may round otherwise; and the backward goes on from there.
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
