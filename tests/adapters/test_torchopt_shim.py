"""TorchOpt's functional API over this library, beside TorchOpt itself: the same program with either."""

import pytest
import torch

import functional_optim.adapters.torchopt as shim

torchopt = pytest.importorskip("torchopt", reason="TorchOpt is not installed: the extra `bench` brings it")

# Name, positional arguments and keywords, as TorchOpt takes them.
OPTIMIZERS = {
    "adam": ("adam", (0.1,), {}),
    "adam with decay": ("adam", (), {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1, "maximize": True}),
    "adamw": ("adamw", (0.1, (0.9, 0.99), 1e-6, 0.2), {"moment_requires_grad": True}),
    "adadelta": ("adadelta", (0.5,), {}),
    "adagrad": ("adagrad", (0.1, 0.1), {"initial_accumulator_value": 0.1}),
    "adamax": ("adamax", (0.1,), {}),
    "radam": ("radam", (0.1,), {"weight_decay": 0.1}),
    "rmsprop": ("rmsprop", (0.1,), {"momentum": 0.9, "centered": True}),
    "sgd": ("sgd", (0.1,), {}),
    "sgd with momentum": ("sgd", (0.1, 0.9), {"weight_decay": 0.1, "nesterov": True}),
}


def run(package, transformation, steps=6):
    """The program: TorchOpt's functional loop."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    params = {"w": draw(3, 2), "b": (draw(2),)}
    state = transformation.init(params)
    for _ in range(steps):
        grads = {"w": draw(3, 2), "b": (draw(2),)}
        updates, state = transformation.update(grads, state, params=params, inplace=False)
        params = package.apply_updates(params, updates, inplace=False)
    return params


def compare(make, **tolerance):
    ours, theirs = run(shim, make(shim)), run(torchopt, make(torchopt))
    # TorchOpt's bias corrections are float32: 1 − 0.999ᵗ is off by about 1e-5 of itself there.
    torch.testing.assert_close(ours, theirs, **{"rtol": 2e-5, "atol": 2e-5} | tolerance)


@pytest.mark.parametrize("name, args, kwargs", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers(name, args, kwargs):
    compare(lambda package: getattr(package, name)(*args, **kwargs))


SCHEDULES = {
    "linear": lambda package: package.schedule.linear_schedule(0.5, 0.1, 3, 1),
    "polynomial": lambda package: package.schedule.polynomial_schedule(0.5, 0.1, 2, 4),
    "exponential": lambda package: package.schedule.exponential_decay(0.5, 0.7, 1, 2),
    "by name": lambda package: package.schedule.linear_schedule(init_value=0.5, end_value=0.1, transition_steps=3),
    "a function": lambda package: lambda count: 0.5 / (1 + count),
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_as_learning_rates(make):
    compare(lambda package: package.sgd(make(package), momentum=0.5))
    for count in range(6):
        assert float(make(shim)(count)) == pytest.approx(float(make(torchopt)(count)), rel=1e-12)


LINKS = {
    "clipping": lambda package: package.chain(package.clip_grad_norm(0.5), package.adam(0.1)),
    "chain of a method": lambda package: package.clip_grad_norm(0.5).chain(package.sgd(0.1)),
    "links": lambda package: package.chain(
        package.transform.scale_by_adam(b1=0.8),
        package.transform.add_decayed_weights(0.1),
        package.transform.trace(0.5),
        package.transform.scale(-0.1),
    ),
    "roots": lambda package: package.chain(package.transform.scale_by_rms(), package.transform.scale(-0.1)),
    "masked": lambda package: package.transform.masked(package.sgd(0.1), {"w": True, "b": (False,)}),
    "scheduled": lambda package: package.transform.scale_by_schedule(lambda t: -0.1 / (1 + t)),
}


@pytest.mark.parametrize("make", LINKS.values(), ids=LINKS)
def test_links(make):
    compare(make)


@pytest.mark.parametrize(
    "mask", [{"w": True, "b": (False,)}, lambda params: {"w": True, "b": (False,)}], ids=["tree", "function"]
)
def test_adamw_decays_what_the_mask_says(mask):
    """TorchOpt 0.7.3 decays everything, whatever the mask."""
    masked, all_, none = (
        run(shim, shim.adamw(0.1, weight_decay=decay, mask=m)) for decay, m in [(0.5, mask), (0.5, None), (0, None)]
    )
    torch.testing.assert_close([masked["w"], masked["b"]], [all_["w"], none["b"]])


def maml(package):
    """d (loss after two steps) / d (start, learning rate)."""
    start = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    optimizer = package.FuncOptimizer(package.sgd(lr, momentum=0.9, moment_requires_grad=True))
    params = (start,)
    for _ in range(2):
        params = optimizer.step((params[0] ** 4).sum(), params)
    return torch.autograd.grad((params[0] ** 2).sum(), (start, lr))


def test_the_wrapper_with_a_state_is_differentiable():
    torch.testing.assert_close(maml(shim), maml(torchopt), rtol=1e-12, atol=0.0)


def test_what_is_written_to():
    """A program that drops the state that it gets back, as posteriors does, goes on from the one it has."""
    param, optimizer = torch.ones(2), shim.chain(shim.clip_grad_norm(1.0), shim.adam(0.1))
    kept, state = optimizer.init(param), optimizer.init(param)
    for _ in range(2):
        updates, _ = optimizer.update(torch.ones(2), state, params=param)
        pure, kept = optimizer.update(torch.ones(2), kept, params=param, inplace=False)
        assert shim.apply_updates(param, updates, inplace=True) is param
        torch.testing.assert_close(updates, pure, rtol=0, atol=0)
    torch.testing.assert_close(state, kept, rtol=0, atol=0)
    assert shim.apply_updates(param, updates, inplace=False) is not param and (param < 1).all()


def test_lists_and_tuples_are_alike():
    """As in posteriors' variational inference: parameters in a list, gradients in a tuple."""
    first, second = {"w": torch.ones(2)}, torch.full((3,), 2.0)
    found = []
    for package in (shim, torchopt):
        optimizer = package.chain(package.clip_grad_norm(1.0), package.adam(0.1))
        state = optimizer.init([first, second])
        updates, _ = optimizer.update((first, second), state, params=[first, second], inplace=False)
        found.append(package.apply_updates((first, second), updates, inplace=False))
    assert type(found[0]) is type(found[1]) is tuple
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)  # float32


def test_what_carries_a_derivative_is_not_written_to():
    grads = torch.ones(2, requires_grad=True)
    optimizer = shim.sgd(0.1, momentum=0.9)
    state = optimizer.init(grads)
    _, new = optimizer.update(grads, state, params=grads)
    assert new is not state and torch.autograd.grad(sum(x.sum() for x in torch.utils._pytree.tree_leaves(new) if x.ndim), grads)


def test_what_is_not_here_is_said():
    with pytest.raises(ValueError, match="eps_root"):
        shim.adam(eps_root=1e-8)
    with pytest.raises(ValueError, match="2-norm"):
        shim.clip_grad_norm(1.0, norm_type=1.0)
    with pytest.raises(TypeError, match=r"momentun"):
        shim.sgd(0.1, momentun=0.9)
    with pytest.raises(TypeError, match="expected lr"):
        shim.sgd(*range(9))


def test_a_learning_rate_may_be_batched():
    """What TorchOpt can't: a sweep in one `vmap`."""
    rates = torch.tensor([0.1, 0.2], dtype=torch.float64)

    def after(lr):
        optimizer, p = shim.adam(lr), torch.ones(2, dtype=torch.float64)
        return optimizer.update(p, optimizer.init(p), params=p)[0]

    torch.testing.assert_close(torch.vmap(after)(rates), torch.stack([after(lr) for lr in rates]))
