"""What keeps a step of small tensors cheap: kernels called directly, plans and programs that last, and when they must not."""

import pathlib
import sys
import threading
import types

import pytest
import torch
from engines import EDITS, TRANSFORMS, assert_same_progress, pair, parameters, params_of, run

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter
from functional_optim.adapters.engine import snapshot
from functional_optim.adapters.engine.backends import foreach, inductor_call, kernels
from functional_optim.adapters.engine.prologue import Place, Tape
from functional_optim.numerics import where

SHAPES = [(3, 4), (150, 100), (), (7,), (0,), (200, 200)]

# Kernels called directly, and as the compiler wants it.


@pytest.mark.parametrize("name", ["adamw", "clip first", "no sum", "two sums"])
def test_a_direct_call_is_the_compilers_call(name, monkeypatch):
    monkeypatch.setattr(kernels, "_kernels", {})
    direct_, other = pair(TRANSFORMS[name](), SHAPES)[1], pair(TRANSFORMS[name](), SHAPES)[1]
    run(direct_, steps=5)
    assert all(kernel.direct for kernel in kernels._kernels.values())  # Of this torch the pattern is known.
    monkeypatch.setattr(kernels, "_kernels", {})
    monkeypatch.setattr(kernels, "direct", lambda compiled, inputs: None)
    run(other, steps=5)
    assert not any(kernel.direct for kernel in kernels._kernels.values())
    assert_same_progress(direct_, other)


def compiled_from(body, **names):
    """What the compiler might return: a wrapper with this body, and the names that it can call."""
    source = f"def call(self, args):\n    n, vector, x, y = args\n    args.clear()\n{body}"
    scope = {"torch": torch, "empty_strided_cpu": torch.empty_strided, **names}
    exec(source, scope)
    return types.SimpleNamespace(current_callable=types.MethodType(scope["call"], object()))


def add_to(y, x, n):
    y.view(-1)[:n] += x.view(-1)[:n]


ONE_KERNEL = "    cpp_fused_0(y, x, n)\n    return ()"
OTHERS = {
    "two kernels": "    cpp_fused_0(y, x, n)\n    cpp_fused_1(y, x, n)\n    return ()",
    "the kernel twice": "    cpp_fused_0(y, x, n)\n    cpp_fused_0(y, x, n)\n    return ()",
    "something else besides": "    cpp_fused_0(y, x, n)\n    y.mul_(2)\n    return ()",
    "another number": "    cpp_fused_0(y, x, n - 1)\n    return ()",
    "room in between": "    z = empty_strided_cpu((n,), (1,), torch.float64)\n    cpp_fused_0(y, z, n)\n    return ()",
    "a sum that is not written": ("    z = empty_strided_cpu((), (), torch.float64)\n    cpp_fused_0(y, x, n)\n    return (z,)"),
    "a result of full size": ("    z = empty_strided_cpu((n,), (1,), torch.float64)\n    cpp_fused_0(z, x, n)\n    return (z,)"),
    "no kernel": "    return ()",
}


def test_a_wrapper_around_one_kernel_is_skipped():
    found = inductor_call.direct(compiled_from(ONE_KERNEL, cpp_fused_0=add_to), inputs=3)
    assert found is not None
    xs, ys = [torch.ones(2, 3), torch.ones(4)], [torch.zeros(2, 3), torch.ones(4)]
    assert found(torch.zeros(1), [xs, ys], inductor_call.Lengths([6, 4])) == []
    assert [y.unique().item() for y in ys] == [1, 2]


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_any_other_wrapper_is_called(body):
    assert inductor_call.direct(compiled_from(body, cpp_fused_0=add_to, cpp_fused_1=add_to), inputs=3) is None


@pytest.mark.parametrize("compiled", [lambda args: (), types.SimpleNamespace(current_callable=lambda args: ())])
def test_what_is_not_a_wrapper_is_called(compiled):
    assert inductor_call.direct(compiled, inputs=3) is None


@pytest.mark.skipif(inductor_call._set_threads is None, reason="needs OpenMP's functions among the process's")
def test_one_thread_is_a_setting_of_this_thread_and_of_this_moment():
    before, elsewhere = torch.get_num_threads(), []

    def look():
        elsewhere.append(torch.get_num_threads())

    try:
        torch.set_num_threads(3)
        with pytest.raises(ZeroDivisionError), inductor_call.one_thread():
            inside = torch.get_num_threads()
            other = threading.Thread(target=look)
            other.start()
            other.join()
            raise ZeroDivisionError
        assert (inside, torch.get_num_threads(), elsewhere) == (1, 3, [3])
    finally:
        torch.set_num_threads(before)


# Plans.


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("fused", [None, True])
def test_without_torchs_guards_changes_are_seen_as_well(edit, fused, monkeypatch):
    monkeypatch.setattr(snapshot, "TensorGuards", None)
    plain = pair(fo.adam())[0]
    ours = OptimizerAdapter(parameters(), fo.adam(), fused=fused)
    run(plain, ours, steps=2)
    for optimizer in (plain, ours):
        EDITS[edit](optimizer, params_of(optimizer)[0])
    run(plain, ours, steps=2, first=2)
    assert_same_progress(plain, ours)


@pytest.mark.parametrize("with_guards", [True, False])
def test_tensors_are_alike_in_all_that_a_plan_relies_on(with_guards, monkeypatch):
    if not with_guards:
        monkeypatch.setattr(snapshot, "TensorGuards", None)
    x = torch.zeros(3, 4)
    are_alike = snapshot.likeness([x, torch.zeros(2)])
    assert are_alike(torch.ones(3, 4), torch.ones(2))
    others = [torch.zeros(4, 3), torch.zeros(4, 3).t(), x.double(), torch.nn.Parameter(x), x.to("meta"), x.to_sparse()]
    others += [torch.zeros(12), torch.zeros(3, 4, dtype=torch.cfloat), torch._neg_view(x)]
    for other in others:
        assert not are_alike(other, torch.ones(2))


# Python.


def own_calls(function):
    """How many calls of this package's functions, in Python, a call makes."""
    root, calls = str(pathlib.Path(fo.__file__).parent), []

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(root):
            calls.append(frame.f_code)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return len(calls)


@pytest.mark.parametrize(
    ("transform", "most"),
    [
        (fo.adamw(), 120),
        (fo.chain(fo.clip_by_global_norm(), fo.adamw()), 180),
        (fo.chain(fo.monitor("grad"), fo.adamw()), 405),
    ],
    ids=["adamw", "clip", "monitor"],
)
@pytest.mark.parametrize("fused", [None, True])
def test_a_warm_step_asks_little(transform, most, fused):
    optimizer = OptimizerAdapter(parameters([(3, 4), (5,), (2, 2), (7,)]), transform, fused=fused)
    run(optimizer, steps=5)
    assert 40 < own_calls(optimizer.step) <= most


# Programs.


@pytest.fixture
def programs(monkeypatch):
    """Every program arranged from here on."""
    made = []

    class Counting(foreach.Program):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(foreach, "Program", Counting)
    return made


def arranged(programs, *optimizers, steps, first=0):
    """How many programs these steps arrange."""
    before = len(programs)
    run(*optimizers, steps=steps, first=first)
    return len(programs) - before


@pytest.mark.parametrize(
    ("transform", "most"),
    [
        (fo.adamw(), 1),
        (fo.sgd(momentum=0.9, dampening=0.5), 2),
        (fo.chain(fo.clip_by_global_norm(), fo.adamw()), 2),
        (fo.radam(), 2),
    ],
    ids=["adamw", "sgd", "clip", "radam"],
)
def test_a_program_is_written_once_whatever_the_numbers(programs, transform, most):
    """Under a scheduler. Clipping has one more, for the terms of its norm; a first gradient that enters whole needs its own, and
    so do the first steps of RAdam, which adapt to nothing."""
    optimizers = [pair(transform)[0], OptimizerAdapter(parameters(), transform)]
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50) for optimizer in optimizers]
    for step in range(50):
        run(*optimizers, steps=1, first=step)
        for scheduler in schedulers:
            scheduler.step()
    assert len(programs) <= most
    assert_same_progress(*optimizers)


def test_groups_share_a_program(programs):
    groups = [{"params": [p], "lr": 0.1 * (i + 1)} for i, p in enumerate(parameters([(3,)] * 20))]
    optimizer = OptimizerAdapter(groups, fo.adamw())
    run(optimizer, steps=3)
    assert len(programs) == 1


def test_a_factor_that_is_left_out_comes_back(programs):
    plain, ours = pair(fo.sgd(momentum=0.9))[0], OptimizerAdapter(parameters(), fo.sgd(momentum=0.9))
    for step, dampening in enumerate((0.0, 0.0, 0.5, 0.25, 0.0)):
        for optimizer in (plain, ours):
            optimizer.param_groups[0]["dampening"] = dampening
        run(plain, ours, steps=1, first=step)
        assert_same_progress(plain, ours)
    assert len(programs) <= 4


def test_the_numbers_of_a_tensor_and_of_a_schedule_are_those_of_the_step(programs):
    """A schedule's may come from elsewhere, or depend on the step in ways that only a number shows."""
    knob, rates = {}, [torch.tensor(0.01), torch.tensor(0.01)]
    tx = fo.scheduled(fo.sgd(momentum=0.9), momentum=lambda t: knob["momentum"] if isinstance(t, int | float) else 1.0)
    optimizers = [pair(tx, lr=rates[0])[0], OptimizerAdapter(parameters(), tx, lr=rates[1])]
    for step in range(6):
        knob["momentum"] = 0.1 * (step % 4 + 1)
        for rate in rates:
            rate.fill_(0.01 * (step + 1))
        run(*optimizers, steps=1, first=step)
        assert_same_progress(*optimizers)
    assert len(programs) <= 2


@fo.elementwise(hparams={"lr": 0.1})
def late_start(hp, t):
    """Asks whether a step lies ahead: so no step before that stands for any later one."""
    share = where(t > 5, 1.0, 0.0) if t != 9 else -1.0
    return lambda g, p: -hp["lr"] * share * g


@fo.elementwise(hparams={"lr": 0.1})
def slowing(hp, t):
    """Computes with the step."""
    return lambda g, p: -hp["lr"] / t * g


@pytest.mark.parametrize("rule", [late_start, slowing, fo.scale_by_adam])
def test_no_program_outlives_an_answer_that_it_depends_on(rule):
    plain = pair(rule())[0]
    ours = OptimizerAdapter(parameters(), rule())
    run(plain, ours, steps=12)
    assert_same_progress(plain, ours)


def test_numbers_are_computed_as_torch_does_where_python_refuses():
    tape = Tape([0.0, -8.0, 1e200, float("nan")], asks=True)
    zero, negative, huge, nan = map(Place, range(4))
    computed = {
        "1 / 0": (tape.note("div", 1.0, zero), float("inf")),
        "0 / 0": (tape.note("div", zero, zero), float("nan")),
        "a root": (tape.note("sqrt", negative), float("nan")),
        "a power of a negative number": (tape.note("pow", negative, 0.5), float("nan")),
        "a large power": (tape.note("pow", huge, 2.0), float("inf")),
        "log 0": (tape.note("log", zero), float("-inf")),
        "clamped": (tape.note("clamp_max", nan, 1.0), float("nan")),
        "a sine": (tape.note("sin", negative), torch.tensor(-8.0, dtype=torch.float64).sin().item()),
    }
    prologue = tape.prologue([place for place, _ in computed.values()])
    assert prologue([0.0, -8.0, 1e200, float("nan")]) == pytest.approx([value for _, value in computed.values()], nan_ok=True)


def test_what_is_traced_holds_for_the_answers_that_it_got():
    tape = Tape([2.0], asks=True)
    double = tape.note("mul", Place(0), 2.0)
    assert tape.answer(double, lambda x: x > 3)
    prologue = tape.prologue([double])
    assert prologue([5.0]) == [10.0]
    assert prologue([1.0]) is None
