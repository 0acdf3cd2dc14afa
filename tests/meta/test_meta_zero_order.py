"""Zero-order gradients: their expectation and variance where both are known."""

import functools

import pytest
import torch
from meta_helpers import close

import functional_optim as fo

DOUBLE = {"dtype": torch.float64}
ESTIMATORS = ["antithetic", "forward", "naive"]


def quadratic(p, a):
    return 0.5 * (a * p["x"] ** 2).sum() + 3 * p["y"] + 2


A = torch.tensor([1.0, 4.0, -2.0], **DOUBLE)
AT = {"x": torch.tensor([0.5, -1.0, 2.0], **DOUBLE), "y": torch.tensor(1.5, **DOUBLE)}


def estimates(estimator, repeats=400, samples=8, sigma=0.7, function=quadratic, at=AT, args=(A,)):
    gradient = fo.meta.zero_order_grad(function, samples=samples, sigma=sigma, estimator=estimator)
    generator = torch.Generator().manual_seed(0)
    drawn = [gradient(at, *args, generator=generator) for _ in range(repeats)]
    return {name: torch.stack([g[name] for g in drawn]) for name in at}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_expectation_on_a_quadratic_is_the_gradient(estimator):
    """Smoothing adds a constant to a quadratic, so its gradient stays. Four standard errors: one in 16 000."""
    true = torch.func.grad(quadratic)(AT, A)
    for name, drawn in estimates(estimator).items():
        error = drawn.std(0) / len(drawn) ** 0.5
        assert ((drawn.mean(0) - true[name]).abs() <= 4 * error).all()
        # and the standard error is small enough for the test to mean something
        assert (error < (0.6 if estimator == "naive" else 0.2)).all()


def test_the_expectation_in_a_complex_number_is_the_gradient():
    """In both parts, as torch has it."""
    at = {"x": torch.tensor([1.0 + 2.0j, 0.5 - 1.0j], dtype=torch.complex128)}

    def function(p):
        return p["x"].abs().square().sum()

    drawn = estimates("antithetic", function=function, at=at, args=())["x"]
    error = torch.view_as_real(drawn).std(0) / len(drawn) ** 0.5
    assert (torch.view_as_real(drawn.mean(0) - torch.func.grad(function)(at)["x"]).abs() <= 4 * error).all()
    assert (error < 0.2).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_expectation_is_the_gradient_of_the_smoothed_function(estimator):
    """E sin(x + σε) = sin(x) exp(−σ²/2), whose slope is not cos(x)."""
    sigma, at = 0.8, {"x": torch.tensor(0.4, **DOUBLE)}
    drawn = estimates(estimator, sigma=sigma, function=lambda p: torch.sin(p["x"]), at=at, args=())["x"]
    expected = torch.cos(at["x"]) * torch.exp(torch.tensor(-(sigma**2) / 2))
    error = drawn.std() / len(drawn) ** 0.5
    assert (drawn.mean() - expected).abs() <= 4 * error
    assert 4 * error < (torch.cos(at["x"]) - expected).abs()


def test_the_variance_on_a_linear_function_is_known():
    """Of f = c·p one direction gives (cᵀε)ε, of variance |c|² + cᵢ²; far from 0, the naive one also has f² / σ²."""
    c = torch.tensor([1.0, 2.0, -1.0], **DOUBLE)
    at = {"x": torch.zeros(3, **DOUBLE)}
    known = (c * c).sum() + c * c
    for estimator in ESTIMATORS:
        many = estimates(estimator, repeats=1000, samples=1, function=lambda p: (c * p["x"]).sum(), at=at, args=())["x"]
        # the relative standard error of a variance from n draws with such tails is about √(8/n)
        torch.testing.assert_close(many.var(0), known, rtol=4 * (8 / 1000) ** 0.5, atol=0)
    far = {"x": torch.full((3,), 100.0, **DOUBLE)}
    spread = {
        estimator: estimates(estimator, samples=1, function=lambda p: (c * p["x"]).sum(), at=far, args=())["x"].var()
        for estimator in ESTIMATORS
    }
    assert spread["naive"] > 100 * spread["forward"] and spread["forward"] < 2 * spread["antithetic"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_estimate_is_its_formula(estimator):
    """With the same generator, the sum written as a loop."""
    sigma, n = 0.3, 4
    found = fo.meta.zero_order_grad(quadratic, samples=n, sigma=sigma, estimator=estimator)(
        AT, A, generator=torch.Generator().manual_seed(5)
    )
    generator = torch.Generator().manual_seed(5)
    noise = {name: torch.randn((n, *p.shape), generator=generator, **DOUBLE) for name, p in AT.items()}
    expected = {name: torch.zeros_like(p) for name, p in AT.items()}
    for i in range(n):
        plus, minus = ({name: p + side * noise[name][i] for name, p in AT.items()} for side in (sigma, -sigma))
        difference = {
            "antithetic": (quadratic(plus, A) - quadratic(minus, A)) / 2,
            "forward": quadratic(plus, A) - quadratic(AT, A),
            "naive": quadratic(plus, A),
        }[estimator]
        expected = {name: e + difference * noise[name][i] / (n * sigma) for name, e in expected.items()}
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_batched_in_chunks_or_one_by_one_is_the_same():
    def reads_values(p, a):
        return torch.tensor(float(quadratic(p, a)), **DOUBLE)

    def draw(function=quadratic, **options):
        gradient = fo.meta.zero_order_grad(function, samples=5, sigma=0.1, **options)
        return gradient(AT, A, generator=torch.Generator().manual_seed(1))

    whole = draw()
    torch.testing.assert_close(draw(chunk_size=2), whole)
    torch.testing.assert_close(draw(reads_values, batched=False), whole)
    assert not torch.equal(whole["x"], draw(estimator="forward")["x"])


@pytest.mark.parametrize("batched", [True, False])
def test_what_is_no_floating_point_tensor_stays(batched):
    """The estimate for the rest is what it is without it, and its own gradient is None."""
    gradient = functools.partial(fo.meta.zero_order_grad, samples=3, sigma=0.1, batched=batched)
    w = torch.tensor([1.0, 2.0], dtype=torch.float64)
    params = {"a": None, "n": torch.tensor(3), "w": w, "z": [None]}

    def loss(params):
        assert params["a"] is None and params["z"] == [None]
        return params["n"] * (params["w"] ** 2).sum()

    found = gradient(loss)(params, generator=torch.Generator().manual_seed(0))
    alone = gradient(lambda w: 3 * (w**2).sum())(w, generator=torch.Generator().manual_seed(0))
    assert found["a"] is None and found["n"] is None and found["z"] == [None]
    close(found["w"], alone, rtol=1e-14, atol=0)
    with pytest.raises(ValueError, match="no floating-point tensor"):
        gradient(lambda p: p)({"n": torch.tensor(3)}, generator=torch.Generator())


def test_a_learning_rate_is_learned_through_a_loop_without_derivatives():
    """The inner loss is rounded, so that its derivative is 0; the estimate still points down, where the smooth loss does."""
    x0 = torch.full((3,), 2.0, **DOUBLE)
    inner = fo.meta.unroll(lambda p: 0.5 * (p * p).sum(), fo.sgd(), 5)

    def final(log_lr):
        return 0.5 * (inner(x0, {"lr": log_lr.exp()}).params ** 2).sum()

    def rounded(log_lr):
        return (64 * final(log_lr)).round() / 64

    at = torch.tensor(-2.0, **DOUBLE)
    assert torch.func.grad(rounded)(at) == 0
    gradient = fo.meta.zero_order_grad(rounded, samples=2000, sigma=0.2)(at, generator=torch.Generator().manual_seed(0))
    smooth = torch.func.grad(final)(at)
    # smoothing by σ = 0.2 changes the slope by about σ²/2 · f'''/f'; 2000 antithetic draws of a nearly linear function, 1/√1000
    torch.testing.assert_close(gradient, smooth, rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0, "sigma": 0.1}, "samples = 0: expected a whole number of at least 1"),
        ({"samples": 1, "sigma": 0.0}, r"sigma = 0.0 is outside \(0, inf\)"),
        ({"samples": 1, "sigma": 0.1, "estimator": "both"}, "estimator = 'both': expected one of 'antithetic'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        fo.meta.zero_order_grad(quadratic, **options)
