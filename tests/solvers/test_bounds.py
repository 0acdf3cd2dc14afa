"""Bounds: beside SciPy's L-BFGS-B and its trust region for residuals, by what holds at a minimum, and in a batch."""

import pytest
import scipy.optimize
import torch
from problems import himmelblau, rosenbrock, vector, wood

import functional_optim as fo
from functional_optim import solvers

CASES = [
    (rosenbrock, vector(-1.2, 1), (-2.0, 0.5)),
    (rosenbrock, vector(-1.2, 1, -1.2, 1), (None, vector(0.8, 2, 2, 2))),
    (wood, vector(-3, -1, -3, -1), (-2.0, 0.9)),
    (himmelblau, vector(0, 0), (vector(0, -1), vector(2.5, 4))),
    (lambda x: ((x - vector(3, -3, 0.2)) ** 2).sum() + x.prod(), vector(0, 0, 0), (-1.0, 1.0)),
]


def pairs_of(bounds, n):
    low, high = (torch.full((n,), float("inf")) * sign if b is None else b for b, sign in zip(bounds, (-1, 1), strict=True))
    low, high = (b.tolist() if isinstance(b, torch.Tensor) else [b] * n for b in (low, high))
    return list(zip(low, high, strict=True))


@pytest.mark.parametrize("method", ["lbfgs", "bfgs", "nonlinear_cg", "newton_cg"])
@pytest.mark.parametrize("fn, start, bounds", CASES)
def test_it_ends_where_no_step_within_the_bounds_leads_down(fn, start, bounds, method):
    """Of several such points each may find another; of one, it is SciPy's. Bent conjugate directions end less exactly."""
    found = fo.minimize(fn, start, method=method, bounds=bounds, max_steps=5000)
    pairs, precision = pairs_of(bounds, len(start)), 1e-3 if method == "nonlinear_cg" else 1e-6
    for x, g, (low, high) in zip(found.params.tolist(), found.grads.tolist(), pairs, strict=True):
        assert low <= x <= high
        assert abs(g) <= precision or (x == low and g > 0) or (x == high and g < 0)

    def value_and_gradient(x):
        g, f = torch.func.grad_and_value(fn)(torch.tensor(x))
        return float(f), g.numpy()

    options = {"ftol": 0, "gtol": 1e-10}
    theirs = scipy.optimize.minimize(
        value_and_gradient, start.numpy(), jac=True, method="L-BFGS-B", bounds=pairs, options=options
    )
    if fn is not wood:
        torch.testing.assert_close(found.params, torch.tensor(theirs.x), rtol=0, atol=1e-4)


def residuals(x):
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


METHODS = ["levenberg_marquardt", "gauss_newton", solvers.levenberg_marquardt(matrix_free=True)]


@pytest.mark.parametrize("method", METHODS)
def test_residuals_within_bounds_are_least_where_scipys_are(method):
    found = fo.least_squares(residuals, vector(-1.2, 1), method=method, bounds=(-2.0, 0.5))
    expected = scipy.optimize.least_squares(
        lambda x: residuals(torch.tensor(x)).numpy(), [-1.2, 0.4], bounds=(-2.0, 0.5), xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    assert found.converged, found.why
    torch.testing.assert_close(found.params, torch.tensor(expected.x), rtol=0, atol=1e-5)


def test_a_batch_is_each_by_itself():
    starts = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def solve(start):
        return fo.minimize(rosenbrock, start, bounds=(-2.0, 0.5))

    together = torch.vmap(solve)(starts)
    torch.testing.assert_close(together.params, torch.stack([solve(x).params for x in starts]), rtol=0, atol=1e-10)


def test_trees_and_a_start_beyond_the_bounds():
    params = {"a": torch.zeros(2), "b": torch.tensor(5.0), "n": torch.tensor(3)}
    upper = {"a": torch.tensor([1.0, 9.0]), "b": None, "n": None}
    found = fo.minimize(lambda p: ((p["a"] - 2) ** 2).sum() + (p["b"] - 7) ** 2, params, bounds=(-1.0, upper))
    assert found.converged
    torch.testing.assert_close(found.params, {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(7.0), "n": torch.tensor(3)})
    found = fo.minimize(lambda x: (x**2).sum(), vector(5, 5), bounds=(1.0, 2.0))
    assert found.params.tolist() == [1.0, 1.0] and found.converged


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"bounds": 1.0}, TypeError, r"bounds is 1.0: expected a pair"),
        ({"bounds": (1.0, 0.0)}, ValueError, "lower bound is greater"),
        ({"bounds": ({"a": 1.0}, None)}, ValueError, "the lower bound does not have the structure of params"),
        ({"bounds": (float("nan"), None)}, ValueError, "one of them is NaN"),
        (
            {"bounds": (vector(1, 2, 3), None)},
            ValueError,
            r"the lower bound of params has shape \(3,\), which does not fit \(2,\)",
        ),
        ({"bounds": (None, "1")}, TypeError, "the upper bound of params is a str"),
        ({"bounds": [(0.0, 1.0)] * 3}, TypeError, "a pair for each variable in scipy is a pair of tensors here"),
        ({"bounds": (0.0, None), "implicit": True}, ValueError, "implicit with bounds"),
    ],
)
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        fo.minimize(rosenbrock, vector(1, 2), **options)
    with pytest.raises(ValueError, match="complex numbers have no order"):
        fo.minimize(lambda z: (z.abs() ** 2).sum(), vector(1, 2) * 1j, bounds=(0.0, None))
