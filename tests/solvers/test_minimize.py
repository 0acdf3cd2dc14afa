"""`minimize`: beside SciPy, in a batch, differentiated, and where there is nothing to be found."""

import io
import math
import re
import textwrap
from typing import NamedTuple

import pytest
import scipy.optimize
import torch
from problems import PROBLEMS, himmelblau, rosenbrock, vector

import functional_optim as fo
from functional_optim import solvers
from functional_optim.solvers.compiled import compiled_run
from functional_optim.solvers.machine import Budget
from functional_optim.solvers.problem import Problem, problem_of

METHODS = ["lbfgs", "bfgs", "nonlinear_cg", *(solvers.nonlinear_cg(beta) for beta in ("FR", "HZ", "DY"))]


def values_of(solve, problem):
    """The values of all evaluations that a solver makes."""
    seen = []

    def fn(x):
        f = problem.fn(x)
        seen.append(float(f.detach()))
        return f

    solve(fn, problem.start)
    return seen


def by_scipy(fn, start):
    def value_and_gradient(x):
        x = torch.tensor(x, requires_grad=True)
        f = fn(x)
        (g,) = torch.autograd.grad(f, x)
        return float(f.detach()), g.numpy()

    options = {"maxcor": 10, "ftol": 0, "gtol": 1e-12, "maxiter": 15_000, "maxfun": 15_000}
    scipy.optimize.minimize(value_and_gradient, start.numpy(), jac=True, method="L-BFGS-B", options=options)


def evaluations_to(target, values):
    return next(i for i, f in enumerate(values, 1) if f - target <= 1e-8 * max(1, abs(target)))


def test_it_takes_as_many_evaluations_as_scipy():
    """The lengths are those of the same search, but for what is saved where scipy evaluates a point again."""
    ratios = {}
    for name, problem in PROBLEMS.items():
        ours = values_of(lambda fn, start: fo.minimize(fn, start, tol=1e-12, max_steps=5000), problem)
        theirs = values_of(by_scipy, problem)
        ratios[name] = evaluations_to(min(theirs), ours) / evaluations_to(min(theirs), theirs)
    assert max(ratios.values()) <= 1.3, ratios
    assert math.prod(ratios.values()) ** (1 / len(ratios)) <= 1.05, ratios


def quartic(seed, dtype):
    """A convex quartic whose least value, of some 100, hides what is below its last digit; where to start, and its minimum."""
    generator = torch.Generator().manual_seed(seed)
    a, b, start = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((6, 6), (6,), (6,)))
    a = a @ a.T / 6 + 0.1 * torch.eye(6, dtype=torch.float64)
    root = scipy.optimize.root(lambda x: a.numpy() @ x + x**3 - b.numpy(), start.numpy(), tol=1e-15).x
    a, b, start = a.to(dtype), b.to(dtype), start.to(dtype)
    return lambda x: 0.5 * x @ (a @ x) + 0.25 * (x**4).sum() - b @ x + 100, start, torch.tensor(root, dtype=dtype)


@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("search", [solvers.zoom(), solvers.backtracking(), solvers.hager_zhang()])
def test_close_to_a_minimum_it_goes_on_by_slopes(search, dtype, tol):
    """A value that is 100 tells points apart to the root of its last digit, 1e-7 and 3e-3 here; gradients to the last digits."""
    for seed in range(8):
        fn, start, expected = quartic(seed, dtype)
        found = fo.minimize(fn, start, tol=tol, method=solvers.lbfgs(search=search))
        assert found.converged and int(found.evaluations) < 60, found
        torch.testing.assert_close(found.params, expected, rtol=0, atol=10 * tol)  # tol over the least curvature, 0.1


@pytest.mark.parametrize("method", METHODS)
def test_what_it_says_of_the_minimum_is_true(method):
    found = fo.minimize(rosenbrock, vector(-1.2, 1), method=method, max_steps=5000)
    assert found.converged and found.why.startswith("converged")
    torch.testing.assert_close(found.params, vector(1, 1), rtol=0, atol=1e-5)  # tol 1e-6 over the least curvature, 0.4
    assert float(found.value) == float(rosenbrock(found.params))
    torch.testing.assert_close(found.grads, torch.func.grad(rosenbrock)(found.params), rtol=1e-12, atol=1e-12)


def test_evaluations_and_steps_are_counted():
    calls, steps = [], []

    def fn(x):
        calls.append(x)
        return rosenbrock(x)

    found = fo.minimize(fn, vector(-1.2, 1), callback=lambda found: steps.append(float(found.value)))
    assert int(found.evaluations) == len(calls)
    assert int(found.steps) == len(steps)
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] == float(found.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_each_by_itself(method):
    """Each problem is in a phase of its own."""
    starts = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    apart = [fo.minimize(himmelblau, start, method=method) for start in starts]
    together = torch.vmap(lambda start: fo.minimize(himmelblau, start, method=method))(starts)
    assert len({int(found.evaluations) for found in apart}) > 3, "all problems end at once"
    torch.testing.assert_close(together.params, torch.stack([found.params for found in apart]), rtol=0, atol=1e-10)
    assert together.evaluations.tolist() == [int(found.evaluations) for found in apart]
    assert together.why == [found.why for found in apart]


@pytest.mark.parametrize("method", METHODS[:3])
def test_a_batch_takes_the_branches_that_each_takes_by_itself(method):
    """Along a valley an error in the last digit, of a sum in another order, would come to some 1e-7 where they end."""
    starts = torch.randn(8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    apart = [fo.minimize(rosenbrock, start, method=method, max_steps=80) for start in starts]
    together = torch.vmap(lambda start: fo.minimize(rosenbrock, start, method=method, max_steps=80))(starts)
    assert together.evaluations.tolist() == [int(found.evaluations) for found in apart]
    torch.testing.assert_close(together.params, torch.stack([found.params for found in apart]), rtol=0, atol=1e-10)


def test_a_batch_ends_when_all_have_ended():
    calls = []

    def fn(x):
        calls.append(x)
        return himmelblau(x)

    starts = torch.zeros(3, 2, dtype=torch.float64)
    found = torch.vmap(lambda start: fo.minimize(fn, start, max_evals=500))(starts)
    assert len(calls) == int(found.evaluations.max())


def test_parameters_of_any_shape_and_dtype_are_kept():
    target = torch.tensor([1 + 2j, -1j])
    params = {
        "a": torch.zeros(2, 3),
        "b": [torch.ones((), dtype=torch.float64), None],
        "n": torch.arange(2),
        "c": torch.zeros(2) * 1j,
    }

    def fn(p):
        return ((p["a"] - 1) ** 2).sum() + (p["b"][0] - p["n"][1]) ** 2 + ((p["c"] - target).abs() ** 2).sum()

    found = fo.minimize(fn, params)
    assert found.converged
    torch.testing.assert_close(found.params["a"], torch.ones(2, 3))
    torch.testing.assert_close(found.params["c"], target)
    assert found.params["n"] is params["n"] and found.params["b"][1] is None and found.grads["n"] is None
    assert [found.params["b"][0].dtype, found.params["c"].dtype] == [torch.float64, torch.complex64]


def test_the_loss_of_a_module_in_float32():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    x = torch.randn(50, 3)
    y = x @ torch.tensor([[1.0], [2.0], [3.0]]) + 0.5
    kept = [p.detach().clone() for p in model.parameters()]

    def fn(params, x, y):
        return ((torch.func.functional_call(model, params, (x,)) - y) ** 2).mean()

    found = fo.minimize(fn, dict(model.named_parameters()), (x, y), tol=1e-5)
    assert found.converged
    torch.testing.assert_close(found.params["weight"], torch.tensor([[1.0, 2.0, 3.0]]), rtol=0, atol=1e-4)
    assert not found.params["weight"].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(kept, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_auxiliary_output_is_that_of_the_minimum():
    found = fo.minimize(lambda x: (((x - 3) ** 2).sum(), {"seen": 2 * x}), vector(0, 0), has_aux=True)
    torch.testing.assert_close(found.aux["seen"], 2 * found.params, rtol=0, atol=0)


# Derivatives: ridge regression, whose minimum has a closed form.

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(20, 4, dtype=torch.float64, generator=GENERATOR), torch.randn(20, dtype=torch.float64, generator=GENERATOR)
PENALTY = vector(2)[0]


def ridge(w, penalty):
    return ((X @ w - Y) ** 2).sum() + penalty * (w**2).sum()


def norm_of_closed_form(penalty):
    return (torch.linalg.solve(X.T @ X + penalty * torch.eye(4, dtype=torch.float64), X.T @ Y) ** 2).sum()


def norm_of_minimum(penalty, **options):
    found = fo.minimize(ridge, torch.zeros(4, dtype=torch.float64), (penalty,), tol=1e-11, **options)
    return (found.params**2).sum()


@pytest.mark.parametrize("implicit", [False, True, fo.meta.dense])
def test_derivatives_of_the_minimum(implicit):
    def ours(penalty):
        return norm_of_minimum(penalty, implicit=implicit)

    expected = torch.func.grad(norm_of_closed_form)(PENALTY)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(torch.func.grad(ours)(PENALTY), expected, **close)
    torch.testing.assert_close(torch.func.jvp(ours, (PENALTY,), (torch.ones_like(PENALTY),))[1], expected, **close)
    penalty = PENALTY.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(ours(penalty), penalty)[0], expected, **close)
    both = torch.stack([PENALTY, 3 * PENALTY])
    torch.testing.assert_close(
        torch.vmap(torch.func.grad(ours))(both), torch.vmap(torch.func.grad(norm_of_closed_form))(both), **close
    )


@pytest.mark.parametrize("method", ["bfgs", "nonlinear_cg", "newton_cg"])
def test_derivatives_go_through_the_steps_of_any_method(method):
    found = torch.func.grad(lambda penalty: norm_of_minimum(penalty, method=method, max_steps=100))(PENALTY)
    torch.testing.assert_close(found, torch.func.grad(norm_of_closed_form)(PENALTY), rtol=1e-6, atol=1e-6)


def test_second_derivatives_of_the_minimum():
    found = torch.func.hessian(lambda penalty: norm_of_minimum(penalty, implicit=True))(PENALTY)
    torch.testing.assert_close(found, torch.func.hessian(norm_of_closed_form)(PENALTY), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("implicit", [False, True])
def test_the_value_has_the_derivative_of_its_explicit_part(implicit):
    """At a minimum the rest is 0."""

    def value(penalty):
        return fo.minimize(ridge, torch.zeros(4, dtype=torch.float64), (penalty,), tol=1e-11, implicit=implicit).value

    torch.testing.assert_close(torch.func.grad(value)(PENALTY), norm_of_closed_form(PENALTY), rtol=1e-6, atol=1e-6)


# Where there is little to be found.


@pytest.mark.parametrize("search", [solvers.zoom(), solvers.strong_wolfe(), solvers.backtracking()])
def test_values_that_are_not_finite_make_the_step_shorter(search):
    """−log x is infinite at 0 and NaN beyond, where the first step leads."""
    found = fo.minimize(lambda x: (x - torch.log(x)).sum(), vector(1e-3, 50), method=solvers.lbfgs(search=search))
    assert found.converged
    torch.testing.assert_close(found.params, vector(1, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "fn, start, why",
    [
        (lambda x: 0 * x.sum(), vector(1, 2), "converged"),
        (lambda x: (x**2).sum(), vector(0, 0), "converged"),
        (lambda x: -x.sum(), vector(1, 2), "out of budget"),
        (lambda x: x.log().sum(), vector(-1, 2), "not finite"),
        (lambda x: torch.where(x == 1, x, math.nan).sum(), vector(1, 1), "no progress"),
    ],
    ids=["flat", "at the minimum", "unbounded", "not finite", "NaN everywhere else"],
)
@pytest.mark.parametrize("batched", [False, True])
def test_it_says_why_it_ended(fn, start, why, batched):
    if batched:
        found = torch.vmap(lambda start: fo.minimize(fn, start, max_steps=60))(torch.stack([start, start]))
        assert all(each.startswith(why) for each in found.why)
    else:
        found = fo.minimize(fn, start, max_steps=60)
        assert found.why.startswith(why)
        assert not fn(found.params) > fn(start)
    assert found.params.isfinite().all()


HOSTILE = {
    "constant": (lambda x: torch.ones((), dtype=x.dtype), torch.ones(3)),
    "unbounded": (lambda x: -(x**2).sum(), torch.ones(3)),
    "a wall": (lambda x: torch.where(x > 0.5, math.inf, (x - 1) ** 2).sum(), torch.zeros(3)),
    "a kink": (lambda x: x.abs().sum(), torch.tensor([1.0, 2.0, -3.0])),
    "an infinite slope": (lambda x: x.sqrt().sum(), torch.zeros(3)),
    "valley": (rosenbrock, torch.tensor([-1.2, 1.0])),
    "low precision": (lambda x: ((x - 2) ** 2).sum(), torch.zeros(3, dtype=torch.bfloat16)),
    "complex": (lambda z: ((z - (1 + 2j)).abs() ** 2).sum(), torch.zeros(3, dtype=torch.complex64)),
}


@pytest.mark.parametrize("method", ["lbfgs", "newton_cg"])
@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_it_meets_it_ends_at_a_finite_point_no_higher(name, method):
    """In float32 and below, and in a batch for the same reason."""
    fn, start = HOSTILE[name]
    found = fo.minimize(fn, start, method=method, max_steps=25)
    assert found.params.isfinite().all() and found.params.dtype == start.dtype
    assert not fn(found.params) > fn(start)
    together = torch.vmap(lambda x: fo.minimize(fn, x, method=method, max_steps=25))(start[None])
    assert together.why == [found.why]


def test_budgets_are_kept():
    assert int(fo.minimize(rosenbrock, vector(-1.2, 1), max_steps=3).steps) == 3
    found = fo.minimize(rosenbrock, vector(-1.2, 1), max_evals=7)
    assert int(found.evaluations) == 7 and found.why.startswith("out of budget")


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fo.minimize(rosenbrock, vector(1, 2), method="lbfg"), ValueError, "Did you mean 'lbfgs'"),
        (lambda: fo.minimize(rosenbrock, vector(1, 2), method=3), TypeError, "method is a int"),
        (lambda: fo.minimize(rosenbrock, vector(1, 2), tol=-1.0), ValueError, "tol = -1.0"),
        (lambda: fo.minimize(rosenbrock, vector(1, 2), max_steps=0), ValueError, "max_steps = 0"),
        (lambda: fo.minimize(vector(1, 2), vector(1, 2)), TypeError, "fn is a Tensor"),
        (lambda: fo.minimize(rosenbrock, vector(1, 2), vector(1)), TypeError, "args is a Tensor"),
        (lambda: fo.minimize(lambda x: x, vector(1, 2)), ValueError, r"tensor of shape \(2,\)"),
        (lambda: fo.minimize(lambda x: x.sum(), vector(1, 2), has_aux=True), ValueError, "returns a pair"),
        (lambda: fo.minimize(lambda x: x.sum(), torch.arange(2)), ValueError, "nothing to minimise over"),
        (lambda: fo.minimize(lambda x: x.sum(), torch.ones(0)), ValueError, "nothing to minimise over"),
        (lambda: fo.minimize(rosenbrock, vector(1, 2), max_steps=2.0), TypeError, r"max_steps = 2\.0: expected a whole number"),
        (lambda: solvers.lbfgs(history_size=0), ValueError, "history_size = 0"),
        (lambda: solvers.nonlinear_cg("PR"), ValueError, "beta = 'PR'"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"jac": True}, r"minimize has no argument 'jac'; it accepts: 'fn', .* Derivatives are torch's"),
        ({"options": {"maxiter": 5}}, r"arguments here: tol, max_steps, max_evals"),
        ({"maxiter": 5}, "Did you mean 'max_steps'"),
        ({"gtol": 1e-5}, "Did you mean 'tol'"),
        ({"history_size": 5}, r"method=fo.solvers.lbfgs\(history_size=20\)"),
        ({"line_search_fn": "strong_wolfe"}, r"lbfgs\(search=fo.solvers.strong_wolfe\(\)\)"),
        ({"constraints": ()}, "no other constraints"),
        ({"lr": 1.0}, "A solver has none: it searches for the length"),
        ({"learning_rate": 1.0}, "A solver has none: it searches for the length"),
        ({"tol": None}, "tol = None: expected a number"),
        ({"callback": 3}, "callback is a int"),
        ({"method": solvers.lbfgs}, r"Did you mean to call it, lbfgs\(\)"),
        ({"bounds": [(0, 1), (0, 1)]}, "the lower bound is .*a pair for each variable in scipy"),
        ({"bounds": scipy.optimize.Bounds(0, 1)}, "bounds is scipy's: give a pair"),
    ],
)
def test_words_of_scipys_and_torchs(given, message):
    with pytest.raises(TypeError, match=message):
        fo.minimize(rosenbrock, vector(1, 2), **given)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fo.minimize(fun=rosenbrock, x0=vector(1, 2)), TypeError, "Did you mean 'fn'"),
        (lambda: fo.minimize(rosenbrock, vector(1, 2).numpy()), TypeError, r"ndarray.*torch.as_tensor"),
        (lambda: fo.minimize(rosenbrock, [1.0, 2.0]), TypeError, r"pass torch.tensor\(\[...\]\)"),
        (lambda: fo.minimize(rosenbrock, vector(1, 2), method="Nelder-Mead"), ValueError, "follow the gradient"),
        (lambda: fo.least_squares(rosenbrock, vector(1, 2), method="trf"), ValueError, "Did you mean 'levenberg_marquardt'"),
        (lambda: fo.least_squares(rosenbrock, vector(1, 2), jac="2-point"), TypeError, "Derivatives are torch's"),
        (lambda: fo.least_squares(rosenbrock, vector(1, 2), loss="huber"), TypeError, "A robust loss goes into it"),
        (lambda: solvers.lbfgs(maxcor=3), TypeError, "Did you mean 'history_size'"),
        (lambda: solvers.lbfgs(search=solvers.zoom), TypeError, "expected a search, such as"),
        (lambda: solvers.zoom(c1=1e-4), TypeError, "Did you mean 'decrease'"),
        (lambda: fo.minimize(rosenbrock, vector(1, 1)).fun, AttributeError, "Did you mean 'value'"),
    ],
)
def test_other_words_of_scipys(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Of a quadratic, with exact searches, all of these are the method of conjugate gradients.


@pytest.mark.parametrize("method", METHODS[1:])
def test_of_a_quadratic_it_is_done_in_as_many_steps_as_there_are_variables(method):
    method = {"bfgs": solvers.bfgs(), "nonlinear_cg": solvers.nonlinear_cg()}.get(method, method)
    exact = solvers.Method(method.descent, solvers.zoom(decrease=1e-4, curvature=1e-9, precision=1e-12))
    weights = vector(1, 3, 10, 20)
    found = fo.minimize(lambda x: (weights * (x - 1) ** 2).sum(), vector(4, -3, 2, 5), method=exact, tol=1e-6)
    assert found.converged and int(found.steps) == 4


@pytest.mark.full
def test_a_compiled_batch_is_a_loop_over_one_tick():
    """The compiler contracts products and sums, and 40 evaluations make that no larger than this."""
    calls = [0]

    def fn(x):
        calls[0] += 1
        return himmelblau(x)

    def batch(starts):
        return torch.vmap(lambda start: fo.minimize(fn, start, method=solvers.lbfgs(history_size=1), max_evals=40))(starts).params

    starts = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    compiled = fo.meta.compiled(batch)
    found = compiled(starts)
    assert calls[0] < 20, "the program grows with the budget"
    torch.testing.assert_close(found, batch(starts), rtol=0, atol=1e-8)


@pytest.mark.full
def test_a_compiled_loop_ends_soon_after_all_have_ended():
    class Counting(NamedTuple):
        """Problems that have ended after so many ticks."""

        problem: Problem
        budget: Budget

        def tick(self, state):
            return state._replace(steps=state.steps + 1, status=(state.steps >= 20).long())

    def ticks(x):
        problem = problem_of(himmelblau, x, (), False)
        machine = Counting(problem, Budget(0.0, 1000, 1000))
        nothing = torch.zeros((), dtype=torch.int64)
        return compiled_run(machine, fo.solvers.Minimum(x, x, x, (), nothing, nothing, nothing)).steps

    assert 20 < int(fo.meta.compiled(ticks)(vector(0, 0))) < 50


@pytest.mark.full
def test_the_program_does_not_grow_with_the_budget(monkeypatch):
    class Stopped(Exception):
        pass

    def stop(tensors):
        raise Stopped

    def operations(max_evals):
        counts = []

        def lowered(traced, settings, **options):
            graph = traced()[0]
            counts.append(sum(len(inner.graph.nodes) for inner in graph.modules() if isinstance(inner, torch.fx.GraphModule)))
            return stop

        monkeypatch.setattr("functional_optim.inductor.lowered", lowered)
        method = solvers.lbfgs(history_size=1)
        with pytest.raises(Stopped):
            fo.meta.compiled(torch.vmap(lambda x: fo.minimize(himmelblau, x, method=method, max_evals=max_evals).params))(
                torch.zeros(3, 2)
            )
        return counts

    assert operations(1000) == operations(30)


def test_the_progress_bar_that_is_shown():
    tqdm = pytest.importorskip("tqdm", reason="of the extra `demo`").tqdm
    shown = re.search(r"bar is one:\n\n(.*?)\n\n    An evaluation", fo.minimize.__doc__, re.DOTALL)[1]
    bars = []

    def kept(**options):
        bars.append(tqdm(**options, file=io.StringIO()))
        return bars[0]

    exec(textwrap.dedent(shown), {"fo": fo, "tqdm": kept, "loss": himmelblau, "params": vector(0, 0)})
    found = fo.minimize(himmelblau, vector(0, 0))
    assert bars[0].n == int(found.steps) and float(bars[0].postfix.partition("=")[2]) < 1e-10


def test_a_callback_that_has_seen_enough_is_why_it_stopped():
    found = fo.minimize(himmelblau, vector(0, 0), callback=lambda found: True)
    assert found.steps == 1 and found.why.startswith("stopped: the callback")


def test_implicit_derivatives_of_what_a_function_closes_over_are_refused():
    def ridge(weight):
        return fo.minimize(lambda w: (w - 1).square().sum() + weight * w.square().sum(), vector(0, 0), implicit=True).params.sum()

    def residuals(weight):
        return fo.least_squares(lambda w: torch.cat([w - 1, weight * w]), vector(0, 0), implicit=True).params.sum()

    for solved in (ridge, residuals):
        with pytest.raises(ValueError, match="closes over 'weight', which is being differentiated: pass it as an argument"):
            torch.func.grad(solved)(vector(1.0)[0])


@pytest.mark.parametrize("method", ["lbfgs", "bfgs", "nonlinear_cg", "newton_cg"])
def test_one_evaluation_is_a_budget_too(method):
    def found(x):
        return tuple(fo.minimize(rosenbrock, x, method=method, max_evals=1))[4:]

    alone, batched = found(vector(-1.2, 1)), torch.vmap(found)(vector(-1.2, 1)[None])
    assert [int(x) for x in alone] == [int(x) for x in batched] == [solvers.machine.BUDGET, 0, 1]
