"""The drop-in classes against those of torch.optim that they stand for: signatures, trajectories, checkpoints."""

import functools
import inspect
import io
import pickle

import pytest
import torch
from trajectories import assert_params_close, set_gradients, start_params, walk_together

import functional_optim as fo
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
    # What torch's have not stands at the end.
    assert ours[:-1] == theirs and ours[-1] == ("rounding", inspect.Parameter.KEYWORD_ONLY, "nearest")


@pytest.mark.parametrize("name", NAMES)
def test_none_is_off_as_in_torchs(name):
    """`differentiable=None` alone torch refuses, at its first step."""
    switches = [p.name for p in inspect.signature(getattr(adapters, name)).parameters.values() if p.annotation is bool]
    off = dict.fromkeys({*switches} - {"differentiable"})
    ours, theirs = twins(name, **{**EXAMPLES[name], **off})
    walk_together(ours, theirs, steps=2, tolerance=FLOAT64)


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_finds_the_class_in_the_module_that_held_it(name):
    with pytest.warns(DeprecationWarning, match=f"where {name} was; .* Pickle the optimizer again"):
        found = pickle.loads(f"cfunctional_optim.adapters.torch_classes.drop_in\n{name}\n.".encode())
    assert found is getattr(adapters, name)


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


# Steps that are part of a graph.

ALL = {**EXAMPLES, "Adafactor": {}, "Muon": {}}


def steps_of(cls, options, start, grads):
    """The parameter after steps with these gradients, and its slots."""
    p = start.clone()
    optimizer = cls([p], differentiable=True, **options)
    for g in grads:
        p.grad = g
        optimizer.step()
    return p, optimizer.state[p]


@pytest.mark.parametrize("name", NAMES)
def test_differentiable_steps_retrace_torch_and_their_slopes_are_right(name):
    start = double([0.5, -1.5, 2.0]).requires_grad_()
    grads = [double([0.3, -0.4, 0.1 * t + 0.2]).requires_grad_() for t in range(3)]
    options = {"weight_decay": 0.1} if name in DECAYING else {}
    found = [steps_of(cls, {**EXAMPLES[name], **options}, start, grads)[0] for cls in pair(name)]
    # torch corrects Adam's bias in float32 then.
    assert_params_close(*([p] for p in found), 1e-7 if name in ("Adam", "AdamW") else FLOAT64)

    # torch's slopes won't do: it cuts SGD's first buffer out of the graph, and of others it overwrites what backward needs.
    def last(p, *grads):
        end, slots = steps_of(pair(name)[0], {**EXAMPLES[name], **options}, p, grads)
        return end, *(x for x in slots.values() if x.requires_grad)

    assert torch.autograd.gradcheck(last, (start, *grads))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_slopes_in_the_learning_rate_and_in_slots(name):
    def loss(lr, g):
        p, slots = steps_of(getattr(adapters, name), {**EXAMPLES[name], "lr": lr, "weight_decay": lr * 0.1}, start, [g, 2 * g])
        return (p * p).sum() + sum((x * x).sum() for key, x in slots.items() if key != "step")

    start = double([0.5, -1.5, 2.0])
    assert torch.autograd.gradcheck(loss, (double(0.1).requires_grad_(), double([0.3, -0.4, 0.2]).requires_grad_()))


def test_a_differentiable_step_leaves_alone_what_the_graph_has_seen():
    p, decay = double([1.0, 2.0]).requires_grad_(), double(0.1).requires_grad_()
    q = p.clone()
    optimizer = adapters.Adam([q], lr=0.1, weight_decay=decay, differentiable=True)
    q.grad = p * 3
    optimizer.step()
    exp_avg = optimizer.state[q]["exp_avg"]
    seen, kept = exp_avg * exp_avg, exp_avg.detach().clone()
    q.grad = p * 2
    optimizer.step()
    assert torch.equal(exp_avg, kept)
    torch.autograd.grad(seen.sum() + q.sum(), [p, decay])  # would raise, had something been written to


def test_a_leaf_and_a_kernel_are_refused_in_a_differentiable_step():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = adapters.SGD([("w", p)], differentiable=True)
    p.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"differentiable=True, but w is a leaf of the graph.*p.clone\(\)"):
        optimizer.step()
    assert torch.equal(p, torch.ones(2)) and not optimizer.state
    with pytest.raises(RuntimeError, match=r"param_groups\[0\]: a differentiable step can't be fused"):
        adapters.Adam([p], differentiable=True, fused=True)


# Sparse gradients.

SPARSE = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "maximize": True}),
    ("Adagrad", {"lr": 0.1}),
    ("SparseAdam", {"lr": 0.1}),
    ("SparseAdam", {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3, "maximize": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "maximize": True, "initial_accumulator_value": 0.1}),
]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of what torch's Adagrad makes
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")  # of torch's own loading, from 2.14 on
@pytest.mark.parametrize("name, options", SPARSE, ids=str)
def test_sparse_gradients_retrace_torch(name, options):
    def make(cls):
        torch.manual_seed(0)
        embedding, linear = torch.nn.Embedding(10, 3, sparse=True), torch.nn.Linear(3, 1)
        model = torch.nn.Sequential(embedding, linear).double()
        # SparseAdam takes no others.
        trained = embedding if name == "SparseAdam" else model
        return model, cls(trained.parameters(), **options)

    (ours, optimizer), (theirs, other) = (make(cls) for cls in pair(name))
    for words in ([1, 4, 1], [4, 7], [], [9, 1, 1, 1], [2]):
        for model, each in ((ours, optimizer), (theirs, other)):
            each.zero_grad()
            (model(torch.tensor(words, dtype=torch.int64)) ** 2).sum().backward()
            assert model[0].weight.grad.is_sparse
            each.step()
            assert model[0].weight.grad.is_sparse
        assert_params_close(list(ours.parameters()), list(theirs.parameters()), FLOAT64)
    fresh = getattr(adapters, name)(ours[0].parameters() if name == "SparseAdam" else ours.parameters())
    fresh.load_state_dict(saved(other))
    for slots, expected in zip(fresh.state.values(), other.state.values(), strict=bool(other.state)):
        for slot in set(expected) - {"step"}:
            torch.testing.assert_close(slots[slot], expected[slot].to_dense(), rtol=FLOAT64, atol=FLOAT64)


def test_elements_without_a_sparse_gradient_are_not_computed():
    # An infinite element, times 0, would be NaN.
    p = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [float("inf"), 3.0]]))
    p.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, 2), (2, 2), check_invariants=True)
    adapters.SGD([p], lr=0.5).step()
    assert p.tolist() == [[0.5, 1.5], [float("inf"), 3.0]]


def test_sparse_adam_takes_no_dense_gradient_and_dense_it_is_the_function():
    p, q = (torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)) for _ in range(2))
    optimizer = adapters.SparseAdam([("p", p), ("q", q)], lr=0.1)
    q.grad = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="SparseAdam takes sparse gradients, but that of q is dense"):
        optimizer.step()
    assert not optimizer.state
    q.grad = None
    tx, params = fo.chain(fo.scale_by_sparse_adam(), fo.scale_by_learning_rate(0.1)), p.detach().clone()
    state = tx.init_state(params)
    for row in (0, 1, 1, 0, 0):
        dense = torch.zeros(2, 2, dtype=torch.float64)
        dense[row] = torch.tensor([0.5, -2.0]) * (row + 1)
        p.grad = dense.to_sparse(1)
        optimizer.step()
        params, state = tx.step(dense, state, params)
        torch.testing.assert_close(p.detach(), params, rtol=FLOAT64, atol=0)
    assert fo.sparse_adam(0.1).hparams == tx.hparams
    for slot in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(optimizer.state[p][slot], state["scale_by_sparse_adam"][slot], rtol=FLOAT64, atol=0)


def test_sparse_gradients_are_refused_as_torch_refuses_them():
    for name, options, message in (
        ("SGD", {"weight_decay": 0.1}, "w has a sparse gradient, and a weight_decay would make it dense"),
        ("Adagrad", {"weight_decay": 0.1}, "w has a sparse gradient, and a weight_decay would make it dense"),
        ("Adam", {}, "sparse"),
    ):
        for cls in pair(name):
            p, q = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(1))
            p.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (4,), check_invariants=True)
            q.grad = torch.ones(1)
            ours = cls is not getattr(torch.optim, name)
            optimizer = cls([("v", q), ("w", p)] if ours else [p], **options)
            with pytest.raises((RuntimeError, TypeError), match=message if ours else None):
                optimizer.step()
            assert not ours or (torch.equal(p, torch.ones(4)) and torch.equal(q, torch.ones(1)))


# What is written into a group.


@pytest.mark.parametrize("name", ALL)
def test_a_learning_rate_of_one_element_is_a_number(name):
    cls = getattr(adapters, name)
    rates = [torch.full(shape, 0.1) for shape in ((), (1,), (1, 1))]
    params = [torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]])) for _ in rates]
    optimizers = [cls([p], lr=lr, **ALL[name]) for p, lr in zip(params, rates, strict=True)]
    for t in range(4):
        if t == 2:
            for lr in rates:
                lr.fill_(0.02)  # as torch's schedulers do
        for p, optimizer in zip(params, optimizers, strict=True):
            p.grad = torch.tensor([[1.0, 2.0], [3.0, -1.0]]) * (t + 1)
            optimizer.step()
        assert_params_close([params[0]] * 2, params[1:], 0)
    assert optimizers[1].param_groups[0]["lr"] is rates[1]
    fresh = cls([torch.nn.Parameter(params[1].detach().clone())])
    fresh.load_state_dict(saved(optimizers[1]))
    for optimizer in (fresh, optimizers[0]):
        (p,) = optimizer.param_groups[0]["params"]
        p.grad = torch.ones(2, 2)
        optimizer.step()
    assert_params_close(fresh.param_groups[0]["params"], [params[0]], 0)


def test_a_chain_takes_one_element_too_and_the_pure_form_does_not():
    p = torch.nn.Parameter(torch.ones(2))
    lr, betas = torch.full((1,), 0.5), (torch.tensor([0.5]), 0.9)
    for fused in (False, True):
        optimizer = adapters.OptimizerAdapter([p], fo.adam(), lr=lr, betas=betas, fused=fused)
        twin = adapters.OptimizerAdapter([torch.nn.Parameter(p.detach().clone())], fo.adam(), lr=0.5, betas=(0.5, 0.9))
        for one in (optimizer, twin):
            one.param_groups[0]["params"][0].grad = torch.tensor([1.0, -3.0])
            one.step()
        assert_params_close([p], twin.param_groups[0]["params"], FLOAT32)
    assert adapters.functional_state(optimizer).hparams["lr"].shape == ()
    with pytest.raises(ValueError, match=r"lr is a tensor of shape \(2,\): expected one element"):
        adapters.OptimizerAdapter([p], fo.adam(), lr=torch.ones(2))
    with pytest.raises(TypeError, match=r"lr is a tensor of shape \(1,\)"):
        fo.adam().init_state(torch.ones(2), {"lr": lr})


def test_a_count_of_one_element_in_a_checkpoint():
    ours, theirs = twins("Adam", lr=0.1)
    walk_together(ours, theirs, steps=3, tolerance=FLOAT64)
    old = saved(theirs)
    for slots in old["state"].values():
        slots["step"] = slots["step"].reshape(1)
    ours.load_state_dict(old)
    walk_together(ours, theirs, steps=3, tolerance=FLOAT64, first=3)


@pytest.mark.parametrize("name", [name for name in NAMES if "betas" in inspect.signature(getattr(adapters, name)).parameters])
def test_betas_that_a_scheduler_wrote_are_taken_with_one_warning(name):
    ours, theirs = twins(name, lr=1e-3)
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(o, 1e-3, total_steps=9, base_momentum=0.5, max_momentum=22.0) for o in (ours, theirs)
    ]
    assert ours.param_groups[0]["betas"][0] == 22.0
    with pytest.warns(UserWarning, match=r"param_groups\[0\]: betas = \(22.0, 0.999\) is out of range") as record:
        # 22⁴ is 2·10⁵, which the rounding errors of 1e-16 grow by; the numbers themselves stay below 100.
        walk_together(ours, theirs, steps=4, tolerance=1e-9, schedulers=schedulers)
    assert len(record) == 1
    for bad in ((float("nan"), 0.9), (0.9,), "ab"):
        ours.param_groups[0]["betas"] = bad
        with pytest.raises((TypeError, ValueError), match=r"param_groups\[0\]: betas"):
            ours.step()


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_complex_parameters_are_refused_as_torch_refuses_them(name):
    for cls in pair(name):
        p = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
        optimizer = cls([p])
        p.grad = torch.ones_like(p)
        with pytest.raises(RuntimeError, match=f"{name} does not support complex parameters"):
            optimizer.step()


def test_adagrad_shares_its_memory():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = adapters.Adagrad([p], lr=0.1, initial_accumulator_value=0.5)
    optimizer.share_memory()
    total = optimizer.state[p]["sum"]
    assert total.is_shared() and total.tolist() == [0.5] * 3
    p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    assert optimizer.state[p]["sum"] is total and total.tolist() == [4.5] * 3


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_momentum_and_decay_of_0_cost_no_slot(name):
    ours, theirs = twins(name, weight_decay=0.0)
    walk_together(ours, theirs, steps=1, tolerance=FLOAT64)
    tensors = [sum(isinstance(v, torch.Tensor) for v in o.state[p].values()) for o in (ours, theirs) for p in o.state]
    assert set(tensors) <= ({0} if name == "SGD" else {3})
