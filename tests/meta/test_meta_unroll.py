"""Unrolled training against closed forms, hand-written loops and finite differences."""

import itertools

import pytest
import torch
from cases import TABLE, params_for
from covering import kinds_of, mostly_full
from meta_helpers import close, difference_quotient, every_number, peak_bytes

import functional_optim as fo
from functional_optim import trees
from functional_optim.form import nested
from functional_optim.meta.packing import pack
from functional_optim.trials import Trial, default_params

TRIALS = {case: Trial(tx, params_for(case) or default_params()) for case, tx in TABLE.items()}
MOST = [pytest.param(TRIALS[case], id=case, marks=marks) for case, marks in mostly_full(TABLE).items()]
DOUBLE = {"dtype": torch.float64}


def wavy(params, phase=0.3):
    """A smooth loss of any parameters, curved everywhere."""
    return sum(torch.sin(p + phase + 0.1 * i).sum() + 0.1 * (p * p).sum() for i, p in enumerate(trees.leaves(params)))


def trained_on(loss_fn, trial, steps, **options):
    """`unroll` of a transform of the table, given what it asks for."""
    asked = {name: x for name, x in trial.extra().items() if name not in ("value", "evaluate")}
    return fo.meta.unroll(loss_fn, trial.transform, steps, extra_fn=lambda params: asked, **options)


def away_from_the_edge(trial):
    """Hyper-parameters with room for finite differences: no ε of 10⁻¹⁶ under a root, which a step would make negative."""
    tensors, rebuild = pack(trial.hparams())
    return rebuild([torch.where(x.abs() < 1e-5, x + 0.01, x) for x in tensors])


def regression(params, x, y):
    return ((torch.tanh(x @ params["w"] + params["b"]) @ params["v"] - y) ** 2).mean()


def network(width=4):
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, **DOUBLE}
    return {"w": torch.randn(3, width, **draw), "b": torch.zeros(width, **DOUBLE), "v": torch.randn(width, 1, **draw)}


def data(n=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator, **DOUBLE), torch.randn(n, 1, generator=generator, **DOUBLE)


def by_hand(tx, params, hparams, batches, stop=lambda k: False, first_order=False, loss_fn=regression):
    """The loop as one writes it without `unroll`; `stop(k)` cuts derivatives before step k."""
    state, losses = tx.init_state(params, hparams), []
    for k, batch in enumerate(batches):
        if stop(k):
            params, state = (trees.map_leaves(torch.detach, tree) for tree in (params, state))
        grads, loss = torch.func.grad_and_value(loss_fn)(params, *batch)
        if first_order:
            grads = trees.map_leaves(torch.detach, grads)
        updates, state = tx.update(grads, state, params, hparams)
        params = fo.apply_updates(params, updates)
        losses.append(loss)
    return params, state, torch.stack(losses)


# --- Closed forms -------------------------------------------------------------------------------------------------------


def test_descent_on_a_quadratic_is_its_closed_form():
    """p ← p − η a (p − c) ends at c + (1 − η a)ᴷ (p₀ − c)."""
    a, c, steps = 0.7, 2.0, 6
    inner = fo.meta.unroll(lambda p: 0.5 * a * (p - c) ** 2, fo.sgd(), steps)

    def final(p, lr):
        return inner(p, {"lr": lr}).params

    p0, lr = torch.tensor(-1.0, **DOUBLE), torch.tensor(0.3, **DOUBLE)
    shrink = 1 - 0.3 * a
    exactly = {"rtol": 1e-13, "atol": 0.0}
    close(final(p0, lr), c + shrink**steps * (-1 - c), **exactly)
    slope_p, slope_lr = torch.func.grad(final, (0, 1))(p0, lr)
    close(slope_p, shrink**steps, **exactly)
    close(slope_lr, -a * steps * shrink ** (steps - 1) * (-1 - c), **exactly)
    curvature = torch.func.grad(torch.func.grad(final, 1), 1)(p0, lr)
    close(curvature, a * a * steps * (steps - 1) * shrink ** (steps - 2) * (-1 - c), **exactly)
    losses = inner(p0, {"lr": lr}).logs["loss"]
    close(losses, torch.tensor([0.5 * a * (shrink**k * (-1 - c)) ** 2 for k in range(steps)], **DOUBLE), **exactly)


def takes_constants(tx):
    """Whether derivatives take something for a constant that differs, such as a basis of eigenvectors."""
    return any(form.constants for _, form in nested(tx))


# The derivatives of each rule are held by its laws; here they go through a loop, which takes each kind in its way.
@pytest.mark.parametrize(
    "trial",
    [
        pytest.param(TRIALS[case], id=case, marks=marks)
        for case, marks in mostly_full(TABLE, kinds_of).items()
        if not takes_constants(TABLE[case])
    ],
)
def test_meta_gradients_are_the_difference_quotients(trial):
    """Of a loss after three steps, in every hyper-parameter and along a direction in the parameters; 1e-5 relative."""
    inner = trained_on(wavy, trial, 3)
    numbers, rebuild = pack((trial.params, away_from_the_edge(trial)))

    def after(numbers):
        params, hparams = rebuild(numbers)
        return wavy(inner(params, hparams).params, phase=0.5)

    slopes = torch.func.grad(after)(numbers)
    assert all(slope.isfinite().all() for slope in slopes)
    for direction in every_number(numbers, whole=len(trial.params)):
        found = sum((s * d).sum() for s, d in zip(slopes, direction, strict=True))
        # short steps for rules with kinks, such as clipping, and for 1 − β of 1e-4
        quotients = [difference_quotient(after, numbers, direction, step) for step in (2e-4, 1e-6, 1e-7)]
        assert any(abs(found - expected) <= 1e-5 * abs(expected) + error for expected, error in quotients), (found, quotients)


@pytest.mark.parametrize("trial", MOST)
def test_through_a_zero_gradient_derivatives_are_finite(trial):
    """The loss ignores some parameters: their gradients are 0 at every step. First derivatives, and second along a direction."""
    inner = trained_on(lambda params: (trees.leaves(params)[0] ** 2).sum(), trial, 2)
    numbers, rebuild = pack((trial.params, trial.hparams()))

    def after(numbers):
        return wavy(inner(*rebuild(numbers)).params)

    def slope_along_ones(numbers):
        slopes = torch.func.grad(after)(numbers)
        return sum(slope.sum() for slope in slopes), slopes

    second, first = torch.func.grad(slope_along_ones, has_aux=True)(numbers)
    assert all(x.isfinite().all() for x in (*first, *second))


# --- Against the loop written by hand ------------------------------------------------------------------------------------


def test_the_loop_is_the_loop_by_hand():
    tx, params, hparams = fo.adamw(), network(), {"lr": 0.1, "weight_decay": 0.2}
    support = data()
    inner = fo.meta.unroll(regression, tx, 5)
    found = inner(params, hparams, support)
    assert found.state["scale_by_adam"]["step"] == 5
    expected = by_hand(tx, params, hparams, [support] * 5)
    close((found.params, found.state, found.logs["loss"]), expected, rtol=0, atol=0)

    again = fo.meta.unroll(regression, tx, 2)(found.params, hparams, support, state=found.state)
    expected = by_hand(tx, params, hparams, [support] * 7)
    close((again.params, again.state, again.logs["loss"]), (*expected[:2], expected[2][5:]), rtol=0, atol=0)


def test_batches_and_schedules_give_each_step_its_own():
    """Data per step beside data for all steps, a learning rate per step and one per parameter and step."""
    tx, params, lrs = fo.sgd(momentum=0.5), network(), torch.linspace(0.1, 0.4, 4, **DOUBLE)
    xs, ys = (torch.stack(column) for column in zip(*(data(seed=k) for k in range(4)), strict=True))
    scale = torch.tensor(2.0, **DOUBLE)

    def scaled(params, scale, x, y):
        return scale * regression(params, x, y)

    for remat in (False, 3):
        inner = fo.meta.unroll(scaled, tx, 4, remat=remat)
        found = inner(params, {"momentum": 0.7}, (scale,), batches=(xs, ys), schedule={"lr": lrs}).params
        p, state = params, tx.init_state(params)
        for k in range(4):
            u, state = tx.update(torch.func.grad(scaled)(p, scale, xs[k], ys[k]), state, p, {"momentum": 0.7, "lr": lrs[k]})
            p = fo.apply_updates(p, u)
        close(found, p, rtol=0, atol=0)

        def own(rates, inner=inner):
            schedule = {"lr": fo.PerLeaf({"w": rates[0], "b": rates[1], "v": rates[2]})}
            return regression(inner(params, {}, (scale,), batches=(xs, ys), schedule=schedule).params, *data(seed=9))

        rates = [lrs, 2 * lrs, 3 * lrs]
        slopes = torch.func.grad(own)(rates)
        for leaf, k in itertools.product(range(3), range(4)):
            bump = [torch.eye(4, **DOUBLE)[k] * (leaf == i) for i in range(3)]
            expected, error = difference_quotient(own, rates, bump)
            assert abs(slopes[leaf][k] - expected) <= 1e-6 * abs(expected) + error


@pytest.mark.parametrize("remat", [False, True, 4])
@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_truncation_stops_derivatives_where_it_says(every, remat):
    tx, params, support = fo.adam(), network(), data()

    def ours(params, hparams):
        result = fo.meta.unroll(regression, tx, 7, truncate=every, remat=remat)(params, hparams, support)
        return regression(result.params, *data(seed=2)) + result.logs["loss"].sum()

    def theirs(params, hparams):
        final, _, losses = by_hand(tx, params, hparams, [support] * 7, stop=lambda k: k > 0 and k % every == 0)
        return regression(final, *data(seed=2)) + losses.sum()

    at = params, {"lr": torch.tensor(0.1, **DOUBLE), "betas": (torch.tensor(0.8, **DOUBLE), torch.tensor(0.9, **DOUBLE))}
    found, expected = (torch.func.grad(f, (0, 1))(*at) for f in (ours, theirs))
    close(found, expected, rtol=1e-12, atol=1e-14)
    whole = torch.func.grad(lambda p: regression(by_hand(tx, p, at[1], [support] * 7)[0], *data(seed=2)))(params)
    assert every == 7 or not torch.allclose(found[0]["w"], whole["w"])


@pytest.mark.parametrize("remat", [False, True])
def test_first_order_takes_gradients_as_constants(remat):
    tx, params, support = fo.adamw(), network(), data()

    def ours(params, hparams):
        inner = fo.meta.unroll(regression, tx, 4, first_order=True, remat=remat)
        return regression(inner(params, hparams, support).params, *data(seed=2))

    def theirs(params, hparams):
        return regression(by_hand(tx, params, hparams, [support] * 4, first_order=True)[0], *data(seed=2))

    at = params, {"lr": torch.tensor(0.1, **DOUBLE), "weight_decay": torch.tensor(0.2, **DOUBLE)}
    found, expected = (torch.func.grad(f, (0, 1))(*at) for f in (ours, theirs))
    close(found, expected, rtol=1e-12, atol=1e-14)
    # p₄ = (1 − lr·decay)⁴ p₀ + constants: the outer gradient at the end, shrunk
    end = fo.meta.unroll(regression, tx, 4)(params, at[1], support).params
    at_end = torch.func.grad(regression)(end, *data(seed=2))
    close(found[0], {name: (1 - 0.1 * 0.2) ** 4 * g for name, g in at_end.items()}, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("has_aux", [False, True])
@pytest.mark.parametrize(
    ("tx", "compile"),
    [(fo.sgd(momentum=0.5), False), (fo.polyak_sgd(max_lr=10.0), False), (fo.sam(fo.adam(), rho=0.1), False), (fo.adam(), True)],
    ids=["sgd", "polyak", "sam", "compiled adam"],
)
def test_first_order_makes_constants_of_nothing_but_gradients(tx, compile, has_aux):
    """A logged loss, an auxiliary output and the value in Polyak's step have their slopes; SAM's gradient is a constant, too."""
    params, hparams = network(2), {name: torch.tensor(float(x), **DOUBLE) for name, x in tx.hparams.items() if name != "betas"}

    def loss(params, x, y):
        return (regression(params, x, y), params["w"].sum()) if has_aux else regression(params, x, y)

    def ours(params, hparams, support):
        inner = fo.meta.unroll(loss, tx, 3, first_order=True, has_aux=has_aux, compile=compile)
        result = inner(params, hparams, support)
        return regression(result.params, *data(seed=2)) + sum((trees.leaves(x)[0] ** 2).sum() for x in result.logs.values())

    def theirs(params, hparams, support):
        def value_fn(params):
            x = {name: p.detach() for name, p in params.items()}
            slopes = {name: g.detach() for name, g in torch.func.grad(regression)(x, *support).items()}
            return regression(x, *support) + sum((g * (params[name] - x[name])).sum() for name, g in slopes.items())

        state, logged = tx.init_state(params, hparams), 0.0
        for _ in range(3):
            logged = logged + value_fn(params) ** 2 + (params["w"].sum() ** 2 if has_aux else 0.0)
            grads = torch.func.grad(value_fn)(params)
            u, state = tx.update(grads, state, params, hparams, value=value_fn(params), evaluate=fo.meta.evaluate_of(value_fn))
            params = fo.apply_updates(params, u)
        return regression(params, *data(seed=2)) + logged

    found, expected = (torch.func.grad(f, (0, 1, 2))(params, hparams, data()) for f in (ours, theirs))
    close(found, expected, rtol=1e-10, atol=1e-12)


def test_an_infinite_slope_leaves_the_logged_loss_alone():
    inner = fo.meta.unroll(lambda p: p.sqrt().sum(), fo.sgd(), 1, first_order=True)
    assert inner(torch.tensor([0.0, 4.0])).logs["loss"] == 2.0


@pytest.mark.parametrize("trial", MOST)
def test_any_transform_has_the_numbers_and_the_state_of_a_loop(trial):
    """Of the update called by hand, which goes on where `unroll` has ended and the other way round."""
    steps = {n: trained_on(wavy, trial, n) for n in (2, 4)}
    whole, half = (steps[n](trial.params) for n in (4, 2))

    def by_hand(params, state):
        for _ in range(2):
            grads, loss = torch.func.grad_and_value(wavy)(params)
            extra = {**trial.extra(), "value": loss, "evaluate": fo.meta.evaluate_of(wavy)}
            u, state = trial.transform.update(grads, state, params, **extra)
            params = fo.apply_updates(params, u)
        return params, state

    # a norm may be summed in another order
    same = {"rtol": 1e-12, "atol": 1e-12}
    close((half.params, half.state), by_hand(trial.params, trial.transform.init_state(trial.params)), **same)
    close((whole.params, whole.state), by_hand(half.params, half.state), **same)
    again = steps[2](half.params, state=half.state)
    close((again.params, again.state), (whole.params, whole.state), **same)
    assert trees.flatten(whole.state)[1] == trees.flatten(trial.transform.init_state(trial.params))[1]


@fo.elementwise(hparams={"lr": 0.1}, reduce=lambda us, ps: torch.stack([u.abs().max() for u in us]).sum())
def _by_sum_of_largest(hp, total):
    return lambda g, p: -hp["lr"] * g / total


@fo.elementwise(slots={"first": lambda p, hp: p / (1 + p.abs().max())})
def _against_where_it_started(hp):
    return lambda g, p, first: (-0.1 * (g + first), first)


@fo.elementwise(slots={"seen": lambda p, hp: torch.zeros((), dtype=p.dtype)})
def _slower_and_slower(hp):
    return lambda g, p, seen: (-g / (1 + seen), seen + 1)


@pytest.mark.parametrize("tx", [_by_sum_of_largest(), _against_where_it_started(), _slower_and_slower()])
def test_a_rule_sees_the_leaves_where_it_looks_at_them(tx):
    params, support = network(), data()
    found = fo.meta.unroll(regression, tx, 3)(params, {}, support)
    expected = by_hand(tx, params, {}, [support] * 3)
    close((found.params, found.state, found.logs["loss"]), expected, rtol=1e-13, atol=1e-14)


def test_the_transform_gets_the_loss_and_its_function():
    seen = []

    def update(updates, state, params, hparams, value, value_fn, evaluate):
        found, grads, aux = evaluate(params)
        assert torch.equal(grads, 2 * params) and torch.equal(aux, params)
        seen.append((value, value_fn(params), found))
        return updates, state

    tx = fo.Transform(lambda params, hparams: {}, update)
    fo.meta.unroll(lambda p: ((p * p).sum(), p), tx, 1, has_aux=True)(torch.tensor([2.0, 1.0]))
    assert seen == [(5.0, 5.0, 5.0)]


def test_aux_is_logged_and_other_leaves_are_left_alone():
    def loss(params):
        return (params["p"] ** 2).sum(), {"p": params["p"], "n": params["n"] + 1}

    params = {"p": torch.tensor([1.0, 2.0]), "n": torch.tensor(3), "none": None}
    for remat in (False, True):
        found = fo.meta.unroll(loss, fo.sgd(), 3, has_aux=True, remat=remat)(params, {"lr": 0.25})
        assert found.params["n"] == 3 and found.params["none"] is None
        assert torch.equal(found.params["p"], torch.tensor([0.125, 0.25]))
        assert torch.equal(found.logs["aux"]["p"], torch.tensor([[1.0, 2.0], [0.5, 1.0], [0.25, 0.5]]))
        assert torch.equal(found.logs["aux"]["n"], torch.tensor([4, 4, 4]))
        assert torch.equal(found.logs["loss"], torch.tensor([5.0, 1.25, 0.3125]))


# --- Modes of differentiation, and memory ----------------------------------------------------------------------------------


JACOBIANS = torch.func.jacrev, torch.func.jacfwd
HPARAMS = {"lr": torch.tensor(0.1, **DOUBLE), "betas": (torch.tensor(0.8, **DOUBLE), torch.tensor(0.9, **DOUBLE))}


@pytest.mark.parametrize("remat", [False, True, 2])
def test_every_way_to_differentiate_gives_the_same(remat):
    """grad, jvp, backward, forward over reverse, reverse over reverse and all of that under vmap, against plain reverse mode."""
    params, support, query = network(2), data(), data(seed=2)

    def outer(params, hparams, remat=remat):
        inner = fo.meta.unroll(regression, fo.adam(), 5, remat=remat)
        return regression(inner(params, hparams, support).params, *query)

    def plain(params, hparams):
        return outer(params, hparams, remat=False)

    same = {"rtol": 1e-11, "atol": 1e-13}
    slopes = torch.func.grad(plain, (0, 1))(params, HPARAMS)
    close(torch.func.grad(outer, (0, 1))(params, HPARAMS), slopes, **same)
    close(fo.meta.forward_grad(lambda h: outer(params, h))(HPARAMS), slopes[1], **same)

    leaf = {name: p.clone().requires_grad_() for name, p in params.items()}
    outer(leaf, HPARAMS).backward()
    close({name: p.grad for name, p in leaf.items()}, slopes[0], **same)

    def hessian(f, mode):
        return mode(torch.func.grad(lambda lr: f(params, {**HPARAMS, "lr": lr})))(HPARAMS["lr"])

    second = hessian(plain, torch.func.grad)
    for mode in (torch.func.grad, torch.func.jacfwd, torch.func.jacrev):
        close(hessian(outer, mode), second, **same)

    def own(rates):  # a sum: what autograd hands back for it is one number, expanded
        per_leaf = {"lr": fo.PerLeaf({name: rates[i] for i, name in enumerate(params)})}
        return sum(
            p.sum() for p in fo.meta.unroll(regression, fo.adam(), 5, remat=remat)(params, per_leaf, support).params.values()
        )

    rates = torch.tensor([0.1, 0.2, 0.3], **DOUBLE)
    second = [outer_mode(inner_mode(own))(rates) for outer_mode, inner_mode in itertools.product(JACOBIANS, JACOBIANS)]
    for other in second[1:]:
        close(other, second[0], **same)

    lrs = torch.linspace(0.01, 0.2, 3, **DOUBLE)
    loop = torch.stack([torch.func.grad(lambda h: plain(params, h))({**HPARAMS, "lr": lr})["lr"] for lr in lrs])
    batched = torch.vmap(lambda lr: torch.func.grad(lambda h: outer(params, h))({**HPARAMS, "lr": lr})["lr"])(lrs)
    close(batched, loop, **same)
    total = torch.func.grad(lambda p: torch.vmap(lambda lr: outer(p, {"lr": lr}))(lrs).sum())(params)
    each = [torch.func.grad(plain)(params, {"lr": lr}) for lr in lrs]
    close(total, {name: sum(g[name] for g in each) for name in params}, **same)


def test_forward_mode_takes_what_torch_takes_and_per_leaf_values():
    def f(hparams, scale):
        return scale * (hparams["a"].values(trees.flatten({"x": 0, "y": 0})[1], "a")[0] * hparams["b"]).sum()

    a = fo.PerLeaf({"x": torch.tensor([1.0, 2.0]), "y": torch.tensor(0.0)})
    for chunk_size in (None, 1):
        found = fo.meta.forward_grad(f, chunk_size=chunk_size)({"a": a, "b": torch.tensor(3.0)}, 2.0)
        assert torch.equal(found["a"].tree["x"], torch.tensor([6.0, 6.0])) and found["a"].tree["y"] == 0
        assert found["b"] == 6.0
    with pytest.raises(ValueError, match=r"tensor of shape \(2,\): expected a \(\) tensor"):
        fo.meta.forward_grad(lambda x: x)(torch.ones(2))


def test_forward_mode_in_a_complex_number():
    """What torch.func.grad gives: the derivatives in both parts."""
    z, x = torch.tensor([1.0 + 2.0j, 0.5 - 1.0j]), torch.tensor(3.0)

    def f(p):
        return p["x"] * (p["z"] ** 3).real.sum() + p["z"].abs().square().sum()

    close(fo.meta.forward_grad(f)({"z": z, "x": x}), torch.func.grad(f)({"z": z, "x": x}), rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match=r"the first argument\['n'\] is torch.int64, which has no derivative"):
        fo.meta.forward_grad(lambda p: p["x"] * p["n"])({"x": x, "n": torch.tensor(2)})


def test_memory():
    """Bytes alive at the peak: forward mode does not grow with the steps, re-materialisation as their root."""
    params, support = network(64), data(32)

    def peak(steps, remat=False, forward=False):
        inner = fo.meta.unroll(regression, fo.adam(), steps, remat=remat)

        def outer(hparams):
            return regression(inner(params, hparams, support).params, *support)

        gradient = fo.meta.forward_grad(outer) if forward else torch.func.grad(outer)
        return peak_bytes(lambda: gradient({"lr": torch.tensor(0.1, **DOUBLE)}))

    assert peak(16, forward=True) < 1.1 * peak(4, forward=True)
    plain, few, many = peak(36), peak(9, remat=True), peak(36, remat=True)
    assert many < 0.4 * plain  # 6 + 6 of 36, and what does not grow
    assert many < 2 * few


def test_remat_wants_constants_and_no_chance():
    x = torch.ones(2)
    weight = torch.ones(2)

    def outer(weight):
        return fo.meta.unroll(lambda p: (weight * p * p).sum(), fo.sgd(), 2, remat=True)(x).params.sum()

    with pytest.raises(ValueError, match="closes over 'weight', which is being differentiated"):
        torch.func.grad(outer)(weight)
    with pytest.raises(ValueError, match="closes over 'weight', which is being differentiated"):
        torch.func.jvp(outer, (weight,), (weight,))
    assert torch.func.vmap(outer)(torch.stack([weight, weight])).shape == (2,)
    with pytest.raises(ValueError, match="draws random numbers"):
        fo.meta.unroll(lambda p: (torch.rand(2) * p).sum(), fo.sgd(), 2, remat=True)(x)

    def through_a_default(lr):
        return fo.meta.unroll(lambda p: (p * p).sum(), fo.sgd(lr=lr), 2, remat=True)(x).params.sum()

    # 2 (1 − 2 lr)², differentiated
    assert torch.func.grad(through_a_default)(torch.tensor(0.25)) == 2 * 2 * (1 - 0.5) * -2


def test_remat_runs_again_under_the_autocast_of_the_call():
    """`backward` is called outside of it."""
    x, w = torch.randn(3, 4), torch.randn(4, 4)

    def f(x, w):
        return (x @ w).relu().float().square().sum()

    slopes = []
    for function in (f, fo.meta.remat(f)):
        leaf = w.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = function(x, leaf)
        value.backward()
        slopes.append(leaf.grad)
    assert torch.equal(*slopes)


def test_remat_of_a_function_that_returns_what_it_got():
    def f(x, n):
        return {"same": x, "again": (x, n), "constant": torch.zeros(2), "square": x * x}

    x, n = torch.tensor([1.0, 2.0]), torch.tensor(3)
    found = fo.meta.remat(f)(x, n)
    assert torch.equal(found["same"], x) and found["again"][1] == 3
    g = torch.func.grad(lambda x: sum(t.sum() for t in pack(fo.meta.remat(f)(x, n))[0]))(x)
    assert torch.equal(g, 2 + 2 * x)
    pushed = torch.func.jvp(lambda x: fo.meta.remat(f)(x, n), (x,), (torch.ones(2),))[1]
    assert torch.equal(pushed["square"], 2 * x) and torch.equal(pushed["constant"], torch.zeros(2))


def test_inside_the_compiler():
    params, support = network(2), data()

    def meta_gradient(params, lr):
        inner = fo.meta.unroll(regression, fo.sgd(momentum=0.9), 2, truncate=2, remat=True)
        return torch.func.grad(lambda p, lr: regression(inner(p, {"lr": lr}, support).params, *support), (0, 1))(params, lr)

    compiled = torch.compile(meta_gradient, fullgraph=True, backend="eager")
    at = params, torch.tensor(0.1, **DOUBLE)
    close(compiled(*at), meta_gradient(*at), rtol=1e-11, atol=1e-13)


# --- Errors ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps = 0: expected a whole number"),
        ({"steps": 2.0}, TypeError, r"steps = 2\.0: expected a whole number"),
        ({"truncate": 0}, ValueError, "truncate = 0: expected a whole number"),
        ({"remat": -1}, ValueError, "remat = -1: expected a whole number"),
    ],
)
def test_counts_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        fo.meta.unroll(wavy, fo.sgd(), **{"steps": 1, **options})


def test_none_for_remat_is_false():
    assert fo.meta.unroll(wavy, fo.sgd(), 1, remat=None).remat is False
    assert fo.meta.loop(lambda x, i: (x + 1, None), torch.tensor(0), 3, remat=None)[0] == 3


def test_what_is_wrong_is_named():
    with pytest.raises(TypeError, match=r"is not a Transform. Did you mean to call it, adam\(\)"):
        fo.meta.unroll(wavy, fo.adam, 1)
    inner = fo.meta.unroll(lambda p, x: (p * x).sum(), fo.sgd(), 3)
    p = torch.ones(2)
    with pytest.raises(TypeError, match="batch is a Tensor: expected a tuple"):
        inner(p, {}, torch.ones(2))
    with pytest.raises(ValueError, match=r"batches holds a tensor of shape \(2, 2\): each needs a first axis of length 3"):
        inner(p, batches=(torch.ones(2, 2),))
    with pytest.raises(ValueError, match=r"schedule holds a tensor of shape \(\)"):
        inner(p, {}, (p,), schedule={"lr": torch.tensor(0.1)})
    with pytest.raises(ValueError, match="has no hyper-parameter 'learning_rate'"):
        inner(p, {"learning_rate": 0.1}, (p,))
    with pytest.raises(ValueError, match=r"the loss is a tensor of shape \(2,\)"):
        fo.meta.unroll(lambda p: p, fo.sgd(), 1)(p)
    with pytest.raises(ValueError, match=r"returns a pair \(loss, aux\)"):
        fo.meta.unroll(lambda p: p.sum(), fo.sgd(), 1, has_aux=True)(p)
    with pytest.raises(TypeError, match=r"aux\['a'\] is a float"):
        fo.meta.unroll(lambda p: (p.sum(), {"a": 1.0}), fo.sgd(), 1, has_aux=True)(p)
    with pytest.raises(ValueError, match="no floating-point tensor"):
        fo.meta.unroll(lambda p: p.sum(), fo.sgd(), 1)(torch.ones(2, dtype=torch.int64))
