"""`with_line_search` and `scale_by_lbfgs`: beside optax and `minimize`, behind the adapter, batched, differentiated."""

import math
import warnings

import pytest
import torch

import functional_optim as fo

DOUBLE = {"dtype": torch.float64}
START = torch.tensor([-1.2, 1.0, -1.2, 1.0], **DOUBLE)


def rosenbrock(x):
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def lbfgs(history_size=10, search=None, **options):
    tx = fo.chain(fo.scale_by_lbfgs(history_size), fo.scale_by_learning_rate(1.0))
    return fo.with_line_search(tx, search, **options)


def trained(tx, params, steps, loss=rosenbrock):
    evaluate, state, points = fo.meta.evaluate_of(loss), tx.init_state(params), []
    for _ in range(steps):
        value, grads, _ = evaluate(params)
        updates, state = tx.update(grads, state, params, value=value, evaluate=evaluate)
        params = fo.apply_updates(params, updates)
        points.append(params)
    return torch.stack(points), state


def test_lbfgs_is_optax():
    import jax
    import optax

    tx = fo.chain(fo.scale_by_lbfgs(history_size=3), fo.scale_by_learning_rate(0.3))
    params, state, found = START, tx.init_state(START), []
    for _ in range(12):
        updates, state = tx.update(torch.func.grad(bowl)(params), state, params)
        params = fo.apply_updates(params, updates)
        found.append(params)
    with jax.enable_x64(True):
        theirs, p = optax.chain(optax.scale_by_lbfgs(memory_size=3), optax.scale(-0.3)), jax.numpy.array(START.numpy())
        state, expected = theirs.init(p), []
        for _ in range(12):
            g = jax.numpy.array(torch.func.grad(bowl)(torch.tensor(p.tolist(), **DOUBLE)).numpy())
            updates, state = theirs.update(g, state, p)
            p = optax.apply_updates(p, updates)
            expected.append(p.tolist())
    torch.testing.assert_close(torch.stack(found), torch.tensor(expected, **DOUBLE), rtol=1e-9, atol=1e-9)


def bowl(x):
    """Convex, so that every pair is kept."""
    return (torch.arange(1, 5, **DOUBLE) * x**2).sum() + torch.logsumexp(x, 0)


def test_with_a_search_it_goes_where_minimize_goes():
    """The steps are the same; a pair of many digits is rounded otherwise."""
    points, state = trained(lbfgs(), START, 15)
    seen = []
    fo.minimize(rosenbrock, START, max_steps=15, callback=lambda found: seen.append((found.params, int(found.evaluations))))
    torch.testing.assert_close(points, torch.stack([x for x, _ in seen]), rtol=1e-6, atol=1e-6)
    assert int(state["evaluations"]) == seen[-1][1] - 1, "the first is the caller's, as one in each step is"


@pytest.mark.parametrize("search", [None, fo.solvers.backtracking(), fo.solvers.hager_zhang()])
def test_behind_the_adapter_it_takes_a_closure(search):
    w, calls = torch.nn.Parameter(START.clone()), []
    optimizer = fo.adapters.OptimizerAdapter([w], lbfgs(3, search))

    def closure():
        optimizer.zero_grad()
        loss = rosenbrock(w)
        loss.backward()
        calls.append(loss.item())
        return loss

    points, state = trained(lbfgs(3, search), START, 8)
    for point in points:
        optimizer.step(closure)
        torch.testing.assert_close(w.detach(), point, rtol=1e-9, atol=1e-9)
    logged = {name: float(x) for name, x in fo.adapters.log_values(optimizer).items()}
    assert logged["evaluations"] == len(calls) - 8 == int(state["evaluations"])
    assert logged["failed_searches"] == 0 and logged["step_size"] == pytest.approx(float(state["step_size"]), rel=1e-9)


def test_a_batch_is_each_by_itself():
    starts = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), **DOUBLE)
    apart = [trained(lbfgs(3), start, 6) for start in starts]
    points, state = torch.vmap(lambda start: trained(lbfgs(3), start, 6))(starts)
    torch.testing.assert_close(points, torch.stack([points for points, _ in apart]), rtol=1e-9, atol=1e-9)
    assert state["evaluations"].tolist() == [int(own["evaluations"]) for _, own in apart]


def test_derivatives_go_through_the_steps():
    """Of the last of three, in the start; by finite differences, in which no search takes another branch."""
    inner = fo.meta.unroll(rosenbrock, fo.with_line_search(fo.sgd(lr=0.01), max_evals=8), 3)
    assert torch.autograd.gradcheck(lambda x: inner(x).params, START.clone().requires_grad_())
    slope = torch.func.jacrev(lambda x: inner(x).params)(START)
    torch.testing.assert_close(slope, torch.func.jacfwd(lambda x: inner(x).params)(START), rtol=1e-9, atol=1e-9)


def test_a_loss_that_is_not_finite_makes_the_step_shorter():
    """−log x is infinite at 0 and NaN beyond, where the whole step leads."""
    points, state = trained(lbfgs(), torch.tensor([1e-3, 50.0], **DOUBLE), 40, lambda x: (x - torch.log(x)).sum())
    torch.testing.assert_close(points[-1], torch.ones(2, **DOUBLE), rtol=0, atol=1e-5)
    assert points.isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [lambda x: torch.where(x == 1, x, math.nan).sum(), lambda x: x.sum() - 2 * x.detach().sum(), lambda x: (0 * x).log().sum()],
    ids=["NaN everywhere else", "uphill", "not finite"],
)
@pytest.mark.parametrize("batched", [False, True])
def test_a_search_that_fails_says_so_and_stays(loss, batched):
    def run(x):
        return trained(fo.with_line_search(fo.sgd(lr=1.0)), x, 2, loss)

    start = torch.ones(2, **DOUBLE)
    points, state = torch.vmap(run)(start[None]) if batched else run(start)
    assert (points == 1).all() and state["failed_searches"] == 2 and state["step_size"] < 1e-15
    tx = fo.with_line_search(fo.sgd(lr=1.0))
    assert {"step_size", "evaluations", "failed_searches"} <= fo.log_values(tx, tx.init_state(start)).keys()
    if not batched:
        assert "2 searches so far have found no lower value" in str(fo.explain(tx, start, state))
    assert "searches so far" not in str(fo.explain(tx, start))


def test_an_optimizer_explains_that_a_search_has_failed():
    w = torch.nn.Parameter(torch.ones(2, **DOUBLE))
    optimizer = fo.adapters.OptimizerAdapter([w], fo.with_line_search(fo.sgd(lr=1.0)))

    def closure():
        loss = torch.where(w == 1, w, math.nan).sum()
        optimizer.zero_grad()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert "1 search so far has found no lower value" in str(optimizer.explain())


def test_a_first_direction_that_leads_up_is_warned_of():
    def loss(x):
        return (x**2).sum()

    def stepped(tx, x):
        evaluate, state = fo.meta.evaluate_of(loss), tx.init_state(x)
        for _ in range(2):
            found = evaluate(x)
            updates, state = tx.update(found.grads, state, x, value=found.value, evaluate=evaluate)
            x = fo.apply_updates(x, updates)
        return x

    start = torch.ones(2, **DOUBLE)
    with pytest.warns(UserWarning, match="first update of scale_by_lbfgs leads up.*scale_by_learning_rate") as record:
        assert torch.equal(stepped(fo.with_line_search(fo.scale_by_lbfgs()), start), start)
    assert len(record) == 1
    tx = fo.with_line_search(fo.chain(fo.scale_by_lbfgs(), fo.scale_by_learning_rate(1.0)))
    assert stepped(tx, start).abs().max() < 1e-6  # A quadratic: the second step ends at its minimum.


@pytest.mark.parametrize("fused", [False, True])
def test_in_a_branch_it_searches_along_its_own_parameters(fused):
    """Of v² w² with v = 2, w = 3, along −∂/∂v alone, while w steps by its gradient."""
    tx = fo.partition(
        {"a": fo.with_line_search(fo.sgd(lr=1.0), fo.solvers.backtracking(decrease=0.5)), "b": fo.sgd(lr=0.01)},
        fo.by_name({"v": "a", "w": "b"}),
    )
    start = {"v": torch.tensor(2.0, **DOUBLE), "w": torch.tensor(3.0, **DOUBLE)}
    own = {name: torch.nn.Parameter(p.clone()) for name, p in start.items()}
    optimizer = fo.adapters.OptimizerAdapter(own.items(), tx, fused=fused)

    def closure():
        optimizer.zero_grad()
        loss = own["v"] ** 2 * own["w"] ** 2
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What searches is no kernel.
        optimizer.step(closure)
    evaluate = fo.meta.evaluate_of(lambda p: p["v"] ** 2 * p["w"] ** 2)
    value, grads, _ = evaluate(start)
    updates, _ = tx.update(grads, tx.init_state(start), start, value=value, evaluate=evaluate)
    found = fo.apply_updates(start, updates)
    assert {name: p.item() for name, p in own.items()} == pytest.approx({name: p.item() for name, p in found.items()})
    # A whole step of −36 is made a tenth of it, and that a half, though the parabola's minimum lies a little farther.
    assert {name: x.item() for name, x in found.items()} == pytest.approx({"v": 2 - 36 * 0.05, "w": 3 - 0.01 * 24})


def test_a_closure_has_to_return_the_loss():
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = fo.adapters.OptimizerAdapter([w], lbfgs())
    w.grad = torch.ones(2)
    with pytest.raises(ValueError, match="needs 'value'.*a closure that returns it"):
        optimizer.step(lambda: None)
    assert torch.equal(w.detach(), torch.ones(2)) and not optimizer.state


def test_what_is_refused():
    tx, w = lbfgs(), torch.ones(2)
    state = tx.init_state(w)
    with pytest.raises(ValueError, match=r"with_line_search needs 'evaluate'.*step\(closure\)"):
        tx.update(w, state, w, value=1.0)
    with pytest.raises(ValueError, match="with_line_search needs 'value'"):
        tx.update(w, state, w, evaluate=fo.meta.evaluate_of(rosenbrock))
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(w, state, value=1.0, evaluate=fo.meta.evaluate_of(rosenbrock))
    with pytest.raises(TypeError, match="search is a str"):
        fo.with_line_search(fo.sgd(), "zoom")
    with pytest.raises(ValueError, match="scale_by_lbfgs needs the parameters"):
        fo.scale_by_lbfgs().update(w, fo.scale_by_lbfgs().init_state(w))
    with pytest.raises(ValueError, match="history_size = 0"):
        fo.scale_by_lbfgs(0)
