"""`least_squares` beside SciPy's port of MINPACK, in a batch, and differentiated."""

import pytest
import scipy.optimize
import torch
from problems import vector

import functional_optim as fo


def rosenbrock(x):
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def powell_singular(x):
    a, b, c, d = x.unbind()
    return torch.stack([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])


def freudenstein_and_roth(x):
    return torch.stack([-13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1], -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1]])


def bard(x):
    y = vector(0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39)
    u = torch.arange(1, 16, dtype=torch.float64)
    return y - (x[0] + u / ((16 - u) * x[1] + torch.minimum(u, 16 - u) * x[2]))


def kowalik_and_osborne(x):
    y = vector(0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246)
    u = vector(4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)
    return y - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def box(x):
    t = 0.1 * torch.arange(1, 11, dtype=torch.float64)
    return torch.exp(-t * x[0]) - torch.exp(-t * x[1]) - x[2] * (torch.exp(-t) - torch.exp(-10 * t))


PROBLEMS = {
    rosenbrock: vector(-1.2, 1),
    powell_singular: vector(3, -1, 0, 1),
    freudenstein_and_roth: vector(0.5, -2),
    bard: vector(1, 1, 1),
    kowalik_and_osborne: vector(0.25, 0.39, 0.415, 0.39),
    box: vector(0, 10, 20),
}


def half_of_squares(r):
    return 0.5 * float((r * r).sum())


def by_scipy(fn, start):
    def jacobian(x):
        return torch.func.jacrev(fn)(torch.as_tensor(x)).numpy()

    return scipy.optimize.least_squares(lambda x: fn(torch.as_tensor(x)).numpy(), start.numpy(), jacobian, method="lm")


def test_it_gets_where_scipy_gets_in_as_many_evaluations():
    ours, theirs = {}, {}
    for fn, start in PROBLEMS.items():
        found, expected = fo.least_squares(fn, start), by_scipy(fn, start)
        assert found.converged, fn.__name__
        assert float(found.value) == half_of_squares(fn(found.params))
        assert float(found.value) <= expected.cost + 1e-8, fn.__name__
        ours[fn.__name__], theirs[fn.__name__] = int(found.evaluations), expected.nfev
    assert sum(ours.values()) <= 1.2 * sum(theirs.values()), (ours, theirs)


def test_a_batch_is_each_by_itself():
    starts = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    apart = [fo.least_squares(rosenbrock, start) for start in starts]
    together = torch.vmap(lambda start: fo.least_squares(rosenbrock, start))(starts)
    assert together.evaluations.tolist() == [int(found.evaluations) for found in apart]
    torch.testing.assert_close(together.params, torch.stack([found.params for found in apart]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("method", ["levenberg_marquardt", "gauss_newton", fo.solvers.levenberg_marquardt(matrix_free=True)])
def test_derivatives_of_a_linear_fit(implicit, method):
    """Its minimum is X⁺ y, whose derivative in y is X⁺."""
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def fitted(y):
        options = {"tol": 1e-11, "max_steps": 40, "implicit": implicit, "method": method}
        return fo.least_squares(lambda w, y: x @ w - y, torch.zeros(3).double(), (y,), **options).params

    torch.testing.assert_close(torch.func.jacrev(fitted)(y), torch.linalg.pinv(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "fn, start, why",
    [
        (lambda x: x - x, vector(1, 2), "converged"),
        (lambda x: x.log(), vector(-1, 2), "not finite"),
        (rosenbrock, vector(-1.2, 1), "out of budget"),
    ],
    ids=["flat", "not finite", "budget"],
)
def test_it_says_why_it_ended(fn, start, why):
    assert fo.least_squares(fn, start, max_steps=5).why.startswith(why)


def test_residuals_that_are_not_finite_make_the_step_shorter():
    found = fo.least_squares(lambda x: torch.log(x), vector(30.0))
    assert found.converged
    torch.testing.assert_close(found.params, vector(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["levenberg_marquardt", "gauss_newton"])
def test_complex_residuals_are_refused_by_every_method(method):
    with pytest.raises(ValueError, match=r"the residuals are a torch\.complex64 tensor: .*view_as_real"):
        fo.least_squares(lambda x: x * 1j - 1, torch.ones(2), method=method)


def test_what_is_refused():
    with pytest.raises(TypeError, match="fn is a Tensor"):
        fo.least_squares(vector(1), vector(1))
    with pytest.raises(ValueError, match="max_steps = 0"):
        fo.least_squares(rosenbrock, vector(1, 2), max_steps=0)
