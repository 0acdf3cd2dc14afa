"""Implicit derivatives against closed forms, finite differences and long unrolls; the solvers against a dense one."""

import functools

import pytest
import torch
from meta_helpers import close

import functional_optim as fo
from functional_optim.meta import cg, dense, gmres, neumann, normal_cg

DOUBLE = {"dtype": torch.float64}
EXACTLY = {"rtol": 1e-10, "atol": 1e-12}


def matrices(seed=0, n=5):
    """A matrix, a symmetric positive definite one, and a vector."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=generator, **DOUBLE) + 4 * torch.eye(n, **DOUBLE)
    return a, a @ a.T / n + torch.eye(n, **DOUBLE), torch.randn(n, generator=generator, **DOUBLE)


# --- Solvers ----------------------------------------------------------------------------------------------------------------

# Each with more steps than unknowns and no tolerance: what rounding leaves.
SYMMETRIC = {"cg": functools.partial(cg, steps=8, tol=0.0)}
GENERAL = {
    "normal_cg": functools.partial(normal_cg, steps=12, tol=0.0),
    "gmres": functools.partial(gmres, steps=8),
    "dense": dense,
    "neumann": functools.partial(neumann, steps=300, scale=0.15),
}
BY_NAME = pytest.mark.parametrize("name", [*SYMMETRIC, *GENERAL])


def solver_and_matrix(name, seed=0):
    a, s, b = matrices(seed)
    return (SYMMETRIC[name], s, b) if name in SYMMETRIC else (GENERAL[name], a, b)


@BY_NAME
def test_a_solver_solves(name):
    solve, a, b = solver_and_matrix(name)
    # normal equations square the condition number
    close(solve(lambda x: a @ x, b), torch.linalg.solve(a, b), rtol=1e-8, atol=1e-9)


@BY_NAME
def test_a_solver_takes_trees_batches_and_zero(name):
    solve, a, b = solver_and_matrix(name)

    def matvec(tree):
        y = a @ torch.cat([tree["x"].reshape(-1), tree["y"]])
        return {"x": y[:4].reshape(2, 2), "y": y[4:]}

    found = solve(matvec, {"x": b[:4].reshape(2, 2), "y": b[4:]})
    expected = solve(lambda x: a @ x, b)
    close(found, {"x": expected[:4].reshape(2, 2), "y": expected[4:]}, **EXACTLY)

    systems = [solver_and_matrix(name, seed)[1:] for seed in range(3)]
    loop = torch.stack([solve(lambda x, a=a: a @ x, b) for a, b in systems])
    together = torch.vmap(lambda a, b: solve(lambda x: a @ x, b))(*(torch.stack(c) for c in zip(*systems, strict=True)))
    close(together, loop, rtol=1e-7, atol=1e-9)
    assert torch.equal(solve(lambda x: a @ x, torch.zeros_like(b)), torch.zeros_like(b))


@BY_NAME
def test_a_solver_takes_complex_numbers(name):
    """Of a Hermitian matrix where it wants a symmetric one; beside reals, which stay real."""
    solve, a, b = solver_and_matrix(name)
    skew = torch.tensor([[0.0, 0.1], [-0.1, 0.0]], **DOUBLE)
    a, b, last = torch.complex(a[:2, :2], skew), torch.complex(b[:2], b[2:4]), b[4]
    found = solve(lambda x: {"z": a @ x["z"], "r": 2 * x["r"]}, {"z": b, "r": last})
    close(found, {"z": torch.linalg.solve(a, b), "r": last / 2}, rtol=1e-8, atol=1e-9)


def test_damping_is_added_to_the_diagonal():
    a, s, b = matrices()
    eye = torch.eye(5, **DOUBLE)
    close(cg(lambda x: s @ x, b, steps=8, tol=0.0, damping=0.5), torch.linalg.solve(s + 0.5 * eye, b), **EXACTLY)
    close(gmres(lambda x: a @ x, b, damping=0.5), torch.linalg.solve(a + 0.5 * eye, b), **EXACTLY)
    close(dense(lambda x: a @ x, b, damping=0.5), torch.linalg.solve(a + 0.5 * eye, b), **EXACTLY)
    damped = torch.linalg.solve(a.T @ a + 0.5 * eye, a.T @ b)
    close(normal_cg(lambda x: a @ x, b, steps=12, tol=0.0, damping=0.5), damped, **EXACTLY)


def test_conjugate_gradients_need_a_step_per_eigenvalue_and_stop_at_the_tolerance():
    d = torch.tensor([1.0, 1.0, 4.0, 4.0, 9.0], **DOUBLE)
    b = torch.arange(1.0, 6.0, **DOUBLE)
    close(cg(lambda x: d * x, b, steps=3, tol=0.0), b / d, **EXACTLY)
    assert not torch.allclose(cg(lambda x: d * x, b, steps=2, tol=0.0), b / d, rtol=1e-3)
    loose = cg(lambda x: d * x, b, steps=50, tol=0.5)
    assert (b - d * loose).norm() <= 0.5 * b.norm()
    few = next(x for k in range(5) if (b - d * (x := cg(lambda x: d * x, b, steps=k, tol=0.0))).norm() <= 0.5 * b.norm())
    assert torch.equal(loose, few)


def test_gmres_minimises_the_residual_over_its_krylov_space():
    a, _, b = matrices()
    for steps in (1, 2, 3):
        space = torch.stack([torch.linalg.matrix_power(a, k) @ b for k in range(steps)], 1)
        best = space @ torch.linalg.lstsq(a @ space, b[:, None]).solution[:, 0]
        close(gmres(lambda x: a @ x, b, steps=steps), best, rtol=1e-9, atol=1e-11)


def test_gmres_stops_where_the_space_is_exhausted():
    """b is made of two eigenvectors: the third Krylov vector is nothing but rounding."""
    d = torch.tensor([1.0, 2.0, 3.0, 4.0], **DOUBLE)
    b = torch.tensor([1.0, 0.0, 1.0, 0.0], **DOUBLE)
    close(gmres(lambda x: d * x, b, steps=4), b / d, **EXACTLY)


def test_neumann_is_the_derivative_of_so_many_steps_of_descent():
    """Lorraine et al. 2020, section 4: K terms with scale α are what K unrolled steps from the optimum give."""
    _, s, b = matrices()
    at, steps, lr = torch.linalg.solve(s, b), 7, 0.05

    def unrolled(b):
        inner = fo.meta.unroll(lambda x: 0.5 * x @ s @ x - b @ x, fo.sgd(), steps)
        return inner(at, {"lr": lr}).params

    expected = torch.func.jacrev(unrolled)(b)
    close(torch.vmap(lambda e: neumann(lambda x: s @ x, e, steps=steps, scale=lr))(torch.eye(5, **DOUBLE)), expected, **EXACTLY)


# --- Roots -------------------------------------------------------------------------------------------------------------------


def ridge_data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 4, generator=generator, **DOUBLE), torch.randn(12, generator=generator, **DOUBLE)


def ridge_loss(w, penalty, x, y):
    return 0.5 * ((x @ w - y) ** 2).sum() + 0.5 * penalty.exp() * (w * w).sum()


def ridge_closed(penalty, x, y):
    return torch.linalg.solve(x.T @ x + penalty.exp() * torch.eye(x.shape[1], **DOUBLE), x.T @ y)


def ridge(solve):
    @fo.meta.custom_root(torch.func.grad(ridge_loss), solve=solve)
    def fit(init, penalty, x, y):
        return ridge_closed(penalty, x, y)

    return lambda penalty, x, y: fit(torch.zeros(x.shape[1], **DOUBLE), penalty, x, y)


SOLVES = {
    "cg": functools.partial(cg, steps=8, tol=0.0),
    "normal_cg": functools.partial(normal_cg, steps=12, tol=0.0),
    "gmres": gmres,
    "dense": dense,
    "neumann": functools.partial(neumann, steps=150, scale=0.04),
}
BY_SOLVE = pytest.mark.parametrize("solve", list(SOLVES.values()), ids=list(SOLVES))


@BY_SOLVE
def test_ridge_regression_has_the_derivatives_of_its_closed_form(solve):
    """In the penalty and in all data, in both modes, twice, and under vmap."""
    fit, at = ridge(solve), (torch.tensor(0.3, **DOUBLE), *ridge_data())
    tolerance = {"rtol": 1e-7, "atol": 1e-9}  # the solvers', see above
    everything = (0, 1, 2)

    def quadratic(f):
        return lambda *at: (f(*at) ** 2).sum()

    close(fit(*at), ridge_closed(*at), rtol=0, atol=0)
    close(torch.func.jacrev(fit, everything)(*at), torch.func.jacrev(ridge_closed, everything)(*at), **tolerance)
    close(torch.func.jacfwd(fit)(*at), torch.func.jacfwd(ridge_closed)(*at), **tolerance)

    seeds = [ridge_data(seed) for seed in range(3)]
    xs, ys = (torch.stack(column) for column in zip(*seeds, strict=True))
    each = [torch.func.grad(quadratic(ridge_closed), everything)(at[0], x, y) for x, y in seeds]
    found = torch.vmap(torch.func.grad(quadratic(fit), everything), (None, 0, 0))(at[0], xs, ys)
    close(found, tuple(torch.stack(column) for column in zip(*each, strict=True)), **tolerance)
    summed = torch.func.grad(lambda p: torch.vmap(quadratic(fit), (None, 0, 0))(p, xs, ys).sum())(at[0])
    close(summed, sum(slopes[0] for slopes in each), **tolerance)


@pytest.mark.parametrize("mode", [torch.func.jacrev, torch.func.jacfwd], ids=["reverse", "forward"])
def test_second_derivatives_of_a_root(mode):
    at = (torch.tensor(0.3, **DOUBLE), *ridge_data())

    def slope(f):
        return torch.func.grad(lambda penalty, x: (f(penalty, x, at[2]) ** 2).sum(), (0, 1))

    found, expected = (mode(slope(f), (0, 1))(*at[:2]) for f in (ridge(dense), ridge_closed))
    close(found, expected, rtol=1e-9, atol=1e-11)
    x = at[1].clone().requires_grad_()
    penalty = at[0].clone().requires_grad_()
    (g,) = torch.autograd.grad((ridge(dense)(penalty, x, at[2]) ** 2).sum(), penalty, create_graph=True)
    close(torch.autograd.grad(g, [penalty, x]), (expected[0][0], expected[0][1]), rtol=1e-9, atol=1e-11)


def test_forward_mode_over_itself_and_over_reverse():
    """Of Σ x with x³ + x = a b for each of three equations, through arguments that are expanded numbers."""

    @fo.meta.custom_root(lambda x, v: x**3 + x - v["a"] * v["b"])
    def solver(init, v):
        p = v["a"] * v["b"] / 2
        return (p + (p * p + 1 / 27).sqrt()) ** (1 / 3) - ((p * p + 1 / 27).sqrt() - p) ** (1 / 3)  # Cardano's formula

    def total(v):
        return solver(torch.zeros(3, **DOUBLE), {"a": v[0].expand(3), "b": v[1].expand(3)}).sum()

    a, b = 0.9, 0.7
    x = float(total(torch.tensor([a, b], **DOUBLE))) / 3
    slope = 1 / (3 * x * x + 1)
    bend = -6 * x * slope**3
    mixed = 3 * (slope + a * b * bend)
    expected = torch.tensor([[3 * b * b * bend, mixed], [mixed, 3 * a * a * bend]], **DOUBLE)
    for outer in (torch.func.jacrev, torch.func.jacfwd):
        for inner in (torch.func.jacrev, torch.func.jacfwd):
            close(outer(inner(total))(torch.tensor([a, b], **DOUBLE)), expected, rtol=1e-9, atol=1e-11)


def test_a_nonlinear_root_has_the_derivative_of_a_long_unroll():
    """Logistic regression, trained to its optimum by descent: implicit and unrolled derivatives meet."""
    x, y = ridge_data()
    validation = ridge_data(1)

    def loss(params, penalty, x, y):
        fit = torch.nn.functional.softplus(-(y.sign() * (x @ params["w"] + params["b"]))).mean()
        return fit + 0.5 * penalty * ((params["w"] ** 2).sum() + params["b"] ** 2)

    start = {"w": torch.zeros(4, **DOUBLE), "b": torch.zeros((), **DOUBLE)}
    train = fo.meta.unroll(loss, fo.sgd(momentum=0.8), 300)

    @fo.meta.custom_root(torch.func.grad(loss), solve=functools.partial(cg, tol=1e-12))
    def fit(init, penalty, x, y):
        return train(init, {"lr": 0.5}, (penalty, x, y)).params

    def implicit(penalty):
        return loss(fit(start, penalty, x, y), torch.zeros(()), *validation)

    def unrolled(penalty):
        return loss(train(start, {"lr": 0.5}, (penalty, x, y)).params, torch.zeros(()), *validation)

    penalty = torch.tensor(0.2, **DOUBLE)
    close(torch.func.grad(implicit)(penalty), torch.func.grad(unrolled)(penalty), rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    "solve", [cg, normal_cg, gmres, dense, functools.partial(neumann, steps=40, scale=0.7)], ids=list(SOLVES)
)
def test_a_fixed_point(solve):
    """cos(a x) = x: dx/da = −x sin(ax) / (1 + a sin(ax)), by differentiating both sides."""

    @fo.meta.custom_fixed_point(lambda x, a: torch.cos(a * x), solve=solve)
    def iterate(init, a):
        x = init
        for _ in range(200):
            x = torch.cos(a * x)
        return x

    a = torch.tensor([0.5, 0.9, 1.1], **DOUBLE)
    x = iterate(torch.ones(3, **DOUBLE), a)
    expected = -x * torch.sin(a * x) / (1 + a * torch.sin(a * x))
    for mode in (torch.func.jacrev, torch.func.jacfwd):
        close(mode(lambda a: iterate(torch.ones(3, **DOUBLE), a))(a), torch.diag(expected), rtol=1e-6, atol=1e-8)


def test_the_start_has_no_derivative_and_the_solver_none_of_its_own():
    @fo.meta.custom_root(lambda x, a: x - a)
    def solver(init, a):
        return a.clone() + 0 * init

    slopes = torch.func.grad(solver, (0, 1))(torch.tensor(7.0), torch.tensor(2.0))
    assert slopes == (0.0, 1.0)


def test_arguments_may_be_trees_with_integers_and_none():
    @fo.meta.custom_root(lambda x, args, n: {"v": x["v"] * args["a"] - n})
    def solver(init, args, n):
        assert args["none"] is None
        return {"v": n / args["a"]}

    args = {"a": torch.tensor(4.0, **DOUBLE), "none": None}
    slope = torch.func.grad(lambda a: solver({"v": None}, {**args, "a": a}, torch.tensor(3))["v"])(args["a"])
    close(slope, -3 / 16, rtol=1e-9, atol=0)


@pytest.mark.parametrize("wrap", [fo.meta.custom_root, fo.meta.custom_fixed_point])
def test_closing_over_what_is_being_differentiated_is_refused(wrap):
    """Its part in the derivative would be lost; what is batched is a constant, and that in a function given to `grad` counts."""

    def solved(a, of=lambda loss: torch.func.grad(loss)):
        @wrap(of(lambda x: (x - a) ** 2))
        def solver(init):
            return a

        return solver(torch.zeros(()))

    a = torch.tensor([2.0, 3.0])
    assert torch.equal(torch.vmap(solved)(a), a)
    for of in (lambda loss: loss, torch.func.grad):
        for differentiated in (torch.func.grad, lambda f: lambda a: torch.func.jvp(f, (a,), (a,))):
            with pytest.raises(ValueError, match="closes over 'a', which is being differentiated"):
                differentiated(lambda a, of=of: solved(a, of))(a[0])


@pytest.mark.parametrize("kind", ["a function that it calls", "a partial", "a method"])
def test_what_is_differentiated_is_found_where_it_is_hidden(kind):
    def solved(a):
        def deeper(x):
            return (x - a) ** 2

        class Loss:
            def at(self, x):
                return deeper(x)

        partial = functools.partial(lambda a, x: (x - a) ** 2, a)
        loss = {"a function that it calls": lambda x: deeper(x), "a partial": partial, "a method": Loss().at}[kind]
        return fo.meta.custom_root(loss)(lambda init: a.detach())(torch.zeros(()))

    with pytest.raises(ValueError, match="which is being differentiated: pass it as an argument"):
        torch.func.grad(solved)(torch.tensor(2.0))


@pytest.mark.parametrize("kind", ["a root that is run again", "a root of a root"])
def test_derivatives_of_roots_within_what_has_its_own(kind):
    """Of x = a², b = ½ x: to the third order, and over a batch."""
    inner = fo.meta.custom_root(lambda x, a: x - a * a, solve=dense)(lambda init, a: a * a)

    @fo.meta.custom_root(lambda x, a: 2 * x - inner(a, a), solve=dense)
    def outer(init, a):
        return a * a / 2

    again = fo.meta.remat(lambda a: inner(a, a) / 2)
    a, grad = torch.tensor(3.0, **DOUBLE), torch.func.grad

    def cubed(a):
        return a * (again(a) if kind == "a root that is run again" else outer(a, a))

    found = [grad(cubed)(a), grad(grad(cubed))(a), grad(grad(grad(cubed)))(a)]
    close(found, [torch.tensor(x, **DOUBLE) for x in (27 / 2, 9.0, 3.0)], rtol=1e-12, atol=1e-12)
    close(grad(lambda a: torch.vmap(grad(cubed))(a.expand(2)).sum())(a), 18 * torch.ones_like(a), rtol=1e-12, atol=1e-12)


def test_an_equation_per_unknown():
    @fo.meta.custom_root(lambda x, a: (x - a)[:1])
    def solver(init, a):
        return a

    with pytest.raises(ValueError, match=r"returned shapes \[\(1,\)\] for a solution of shapes \[\(2,\)\]"):
        torch.func.grad(lambda a: solver(a, a).sum())(torch.ones(2))
