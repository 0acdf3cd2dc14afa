"""Truncated Newton directions: beside dense solutions, where curvature is negative, for losses, residuals and modules."""

import pytest
import torch
from problems import PROBLEMS, himmelblau, rosenbrock, vector

import functional_optim as fo
from functional_optim import solvers
from functional_optim.solvers.newton import conjugate
from functional_optim.solvers.problem import problem_of

H = torch.tensor([[4.0, 1, 0], [1, 3, -1], [0, -1, 2]], dtype=torch.float64)
G = vector(1, -2, 0.5)


def solution(matrix, steps, tol, on_host):
    def solve(g):
        problem = problem_of(lambda x: x.sum(), g, (), False)
        return conjugate(problem, lambda v: matrix @ v, g, steps, tol)

    return solve(G) if on_host else torch.vmap(solve)(G[None])[0]


@pytest.mark.parametrize("on_host", [True, False])
def test_it_solves_for_newtons_step(on_host):
    """In as many products as there are variables; one is the steepest descent of best length."""
    torch.testing.assert_close(solution(H, 3, 0.0, on_host), -torch.linalg.solve(H, G), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(solution(H, 1, 0.0, on_host), -G * (G @ G) / (G @ H @ G), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(solution(H, 3, 0.9, on_host), solution(H, 1, 0.0, on_host), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("on_host", [True, False])
def test_it_stops_where_the_curvature_is_negative(on_host):
    assert torch.equal(solution(-H, 3, 0.0, on_host), -G)
    bent = torch.diag(vector(5, 4, -1))  # At the second direction: the first goes along G.
    torch.testing.assert_close(solution(bent, 3, 0.0, on_host), solution(bent, 1, 0.0, on_host), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["rosenbrock-2", "beale", "powell_singular-40"])
def test_newtons_method_finds_the_minimum(name):
    problem = PROBLEMS[name]
    found = fo.minimize(problem.fn, problem.start, method="newton_cg", tol=1e-9)
    assert found.converged and float(found.value) < 1e-10 and int(found.steps) < 100


def test_a_batch_is_each_by_itself():
    starts = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    apart = [fo.minimize(himmelblau, start, method="newton_cg") for start in starts]
    together = torch.vmap(lambda start: fo.minimize(himmelblau, start, method="newton_cg"))(starts)
    torch.testing.assert_close(together.params, torch.stack([found.params for found in apart]), rtol=0, atol=1e-10)
    assert together.evaluations.tolist() == [int(found.evaluations) for found in apart]


# Of residuals.

X = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
METHODS = ["gauss_newton", solvers.levenberg_marquardt(matrix_free=True), "levenberg_marquardt"]


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_fit_is_the_pseudo_inverse(method):
    """With what is returned beside the residuals, and in a batch; a value of 1 tells gradients below √ε apart no more."""
    ys = torch.randn(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def fit(y):
        return fo.least_squares(
            lambda w, y: (X @ w - y, {"w": w}), torch.zeros(3).double(), (y,), method=method, tol=1e-7, has_aux=True
        )

    for y in ys:
        found = fit(y)
        assert found.converged and torch.equal(found.aux["w"], found.params)
        torch.testing.assert_close(found.params, torch.linalg.pinv(X) @ y, rtol=0, atol=1e-7)
    torch.testing.assert_close(torch.vmap(fit)(ys).params, ys @ torch.linalg.pinv(X).T, rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_curved_fit(method):
    found = fo.least_squares(lambda x: torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]), vector(-1.2, 1), method=method)
    assert found.converged
    torch.testing.assert_close(found.params, vector(1, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["lbfgs", "newton_cg"])
def test_the_loss_of_a_module(method):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    loss, params = fo.meta.from_module(model, torch.nn.functional.mse_loss)
    found = fo.minimize(loss, params, (x, x.sum(1, keepdim=True).sin()), method=method, max_steps=30)
    assert float(found.value) < 0.05 * float(loss(params, x, x.sum(1, keepdim=True).sin()))
    assert found.params.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fo.least_squares(rosenbrock, vector(1, 2), method="lm"), ValueError, "'lm': expected one of 'levenberg"),
        (lambda: fo.least_squares(rosenbrock, vector(1, 2), method=3), TypeError, "method is a int"),
        (lambda: fo.least_squares(lambda x: x, vector(1, 2), has_aux=True), (TypeError, ValueError), "pair"),
        (lambda: solvers.newton_cg(0), ValueError, "max_products = 0"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
