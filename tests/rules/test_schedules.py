"""Schedules against closed forms, optax and torch's schedulers, for Python numbers and for tensors."""

import copy
import inspect
import math
import pickle
import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import functional_optim as fo
from functional_optim import schedules

# A few operations in float64, one of them a cosine, a power or a logarithm.
FLOAT64 = 1e-14
STEPS = range(45)


def left_at(step, begin, end):
    """The share of the way that is still to go."""
    return 1 - min(max((step - begin) / (end - begin), 0.0), 1.0)


def cosine_left(step, begin, end):
    return math.cos(math.pi / 2 * (1 - left_at(step, begin, end))) ** 2


def warmup_cosine(step, peak, warmup, total, end):
    if step < warmup:
        return peak * step / warmup
    return end + (peak - end) * cosine_left(step, warmup, total)


def warmup_stable_decay(step):
    return 0.4 * step / 5 if step < 5 else 0.05 + 0.35 * left_at(step, 20, 30)


def one_cycle(step):
    low, final = 0.5 / 20, 0.5 / 20 / 100
    if step < 7.5:
        return 0.5 + (low - 0.5) * cosine_left(step, 0, 7.5)
    return final + (0.5 - final) * cosine_left(step, 7.5, 30)


def three_phases(step):
    low, final = 1 / 25, 1 / 25 / 1e4
    if step < 9:
        return low + (1 - low) * step / 9
    return 1 - (1 - low) * (step - 9) / 9 if step < 18 else low + (final - low) * (1 - left_at(step, 18, 30))


def restarts(step, mult):
    begin, length = 0, 5
    while step >= begin + length:
        begin, length = begin + length, length * mult
    return 0.02 + 0.28 * cosine_left(step, begin, begin + length)


def shaped(step, fall):
    """0.2 at 0, 1.0 at 10, -0.5 at 30, then held; `fall` of the share of the way that is over."""
    begin, end, a, b = (0, 10, 0.2, 1.0) if step < 10 else (10, 30, 1.0, -0.5)
    return b + (a - b) * fall(1 - left_at(step, begin, end))


KNOTS = {"values": (0.2, 1.0, -0.5), "boundaries": (10, 30)}

# The schedule, its arguments, what it should be, and the steps at which two pieces meet.
TABLE = [
    (fo.constant, {"value": 0.3}, lambda step: 0.3, ()),
    (fo.linear, {"start": 0.1, "end": 0.7, "steps": 20}, lambda step: 0.1 + 0.6 * min(step / 20, 1), (20,)),
    (
        fo.polynomial,
        {"start": 0.1, "end": 0.02, "steps": 20, "power": 2.5},
        lambda s: 0.02 + 0.08 * left_at(s, 0, 20) ** 2.5,
        (20,),
    ),
    (fo.polynomial, {"start": 0.1, "end": 0.7, "steps": 20, "power": 0.5}, lambda s: 0.7 - 0.6 * left_at(s, 0, 20) ** 0.5, (20,)),
    (fo.cosine, {"start": 0.5, "end": 0.1, "steps": 30}, lambda step: 0.1 + 0.4 * cosine_left(step, 0, 30), (30,)),
    (
        fo.cosine,
        {"start": 0.5, "end": 0.1, "steps": 30, "exponent": 1.7},
        lambda step: 0.1 + 0.4 * cosine_left(step, 0, 30) ** 1.7,
        (30,),
    ),
    (fo.exponential, {"start": 0.5, "rate": 0.9}, lambda step: 0.5 * 0.9**step, ()),
    (
        fo.exponential,
        {"start": 0.5, "rate": 0.3, "steps": 8, "staircase": True},
        lambda step: 0.5 * 0.3 ** math.floor(step / 8),
        (8, 16, 24),
    ),
    (fo.exponential, {"start": 0.5, "rate": 0.8, "steps": 2, "end": 0.1}, lambda step: max(0.5 * 0.8 ** (step / 2), 0.1), ()),
    (fo.exponential, {"start": 0.1, "rate": 1.2, "end": 0.9}, lambda step: min(0.1 * 1.2 ** min(step, 99), 0.9), ()),
    (
        fo.inverse_sqrt,
        {"peak": 0.3, "warmup_steps": 9},
        lambda step: 0.3 * step / 9 if step < 9 else 0.3 * math.sqrt(9 / step),
        (9,),
    ),
    (
        fo.noam,
        {"d_model": 16, "warmup_steps": 10, "factor": 2.0},
        lambda step: 2 * 16**-0.5 * min((step + 1) ** -0.5, (step + 1) * 10**-1.5),
        (9,),
    ),
    (
        fo.warmup_cosine,
        {"peak": 0.3, "warmup_steps": 5, "total_steps": 20, "end": 0.01},
        lambda step: warmup_cosine(step, 0.3, 5, 20, 0.01),
        (5, 20),
    ),
    (
        fo.warmup_stable_decay,
        {"peak": 0.4, "warmup_steps": 5, "decay_steps": 10, "total_steps": 30, "end": 0.05},
        warmup_stable_decay,
        (5, 20, 30),
    ),
    (
        fo.one_cycle,
        {"peak": 0.5, "total_steps": 30, "pct_start": 0.25, "div_factor": 20.0, "final_div_factor": 100.0},
        one_cycle,
        (30,),
    ),
    (
        fo.one_cycle,
        {"peak": 1.0, "total_steps": 30, "pct_final": 0.6, "shape": "linear"},
        three_phases,
        (9, 18, 30),
    ),
    (
        fo.cosine_restarts,
        {"start": 0.3, "end": 0.02, "steps": 5},
        lambda step: restarts(step, 1),
        (5, 10, 15, 20, 25, 30, 35, 40),
    ),
    (fo.cosine_restarts, {"start": 0.3, "end": 0.02, "steps": 5, "mult": 2}, lambda step: restarts(step, 2), (5, 15, 35)),
    (
        fo.piecewise_constant,
        {"values": (0.5, 0.1, 0.3), "boundaries": (10, 30)},
        lambda step: (0.5, 0.1, 0.3)[(step >= 10) + (step >= 30)],
        (10, 30),
    ),
    (fo.piecewise_interpolate, KNOTS, lambda step: shaped(step, lambda x: 1 - x), (10, 30)),
    (
        fo.piecewise_interpolate,
        {**KNOTS, "shape": "cosine"},
        lambda step: shaped(step, lambda x: math.cos(math.pi * x / 2) ** 2),
        (10, 30),
    ),
    (fo.piecewise_interpolate, {**KNOTS, "shape": "sqrt"}, lambda step: shaped(step, lambda x: 1 - x**0.5), (10, 30)),
    (fo.piecewise_interpolate, {**KNOTS, "shape": "square"}, lambda step: shaped(step, lambda x: 1 - x**2), (10, 30)),
    (
        fo.join,
        {"schedules": (fo.linear(0.0, 0.3, 6), fo.noam(16, 10), fo.exponential(1.0, 0.5)), "boundaries": (6, 20)},
        lambda s: 0.05 * s if s < 6 else 0.25 * min((s - 5) ** -0.5, (s - 5) * 10**-1.5) if s < 20 else 0.5 ** (s - 20),
        (6, 15, 20),
    ),
]
EVERY_CASE = [pytest.param(*case, id=f"{case[0].__name__}-{i}") for i, case in enumerate(TABLE)]
every_case = pytest.mark.parametrize("make, arguments, expected, joints", EVERY_CASE)


def close_to(value):
    return pytest.approx(value, rel=FLOAT64, abs=1e-16)


def double(x):
    return torch.tensor(float(x), dtype=torch.float64)


def test_every_schedule_is_in_the_table():
    assert {make.__name__ for make, *_ in TABLE} == set(schedules.__all__) - {"Schedule"}
    assert set(schedules.__all__) - {"Schedule"} <= set(fo.__all__)


@every_case
def test_it_is_its_closed_form(make, arguments, expected, joints):
    schedule = make(**arguments)
    for step in [*STEPS, 0.5, 7.25, 10**6]:
        assert schedule(step) == close_to(expected(step))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
@every_case
def test_of_a_tensor_it_is_the_same_to_float64(make, arguments, expected, joints, dtype):
    schedule = make(**arguments)
    for step in STEPS:
        found = schedule(torch.tensor(step, dtype=dtype))
        assert found.shape == () and found.dtype == torch.float64
        assert found.item() == close_to(schedule(step))


@every_case
def test_under_vmap_over_the_step_it_is_a_loop(make, arguments, expected, joints):
    schedule = make(**arguments)
    batched = torch.vmap(schedule, randomness="error")(torch.arange(45))
    torch.testing.assert_close(batched, torch.tensor([schedule(i) for i in STEPS]).double(), rtol=1e-7, atol=0)
    exact = torch.stack([schedule(torch.tensor(i)) for i in STEPS])
    torch.testing.assert_close(batched, exact, rtol=FLOAT64, atol=1e-16)


@every_case
def test_compiled_it_is_one_graph(make, arguments, expected, joints):
    schedule, graphs = make(**arguments), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(lambda step: schedule(step), backend=backend, fullgraph=True)
    for step in (0, 3, 12, 33):
        assert compiled(torch.tensor(step)).item() == close_to(schedule(step))
    assert len(graphs) == 1


# In the arguments.


def opened(arguments):
    """The numbers among the arguments, with those in pairs under names of their own; and the way back."""
    flat = {}
    for name, value in arguments.items():
        for i, each in enumerate(value if isinstance(value, tuple) else [value]):
            if isinstance(each, int | float) and not isinstance(each, bool) and name != "mult":
                flat[name, i] = each

    def closed(values):
        def of(name, i, default):
            return values.get((name, i), default)

        return {
            name: tuple(of(name, i, each) for i, each in enumerate(value)) if isinstance(value, tuple) else of(name, 0, value)
            for name, value in arguments.items()
        }

    return flat, closed


@every_case
def test_tensor_arguments_give_the_same_numbers(make, arguments, expected, joints):
    flat, closed = opened(arguments)
    schedule = make(**closed({key: double(value) for key, value in flat.items()}))
    for step in STEPS:
        for given in (step, torch.tensor(step)):
            assert float(schedule(given)) == close_to(expected(step))


@every_case
def test_under_vmap_over_an_argument_it_is_a_loop(make, arguments, expected, joints):
    flat, closed = opened(arguments)
    for key, value in flat.items():
        several = double(value) * torch.tensor([1.0, 1.01, 1.02]).double()

        def at(x, step, key=key):
            return make(**closed({**flat, key: x}))(step)

        for step in (0, 11, 33):
            batched = torch.vmap(at, (0, None))(several, torch.tensor(step))
            loop = torch.stack([at(x, torch.tensor(step)) for x in several])
            torch.testing.assert_close(batched, loop, rtol=FLOAT64, atol=1e-16)


@every_case
def test_its_derivatives_against_finite_differences(make, arguments, expected, joints):
    flat, closed = opened(arguments)
    inputs = [double(value).requires_grad_() for value in flat.values()]

    def at(step, *values):
        return make(**closed(dict(zip(flat, values, strict=True))))(step)

    # Away from the joints, where the one-sided derivatives differ.
    for step in (0.4, 7.7, 18.6, 38.2):
        assert not [joint for joint in joints if abs(joint - step) < 0.1]
        given = (double(step).requires_grad_(), *inputs)
        assert gradcheck(at, given, check_forward_ad=True)
        assert gradgradcheck(at, given)


@every_case
def test_its_derivatives_are_finite_where_pieces_meet_and_far_out(make, arguments, expected, joints):
    flat, closed = opened(arguments)

    def at(step, values):
        return make(**closed(values))(step)

    for step in (0, *joints, 10**4, 10**9):
        values = {key: double(value) for key, value in flat.items()}
        by_step, by_values = torch.func.grad(at, argnums=(0, 1))(double(step), values)
        assert by_step.isfinite() and all(slope.isfinite() for slope in by_values.values())
        _, slope = torch.func.jvp(at, (double(step), values), (double(1), {key: double(0) for key in values}))
        assert slope.item() == pytest.approx(by_step.item(), rel=1e-12)


@every_case
def test_it_is_a_value(make, arguments, expected, joints):
    schedule = make(**arguments)
    assert schedule == make(**arguments) and hash(schedule) == hash(make(**arguments))
    assert schedule != fo.constant(17.0)
    assert eval(repr(schedule), vars(schedules)) == schedule
    for copied in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert copied == schedule and copied(7) == schedule(7)


def test_it_prints_as_it_is_written():
    assert repr(fo.linear(0.1, 0.0, 100)) == "linear(start=0.1, end=0.0, steps=100)"


def test_equal_lists_and_tuples_make_equal_schedules():
    assert fo.piecewise_constant([1.0, 2.0], [5]) == fo.piecewise_constant((1.0, 2.0), (5,))


def test_every_argument_is_in_the_docstring():
    for make, *_ in TABLE:
        for name in inspect.signature(make).parameters:
            assert name in make.__doc__, f"{make.__name__} says nothing of {name}"


# Against other libraries, at every step from 0 to beyond the end.


def optax_values(make):
    import jax
    import optax

    with jax.enable_x64(True):
        theirs = make(optax)
        return [float(theirs(jax.numpy.asarray(step, dtype="float64"))) for step in STEPS]


OPTAX = {
    "constant": (fo.constant(0.3), lambda optax: optax.constant_schedule(0.3)),
    "linear": (fo.linear(0.1, 0.7, 20), lambda optax: optax.linear_schedule(0.1, 0.7, 20)),
    "polynomial": (fo.polynomial(0.5, 0.1, 20, 2.5), lambda optax: optax.polynomial_schedule(0.5, 0.1, 2.5, 20)),
    "cosine": (fo.cosine(0.5, 0.1, 30, 1.7), lambda optax: optax.cosine_decay_schedule(0.5, 30, 0.2, 1.7)),
    "exponential": (fo.exponential(0.5, 0.9, 3), lambda optax: optax.exponential_decay(0.5, 3, 0.9)),
    "exponential, staircase": (
        fo.exponential(0.5, 0.9, 3, staircase=True),
        lambda optax: optax.exponential_decay(0.5, 3, 0.9, staircase=True),
    ),
    "exponential, bounded below": (
        fo.exponential(0.5, 0.9, 3, 0.2),
        lambda optax: optax.exponential_decay(0.5, 3, 0.9, end_value=0.2),
    ),
    "exponential, bounded above": (
        fo.exponential(0.5, 1.1, 3, 0.9),
        lambda optax: optax.exponential_decay(0.5, 3, 1.1, end_value=0.9),
    ),
    "warmup_cosine": (
        fo.warmup_cosine(0.3, 5, 20, 0.01),
        lambda optax: optax.warmup_cosine_decay_schedule(0.0, 0.3, 5, 20, 0.01),
    ),
    "warmup_cosine, no warm-up": (
        fo.warmup_cosine(0.3, 0, 20, 0.01),
        lambda optax: optax.warmup_cosine_decay_schedule(0.0, 0.3, 0, 20, 0.01),
    ),
    "one_cycle, cosine": (
        fo.one_cycle(0.5, 30, 0.2, 20.0, 100.0),
        lambda optax: optax.cosine_onecycle_schedule(30, 0.5, 0.2, 20.0, 100.0),
    ),
    "one_cycle, linear": (
        fo.one_cycle(0.5, 40, 0.25, pct_final=0.85, shape="linear"),
        lambda optax: optax.linear_onecycle_schedule(40, 0.5, 0.25, 0.85),
    ),
    "piecewise_constant": (
        fo.piecewise_constant([0.4, 0.1, 0.3], [10, 30]),
        lambda optax: optax.piecewise_constant_schedule(0.4, {10: 0.25, 30: 3.0}),
    ),
    "piecewise_interpolate, linear": (
        fo.piecewise_interpolate([0.4, 0.1, 0.3], [10, 30]),
        lambda optax: optax.piecewise_interpolate_schedule("linear", 0.4, {10: 0.25, 30: 3.0}),
    ),
    "piecewise_interpolate, cosine": (
        fo.piecewise_interpolate([0.4, 0.1, 0.3], [10, 30], shape="cosine"),
        lambda optax: optax.piecewise_interpolate_schedule("cosine", 0.4, {10: 0.25, 30: 3.0}),
    ),
    "join": (
        fo.join([fo.linear(0.0, 0.3, 6), fo.exponential(1.0, 0.5), fo.constant(0.2)], [6, 20]),
        lambda optax: optax.join_schedules(
            [optax.linear_schedule(0.0, 0.3, 6), optax.exponential_decay(1.0, 1, 0.5), optax.constant_schedule(0.2)], [6, 20]
        ),
    ),
    "cycles of optax.sgdr": (
        fo.join([fo.warmup_cosine(0.3, 2, 10, 0.1), fo.warmup_cosine(0.2, 3, 15, 0.05)], [10]),
        lambda optax: optax.sgdr_schedule(
            [
                {"init_value": 0.0, "peak_value": 0.3, "warmup_steps": 2, "decay_steps": 10, "end_value": 0.1},
                {"init_value": 0.0, "peak_value": 0.2, "warmup_steps": 3, "decay_steps": 15, "end_value": 0.05},
            ]
        ),
    ),
}


@pytest.mark.parametrize("ours, theirs", OPTAX.values(), ids=OPTAX.keys())
def test_it_is_optax(ours, theirs):
    # optax forms factors of the first value, and from them the values again: a few more roundings.
    assert [ours(step) for step in STEPS] == pytest.approx(optax_values(theirs), rel=1e-13, abs=1e-15)


def torch_values(make, lr, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            # SequentialLR itself calls a deprecated form of step.
            warnings.simplefilter("ignore", UserWarning)
            scheduler.step()
    return found


LR = torch.optim.lr_scheduler
TORCH = {
    "ConstantLR": (fo.constant(0.4), lambda opt: LR.ConstantLR(opt, factor=1.0), 45),
    "ConstantLR, then 1": (fo.piecewise_constant([0.1, 0.4], [7]), lambda opt: LR.ConstantLR(opt, 0.25, 7), 45),
    "LinearLR": (fo.linear(0.1, 0.4, 20), lambda opt: LR.LinearLR(opt, 0.25, 1.0, 20), 45),
    "PolynomialLR": (fo.polynomial(0.4, 0.0, 20, 1.5), lambda opt: LR.PolynomialLR(opt, 20, 1.5), 45),
    "ExponentialLR": (fo.exponential(0.4, 0.9), lambda opt: LR.ExponentialLR(opt, 0.9), 45),
    "StepLR": (fo.exponential(0.4, 0.3, 7, staircase=True), lambda opt: LR.StepLR(opt, 7, 0.3), 45),
    "MultiStepLR": (fo.piecewise_constant([0.4, 0.2, 0.1], [7, 30]), lambda opt: LR.MultiStepLR(opt, [7, 30], 0.5), 45),
    "CosineAnnealingLR": (fo.cosine(0.4, 0.04, 25), lambda opt: LR.CosineAnnealingLR(opt, 25, 0.04), 26),
    "CosineAnnealingWarmRestarts": (
        fo.cosine_restarts(0.4, 0.04, 6),
        lambda opt: LR.CosineAnnealingWarmRestarts(opt, 6, 1, 0.04),
        45,
    ),
    "CosineAnnealingWarmRestarts, longer and longer": (
        fo.cosine_restarts(0.4, 0.04, 5, mult=2),
        lambda opt: LR.CosineAnnealingWarmRestarts(opt, 5, 2, 0.04),
        45,
    ),
    # Its phases end one step earlier: at 0.25 · 40 − 1 = 9 and 40 − 1.
    "OneCycleLR": (
        fo.one_cycle(0.8, 39, 9 / 39),
        lambda opt: LR.OneCycleLR(opt, 0.8, 40, pct_start=0.25, cycle_momentum=False),
        40,
    ),
    "OneCycleLR, three phases": (
        fo.one_cycle(0.8, 39, 9 / 39, pct_final=18 / 39, shape="linear"),
        lambda opt: LR.OneCycleLR(opt, 0.8, 40, pct_start=0.25, anneal_strategy="linear", cycle_momentum=False, three_phase=True),
        40,
    ),
    "SequentialLR": (
        fo.join([fo.linear(0.1, 0.4, 6), fo.exponential(0.4, 0.9)], [6]),
        lambda opt: LR.SequentialLR(opt, [LR.LinearLR(opt, 0.25, 1.0, 6), LR.ExponentialLR(opt, 0.9)], [6]),
        45,
    ),
}


@pytest.mark.parametrize("ours, make, steps", TORCH.values(), ids=TORCH.keys())
def test_it_is_torchs_scheduler(ours, make, steps):
    # torch multiplies up to 45 ratios of neighbours.
    assert [ours(step) for step in range(steps)] == pytest.approx(torch_values(make, 0.4, steps), rel=1e-12, abs=1e-15)


# Corners.


@pytest.mark.parametrize("steps, mult", [(1, 3), (7, 2), (5, 1), (10, 1.5), (3, 10)])
def test_restarts_are_at_the_very_step(steps, mult):
    schedule, begin = fo.cosine_restarts(1.0, 0.0, steps, mult), 0
    for n in range(12):
        assert begin != int(begin) or schedule(begin) == pytest.approx(1.0, abs=1e-12)
        # The last whole step of a cycle is far from its first.
        if steps * mult**n > 4:
            assert schedule(math.ceil(begin + steps * mult**n) - 1) < 0.7
        begin += steps * mult**n


def test_pieces_of_length_0_are_skipped():
    assert fo.warmup_cosine(0.3, 0, 10)(0) == 0.3
    assert fo.warmup_stable_decay(0.3, 0, 10, 10)(0) == 0.3
    assert fo.one_cycle(0.5, 10, pct_start=0.0)(0) == 0.5
    assert fo.one_cycle(0.5, 10, pct_start=1.0, div_factor=5.0, final_div_factor=10.0)(10) == pytest.approx(0.01, rel=FLOAT64)


def test_the_ends_are_exact():
    assert fo.linear(0.1, 0.7, 3)(0) == 0.1 and fo.linear(0.1, 0.7, 3)(3) == 0.7
    assert fo.warmup_cosine(0.3, 5, 20, 0.01)(5) == 0.3 and fo.warmup_cosine(0.3, 5, 20, 0.01)(20) == 0.01


def test_joined_schedules_see_their_own_steps_only():
    seen = []

    def nosy(step):
        seen.append(float(step))
        return 1.0 * step

    schedule = fo.join([nosy, nosy, nosy], [3, 10])
    for step in STEPS:
        for given in (step, torch.tensor(step)):
            schedule(given)
    first, second, third = seen[::3], seen[1::3], seen[2::3]
    assert (min(first), max(first)) == (0, 3) and (min(second), max(second)) == (0, 7) and (min(third), max(third)) == (0, 34)


def test_an_overflow_beyond_the_end_spoils_no_derivative():
    def at(rate):
        return fo.exponential(1.0, rate, end=10.0)(double(5000))

    assert at(double(2)).item() == 10 and torch.func.grad(at)(double(2)).item() == 0
    assert fo.exponential(1.0, 2.0)(5000) == math.inf


def test_a_tensor_argument_of_float32_keeps_the_digits_of_the_step():
    found = fo.linear(torch.tensor(0.0), torch.tensor(1.0), 10**9)(torch.tensor(123_456_789))
    assert found.item() == pytest.approx(0.123456789, rel=1e-15)


# The first update.


def test_the_first_update_sees_step_0():
    seen = []

    def nosy(step):
        seen.append(float(step))
        return 1.0

    tx = fo.scale_by_schedule(nosy)
    state = tx.init_state(torch.zeros(()))
    for _ in range(3):
        _, state = tx.update(torch.ones(()), state)
    assert seen == [0, 1, 2]


@every_case
def test_in_a_chain_it_scales_the_update(make, arguments, expected, joints):
    tx = fo.scale_by_schedule(make(**arguments))
    g = torch.full((2,), 7.0, dtype=torch.float64)
    state = tx.init_state(g)
    for step in range(12):
        u, state = tx.update(g, state)
        torch.testing.assert_close(u, torch.full_like(u, 7.0 * expected(step)), rtol=FLOAT64, atol=1e-15)


def test_a_resumed_run_continues_the_schedule():
    tx = fo.scale_by_schedule(fo.warmup_cosine(1.0, 2, 9))
    optimizer = fo.adapters.OptimizerAdapter([torch.nn.Parameter(torch.zeros(1))], fo.chain(tx, fo.sgd(1.0)))
    values = []
    for step in range(12):
        if step in (1, 5):
            p = torch.nn.Parameter(optimizer.param_groups[0]["params"][0].detach().clone())
            resumed = fo.adapters.OptimizerAdapter([p], fo.chain(tx, fo.sgd(1.0)))
            resumed.load_state_dict(optimizer.state_dict())
            optimizer = resumed
        (p,) = optimizer.param_groups[0]["params"]
        before = p.item()
        p.grad = torch.ones(1)
        optimizer.step()
        values.append(before - p.item())
    # Differences of float32 numbers up to 5.
    assert values == pytest.approx([warmup_cosine(step, 1.0, 2, 9, 0.0) for step in range(12)], abs=1e-6)


# Bad input.


@pytest.mark.parametrize("warmup, total", [(5, 5), (6, 5), (-1, 5), (0, 0)])
def test_steps_out_of_order(warmup, total):
    with pytest.raises(ValueError, match=rf"warmup_steps = {warmup} must lie in \[0, total_steps\), and total_steps is {total}"):
        fo.warmup_cosine(1.0, warmup, total)


BAD = [
    (lambda: fo.linear(0.1, 0.0, 0), ValueError, r"linear: steps = 0 is outside \(0, inf\)"),
    (lambda: fo.linear("0.1", 0.0, 5), TypeError, "linear: start = '0.1' is a str: expected a number or a"),
    (lambda: fo.linear(torch.ones(3), 0.0, 5), TypeError, r"linear: start is a tensor of shape \(3,\)"),
    (lambda: fo.constant(math.nan), ValueError, "constant: value = nan is outside"),
    (lambda: fo.polynomial(0.1, 0.0, 5, 0), ValueError, r"polynomial: power = 0 is outside \(0, inf\)"),
    (lambda: fo.cosine(0.1, 0.0, -5), ValueError, "cosine: steps = -5 is outside"),
    (lambda: fo.exponential(0.1, 0.0), ValueError, r"exponential: rate = 0.0 is outside \(0, inf\)"),
    (lambda: fo.exponential(0.1, 0.5, 1, math.nan), ValueError, "exponential: end = nan is outside"),
    (lambda: fo.inverse_sqrt(0.1, 0), ValueError, "inverse_sqrt: warmup_steps = 0 is outside"),
    (lambda: fo.noam(512, 0), ValueError, "noam: warmup_steps = 0 is outside"),
    (
        lambda: fo.warmup_stable_decay(0.1, 6, 5, 10),
        ValueError,
        "warmup_steps = 6 and decay_steps = 5 don't fit into total_steps = 10: make total_steps at least 11",
    ),
    (
        lambda: fo.warmup_stable_decay(0.1, 1, 5, 10, shape="cubic"),
        ValueError,
        "shape = 'cubic' is unknown: choose",
    ),
    (lambda: fo.one_cycle(0.1, 10, 1.5), ValueError, r"one_cycle: pct_start = 1.5 is outside \[0, 1\]"),
    (lambda: fo.one_cycle(0.1, 10, pct_final=0.2), ValueError, "pct_final = 0.2 must be at least pct_start, which is 0.3"),
    (lambda: fo.one_cycle(0.1, 10, shape="cos"), ValueError, "shape = 'cos' is unknown"),
    (lambda: fo.cosine_restarts(0.1, 0.0, 5, 0.5), ValueError, r"cosine_restarts: mult = 0.5 is outside \[1, inf\)"),
    (lambda: fo.cosine_restarts(0.1, 0.0, 5, torch.tensor(2)), TypeError, "cosine_restarts: mult is a tensor"),
    (lambda: fo.piecewise_constant([1.0, 2.0], []), ValueError, "piecewise_constant got 2 values and 0 boundaries: expected one"),
    (lambda: fo.piecewise_constant([1.0, None], [3]), TypeError, r"piecewise_constant: values\[1\] = None is a NoneType"),
    (lambda: fo.piecewise_constant([1.0, 2.0, 3.0], [5, 5]), ValueError, r"boundaries = \(5, 5\) are not increasing"),
    (lambda: fo.piecewise_interpolate([1.0, 2.0], [0]), ValueError, r"piecewise_interpolate: boundaries\[0\] = 0 is outside"),
    (lambda: fo.piecewise_interpolate([1.0, 2.0], [4], shape=""), ValueError, "shape = '' is unknown"),
    (
        lambda: fo.join([fo.constant(0.1)], [3]),
        ValueError,
        "join got 1 schedules and 1 boundaries: expected one",
    ),
    (
        lambda: fo.join([fo.constant(0.1), 0.2], [3]),
        TypeError,
        r"join: schedules\[1\] = 0.2 is no .* mean constant\(0.2\)",
    ),
    (lambda: fo.join([fo.constant(0.1)] * 3, [4, 3]), ValueError, r"join: boundaries = \(4, 3\) are not increasing"),
]


@pytest.mark.parametrize("make, error, message", BAD, ids=range(len(BAD)))
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
