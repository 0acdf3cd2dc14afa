"""Evaluating the average behind an optimizer: parameters are lent and given back to the bit, whatever happens in between."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import functional_optim as fo
from functional_optim.adapters import ASGD, OptimizerAdapter, eval_params, functional_state, load_by_name, transform_of

TRANSFORMS = {
    "schedule-free": lambda: fo.schedule_free_adamw(lr=0.05),
    "an average in a chain": lambda: fo.chain(fo.clip_by_global_norm(), fo.ema_params(fo.adamw(lr=0.05), ema_decay=0.5)),
    "lookahead behind a gate": lambda: fo.accumulate(fo.lookahead(fo.sgd(lr=0.05), sync_period=3), every=2),
    "one branch of two": lambda: fo.partition(
        {"w": fo.ema_params(fo.sgd(lr=0.05)), "b": fo.adam(lr=0.05)}, fo.by_ndim({2: "w"}, "b")
    ),
}


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def made(net, name="schedule-free", **options):
    return OptimizerAdapter(net.named_parameters(), TRANSFORMS[name](), **options)


def step(net, optimizer, times=1, first=0):
    for t in range(first, first + times):
        optimizer.zero_grad()
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(t))
        (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def values(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_inside_are_the_parameters_to_evaluate_and_training_goes_on_as_if_nothing_had_been(name, fused):
    net, twin = model(), model()
    optimizer, other = made(net, name, fused=fused), made(twin, name, fused=fused)
    step(net, optimizer, 5), step(twin, other, 5)
    run = functional_state(optimizer)
    expected = fo.evaluated(transform_of(optimizer), run.state, run.params)
    with eval_params(optimizer):
        inside = values(net)
        net(torch.ones(2, 3)).sum().backward()  # Gradients may be taken there.
    assert same(inside, expected) and not same(inside, run.params)
    assert same(values(net), run.params)
    step(net, optimizer, 3, first=5), step(twin, other, 3, first=5)
    assert same(values(net), values(twin))


def test_they_are_given_back_after_an_error_and_whatever_was_done_to_them():
    net = model()
    optimizer = made(net)
    step(net, optimizer, 3)
    before = values(net)
    with pytest.raises(KeyError, match="validation"), eval_params(optimizer):
        with torch.no_grad():
            for p in net.parameters():
                p.zero_()
        raise KeyError("validation")
    assert same(values(net), before)
    step(net, optimizer, 1, first=3)


def test_inside_nothing_is_trained_or_loaded():
    net = model()
    optimizer = made(net)
    step(net, optimizer, 2)
    saved, before = optimizer.state_dict(), values(net)
    with eval_params(optimizer):
        inside = values(net)
        for act in (
            optimizer.step,
            optimizer.train,
            lambda: optimizer.load_state_dict(saved),
            lambda: functional_state(optimizer),
            lambda: optimizer.step(lambda: pytest.fail("the closure was called")),
        ):
            with pytest.raises(RuntimeError, match="those to evaluate at.*Leave the `with"):
                act()
        assert same(values(net), inside)
    assert same(values(net), before)


def test_blocks_and_modes_may_be_nested():
    net = model()
    optimizer = made(net)
    step(net, optimizer, 2)
    trained = values(net)
    optimizer.eval()
    evaluated = values(net)
    with eval_params(optimizer), eval_params(optimizer):
        optimizer.eval()
        assert same(values(net), evaluated)
    assert same(values(net), evaluated) and not same(evaluated, trained)
    with pytest.raises(RuntimeError, match=r"step: the parameters are those to evaluate at.*Call optimizer\.train\(\) first"):
        optimizer.step()
    optimizer.train()
    optimizer.train()
    assert same(values(net), trained)
    step(net, optimizer, 1, first=2)


def test_before_the_first_step_and_without_an_average_everything_stays():
    for optimizer, net in ((made(net), net) for net in [model()]):
        before = values(net)
        with eval_params(optimizer):
            assert same(values(net), before) and not optimizer.state
    net = model()
    optimizer = OptimizerAdapter(net.parameters(), fo.adamw())
    step(net, optimizer)
    before = values(net)
    with eval_params(optimizer):
        assert same(values(net), before)
        with pytest.raises(RuntimeError, match="step"):
            optimizer.step()


@pytest.mark.parametrize("by_name", [False, True])
def test_a_checkpoint_saved_while_evaluating_has_the_average_in_the_model_and_resumes_to_the_bit(by_name):
    net = model()
    optimizer = made(net)
    step(net, optimizer, 3)
    optimizer.eval()
    saved = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    shipped = values(net)
    optimizer.train()
    step(net, optimizer, 2, first=3)

    again, loaded = model(), torch.load(io.BytesIO(saved.getvalue()), weights_only=True)
    resumed = made(again)
    again.load_state_dict(loaded["model"])
    load_by_name(resumed, loaded["optimizer"]) if by_name else resumed.load_state_dict(loaded["optimizer"])
    assert same(values(again), shipped)
    with pytest.raises(RuntimeError, match="train"):
        resumed.step()
    resumed.train()
    step(again, resumed, 2, first=3)
    assert same(values(again), values(net))
    assert "trained_params" not in resumed.state_dict()["state"][0]


def test_a_checkpoint_saved_while_evaluating_that_does_not_fit_changes_nothing():
    net = model()
    optimizer = made(net)
    step(net, optimizer, 2)
    optimizer.eval()
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.train()
    saved["state"][1]["trained_params"] = torch.ones(7)
    before = values(net)
    with pytest.raises(ValueError, match=r"parameter 1: 'trained_params' .* has shape \(7,\), the parameter \(4,\)"):
        optimizer.load_state_dict(saved)
    assert same(values(net), before)
    step(net, optimizer, 1, first=2)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"])
def test_a_copy_made_while_evaluating_gives_back_its_own(copied):
    net = model()
    optimizer = made(net)
    step(net, optimizer, 2)
    trained = values(net)
    optimizer.eval()
    other, its = copied((net, optimizer))
    its.train()
    assert same(values(other), trained) and not same(values(net), trained)


def test_a_copy_made_inside_can_be_trained():
    net = model()
    optimizer = made(net)
    step(net, optimizer, 2)
    trained = values(net)
    with eval_params(optimizer):
        other, its = copy.deepcopy((net, optimizer))
        its.train()
        step(other, its, 1)
    step(net, optimizer, 1)
    assert same(values(other), values(net)) and not same(values(net), trained)


def test_torchs_class_of_averaged_descent_has_an_average():
    net = model()
    optimizer = ASGD(net.parameters(), lr=0.05, t0=0)
    step(net, optimizer, 4)
    with eval_params(optimizer):
        assert all(torch.equal(p, optimizer.state[p]["ax"]) for p in net.parameters())
    assert not any(torch.equal(p, optimizer.state[p]["ax"]) for p in net.parameters())


def test_other_optimizers_are_refused():
    with (
        pytest.raises(TypeError, match="optimizer is a SGD: expected an OptimizerAdapter"),
        eval_params(torch.optim.SGD(model().parameters(), lr=0.1)),
    ):
        pass
