"""The drop-in classes against those of torch.optim that they stand for: signatures, trajectories, checkpoints."""

import functools
import inspect
import io

import pytest
import torch
from trajectories import assert_params_close, set_gradients, start_params, walk_together

from functional_optim import adapters

# Equal formulas, each operation rounding at 1.1e-16, over 50 steps of a contraction.
FLOAT64 = 1e-12
# Equal formulas in float32: 50 roundings of 6e-8 in the parameter, which grow like a random walk.
FLOAT32 = 1e-6
PRECISIONS = [(torch.float64, FLOAT64), (torch.float32, FLOAT32)]

# Every class, with options that call for all its slots.
EXAMPLES = {
    "SGD": {"momentum": 0.9, "dampening": 0.3},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "Adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.1},
    "Adadelta": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
    "ASGD": {"t0": 3.0, "lambd": 0.1},
}
NAMES = list(EXAMPLES)
DECAYING = [name for name in NAMES if name != "Rprop"]


@pytest.fixture(autouse=True)
def numbers_in_float64(monkeypatch):
    """torch keeps NAdam's product and ASGD's step size in the default dtype, whatever the parameter's: float32 is 6e-8 off.

    Here they are float64, as ours are. What stock torch does is tested by itself.
    """

    def in_float64(step):
        @functools.wraps(step)
        def wrapped(self, closure=None):
            torch.set_default_dtype(torch.float64)
            try:
                return step(self, closure)
            finally:
                torch.set_default_dtype(torch.float32)

        return wrapped

    for cls in (torch.optim.NAdam, torch.optim.ASGD):
        monkeypatch.setattr(cls, "step", in_float64(cls.step))


def pair(name):
    """Our class and torch's."""
    return getattr(adapters, name), getattr(torch.optim, name)


def two_groups(cls, dtype, first, second, **defaults):
    a, b, c, d = start_params(dtype)
    return cls([{"params": [a, b], **first}, {"params": [c, d], **second}], **defaults)


def twins(name, first=None, second=None, dtype=torch.float64, **defaults):
    """Ours and torch's over equal parameters in two groups."""
    return [two_groups(cls, dtype, first or {}, second or {}, **defaults) for cls in pair(name)]


def double(x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_is_torchs(name):
    ours, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(cls.__init__).parameters.values()] for cls in pair(name)
    )
    assert ours == theirs


@pytest.mark.parametrize("name", NAMES)
def test_the_groups_and_defaults_are_torchs(name):
    ours, theirs = twins(name)
    assert {**ours.defaults} == {**theirs.defaults}
    for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert mine.keys() == other.keys()
        assert all(mine[key] == other[key] for key in mine if key != "params")
    assert type(ours).__name__ == type(theirs).__name__
    assert isinstance(ours, torch.optim.Optimizer)


TWO_GROUPS = [
    ("SGD", {"lr": 0.1}, {"lr": 0.02}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}, {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.3}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"lr": 0.02, "momentum": 0.8, "dampening": 0.4}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}, {"lr": 0.2, "momentum": 0.0, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.01, "maximize": True}, {"lr": 0.02, "momentum": 0.3, "maximize": True, "weight_decay": 0.2}),
    ("SGD", {"lr": 0.1, "momentum": 0.5, "maximize": False}, {"lr": 0.01, "momentum": 0.3, "maximize": True}),
    ("Adam", {"lr": 0.1}, {"lr": 0.01, "betas": (0.5, 0.7), "eps": 1e-3}),
    ("Adam", {"lr": 0.1, "amsgrad": True}, {"lr": 0.01, "weight_decay": 0.3}),
    ("Adam", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1}, {"lr": 0.02, "amsgrad": True, "betas": (0.8, 0.9)}),
    ("Adam", {"lr": 0.1, "weight_decay": 0.3, "decoupled_weight_decay": True}, {"lr": 0.02, "weight_decay": 0.3}),
    ("Adam", {"lr": 0.01, "maximize": True}, {"lr": 0.02, "weight_decay": 0.1, "maximize": True, "amsgrad": True}),
    ("AdamW", {"lr": 0.1}, {"lr": 0.01, "betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.0}),
    ("AdamW", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.5}, {"lr": 0.02, "weight_decay": 0.2}),
    # In float32 torch multiplies by 1 - lr·λ, whose rounding of up to 3e-8 adds up over the steps; 1 - 2⁻¹⁰ is exact.
    ("AdamW", {"lr": 0.01, "maximize": True, "weight_decay": 0.3}, {"lr": 2**-5, "weight_decay": 2**-5, "amsgrad": True}),
    ("AdamW", {"lr": 0.1, "foreach": True}, {"lr": 0.02, "foreach": False, "betas": (0.0, 0.9)}),
    ("NAdam", {"lr": 0.1}, {"lr": 0.01, "betas": (0.5, 0.7), "eps": 1e-3, "momentum_decay": 0.1}),
    ("NAdam", {"lr": 0.1, "weight_decay": 0.3}, {"lr": 2**-5, "weight_decay": 2**-5, "decoupled_weight_decay": True}),
    ("NAdam", {"lr": 0.1, "maximize": True, "momentum_decay": 0.0}, {"lr": 0.1, "foreach": True}),
    ("RAdam", {"lr": 0.1}, {"lr": 0.01, "betas": (0.5, 0.7), "eps": 1e-3}),
    ("RAdam", {"lr": 0.01, "betas": (0.5, 0.6)}, {"lr": 0.1, "betas": (0.0, 0.5), "eps": 1e-3}),
    ("RAdam", {"lr": 0.1, "weight_decay": 0.3}, {"lr": 2**-5, "weight_decay": 2**-5, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.1, "maximize": True, "betas": (0.9, 0.6)}, {"lr": 0.1, "foreach": True}),
    ("Adamax", {"lr": 0.1}, {"lr": 0.01, "betas": (0.5, 0.7), "eps": 1e-3}),
    ("Adamax", {"lr": 0.1, "weight_decay": 0.3}, {"lr": 0.02, "maximize": True}),
    ("Adagrad", {"lr": 0.3}, {"lr": 0.1, "lr_decay": 0.1, "eps": 1e-3}),
    ("Adagrad", {"lr": 0.3, "weight_decay": 0.3}, {"lr": 0.2, "lr_decay": 0.5, "maximize": True}),
    ("Adadelta", {"lr": 1.0}, {"lr": 0.5, "rho": 0.6, "eps": 1e-3}),
    ("Adadelta", {"lr": 1.0, "weight_decay": 0.3}, {"lr": 0.5, "rho": 0.0, "maximize": True}),
    ("RMSprop", {"lr": 0.1}, {"lr": 0.01, "alpha": 0.5, "eps": 1e-3}),
    ("RMSprop", {"lr": 0.01, "centered": True}, {"lr": 0.01, "centered": True, "alpha": 0.7, "momentum": 0.5}),
    ("RMSprop", {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.3}, {"lr": 0.02, "momentum": 0.5, "maximize": True}),
    ("Rprop", {"lr": 0.1}, {"lr": 0.01, "etas": (0.3, 1.5), "step_sizes": (1e-3, 0.1)}),
    ("Rprop", {"lr": 0.1, "maximize": True}, {"lr": 0.01, "step_sizes": (0.05, 0.06)}),
    ("ASGD", {"lr": 0.1}, {"lr": 0.05, "lambd": 0.1, "alpha": 0.5, "t0": 10.0}),
    ("ASGD", {"lr": 0.1, "weight_decay": 0.3, "t0": 0.0}, {"lr": 0.05, "maximize": True, "t0": 20.0}),
]


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS, ids=["float64", "float32"])
@pytest.mark.parametrize("name, first, second", TWO_GROUPS, ids=str)
def test_50_steps_of_two_groups_retrace_torch(name, first, second, dtype, tolerance):
    walk_together(*twins(name, first, second, dtype), steps=50, tolerance=tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS, ids=["float64", "float32"])
def test_50_steps_with_the_defaults(name, dtype, tolerance):
    walk_together(*twins(name, dtype=dtype), steps=50, tolerance=tolerance)


@pytest.mark.parametrize("name, options", [("SGD", {"momentum": 0.9}), ("Adam", {}), ("AdamW", {"weight_decay": 0.3})])
def test_a_tensor_learning_rate(name, options):
    walk_together(*twins(name, {"lr": double(0.1)}, {"lr": 0.02}, **options), steps=50, tolerance=FLOAT64)
    ours, theirs = twins(name, lr=double(0.05), **options)
    walk_together(ours, theirs, steps=25, tolerance=FLOAT64)
    # Filled in place, as torch's schedulers do.
    for optimizer in (ours, theirs):
        for group in optimizer.param_groups:
            group["lr"].fill_(0.01)
    walk_together(ours, theirs, steps=25, tolerance=FLOAT64, first=25)


def test_tensor_betas():
    # torch asks for a tensor lr or capturable with them in some paths; ours takes any mixture.
    betas = (double(0.8), double(0.95))
    ours, _ = twins("AdamW", betas=betas, lr=0.1)
    theirs = two_groups(torch.optim.AdamW, torch.float64, {}, {}, betas=(0.8, 0.95), lr=0.1)
    walk_together(ours, theirs, steps=20, tolerance=FLOAT64)


@pytest.mark.parametrize("name", NAMES)
def test_options_changed_between_steps_take_hold(name):
    ours, theirs = twins(name, lr=0.1)
    walk_together(ours, theirs, steps=5, tolerance=FLOAT64)
    changes = {"lr": 0.03, "weight_decay": 0.4, "momentum": 0.6, "betas": (0.7, 0.9), "eps": 1e-2, "etas": (0.4, 1.3), "rho": 0.5}
    changes |= {"lr_decay": 0.2, "lambd": 0.1, "t0": 3.0, "momentum_decay": 0.1, "alpha": 0.8, "step_sizes": (0.01, 0.1)}
    if name == "RMSprop":  # torch gives a buffer to new parameters only, and fails for lack of it
        del changes["momentum"]
    for optimizer in (ours, theirs):
        optimizer.param_groups[1].update({key: value for key, value in changes.items() if key in optimizer.defaults})
    walk_together(ours, theirs, steps=10, tolerance=FLOAT64, first=5)
    for optimizer in (ours, theirs):
        optimizer.param_groups[1].update(maximize=True, **({"weight_decay": 0.0} if name in DECAYING else {}))
    walk_together(ours, theirs, steps=10, tolerance=FLOAT64, first=15)


@pytest.mark.parametrize("name, options", [("NAdam", {}), ("ASGD", {"lambd": 0.1})])
def test_numbers_that_torch_rounds_to_float32(name, options, monkeypatch):
    monkeypatch.undo()
    # 50 steps, each with a step size that is off by 6e-8 of it.
    walk_together(*twins(name, lr=0.1, **options), steps=50, tolerance=1e-6)
    with pytest.raises(AssertionError):
        walk_together(*twins(name, lr=0.1, **options), steps=50, tolerance=1e-11)


def test_momentum_switched_on_off_and_on_again():
    ours, theirs = twins("SGD", {"dampening": 0.3}, lr=0.05)
    for i, momentum in enumerate((0.0, 0.9, 0.0, 0.5)):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["momentum"] = momentum
        walk_together(ours, theirs, steps=4, tolerance=FLOAT64, first=4 * i)


@pytest.mark.parametrize("name, options", EXAMPLES.items(), ids=NAMES)
def test_skipped_late_and_added_parameters(name, options):
    ours, theirs = twins(name, lr=0.1, **options)
    for t in range(24):
        if t == 12:
            for optimizer in (ours, theirs):
                optimizer.add_param_group({"params": start_params(torch.float64, [(2,)]), "lr": 0.3})
        lists = [[p for group in o.param_groups for p in group["params"]] for o in (ours, theirs)]
        for params in lists:
            set_gradients(params, t)
            if t < 5 or t % 4 == 0:
                params[0].grad = None  # late, and skipped now and then
            if t % 3 == 0:
                params[3].grad = None
            if t == 7:
                for p in params:
                    p.grad = None
        ours.step()
        theirs.step()
        assert_params_close(*lists, FLOAT64)
        if name != "Adagrad":  # which in torch has its state at once
            assert [p in ours.state for p in lists[0]] == [p in theirs.state for p in lists[1]]
        if name != "SGD":
            steps = [
                [o.state[p]["step"].item() for p in params if o.state.get(p, {"step": 0})["step"]]
                for o, params in zip((ours, theirs), lists, strict=True)
            ]
            assert steps[0] == steps[1]


@pytest.mark.parametrize("name, options", EXAMPLES.items(), ids=NAMES)
def test_complex_parameters(name, options):
    def make(cls):
        decay = {"weight_decay": 0.2} if name in DECAYING else {}
        generator = torch.Generator().manual_seed(3)
        shapes = [(3, 2), (), (0,)]
        params = [torch.nn.Parameter(torch.randn(s, dtype=torch.complex128, generator=generator)) for s in shapes]
        return cls([*params, *start_params(torch.float64, [(2,)])], lr=0.1, **decay, **options)

    optimizers = [make(cls) for cls in pair(name)]
    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        grads = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in optimizers[0].param_groups[0]["params"]]
        for optimizer in optimizers:
            for p, g in zip(optimizer.param_groups[0]["params"], grads, strict=True):
                p.grad = g.clone()
            optimizer.step()
        assert_params_close(*(o.param_groups[0]["params"] for o in optimizers), FLOAT64)


@pytest.mark.parametrize("name, options", EXAMPLES.items(), ids=NAMES)
def test_empty_scalar_and_non_contiguous_parameters(name, options):
    def make(cls):
        generator = torch.Generator().manual_seed(3)
        base = torch.randn(4, 6, dtype=torch.float64, generator=generator)
        params = [base.t(), base.clone()[:, ::2], base[0, 0].clone(), base.new_zeros(0, 3), base.clone().reshape(2, 3, 2, 2)]
        params[4] = params[4].to(memory_format=torch.channels_last)
        decay = {"weight_decay": 0.2} if name in DECAYING else {}
        return cls([torch.nn.Parameter(p) for p in params], lr=0.1, **decay, **options)

    ours, theirs = (make(cls) for cls in pair(name))
    strides = [p.stride() for p in ours.param_groups[0]["params"]]
    assert strides[0] == (1, 6) and strides[1] == (6, 2)
    walk_together(ours, theirs, steps=20, tolerance=FLOAT64)
    assert [p.stride() for p in ours.param_groups[0]["params"]] == strides


# Schedulers write into the groups.

SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.5),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1 / (1 + t)]),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, max_lr=[0.1, 0.02], total_steps=51, cycle_momentum=not {"momentum", "betas"}.isdisjoint(o.defaults)
    ),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, 8, cycle_momentum="momentum" in o.defaults),
    "warm restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 9),
}


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("name", NAMES)
def test_under_a_scheduler(name, schedule):
    momentum = {"momentum": 0.9} if name == "SGD" else {}
    ours, theirs = twins(name, {"lr": 0.1}, {"lr": 0.02}, **momentum)
    schedulers = [SCHEDULERS[schedule](o) for o in (ours, theirs)]
    lrs = {group["lr"] for group in ours.param_groups}
    walk_together(ours, theirs, steps=50, tolerance=FLOAT64, schedulers=schedulers)
    assert {group["lr"] for group in ours.param_groups} != lrs
    if schedule == "OneCycleLR" and "betas" in ours.defaults:
        assert ours.param_groups[0]["betas"] == theirs.param_groups[0]["betas"] != (0.9, 0.999)


# Checkpoints.


def saved(optimizer):
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def moved(source, target):
    """Give the target's parameters the source's values."""
    with torch.no_grad():
        for a, b in zip(source.param_groups, target.param_groups, strict=True):
            for p, q in zip(a["params"], b["params"], strict=True):
                q.copy_(p)


CHECKPOINTS = [
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {}),
    ("SGD", {"maximize": True, "momentum": 0.5}),
    ("Adam", {"amsgrad": True}),
    ("Adam", {"amsgrad": True, "maximize": True, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("AdamW", {"weight_decay": 0.0, "betas": (0.5, 0.8)}),
    *((name, EXAMPLES[name]) for name in NAMES[3:]),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.5, "maximize": True}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
]


@pytest.mark.parametrize("name, options", CHECKPOINTS, ids=str)
def test_torchs_checkpoint_loads_into_ours_and_goes_on(name, options):
    _, theirs = twins(name, {"lr": 0.1}, {"lr": 0.02}, **options)
    _, witness = twins(name, {"lr": 0.1}, {"lr": 0.02}, **options)
    walk_together(theirs, witness, steps=15, tolerance=0)
    fresh, _ = twins(name)  # the checkpoint brings its own options
    moved(theirs, fresh)
    fresh.load_state_dict(saved(theirs))
    assert [g["lr"] for g in fresh.param_groups] == [0.1, 0.02]
    walk_together(fresh, theirs, steps=25, tolerance=FLOAT64, first=15)


@pytest.mark.parametrize("name, options", CHECKPOINTS, ids=str)
def test_our_checkpoint_loads_into_torch_and_goes_on(name, options):
    ours, _ = twins(name, {"lr": 0.1}, {"lr": 0.02}, **options)
    for t in range(15):
        set_gradients([p for g in ours.param_groups for p in g["params"]], t)
        ours.step()
    _, fresh = twins(name)
    moved(ours, fresh)
    fresh.load_state_dict(saved(ours))
    walk_together(ours, fresh, steps=25, tolerance=FLOAT64, first=15)


@pytest.mark.parametrize("name, options", CHECKPOINTS, ids=str)
def test_our_checkpoint_goes_on_bit_by_bit(name, options):
    ours, _ = twins(name, {"lr": 0.1}, {"lr": 0.02}, dtype=torch.float32, **options)
    for t in range(10):
        set_gradients([p for g in ours.param_groups for p in g["params"]], t)
        ours.step()
    fresh, _ = twins(name, dtype=torch.float32)
    moved(ours, fresh)
    fresh.load_state_dict(saved(ours))
    walk_together(ours, fresh, steps=10, tolerance=0, first=10)


@pytest.mark.parametrize("name, options", EXAMPLES.items(), ids=NAMES)
def test_the_state_has_torchs_names_and_shapes(name, options):
    ours, theirs = twins(name, **options)
    walk_together(ours, theirs, steps=2, tolerance=FLOAT64)
    for mine, other in zip(ours.state.values(), theirs.state.values(), strict=True):
        # Links of a chain that count for themselves keep a count of another name.
        assert {key for key in mine if not key.endswith("step")} == set(other) - {"step"}
        for key in other:
            assert mine[key].shape == other[key].shape and (mine[key].dtype == other[key].dtype or key == "step")
            # Same formulas in float64, two steps.
            torch.testing.assert_close(mine[key], other[key].to(mine[key].dtype), rtol=1e-14, atol=1e-15)


def test_a_checkpoint_of_before_an_option_existed():
    # Old files lack options that came later; the class's defaults fill in, as in torch.
    ours, theirs = twins("AdamW", lr=0.1)
    walk_together(ours, theirs, steps=5, tolerance=FLOAT64)
    for optimizer in (ours, theirs):
        old = saved(optimizer)
        for group in old["param_groups"]:
            for key in ("maximize", "foreach", "capturable", "differentiable", "fused"):
                group.pop(key)
        for slots in old["state"].values():
            slots["step"] = int(slots["step"])  # a Python number, once
        optimizer.load_state_dict(old)
    walk_together(ours, theirs, steps=10, tolerance=FLOAT64, first=5)


# What torch refuses, ours refuses; the messages are ours.


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("SGD", {"lr": -0.1}, r"lr = -0.1 is outside \[0, inf\)"),
        ("SGD", {"momentum": -0.1}, r"momentum = -0.1 is outside \[0, inf\)"),
        ("SGD", {"weight_decay": -0.1}, r"weight_decay = -0.1 is outside \[0, inf\)"),
        ("SGD", {"nesterov": True}, r"nesterov=True needs a momentum"),
        ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, r"nesterov=True needs dampening=0, but got dampening=0.1"),
        ("Adam", {"lr": -1.0}, r"lr = -1.0 is outside"),
        ("Adam", {"betas": (1.0, 0.9)}, r"betas\[0\] = 1.0 is outside \[0, 1\)"),
        ("Adam", {"betas": (0.9, -0.1)}, r"betas\[1\] = -0.1 is outside \[0, 1\)"),
        ("Adam", {"eps": -1e-8}, r"eps = -1e-08 is outside \[0, inf\)"),
        ("Adam", {"weight_decay": -1.0}, r"weight_decay = -1.0 is outside"),
        ("AdamW", {"weight_decay": -1.0}, r"weight_decay = -1.0 is outside"),
        ("AdamW", {"betas": (0.9, float("nan"))}, r"betas\[1\] = nan is outside \[0, 1\)"),
        ("NAdam", {"momentum_decay": -1.0}, r"momentum_decay = -1.0 is outside \[0, inf\)"),
        ("NAdam", {"betas": (1.0, 0.9)}, r"betas\[0\] = 1.0 is outside \[0, 1\)"),
        ("RAdam", {"betas": (0.9, 1.0)}, r"betas\[1\] = 1.0 is outside \[0, 1\)"),
        ("Adamax", {"eps": -1.0}, r"eps = -1.0 is outside \[0, inf\)"),
        ("Adagrad", {"lr_decay": -1.0}, r"lr_decay = -1.0 is outside \[0, inf\)"),
        ("Adagrad", {"initial_accumulator_value": -1.0}, r"initial_accumulator_value = -1.0 is outside \[0, inf\)"),
        ("Adadelta", {"rho": 1.1}, r"rho = 1.1 is outside \[0, 1\]"),
        ("RMSprop", {"alpha": -0.1}, r"alpha = -0.1 is outside \[0, 1\)"),
        ("RMSprop", {"momentum": -0.1}, r"momentum = -0.1 is outside \[0, inf\)"),
        ("Rprop", {"etas": (1.1, 1.2)}, r"etas\[0\] = 1.1 is outside \(0, 1\)"),
        ("Rprop", {"etas": (0.5, 1.0)}, r"etas\[1\] = 1.0 is outside \(1, inf\)"),
        ("ASGD", {"weight_decay": -1.0}, r"weight_decay = -1.0 is outside \[0, inf\)"),
    ],
)
def test_numbers_out_of_range(name, options, message):
    ours, theirs = pair(name)
    if "nan" not in message:  # torch lets some NaN through
        with pytest.raises(ValueError):
            theirs(start_params(), **options)
    with pytest.raises(ValueError, match=r"param_groups\[0\]: .*" + message):
        ours(start_params(), **options)
    optimizer = ours(start_params())
    with pytest.raises(ValueError, match=r"param_groups\[1\]: .*" + message):
        optimizer.add_param_group({"params": start_params(torch.float64, [(2,)]), **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", NAMES)
def test_differentiable_is_refused_with_a_way_out(name):
    with pytest.raises(
        ValueError, match=r"differentiable=True: .*use the transform itself \(functional_optim.sgd, adam, adamw, ...\)"
    ):
        getattr(adapters, name)(start_params(), differentiable=True)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_momentum_and_decay_of_0_cost_no_slot(name):
    ours, theirs = twins(name, weight_decay=0.0)
    walk_together(ours, theirs, steps=1, tolerance=FLOAT64)
    tensors = [sum(isinstance(v, torch.Tensor) for v in o.state[p].values()) for o in (ours, theirs) for p in o.state]
    assert set(tensors) <= ({0} if name == "SGD" else {3})
