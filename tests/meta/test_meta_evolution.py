"""PES and NRES: unbiased for the gradient of a whole loop, of which every window sees its part alone."""

import pytest
import torch
from torch import func

import functional_optim as fo

DOUBLE = {"dtype": torch.float64}
STEPS, WINDOW = 12, 3
TARGETS = torch.linspace(-1, 1, STEPS, **DOUBLE)


def step(state, x, params):
    """The state is linear in the parameters, so that the loss is quadratic, of every window's by themselves too."""
    state = 0.8 * state + params["drift"] * x
    return state, ((state - params["goal"]) ** 2).mean()


PARAMS = {"drift": torch.tensor([0.3, -0.2], **DOUBLE), "goal": torch.tensor(0.5, **DOUBLE)}
START = torch.tensor([1.0, -1.0], **DOUBLE)


def total(params, truncate=None):
    return fo.meta.loop(step, START, STEPS, TARGETS, args=(params,), truncate=truncate)[1].sum()


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("estimator", ["pes", "nres"])
def test_unbiased(estimator):
    """Within three standard errors of 10⁴ samples of the exact gradient, by windows and as a whole; truncation is far off."""
    gradient = fo.meta.windowed_grad(step, window=WINDOW, samples=10_000, sigma=0.3, estimator=estimator)
    source = generator()
    particles, found, error = gradient.init(PARAMS, START, generator=source), {}, {}
    for k in range(0, STEPS, WINDOW):
        estimate = gradient.next(PARAMS, particles, TARGETS[k : k + WINDOW], generator=source)
        particles = estimate.particles
        exact = func.grad(lambda p, k=k: fo.meta.loop(step, START, STEPS, TARGETS, args=(p,))[1][k : k + WINDOW].sum())(PARAMS)
        for name, slope in exact.items():
            assert ((estimate.grads[name] - slope).abs() < 3 * estimate.error[name]).all()
            found[name] = found.get(name, 0) + estimate.grads[name]
            error[name] = error.get(name, 0) + estimate.error[name]
    assert particles.steps == STEPS
    truncated = func.grad(lambda p: total(p, truncate=WINDOW))(PARAMS)
    for name, slope in func.grad(total)(PARAMS).items():
        assert ((found[name] - slope).abs() < 3 * error[name]).all()
    assert ((found["drift"] - truncated["drift"]).abs() > 10 * error["drift"]).any()
    whole = gradient(PARAMS, START, STEPS, TARGETS, generator=generator())
    assert all(torch.equal(whole[name], found[name]) for name in PARAMS)


@pytest.mark.parametrize("estimator", ["pes", "nres"])
def test_the_formulas(estimator):
    """Two samples, in floats as the papers have them; the step gets its index in the whole loop."""

    def walk(x, k, rate):
        return x + rate * (k + 1), (x + rate).sin()

    def by_hand(x, k, rate):
        return x + rate * (k + 1), torch.sin(torch.tensor(x + rate, **DOUBLE)).item()

    sigma, n, rate = 0.5, 2, 0.3
    gradient = fo.meta.windowed_grad(walk, window=2, samples=n, sigma=sigma, estimator=estimator, chunk_size=1)
    source, particles = (
        generator(),
        gradient.init(torch.tensor(rate, **DOUBLE), torch.tensor(0.1, **DOUBLE), generator=generator()),
    )
    states, xi = [(0.1, 0.1)] * n, [0.0] * n
    for window in range(3):
        estimate = gradient.next(torch.tensor(rate, **DOUBLE), particles, generator=source)
        particles, terms = estimate.particles, []
        for i, eps in enumerate(particles.noise.tolist()):
            xi[i] = xi[i] + eps if estimator == "pes" else eps
            sums, ends = [], []
            for sign, x in zip((1, -1), states[i], strict=True):
                losses = 0.0
                for k in (2 * window, 2 * window + 1):
                    x, value = by_hand(x, k, rate + sign * sigma * eps)
                    losses += value
                sums.append(losses)
                ends.append(x)
            states[i] = tuple(ends)
            terms.append((sums[0] - sums[1]) / (2 * sigma) * xi[i])
        assert estimate.grads.item() == pytest.approx(sum(terms) / n, rel=1e-9)
        assert estimate.error.item() == pytest.approx(abs(terms[0] - terms[1]) / 2, rel=1e-9)
        rate += 0.1  # parameters move between windows


def test_directions_are_new_for_pes_alone():
    for estimator, same in (("pes", False), ("nres", True)):
        gradient = fo.meta.windowed_grad(step, window=WINDOW, samples=3, sigma=0.1, estimator=estimator)
        source = generator()
        particles = gradient.init(PARAMS, START, generator=source)
        drawn = []
        for _ in range(2):
            particles = gradient.next(PARAMS, particles, TARGETS[:WINDOW], generator=source).particles
            drawn.append(particles.noise["drift"])
        assert torch.equal(*drawn) == same


def test_integers_stay():
    def scaled(x, k, params):
        return x * params[0] * params[1], x

    gradient = fo.meta.windowed_grad(scaled, window=1, samples=2, sigma=0.1)
    grads = gradient([torch.tensor(0.5), torch.tensor(2), None], torch.tensor(1.0), 2, generator=generator())
    assert grads[0].shape == () and grads[1:] == [None, None]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"window": 0}, ValueError, "window = 0"),
        ({"samples": 1.5}, TypeError, "samples"),
        ({"samples": 1}, ValueError, "samples = 1: expected a whole number of at least 2"),
        ({"sigma": 0.0}, ValueError, "sigma"),
        ({"estimator": "es"}, ValueError, "estimator = 'es': expected one of 'pes', 'nres'"),
    ],
)
def test_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        fo.meta.windowed_grad(step, **{"window": 2, "samples": 3, "sigma": 0.1, **options})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x: torch.stack([x, x]), r"the loss that the step returned is a tensor of shape \(2,\).*mean or sum"),
        (lambda x: {"loss": x}, "the loss that the step returned is no tensor"),
    ],
)
def test_a_loss_is_one_number(loss, message):
    gradient = fo.meta.windowed_grad(lambda x, k, rate: (x - rate * x, loss(x)), window=2, samples=2, sigma=0.1)
    with pytest.raises(ValueError, match=message):
        gradient(torch.tensor(0.1), torch.tensor(1.0), 2, generator=generator())


def test_windows_fill_the_loop():
    with pytest.raises(ValueError, match="steps = 7: expected a multiple of the window, 2"):
        fo.meta.windowed_grad(step, window=2, samples=3, sigma=0.1)(PARAMS, START, 7, generator=generator())


def test_every_entry_belongs_to_a_step():
    gradient = fo.meta.windowed_grad(step, window=WINDOW, samples=2, sigma=0.3)
    with pytest.raises(ValueError, match=r"xs holds a tensor of shape \(12,\): each needs a first axis of length 9"):
        gradient(PARAMS, START, 9, TARGETS, generator=generator())
