"""The fused step against the eager one, and what it promises besides the numbers."""

import copy
import functools
import math
import subprocess
import sys
import threading
from itertools import product

import pytest
import torch
from cases import params_for
from covering import mostly_full, structures_of
from engines import (
    EDITS,
    FUSIBLE,
    PER_TENSOR,
    SHAPES,
    TRANSFORMS,
    WITH_ROWS,
    Plain,
    assert_close,
    assert_same_progress,
    assert_same_steps,
    branching,
    by_hand,
    odd_parameters,
    pair,
    parameters,
    params_of,
    real_dtype,
    run,
    scale_rows,
    set_gradients,
    sized,
    ways,
)

import functional_optim as fo
from functional_optim.adapters import SGD, Adagrad, Adam, AdamW, OptimizerAdapter
from functional_optim.adapters.engine.backends import kernels
from functional_optim.adapters.engine.route import links_of

# The last two have what the others have: slots, branches, a sum over all, numbers of the step.
IN_OTHER_DTYPES = {"momentum": [pytest.mark.full], "amsgrad": [pytest.mark.full], "clip later": [], "user rule": []}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in TRANSFORMS]
    + [pytest.param(*each, marks=IN_OTHER_DTYPES[each[0]]) for each in product(IN_OTHER_DTYPES, (torch.float64, torch.bfloat16))],
    ids=str,
)
def test_fused_is_eager(name, dtype):
    eager, fused = pair(TRANSFORMS[name](), dtype=dtype)
    run(eager, fused)
    assert_same_progress(eager, fused, dtype)
    assert ways(fused) == {"COMPILED"}


# What is no rule for one tensor can't be fused; that it steps eagerly is tested below.


@pytest.mark.parametrize("case", [pytest.param(case, marks=marks) for case, marks in mostly_full(FUSIBLE, structures_of).items()])
def test_fused_is_eager_for_every_transform_of_the_table(case):
    own = params_for(case)
    # Each branch of a partition needs a parameter.
    shapes = [tuple(p.shape) for p in own.values()] if own else SHAPES if case.startswith("partition") else WITH_ROWS
    eager, fused = pair(FUSIBLE[case], shapes)
    assert_same_steps(eager, fused)
    kernel = "CODED" if case.startswith("quantized") else "COMPILED"
    assert ways(fused) == ({kernel} if any(link.packs for link in links_of(FUSIBLE[case])) else set())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in PER_TENSOR),
        ("per tensor", torch.bfloat16),
        # Where the link stands makes no difference to how it takes another dtype.
        *(pytest.param(name, torch.bfloat16, marks=pytest.mark.full) for name in PER_TENSOR if name != "per tensor"),
    ],
    ids=str,
)
def test_a_link_that_needs_shapes_runs_between_kernels(name, dtype):
    eager, fused = pair(PER_TENSOR[name](), WITH_ROWS, dtype)
    run(eager, fused)
    assert_same_progress(eager, fused, dtype)
    assert ways(fused) == {"COMPILED"}


@pytest.mark.parametrize(
    "drop_in",
    [
        functools.partial(SGD, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.1),
        functools.partial(Adam, lr=0.1, weight_decay=0.1, maximize=True),
        functools.partial(AdamW, lr=0.1, amsgrad=True),
        functools.partial(Adagrad, lr=0.1, lr_decay=0.1, weight_decay=0.1),
    ],
)
def test_drop_in_classes_take_fused_from_the_group(drop_in):
    theirs = parameters()
    ours, switched = copy.deepcopy(theirs), copy.deepcopy(theirs)
    reference = getattr(torch.optim, drop_in.func.__name__)(theirs, **drop_in.keywords)
    fused, live = drop_in(ours, fused=True), drop_in(switched)
    run(reference, fused, live, steps=10)
    assert ways(fused) == {"COMPILED"} and ways(live) == {"LISTED"}
    live.param_groups[0]["fused"] = True
    run(reference, fused, live, steps=10, first=10)
    assert ways(live) == {"COMPILED"}
    assert_close(ours, theirs)
    assert_close(switched, ours)


# Kernels for four dtypes take long: one that writes, and one beside a sum.
IN_ANY_LAYOUT = ["adamw", "clip later", *(pytest.param(n, marks=pytest.mark.full) for n in ("clip first", "no sum", "momentum"))]


@pytest.mark.parametrize("name", IN_ANY_LAYOUT)
def test_any_layout_and_mixed_dtypes(name):
    transform = TRANSFORMS[name]()
    eager, fused = Plain(odd_parameters(), transform), OptimizerAdapter(odd_parameters(), transform, fused=True)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for i, (p, q) in enumerate(zip(params_of(eager), params_of(fused), strict=True)):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            # Of every second one the gradient is laid out otherwise than the parameter.
            q.grad = p.grad.clone() if i % 2 or p.ndim < 2 else p.grad.transpose(0, 1).contiguous().transpose(0, 1)
        eager.step()
        fused.step()
    for p, q in zip(params_of(eager), params_of(fused), strict=True):
        tolerance = real_dtype(p) if name == "adamw" else torch.bfloat16 if p.dtype == torch.bfloat16 else torch.float32
        assert_close([q, *fused.state[q].values()], [p, *eager.state[p].values()], tolerance)


def test_float32_slots_of_bfloat16_parameters_keep_their_digits():
    eager, fused = pair(fo.sgd(momentum=0.9, state_dtype=torch.float32), dtype=torch.bfloat16)
    run(eager, fused)
    for p, q in zip(params_of(eager), params_of(fused), strict=True):
        assert fused.state[q]["momentum_buffer"].dtype == torch.float32
        assert_close([fused.state[q]["momentum_buffer"]], [eager.state[p]["momentum_buffer"]], torch.float32)


def test_groups_keep_their_hparams_and_share_the_norm():
    transform = fo.chain(fo.clip_by_global_norm(), fo.adamw())
    sets = [parameters(), parameters()]
    groups = ([{"params": p[:3], "lr": 0.1}, {"params": p[3:], "betas": (0.5, 0.6), "max_norm": 0.1}] for p in sets)
    eager, fused = Plain(next(groups), transform), OptimizerAdapter(next(groups), transform, fused=True)
    run(eager, fused)
    assert_same_progress(eager, fused)


def test_frozen_and_late_parameters():
    eager, fused = pair(fo.chain(fo.clip_by_global_norm(), fo.adam()))
    for step in range(12):
        set_gradients(step, params_of(eager), params_of(fused))
        for optimizer in (eager, fused):
            for i, p in enumerate(params_of(optimizer)):
                if (i == 1 and step < 3) or (i == 3 and step % 3 == 0) or i == 5:
                    p.grad = None
            optimizer.step()
    assert_same_progress(eager, fused)
    late, sparse, never = (params_of(fused)[i] for i in (1, 3, 5))
    assert fused.state[late]["step"] == 9
    assert fused.state[sparse]["step"] == 8
    assert not fused.state[never]


@pytest.mark.parametrize("edit", EDITS)
def test_what_people_do_to_state_and_parameters_is_seen(edit):
    eager, fused = pair(fo.adam())
    run(eager, fused, steps=2)
    for i in (0, 1):  # A packed one and a large one.
        for optimizer in (eager, fused):
            EDITS[edit](optimizer, params_of(optimizer)[i])
        run(eager, fused, steps=2, first=2 + 2 * i)
        assert_same_progress(eager, fused)


@fo.elementwise(hparams={"lr": 0.1})
def signed_step(hp, *, factor):
    return lambda g, p: math.copysign(1.0, factor) * hp["lr"] * g


def test_options_that_python_calls_equal_do_not_share_a_kernel():
    (up, down) = (OptimizerAdapter(parameters([(3,)]), signed_step(factor), fused=True) for factor in (0.0, -0.0))
    run(up, down, steps=1)
    start, grad = parameters([(3,)])[0], params_of(up)[0].grad
    assert_close([params_of(up)[0], params_of(down)[0]], [start + 0.1 * grad, start - 0.1 * grad])


def test_equal_schedules_share_a_kernel(compilations):
    for _ in range(3):
        optimizer = OptimizerAdapter(
            parameters(), fo.chain(fo.scale_by_schedule(fo.warmup_cosine(1.0, 3, 17)), fo.sgd()), fused=True
        )
        run(optimizer, steps=1)
    assert len(compilations) <= 1


def test_a_failed_step_leaves_no_state_behind():
    p, q = parameters([(3,), (4, 4)])
    optimizer = Adam([{"params": [p]}, {"params": [q], "amsgrad": True}], fused=True)
    p.grad, q.grad = torch.ones_like(p), torch.ones(4, 4).to_sparse()
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()
    assert not optimizer.state[p] and not optimizer.state[q]


def test_first_steps_in_several_threads():
    transform = fo.chain(fo.scale(0.5), fo.scale_by_adam(betas=(0.7, 0.8)), fo.trace(0.3), fo.scale_by_learning_rate())
    eager, *fused = [make(parameters(), transform) for make in (Plain, *[functools.partial(OptimizerAdapter, fused=True)] * 3)]
    set_gradients(0, *map(params_of, (eager, *fused)))
    threads = [threading.Thread(target=optimizer.step) for optimizer in fused]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eager.step()
    for optimizer in fused:
        assert_same_progress(eager, optimizer)
        assert ways(optimizer) == {"COMPILED"}


def test_a_copy_is_independent():
    _, fused = pair(fo.adam())
    run(fused, steps=3)
    twin = copy.deepcopy(fused)
    frozen = copy.deepcopy([twin.param_groups, twin.state[params_of(twin)[0]]])
    run(fused, steps=3, first=3)
    assert_close(params_of(twin), frozen[0][0]["params"])
    assert_close(twin.state[params_of(twin)[0]].values(), frozen[1].values())
    run(twin, steps=3, first=3)
    assert_same_progress(twin, fused)


def test_state_dict_goes_from_fused_to_eager_and_back(tmp_path):
    eager, fused = pair(TRANSFORMS["two counts"]())
    run(eager, fused, steps=4)
    torch.save({"eager": eager.state_dict(), "fused": fused.state_dict()}, tmp_path / "both.pt")
    saved = torch.load(tmp_path / "both.pt", weights_only=True)
    eager.load_state_dict(saved["fused"])
    fused.load_state_dict(saved["eager"])
    assert fused.fused and not eager.fused
    run(eager, fused, steps=4, first=4)
    assert_same_progress(eager, fused)


@pytest.fixture
def compilations(monkeypatch):
    """Every kernel compiled from here on, with no kernel from before."""
    made = []
    compile_body = kernels.compile_body

    def counting(*args):
        made.append(args)
        return compile_body(*args)

    monkeypatch.setattr(kernels, "_kernels", {})
    monkeypatch.setattr(kernels, "compile_body", counting)
    return made


def test_nothing_recompiles_whatever_changes(compilations):
    transform = fo.chain(fo.clip_by_global_norm(), fo.adamw())
    eager, fused = pair(transform, [(4, 4), (300, 100)])
    warm_ups = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)) for optimizer in (eager, fused)]
    for step in range(20):
        for optimizer in (eager, fused):
            group = optimizer.param_groups[0]
            group["betas"] = (0.9 - 0.01 * step, torch.tensor(0.99) if step % 2 else 0.999)
            group["weight_decay"] = step % 3
        run(eager, fused, steps=1, first=step)
        for warm_up in warm_ups:
            warm_up.step()
    assert_same_progress(eager, fused)
    assert len(compilations) == 2, "one kernel for the norm, one for the step"

    other = OptimizerAdapter(parameters([(2,), (1,), (), (170, 100), (60_001,)]), transform, fused=True, lr=0.5)
    twin = OptimizerAdapter(parameters([(31,)]), fo.chain(fo.clip_by_global_norm(2.0), fo.adamw(betas=(0.5, 0.6))), fused=True)
    for optimizer in (other, twin):
        run(optimizer, steps=2)
    assert len(compilations) == 2, "optimizers with the same chain share kernels"


def test_schedules_and_branches_share_kernels(compilations):
    """A value that changes is an input; branches that compute the same are one kernel, whatever their numbers."""
    schedules = {"lr": fo.warmup_cosine(0.1, 5, 20), "betas": lambda step: (0.9 - 0.01 * step, 0.999)}
    branches = {"small": fo.scheduled(fo.adamw(), **schedules), "rest": fo.adamw(weight_decay=0.5)}
    transform = fo.partition(branches, lambda name, leaf: "small" if leaf.numel() < 10 else "rest")
    eager, fused = pair(transform, [(3,), (4, 4), (300, 100)])
    run(eager, fused)
    assert_same_progress(eager, fused)
    assert len(compilations) == 1


@pytest.mark.parametrize("first, second", [(1, 20_000), (20_000, 1)])
def test_a_single_element_is_no_special_case(compilations, first, second):
    for size in (first, second):
        eager, fused = pair(fo.adamw(), [(size,)])
        run(eager, fused)
        assert_same_progress(eager, fused)
    assert len(compilations) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 31, 32, 33, 34, 65, 20_000, 60_001])
def test_a_sum_has_every_element_once(size):
    def stepped(grad):
        param = torch.nn.Parameter(torch.zeros(size))
        param.grad = grad
        OptimizerAdapter([param], fo.chain(fo.clip_by_global_norm(1.0), fo.scale(-1.0)), fused=True).step()
        return param.detach()

    ones = torch.ones(size)
    # One of 60,001 elements missing or twice in the sum changes the result by 8e-6; rounding by 1e-7.
    torch.testing.assert_close(stepped(ones), -ones / (size**0.5 + 1e-6), rtol=1e-6, atol=0.0)
    for i in {0, size // 2, size - 1}:
        grad = torch.zeros(size)
        grad[i] = torch.inf
        expected = torch.zeros(size)
        expected[i] = torch.nan
        torch.testing.assert_close(stepped(grad), expected, equal_nan=True, rtol=0.0, atol=0.0)


def test_without_a_compiler_it_warns_once_and_steps_eagerly(monkeypatch):
    def failing(*args):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(kernels, "_kernels", {})
    monkeypatch.setattr(kernels, "compile_body", failing)
    eager, fused = pair(fo.adamw())
    with pytest.warns(UserWarning, match=r"fused=True, but compiling the step failed: RuntimeError: no C\+\+ compiler") as caught:
        run(eager, fused, steps=3)
    assert len(caught) == 1
    assert_close(params_of(eager), params_of(fused))


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        (by_hand, "by_hand is no rule for one tensor"),
        (branching, "compiling the step failed"),
        (sized, "a rule asks for 'shape'"),
    ],
)
def test_what_cannot_be_fused_warns_once_and_steps_eagerly(link, reason):
    eager, fused = pair(fo.chain(link(), fo.sgd()))
    with pytest.warns(UserWarning, match=reason) as caught:
        run(eager, fused, steps=3)
    assert len(caught) == 1
    assert_close(params_of(eager), params_of(fused))


def test_a_complex_parameter_and_a_rule_for_whole_tensors():
    fused = OptimizerAdapter([torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))], scale_rows(), fused=True)
    set_gradients(0, params_of(fused))
    with pytest.warns(UserWarning, match="complex"), pytest.raises(TypeError, match="takes no complex"):
        fused.step()


def test_bad_gradients_and_hparams_change_nothing():
    _, fused = pair(fo.adamw(), [(3, 4), (200, 200)])
    run(fused, steps=2)
    small, large = params_of(fused)
    before = copy.deepcopy([small, large, *fused.state[small].values(), *fused.state[large].values()])
    set_gradients(9, params_of(fused))
    fused.param_groups[0]["betas"] = (0.9, 1.5)
    with pytest.raises(ValueError, match=r"betas\[1\] = 1.5"):
        fused.step()
    fused.param_groups[0]["betas"] = (0.9, 0.95)
    small.grad = small.grad.to_sparse()
    with pytest.raises(TypeError, match="sparse"):
        fused.step()
    after = [small, large, *fused.state[small].values(), *fused.state[large].values()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_autograd_sees_that_parameters_were_written():
    _, fused = pair(fo.sgd(), [(3,), (20_000,)])
    losses = [(p * p).sum() for p in params_of(fused)]
    run(fused, steps=1)
    for loss in losses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_sum_over_many_elements_keeps_its_digits():
    """0.01, added to itself a million times in float32, as each lane of a vector register would, is off by a percent."""
    p = torch.nn.Parameter(torch.zeros(20_000_000))
    p.grad = torch.full_like(p, 0.1)
    expected = -1 / math.sqrt(20_000_000)
    OptimizerAdapter([p], fo.chain(fo.clip_by_global_norm(), fo.scale_by_learning_rate()), lr=1.0, fused=True).step()
    assert p[0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("clip_first", [True, False])
def test_a_step_allocates_nothing_the_size_of_the_model(clip_first):
    links = [fo.scale_by_adam(), fo.clip_by_global_norm()]
    transform = fo.chain(*(links[::-1] if clip_first else links), fo.scale_by_learning_rate())
    fused = OptimizerAdapter(parameters([(1000, 1000), *SHAPES]), transform, fused=True)
    run(fused, steps=2)
    with torch.profiler.profile(profile_memory=True) as profile:
        fused.step()
    assert max((event.cpu_memory_usage for event in profile.events()), default=0) < 1_000_000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_nan_inf_and_zero_gradients(value):
    eager, fused = pair(fo.chain(fo.clip_by_global_norm(), fo.adamw()))
    for optimizer in (eager, fused):
        for p in params_of(optimizer):
            p.grad = torch.full_like(p, value)
        optimizer.step()
    for p, q in zip(params_of(eager), params_of(fused), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_tensors_as_hparams():
    eager, fused = pair(fo.adamw(), lr=torch.tensor(0.1), betas=torch.tensor([0.8, 0.9]))
    run(eager, fused, steps=5)
    assert_same_progress(eager, fused)
    fused.param_groups[0]["lr"].fill_(0.0)
    before = copy.deepcopy(params_of(fused))
    run(fused, steps=1)
    assert_close(params_of(fused), before, torch.float64)


def test_an_eager_step_imports_no_compiler():
    """Its modules take seconds to import, and not every machine has what they need."""
    code = (
        "import sys, torch, functional_optim as fo\n"
        "from functional_optim.adapters import OptimizerAdapter\n"
        "p = torch.nn.Parameter(torch.ones(2)); p.grad = torch.ones(2)\n"
        "OptimizerAdapter([p], fo.adamw()).step()\n"
        "assert not [m for m in sys.modules if m.startswith('functional_optim.adapters.') and m.endswith('kernels')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@fo.elementwise(slots=("m",), hparams={"weight": 0.3})
def between(hp):
    """Between the last gradient and this one, as torch has it."""
    return lambda g, p, m: (torch.lerp(m, g, hp["weight"]), g)


@pytest.mark.parametrize("fused", [False, True])
def test_lerp_is_written_down(fused):
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = OptimizerAdapter([p], fo.chain(between(), fo.negate()), fused=fused)
    for g in (1.0, 2.0):
        p.grad = torch.full_like(p, g)
        optimizer.step()
    assert ways(optimizer) == {"COMPILED" if fused else "LISTED"}
    torch.testing.assert_close(p.detach(), torch.full_like(p, -(0.3 * 1 + 0.7 * 1 + 0.3 * 2)), rtol=1e-15, atol=0)
