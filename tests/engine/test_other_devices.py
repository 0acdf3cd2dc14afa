"""Steps where a call costs more than a small tensor: what they launch, counted on the meta device, and their numbers.

Every operation that a step dispatches there would be a kernel on a GPU. The numbers are those of the host, with the engine told
that it is another device: lists of any size, and numbers that stay in tensors.
"""

from collections import Counter

import pytest
import torch
from engines import ELEMENTWISE, Plain, assert_same_progress, parameters, run, ways
from torch.utils._python_dispatch import TorchDispatchMode

import functional_optim as fo
from functional_optim.adapters import SGD, AdamW, OptimizerAdapter
from functional_optim.adapters.engine import buckets, program, prologue, step
from functional_optim.adapters.engine.backends import foreach

SHAPES = [(3, 4), (150, 100), (), (7,), (0,), (1,), (2, 3, 5), (40, 25), (4, 3, 5)]
FREE = {
    "detach",
    "view",
    "alias",
    "empty",
    "empty_like",
    "split",
    "unbind",
    "as_strided",
    "reshape",
    "_reshape_alias",
    "lift_fresh",
}


class Launches(TorchDispatchMode):
    """Counts operations on tensors that are not on the host, and numbers read from there."""

    def __init__(self):
        super().__init__()
        self.counted, self.reads = Counter(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        tensors = torch.utils._pytree.tree_leaves((args, kwargs, result))
        if any(isinstance(x, torch.Tensor) and x.device.type != "cpu" for x in tensors):
            self.reads += name == "_local_scalar_dense"
            self.counted[name] += name not in FREE
        return result


def launches(make, *, steps=5):
    """Of the step after so many."""
    params = [torch.nn.Parameter(torch.empty((64, 64) if i % 2 else (64,), device="meta")) for i in range(60)]
    optimizer = make(params)
    for _ in range(steps):
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer.step()
    with Launches() as found:
        optimizer.step()
    assert not found.reads
    return found.counted.total()


def behind(transform):
    return lambda params: OptimizerAdapter(params, transform)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (AdamW, lambda ps: torch.optim.AdamW(ps, foreach=True)),
        (lambda ps: SGD(ps, lr=0.1, momentum=0.9), lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, foreach=True)),
        (behind(fo.scheduled(fo.adamw(), lr=fo.cosine(1e-3, 0.0, 100))), lambda ps: torch.optim.AdamW(ps, foreach=True)),
    ],
    ids=["adamw", "sgd", "scheduled"],
)
def test_a_step_launches_no_more_than_torchs(ours, theirs):
    assert launches(ours) <= launches(theirs)


@pytest.mark.parametrize(
    ("transform", "most"),
    [
        (fo.lion(), 6),
        # The norm in two halves, 5 for each; its factor, 5; a product with it, and the 8 of AdamW.
        (fo.chain(fo.clip_by_global_norm(), fo.adamw()), 24),
        # The mean of the gradients so far.
        (fo.accumulate(fo.adamw(), every=4), 4),
    ],
    ids=["lion", "clip", "accumulate"],
)
def test_a_step_launches_nothing_for_each_tensor(transform, most):
    assert launches(behind(transform)) <= most


@pytest.fixture
def elsewhere(monkeypatch):
    """The engine takes every tensor for one on another device."""
    for module in (foreach, prologue, buckets, program, step):
        monkeypatch.setattr(module, "on_host", lambda x: False)


@pytest.mark.parametrize("transform", ELEMENTWISE)
def test_it_is_every_elementwise_transform_of_the_table(transform, elsewhere):
    plain, eager = (make(parameters(SHAPES, torch.float64), transform) for make in (Plain, OptimizerAdapter))
    run(plain, eager)
    assert ways(eager) == {"LISTED"}
    assert_same_progress(plain, eager, torch.float64)


@pytest.mark.parametrize("transform", [fo.adamw(), fo.chain(fo.scale_by_adam(), fo.clip_by_global_norm(), fo.scale(-0.1))])
def test_a_number_that_is_a_tensor_is_never_read(transform, elsewhere):
    hparams = {"lr": torch.tensor(0.1)} if "lr" in transform.hparams else {}
    plain, eager = (make(parameters(SHAPES, torch.float64), transform, **hparams) for make in (Plain, OptimizerAdapter))
    run(plain, eager)
    assert ways(eager) == {"LISTED"}
    assert_same_progress(plain, eager, torch.float64)


def test_low_precision(elsewhere):
    plain, eager = (make(parameters(SHAPES, torch.bfloat16), fo.adamw()) for make in (Plain, OptimizerAdapter))
    run(plain, eager)
    assert ways(eager) == {"LISTED"}
    for p, q in zip(plain.param_groups[0]["params"], eager.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=0.05, atol=0.05)  # A step may end on the other side of a tie.
