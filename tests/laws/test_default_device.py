"""Under a default device that is not the parameters', every tensor is made where it belongs: same numbers, bit for bit.

The laws hold the pure form and the eager step of every transform to it; here are the compiled step and the rest of the adapters.
"""

import copy
import pickle

import pytest
import torch
from cases import divide_by_average_norm
from subjects import assert_same_bits, assert_same_run, every_eager, params_in, through_a_file
from trajectories import set_gradients, start_params

import functional_optim as fo
from functional_optim.adapters import AdamW, OptimizerAdapter, as_optimizer_class, functional_state, load_functional_state
from functional_optim.adapters.engine.backends import kernels

FUSED = {
    "one kernel": lambda p: AdamW(p, amsgrad=True, fused=True),
    "a sum over all": lambda p: OptimizerAdapter(p, fo.chain(fo.clip_by_global_norm(0.1), fo.sgd(0.1, 0.9)), fused=True),
    "a reduction in general form": lambda p: OptimizerAdapter(p, fo.chain(fo.trace(), fo.lamb(0.1)), fused=True),
    "a schedule": lambda p: OptimizerAdapter(p, fo.scheduled(fo.adamw(), lr=fo.warmup_cosine(0.1, 2, 9)), fused=True),
    "rules that need shapes": lambda p: OptimizerAdapter(
        p, fo.chain(fo.trace(0.5), divide_by_average_norm(), fo.sgd(0.1)), fused=True
    ),
}


def elsewhere(function, *args):
    """What a function returns when the default device is another one."""
    with torch.device("meta"):
        return function(*args)


def advance(optimizer, steps, first=0, step=elsewhere):
    """Some steps; with gradients of the parameters' device."""
    for t in range(first, first + steps):
        set_gradients(params_in(optimizer), t)
        step(optimizer.step)


def straight(function):
    return function()


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)
def test_a_compiled_step(make, monkeypatch):
    here, there = make(start_params()), make(start_params())
    advance(here, 3, step=straight)
    monkeypatch.setattr(kernels, "_kernels", {})  # Compiling makes tensors, too.
    advance(there, 3)
    assert_same_run(there, here)


@every_eager
def test_checkpoints_copies_and_the_pure_form(subject):
    here, there = subject.pair()
    advance(here, 2, step=straight)
    advance(there, 2)
    saved = through_a_file(there.state_dict())
    elsewhere(there.load_state_dict, saved)
    there = elsewhere(pickle.loads, elsewhere(pickle.dumps, elsewhere(copy.deepcopy, there)))
    run = elsewhere(functional_state, there)
    elsewhere(load_functional_state, there, run.params, run.state, run.hparams)
    advance(here, 2, first=2, step=straight)
    advance(there, 2, first=2)
    assert_same_run(there, here)


def test_counts_that_a_checkpoint_holds_as_numbers():
    here, there = (AdamW(start_params()) for _ in range(2))
    advance(here, 2, step=straight)
    saved = here.state_dict()
    slots = {i: {**own, "step": own["step"].item()} for i, own in saved["state"].items()}
    elsewhere(there.load_state_dict, {**saved, "state": slots})
    assert_same_bits(there.state_dict(), saved)


def test_counts_on_the_parameters_device():
    here, there = (AdamW(start_params(), capturable=True) for _ in range(2))
    advance(here, 3, step=straight)
    advance(there, 3)
    assert_same_run(there, here)


def test_a_class_made_of_a_transform():
    cls = elsewhere(as_optimizer_class, fo.adamw(lr=0.1))
    here, there = (cls(start_params()) for _ in range(2))
    advance(here, 3, step=straight)
    advance(there, 3)
    assert_same_run(there, here)


def test_derivatives_of_a_training_loop():
    tx = fo.chain(fo.clip_by_global_norm(), fo.scheduled(fo.adamw(), weight_decay=fo.linear(0.1, 0.0, 5)))
    loop = fo.meta.unroll(lambda w, target: ((w - target) ** 2).sum(), tx, 3)
    w, target, rates = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0]), torch.tensor([0.1, 0.2])

    def outcome(lr):
        return (loop(w, {"lr": lr}, (target,)).params ** 2).sum()

    gradient = torch.vmap(torch.func.grad(outcome))
    assert_same_bits(elsewhere(gradient, rates), gradient(rates))
