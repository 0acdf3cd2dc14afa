"""Rules and wrappers that look at the loss, or tune themselves: against optax, and against torch's scheduler."""

import math

import pytest
import torch
from trajectories import assert_same_trajectory

import functional_optim as fo

# Equal formulas in float64, over 30 steps with sums over leaves in another order.
TOLERANCE = 1e-10
CURVATURE = {"w": [1.0, 10.0], "b": [0.3]}
START = {"w": [2.0, -1.0], "b": [0.5]}
LOSSES = [5.0, 4.0, 4.0, 3.99999, 4.1, 4.2, 3.0, 3.1, 3.2, 3.3, 3.4, 3.0, 3.0, 3.0, 3.0, 2.0, 2.1, 2.1, 2.1, 2.1]


def noise(step, name):
    generator = torch.Generator().manual_seed(step)
    draws = torch.randn(3, generator=generator, dtype=torch.float64).tolist()
    return draws[:2] if name == "w" else draws[2:]


def ours(tx, steps=30):
    p = {name: torch.tensor(x, dtype=torch.float64) for name, x in START.items()}
    h = {name: torch.tensor(x, dtype=torch.float64) for name, x in CURVATURE.items()}
    state, found = tx.init_state(p), []
    for t in range(steps):
        value = sum((h[name] * p[name] ** 2).sum() for name in p) / 2
        grads = {name: h[name] * p[name] + 0.1 * torch.tensor(noise(t, name), dtype=torch.float64) for name in p}
        updates, state = tx.update(grads, state, p, value=value)
        p = fo.apply_updates(p, updates)
        found.append(torch.cat([p["w"], p["b"]]))
    return torch.stack(found)


def theirs(make, steps=30):
    import jax
    import optax

    with jax.enable_x64(True):
        tx = optax.with_extra_args_support(make(optax))
        p = {name: jax.numpy.array(x) for name, x in START.items()}
        h = {name: jax.numpy.array(x) for name, x in CURVATURE.items()}
        state, found = tx.init(p), []
        # optax keeps these scalars in float32 unless told otherwise; float64 shows that the formulas are the same.
        state = jax.tree.map(lambda x: x.astype("float64") if x.dtype == "float32" else x, state)
        for t in range(steps):
            value = sum((h[name] * p[name] ** 2).sum() for name in p) / 2
            grads = {name: h[name] * p[name] + 0.1 * jax.numpy.array(noise(t, name)) for name in p}
            updates, state = tx.update(grads, state, p, value=value)
            p = optax.apply_updates(p, updates)
            found.append([*p["w"].tolist(), *p["b"].tolist()])
    return found


@pytest.mark.parametrize(
    "tx, make",
    [
        (fo.momo(), lambda o: o.contrib.momo()),
        (fo.momo(lr=0.3), lambda o: o.contrib.momo(learning_rate=0.3)),
        (
            fo.momo(lower_bound=-3.0, adapt_lower_bound=True),
            lambda o: o.contrib.momo(lower_bound=-3.0, adapt_lower_bound=True),
        ),
        (fo.momo_adam(lr=0.1), lambda o: o.contrib.momo_adam(learning_rate=0.1)),
        (
            fo.momo_adam(lr=10.0, lower_bound=-3.0, adapt_lower_bound=True),
            lambda o: o.contrib.momo_adam(learning_rate=10.0, lower_bound=-3.0, adapt_lower_bound=True),
        ),
        (fo.mechanize(fo.adam(lr=1.0), s_init=1e-3), lambda o: o.contrib.mechanize(o.adam(1.0), s_init=1e-3)),
        (fo.mechanize(fo.sgd(lr=0.1), num_betas=2), lambda o: o.contrib.mechanize(o.sgd(0.1), num_betas=2)),
    ],
    ids=["momo", "momo short", "momo adapt", "momo_adam", "momo_adam adapt", "mechanize adam", "mechanize sgd"],
)
def test_it_is_optaxs(tx, make):
    assert_same_trajectory(ours(tx), theirs(make), TOLERANCE)


def momo_in_floats(adam, lr, decay, bound, adapts, steps=30):
    """MoMo and MoMo-Adam as the authors' programs go, over the elements of all parameters."""
    p, h = ([*tree["w"], *tree["b"]] for tree in (START, CURVATURE))
    m, v, value, product, found, estimate = [0.0] * 3, [0.0] * 3, 0.0, 0.0, [], bound
    for t in range(steps):
        loss = sum(a * x * x for a, x in zip(h, p, strict=True)) / 2
        g = [a * x + 0.1 * z for a, x, z in zip(h, p, [*noise(t, "w"), *noise(t, "b")], strict=True)]
        beta = 0.0 if t == 0 and not adam else 0.9
        rho = 1 - 0.9 ** (t + 1) if adam else 1.0
        m = [beta * a + (1 - beta) * b for a, b in zip(m, g, strict=True)]
        v = [0.999 * a + 0.001 * b * b for a, b in zip(v, g, strict=True)]
        d = [math.sqrt(a / (1 - 0.999 ** (t + 1))) + 1e-8 if adam else 1.0 for a in v]
        value, product = beta * value + (1 - beta) * loss, beta * product + (1 - beta) * dot(g, p)
        norm = sum(a * a / b for a, b in zip(m, d, strict=True))
        grown = 1 + lr * decay
        cap = grown * (value - product) + dot(m, p)
        if adapts and cap < grown * rho * estimate:
            estimate = max(cap / (2 * grown * rho), bound)
        tau = min(lr / rho, max(grown * (value - rho * estimate - product) + dot(m, p), 0.0) / norm)
        if adapts:
            estimate = max((value + dot(m, p) - product - tau * norm / 2) / rho, bound)
        p = [(x - tau * a / b) / grown for x, a, b in zip(p, m, d, strict=True)]
        found.append(p)
    return found


def dot(xs, ys):
    return sum(x * y for x, y in zip(xs, ys, strict=True))


@pytest.mark.parametrize("adapts", [False, True])
@pytest.mark.parametrize("adam, lr, decay", [(False, 0.3, 0.1), (False, 5.0, 0.02), (True, 0.1, 0.1), (True, 10.0, 0.02)])
def test_momos_decay_is_the_authors(adam, lr, decay, adapts):
    make = fo.momo_adam if adam else fo.momo
    tx = make(lr=lr, weight_decay=decay, lower_bound=-3.0, adapt_lower_bound=adapts)
    assert_same_trajectory(ours(tx), momo_in_floats(adam, lr, decay, -3.0, adapts), TOLERANCE)


def test_momos_longest_step_may_be_infinite():
    """f = p²/2 and f* = 0: the model reaches 0 at p/2."""
    p = torch.tensor(2.0)
    assert fo.momo(lr=math.inf).update(p, fo.momo().init_state(p), p, value=2.0)[0] == -1.0


def scales(tx, losses=LOSSES):
    state, found = tx.init_state(torch.zeros(())), []
    for loss in losses:
        update, state = tx.update(torch.ones((), dtype=torch.float64), state, value=loss)
        found.append(float(update))
    return found


@pytest.mark.parametrize(
    "options",
    [{"patience": 2}, {"patience": 1, "cooldown": 2}, {"patience": 1, "accumulation_size": 3}, {"patience": 1, "min_scale": 0.3}],
)
def test_reduce_on_plateau_is_optaxs(options):
    import jax
    import optax

    with jax.enable_x64(True):
        tx = optax.contrib.reduce_on_plateau(factor=0.5, **options)
        one = jax.numpy.ones(())
        state, expected = tx.init(one), []
        for loss in LOSSES:
            update, state = tx.update(one, state, value=loss)
            expected.append(float(update))
    assert scales(fo.reduce_on_plateau(factor=0.5, **options)) == pytest.approx(expected, rel=1e-12)
    assert len(set(expected)) > 1, "the losses never reach the patience"


def test_reduce_on_plateau_is_torchs_scheduler_with_less_patience():
    p = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([p], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    expected = []
    for loss in LOSSES:
        scheduler.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
    assert scales(fo.reduce_on_plateau(factor=0.5, patience=3)) == expected


def test_behind_the_adapter_the_loss_comes_from_the_closure_or_by_name():
    def run(step):
        w = torch.nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
        optimizer = fo.adapters.OptimizerAdapter([w], fo.momo())

        def closure():
            optimizer.zero_grad()
            loss = (w * w).sum()
            loss.backward()
            return loss

        for _ in range(4):
            step(optimizer, closure)
        return w.detach()

    by_closure = run(lambda optimizer, closure: optimizer.step(closure))
    by_name = run(lambda optimizer, closure: optimizer.step(value=closure().detach()))
    assert torch.equal(by_closure, by_name)


def test_a_rule_that_misses_the_loss_says_so():
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = fo.adapters.OptimizerAdapter([w], fo.momo())
    w.grad = torch.ones(2)
    with pytest.raises(ValueError, match="momo needs 'value': pass it by keyword"):
        optimizer.step()
    assert torch.equal(w, torch.ones(2))
