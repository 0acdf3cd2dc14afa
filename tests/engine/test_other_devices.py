"""Steps where a call costs more than a small tensor: what they launch, counted on the meta device, and their numbers.

Every operation that a step dispatches there would be a kernel on a GPU. The numbers are those of the host, with the engine told
that it is another device: lists of any size, and numbers that stay in tensors.
"""

import copy
import warnings
from collections import Counter

import pytest
import torch
from engines import ELEMENTWISE, Plain, assert_same_progress, parameters, params_of, run, set_gradients, ways
from torch.utils._python_dispatch import TorchDispatchMode

import functional_optim as fo
from functional_optim import numerics
from functional_optim.adapters import SGD, AdamW, OptimizerAdapter
from functional_optim.adapters.engine import buckets, program, prologue, step
from functional_optim.adapters.engine.backends import foreach
from functional_optim.adapters.engine.route import links_of
from functional_optim.reductions import SumOver

SHAPES = [(3, 4), (150, 100), (), (7,), (0,), (1,), (2, 3, 5), (40, 25), (4, 3, 5)]
FREE = {
    "detach",
    "view",
    "alias",
    "empty",
    "empty_like",
    "split",
    "unbind",
    "select",
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
        # Squares and their sums, 5; the factor, 6; a product with it, and the 8 of AdamW.
        (fo.chain(fo.clip_by_global_norm(), fo.adamw()), 20),
        # The direction and its mask, and what they sum to, 7; the factors, 5; the same again, and the step.
        (fo.chain(fo.cautious(fo.scale_by_lion()), fo.scale_by_learning_rate()), 22),
        # The mean of the gradients so far.
        (fo.accumulate(fo.adamw(), every=4), 4),
    ],
    ids=["lion", "clip", "cautious", "accumulate"],
)
def test_a_step_launches_nothing_for_each_tensor(transform, most):
    assert launches(behind(transform)) <= most


class WithoutDoubles(TorchDispatchMode):
    """Fails where something on the meta device is float64: MPS has none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = torch.utils._pytree.tree_leaves((args, kwargs, result))
        assert not any(isinstance(x, torch.Tensor) and x.is_meta and x.dtype == torch.float64 for x in tensors), function
        return result


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize(
    "transform",
    [
        fo.adamw(),
        fo.chain(fo.clip_by_global_norm(), fo.sgd(momentum=0.9)),
        fo.chain(fo.cautious(fo.scale_by_lion()), fo.scale_by_learning_rate()),
    ],
    ids=["adamw", "clip", "cautious"],
)
def test_a_device_without_kernels_takes_lists(transform, fused, monkeypatch):
    """As MPS and XPU do, the former without float64; asked for kernels, it says why there are none."""
    monkeypatch.setattr(numerics, "WITHOUT_FLOAT64", ("meta",))
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]
    optimizer = OptimizerAdapter(params, transform, fused=fused)
    for _ in range(2):
        for p in params:
            p.grad = torch.empty_like(p)
        with WithoutDoubles(), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            optimizer.step()
        assert ways(optimizer) == {"LISTED"}
        assert ["on meta" in str(x.message) for x in told] == ([True] if fused else [])
        fused = None  # It says so once.


@fo.elementwise(slots=("m",), reduce=SumOver(lambda u, p, m: (u - 0.5 * p, (u * m).abs())))
def compare(hp, sums):
    """Masks of both signs, and sums of terms of either."""

    def rule(g, p, m):
        above, below = (g * m > 0).to(g.dtype), (g < 0).to(g.dtype)
        return g * above - 0.1 * below * sums[0] / (1 + sums[1]), 0.5 * m + g * (g > 0)

    return rule


@pytest.mark.parametrize("value", [0.0, -0.0, float("nan"), float("inf"), -float("inf")])
def test_comparisons_are_numbers_and_sums_are_norms(value, elsewhere):
    plain, eager = (make(parameters([(40, 30), (), (7,)], torch.float64), compare()) for make in (Plain, OptimizerAdapter))
    for i in range(3):
        set_gradients(i, *map(params_of, (plain, eager)))
        for optimizer in (plain, eager):
            params_of(optimizer)[0].grad[0] = value if i == 1 else 0.5
            optimizer.step()
    assert ways(eager) == {"LISTED"}
    for p, q in zip(map(torch.Tensor.detach, params_of(plain)), params_of(eager), strict=True):
        # A sum of terms of both signs is a difference of norms, which loses a digit or two of a thousand terms.
        torch.testing.assert_close(q, torch.nn.Parameter(p), rtol=1e-12, atol=1e-12, equal_nan=True)


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
    # The norms that its sums are add one number to another here; the rules' own sums are pairwise. momo takes differences of such
    # sums, which lose two digits more on some processors.
    assert_same_progress(plain, eager, torch.float64, slack=100.0)


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


# Counts on the device.


def capturable(params, transform, **hparams):
    return OptimizerAdapter([{"params": params, "capturable": True}], transform, **hparams)


@pytest.mark.parametrize(
    ("transform", "most"),
    [
        # What torch's formula has for lists, 9; the corrections of bias, 12 small ones, and the counts.
        (fo.adamw(), 23),
        (fo.chain(fo.clip_by_global_norm(), fo.adamw()), 35),
        (fo.chain(fo.cautious(fo.scale_by_lion()), fo.scale_by_learning_rate()), 23),
    ],
    ids=["adamw", "clip", "cautious"],
)
def test_a_capturable_step_reads_nothing_and_launches_nothing_for_each_tensor(transform, most):
    assert launches(lambda params: capturable(params, transform)) <= most


FEW = ("adam-1", "chain-0", "sgd-1", "scheduled-0")
CAPTURABLE = [pytest.param(*x.values, id=x.id, marks=[] if x.id in FEW else [pytest.mark.full]) for x in ELEMENTWISE]


@pytest.mark.parametrize("transform", CAPTURABLE)
def test_a_capturable_step_is_the_same(transform, elsewhere):
    plain, eager = (make(parameters(SHAPES, torch.float64), transform) for make in (Plain, capturable))
    run(plain, eager, steps=5)
    gated = any(link.asks for link in links_of(transform)) or len(step.gates_in(transform, on_host=False))
    shares = any(link.rule.shared for link in links_of(transform))
    assert ways(eager) == {"WHOLE"} if gated or shares else {"LISTED"}
    assert_same_progress(plain, eager, torch.float64, slack=10.0)


def test_counts_on_a_device_are_looked_after(elsewhere):
    """They may be set, all or one; when a gradient was missing for a while, rules are called as they are."""
    plain, eager = (make(parameters(SHAPES, torch.float64), fo.adamw()) for make in (Plain, capturable))
    run(plain, eager, steps=2)
    for optimizer in (plain, eager):
        for p in params_of(optimizer):
            optimizer.state[p]["step"].fill_(7.0)
    run(plain, eager, steps=2, first=2)
    assert ways(eager) == {"LISTED"}
    assert {float(slots["step"]) for slots in eager.state.values()} == {9.0}
    others = copy.deepcopy([plain, eager])
    for optimizer in others:
        run(optimizer, steps=1, first=4)
        optimizer.state[params_of(optimizer)[1]]["step"].fill_(3.0)
        run(optimizer, steps=1, first=5)
    assert_same_progress(*others, torch.float64, slack=10.0)
    for i in range(4, 6):
        set_gradients(i, params_of(plain), params_of(eager))
        for optimizer in (plain, eager):
            params_of(optimizer)[1].grad = None
            optimizer.step()
        assert ways(eager) == {"LISTED"}
    run(plain, eager, steps=1, first=6)
    assert ways(eager) == {"WHOLE"}
    assert_same_progress(plain, eager, torch.float64, slack=10.0)


def test_kernels_are_not_captured(elsewhere):
    eager = capturable(parameters(SHAPES, torch.float64), fo.adamw(), fused=True)
    with pytest.warns(UserWarning, match="capturable=True: a kernel's numbers are the host's"):
        run(eager, steps=1)
    assert ways(eager) == {"LISTED"}
