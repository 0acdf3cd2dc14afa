"""The rules of torch.optim against their papers' loops in plain floats, against optax, and what they reduce to.

That whole optimizers retrace torch.optim is tested in test_drop_in.py.
"""

import functools
import math

import pytest
import torch
from trajectories import (
    FLOAT32,
    FLOAT64,
    START,
    assert_same_trajectory,
    awkward_gradients,
    columns,
    in_float32,
    optax_params_of,
    optax_updates_of,
    paper_adam,
    paper_momentum,
    params_of,
    torch_params_of,
    transposed,
    updates_of,
)

import functional_optim as fo


def paper_nadam(gs, b1=0.9, b2=0.999, eps=1e-8, psi=4e-3):
    """Dozat 2016, Algorithm 2, with torch's schedule of μ and its decay of m by β₁."""
    m = v = 0.0
    product, found = 1.0, []
    for t, g in enumerate(gs, 1):
        mu, mu_next = (b1 * (1 - 0.5 * 0.96 ** (s * psi)) for s in (t, t + 1))
        product *= mu
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        ahead = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
        found.append(ahead / (math.sqrt(v / (1 - b2**t)) + eps))
    return found


def paper_radam(gs, b1=0.9, b2=0.999, eps=1e-8, fallback=True, optimized=True):
    """Liu et al. 2020, Algorithm 2, from ρ > 5 on."""
    m = v = 0.0
    found, rho_inf = [], 2 / (1 - b2) - 1
    for t, g in enumerate(gs, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        m_hat, c2 = m / (1 - b1**t), 1 - b2**t
        rho = rho_inf - 2 * t * b2**t / c2
        if rho > 5:
            r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            found.append(r * m_hat * math.sqrt(c2) / (math.sqrt(v) + eps) if optimized else r * m_hat / (math.sqrt(v / c2) + eps))
        else:
            found.append(m_hat if fallback else 0.0)
    return found


def paper_belief(gs, b1=0.9, b2=0.999, eps=1e-16):
    """Zhuang et al. 2020, Algorithm 2: one ε, in s and beside its root."""
    m = s = 0.0
    found = []
    for t, g in enumerate(gs, 1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + eps
        found.append(m / (1 - b1**t) / (math.sqrt(s / (1 - b2**t)) + eps))
    return found


def paper_rectified_belief(gs, b1=0.9, b2=0.999, eps=1e-16, fallback=True):
    """The authors' program: AdaBelief's quotient times RAdam's r."""
    m, found, rho_inf = 0.0, [], 2 / (1 - b2) - 1
    for t, (g, u) in enumerate(zip(gs, paper_belief(gs, b1, b2, eps), strict=True), 1):
        m = b1 * m + (1 - b1) * g
        rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
        if rho > 5:
            found.append(math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) * u)
        else:
            found.append(m / (1 - b1**t) if fallback else 0.0)
    return found


def paper_adamax(gs, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, Algorithm 2, with torch's ε."""
    m = w = 0.0
    found = []
    for t, g in enumerate(gs, 1):
        m = b1 * m + (1 - b1) * g
        w = max(b2 * w, abs(g) + eps)
        found.append(m / (1 - b1**t) / w)
    return found


def paper_adagrad(gs, initial=0.0, eps=1e-10):
    s, found = initial, []
    for g in gs:
        s += g * g
        found.append(g / (math.sqrt(s) + eps))
    return found


def paper_adadelta(gs, rho=0.9, eps=1e-6):
    """Zeiler 2012, Algorithm 1."""
    v = d = 0.0
    found = []
    for g in gs:
        v = rho * v + (1 - rho) * g * g
        u = math.sqrt(d + eps) / math.sqrt(v + eps) * g
        d = rho * d + (1 - rho) * u * u
        found.append(u)
    return found


def paper_rmsprop(gs, alpha=0.99, eps=1e-8, corrected=False):
    v, found = 0.0, []
    for t, g in enumerate(gs, 1):
        v = alpha * v + (1 - alpha) * g * g
        found.append(g / (math.sqrt(v / (1 - alpha**t) if corrected else v) + eps))
    return found


def paper_graves(gs, alpha=0.99, eps=1e-8):
    """Graves 2013, equations 38 to 41, without the momentum; the variance of a single value, and of equal ones, is 0."""
    v = a = 0.0
    found = []
    for g in gs:
        v = alpha * v + (1 - alpha) * g * g
        a = alpha * a + (1 - alpha) * g
        found.append(g / (math.sqrt(max(v - a * a, 0.0)) + eps))
    return found


def paper_rprop(gs, lr=0.01, shrink=0.5, grow=1.2, smallest=1e-6, largest=50.0):
    """Riedmiller & Braun 1993, in the form without backtracking."""
    eta, last, found = lr, 0.0, []
    for g in gs:
        if g * last > 0:
            eta = min(eta * grow, largest)
        elif g * last < 0:
            eta, g = max(eta * shrink, smallest), 0.0
        last = g
        found.append(eta * (math.copysign(1.0, g) if g else 0.0))
    return found


LOOPS = {
    "nadam": (fo.scale_by_nadam(), paper_nadam),
    "nadam, options": (fo.scale_by_nadam((0.8, 0.9), 1e-4, 0.5), lambda gs: paper_nadam(gs, 0.8, 0.9, 1e-4, 0.5)),
    "radam": (fo.scale_by_radam(), paper_radam),
    "radam, options": (fo.scale_by_radam((0.8, 0.9), 1e-4), lambda gs: paper_radam(gs, 0.8, 0.9, 1e-4)),
    "radam, no step": (fo.scale_by_radam(degenerated_to_sgd=False), lambda gs: paper_radam(gs, fallback=False)),
    "radam, the paper's ε": (
        fo.scale_by_radam((0.9, 0.99), 1e-2, optimized_update=False),
        lambda gs: paper_radam(gs, 0.9, 0.99, 1e-2, optimized=False),
    ),
    "radam, never adaptive": (fo.scale_by_radam((0.9, 0.6)), lambda gs: paper_radam(gs, 0.9, 0.6)),
    "belief": (fo.scale_by_belief(), paper_belief),
    "belief, options": (fo.scale_by_belief((0.8, 0.9), 1e-4, 1e-4), lambda gs: paper_belief(gs, 0.8, 0.9, 1e-4)),
    "belief, rectified": (fo.scale_by_belief(rectify=True), paper_rectified_belief),
    "belief, no step": (
        fo.scale_by_belief(rectify=True, degenerated_to_sgd=False),
        lambda gs: paper_rectified_belief(gs, fallback=False),
    ),
    "adamax": (fo.scale_by_adamax(), paper_adamax),
    "adamax, options": (fo.scale_by_adamax((0.8, 0.9), 1e-4), lambda gs: paper_adamax(gs, 0.8, 0.9, 1e-4)),
    "adagrad": (fo.scale_by_rss(), paper_adagrad),
    "adagrad, options": (fo.scale_by_rss(0.3, 1e-4), lambda gs: paper_adagrad(gs, 0.3, 1e-4)),
    "adadelta": (fo.scale_by_adadelta(), paper_adadelta),
    "adadelta, options": (fo.scale_by_adadelta(0.5, 1e-3), lambda gs: paper_adadelta(gs, 0.5, 1e-3)),
    "rmsprop": (fo.scale_by_rms(), paper_rmsprop),
    "rmsprop, options": (fo.scale_by_rms(0.7, 1e-4), lambda gs: paper_rmsprop(gs, 0.7, 1e-4)),
    "rmsprop, corrected": (fo.scale_by_rms(bias_correction=True), lambda gs: paper_rmsprop(gs, corrected=True)),
    "graves": (fo.scale_by_stddev(), paper_graves),
    "graves, options": (fo.scale_by_stddev(0.7, 1e-4), lambda gs: paper_graves(gs, 0.7, 1e-4)),
    "rprop": (fo.scale_by_rprop(), paper_rprop),
    "rprop, options": (
        fo.scale_by_rprop(0.1, (0.3, 2.0), (1e-3, 0.5)),
        lambda gs: paper_rprop(gs, 0.1, 0.3, 2.0, 1e-3, 0.5),
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_the_papers_loop(name):
    tx, loop = LOOPS[name]
    rows = awkward_gradients()
    assert_same_trajectory(updates_of(tx, rows), transposed(loop(gs) for gs in columns(rows)), FLOAT64)
    if "graves" in name:  # v − a² cancels
        return
    # The same in float32, on the same numbers: 30 steps that each round at 6e-8, and √ of sums of them.
    rows = in_float32(rows)
    found = updates_of(tx, rows, torch.float32)
    expected = torch.tensor(transposed(loop(gs) for gs in columns(rows)), dtype=torch.float64)
    # In column 6 the moments cancel.
    kept = [0, 1, 2, 3, 4, 5, 7]
    assert_same_trajectory(found[:, kept], expected[:, kept], 5 * FLOAT32)


OPTAX = {
    "radam": (fo.scale_by_radam(optimized_update=False), lambda optax: optax.scale_by_radam()),
    "radam, options": (
        fo.scale_by_radam((0.8, 0.95), 1e-3, optimized_update=False),
        lambda optax: optax.scale_by_radam(0.8, 0.95, 1e-3),
    ),
    "nadam": (fo.scale_by_nadam(momentum_decay=1e6), lambda optax: optax.scale_by_adam(nesterov=True)),
    "belief": (fo.scale_by_belief(), lambda optax: optax.scale_by_belief()),
    "belief, options": (
        fo.scale_by_belief((0.8, 0.95), 1e-3, 1e-4),
        lambda optax: optax.scale_by_belief(0.8, 0.95, 1e-3, 1e-4),
    ),
    "adamax": (fo.scale_by_adamax((0.8, 0.95), 1e-4), lambda optax: optax.scale_by_adamax(0.8, 0.95, 1e-4)),
    "rss": (fo.scale_by_rss(0.1, 1e-7, eps_in_sqrt=True), lambda optax: optax.scale_by_rss()),
    "rss from 0": (fo.scale_by_rss(0.0, 1e-3, eps_in_sqrt=True), lambda optax: optax.scale_by_rss(0.0, 1e-3)),
    "adadelta": (fo.scale_by_adadelta(0.8, 1e-4), lambda optax: optax.scale_by_adadelta(0.8, 1e-4)),
    "rms": (fo.scale_by_rms(0.9, eps_in_sqrt=True), lambda optax: optax.scale_by_rms()),
    "rms, ε outside": (fo.scale_by_rms(0.8, 1e-3), lambda optax: optax.scale_by_rms(0.8, 1e-3, eps_in_sqrt=False)),
    "rms, corrected": (
        fo.scale_by_rms(0.8, 1e-3, eps_in_sqrt=True, bias_correction=True),
        lambda optax: optax.scale_by_rms(0.8, 1e-3, bias_correction=True),
    ),
    # ε large enough that no rounding of v − a² below 0 gives optax a NaN.
    "stddev": (fo.scale_by_stddev(0.9, 1e-3, eps_in_sqrt=True), lambda optax: optax.scale_by_stddev(0.9, 1e-3)),
}


@pytest.mark.parametrize("name", OPTAX)
def test_optax(name):
    ours, theirs = OPTAX[name]
    rows = awkward_gradients(50)
    assert_same_trajectory(updates_of(ours, rows), optax_updates_of(theirs, rows), FLOAT64)


def test_whole_optimizers_are_optaxs():
    rows = awkward_gradients(50)
    pairs = [
        (fo.radam(0.02, optimized_update=False), lambda optax: optax.radam(0.02)),
        (fo.nadam(0.02, momentum_decay=1e6), lambda optax: optax.nadam(0.02)),
        (
            fo.adabelief(0.02, weight_decay=0.1),
            lambda optax: optax.chain(optax.scale_by_belief(), optax.add_decayed_weights(0.1), optax.scale(-0.02)),
        ),
        (fo.adamax(0.02), lambda optax: optax.adamax(0.02)),
        (fo.adadelta(0.5), lambda optax: optax.adadelta(0.5, rho=0.9, eps=1e-6)),
    ]
    for ours, theirs in pairs:
        assert_same_trajectory(params_of(ours, rows), optax_params_of(theirs, rows), FLOAT64)


def test_optaxs_rprop_lags_a_step():
    # optax returns the step that it remembered at the last update (0 at a change of sign), ours the one it has just found.
    rows = [[g] * 8 for g in (1.0, 2.0, 3.0, -1.0, -1.0, -2.0, 5.0)]
    ours = updates_of(fo.scale_by_rprop(0.1), rows)
    theirs = optax_updates_of(lambda optax: optax.scale_by_rprop(0.1), rows)
    assert_same_trajectory(ours, [[u] * 8 for u in (0.1, 0.12, 0.144, 0.0, -0.072, -0.0864, 0.0)], FLOAT64)
    assert_same_trajectory(theirs, [[u] * 8 for u in (0.0, 0.1, 0.12, 0.0, 0.0, -0.072, 0.0)], FLOAT64)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_optimized_update_adds_epsilon_before_the_correction(amsgrad):
    rows = awkward_gradients()
    b1, b2, eps = 0.9, 0.99, 1e-2

    def loop(gs):
        m = v = w = 0.0
        found = []
        for t, g in enumerate(gs, 1):
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            w = max(w, v)
            found.append(math.sqrt(1 - b2**t) / (1 - b1**t) * m / (math.sqrt(w if amsgrad else v) + eps))
        return found

    tx = fo.scale_by_adam((b1, b2), eps, amsgrad=amsgrad, optimized_update=True)
    assert_same_trajectory(updates_of(tx, rows), transposed(map(loop, columns(rows))), FLOAT64)
    plain = updates_of(fo.scale_by_adam((b1, b2), eps, amsgrad=amsgrad), rows)
    assert (updates_of(tx, rows) - plain).abs().max() > 0.05
    whole = params_of(fo.adam(0.1, (b1, b2), eps, amsgrad=amsgrad, optimized_update=True), rows)
    assert_same_trajectory(whole, params_of(fo.chain(tx, fo.scale_by_learning_rate(0.1)), rows), FLOAT64)


def test_without_epsilon_both_forms_of_adam_are_one():
    rows = [[g + 3.0 for g in row[:1]] for row in awkward_gradients()]  # never 0
    both = [updates_of(fo.scale_by_adam(eps=0.0, optimized_update=optimized), rows) for optimized in (False, True)]
    assert torch.equal(*both)


# Whole optimizers, for an element at a time.


def paper_asgd(gs, p, lr, lambd, alpha, t0, decay=0.0):
    """Polyak & Juditsky 1992: points, and their average."""
    eta, mu, a = lr, 1.0, 0.0
    points, averages = [], []
    for t, g in enumerate(gs, 1):
        g = g + decay * p
        p = p * (1 - lambd * eta) - eta * g
        a = p if mu == 1 else a + mu * (p - a)
        eta = lr / (1 + lambd * lr * t) ** alpha
        mu = 1 / max(1.0, t - t0)
        points.append(p)
        averages.append(a)
    return points, averages


@pytest.mark.parametrize("numbers", [(0.01, 0.1, 0.75, 10.0), (0.1, 1e-4, 0.5, 0.0), (0.02, 0.0, 1.0, 1e6)])
def test_asgd_and_its_average(numbers):
    rows = awkward_gradients(40)
    tx = fo.asgd(*numbers, weight_decay=0.1)
    p = torch.tensor(START, dtype=torch.float64)
    state, points, averages = tx.init_state(p), [], []
    for row in rows:
        update, state = tx.update(torch.tensor(row, dtype=torch.float64), state, p)
        p = fo.apply_updates(p, update)
        points.append(p)
        averages.append(state["average_iterates"]["ax"])
    expected = [paper_asgd(gs, p, *numbers, decay=0.1) for gs, p in zip(columns(rows), START, strict=True)]
    assert_same_trajectory(torch.stack(points), transposed(points for points, _ in expected), FLOAT64)
    assert_same_trajectory(torch.stack(averages), transposed(averages for _, averages in expected), FLOAT64)


def test_the_average_of_iterates_from_the_start_is_the_mean():
    rows = awkward_gradients(20)
    p = torch.tensor(START, dtype=torch.float64)
    tx = fo.chain(fo.sgd(0.1), fo.average_iterates(t0=0.0))
    state, points = tx.init_state(p), []
    for row in rows:
        update, state = tx.update(torch.tensor(row, dtype=torch.float64), state, p)
        p = fo.apply_updates(p, update)
        points.append(p)
    # μ counts steps since t0 and lags by one, as in torch: the first point is weighed at t = 1 and t = 2 with 1.
    mean = torch.stack(points[1:]).mean(0)
    torch.testing.assert_close(state["average_iterates"]["ax"], mean, rtol=1e-13, atol=1e-6)


def test_adagrad_decays_its_learning_rate():
    rows = awkward_gradients()
    expected = [
        [sum(-0.1 / (1 + 0.3 * t) * u for t, u in enumerate(us[: i + 1])) + p for i in range(len(us))]
        for us, p in ((paper_adagrad(gs), p) for gs, p in zip(columns(rows), START, strict=True))
    ]
    assert_same_trajectory(params_of(fo.adagrad(0.1, 0.3), rows), transposed(expected), FLOAT64)


def test_rmsprop_with_momentum_accumulates_what_was_divided():
    rows = awkward_gradients()
    us = [paper_momentum(paper_rmsprop(gs), 0.9) for gs in columns(rows)]
    expected = [[p - 0.01 * sum(u[: i + 1]) for i in range(len(u))] for u, p in zip(us, START, strict=True)]
    assert_same_trajectory(params_of(fo.rmsprop(0.01, momentum=0.9), rows), transposed(expected), FLOAT64)


def test_rprops_learning_rate_is_that_of_the_first_step():
    """Given to `update` it does nothing; behind an optimizer each parameter takes what its group has at its own first step."""
    p, tx = torch.zeros(2), fo.rprop(lr=0.1)
    updates, state = tx.update(torch.ones(2), tx.init_state(p, {"lr": 0.3}), p, {"lr": 7.0})
    torch.testing.assert_close(updates, torch.full((2,), -0.3))
    updates, _ = tx.update(torch.ones(2), state, p, {"lr": 0.0})
    torch.testing.assert_close(updates, torch.full((2,), -0.36))
    early, late = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = fo.adapters.Rprop([early, late], lr=0.25)
    early.grad = torch.ones(2)
    optimizer.step()
    optimizer.param_groups[0]["lr"], late.grad = 0.5, torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(early.detach(), torch.full((2,), -0.25 - 1.2 * 0.25))
    torch.testing.assert_close(late.detach(), torch.full((2,), -0.5))


def test_rprop_sees_signs_only():
    rows = awkward_gradients()
    signs = [[math.copysign(1e-300, g) if g else 0.0 for g in row] for row in rows]  # whose products are 0
    assert torch.equal(params_of(fo.rprop(), rows), params_of(fo.rprop(), signs))


# What they reduce to.


def test_rectified_to_the_end_radam_is_adam():
    # r tends to 1: at β₂ = 0.9, ρ∞ = 19 is reached to 1e-12 after some 320 steps.
    gs = [[math.sin(t) + 2] for t in range(400)]
    radam = updates_of(fo.scale_by_radam((0.9, 0.9)), gs)
    adam = torch.tensor(transposed([paper_adam(columns(gs)[0], 0.9, 0.9)]), dtype=torch.float64)
    assert (radam[10] - adam[10]).abs() > 1e-3
    assert_same_trajectory(radam[-1:], adam[-1:], 1e-9)


def test_belief_in_nothing_is_adam():
    # With β₁ → the average 0, g − m = g: feed gradients whose average stays 0.
    rows = [[1.0], [-1.0]] * 10
    found = updates_of(fo.scale_by_belief((0.0, 0.9), 0.0, 1e-12), rows)
    # β₁ = 0: m = g, the error is 0, and the update is g / √(ε' (1 + β₂ + …) / (1 − β₂ᵗ)) = g √((1 − β₂) / ε').
    expected = [[g * math.sqrt(0.1 / 1e-12)] for (g,) in rows]
    assert_same_trajectory(found, expected, FLOAT64)


def test_rms_with_correction_is_adam_without_momentum():
    rows = awkward_gradients()
    found = updates_of(fo.scale_by_rms(0.99, bias_correction=True), rows)
    assert_same_trajectory(found, updates_of(fo.scale_by_adam((0.0, 0.99)), rows), FLOAT64)


def test_a_variance_that_rounds_below_0_is_0():
    # A gradient that stays the same has the variance 0 in the end; v - a² falls to either side of it.
    rows = [[0.01 + 0.1 * i for i in range(50)]] * 80
    g = torch.tensor(rows[0], dtype=torch.float64)
    v = a = torch.zeros_like(g)
    below = False
    for _ in rows:
        v, a = 0.5 * v + 0.5 * g * g, 0.5 * a + 0.5 * g
        below = below or bool((v < a * a).any())
    assert below
    assert updates_of(fo.scale_by_stddev(0.5), rows).isfinite().all()


def test_adagrad_is_rmsprop_that_forgets_nothing():
    # v = (1 − α) Σ αᵏ g²: as α → 1, v / (1 − α) → s.
    rows = awkward_gradients()
    a = 1 - 1e-9
    rms = updates_of(fo.scale_by_rms(a, 0.0), [[g + 3.0 for g in row[:1]] for row in rows])
    rss = updates_of(fo.scale_by_rss(0.0, 0.0), [[g + 3.0 for g in row[:1]] for row in rows])
    # α deviates from 1 by 1e-9 a step, 1 − α itself is known to 1e-7 of it.
    assert_same_trajectory(rms * math.sqrt(1e-9), rss, 1e-6)


# Decays.


def test_the_four_decays():
    rows = [[0.5] * 8] * 10
    lr, decay = 0.1, 0.2
    loops = {
        "L2": (fo.chain(fo.add_decayed_weights(decay), fo.sgd(lr)), lambda p: p - lr * (0.5 + decay * p)),
        "absolute": (fo.chain(fo.sgd(lr), fo.subtract_decayed_weights(decay)), lambda p: p * (1 - decay) - lr * 0.5),
        "L1": (
            fo.chain(fo.add_l1_decay(decay), fo.sgd(lr)),
            lambda p: p - lr * (0.5 + decay * (math.copysign(1.0, p) if p else 0.0)),
        ),
    }
    for tx, step in loops.values():
        expected, ps = [], START
        for _ in rows:
            ps = [step(p) for p in ps]
            expected.append(ps)
        assert_same_trajectory(params_of(tx, rows), expected, FLOAT64)


def test_an_absolute_decay_is_labmls():
    # θ ← θ (1 − λ), whatever the learning rate, before Adam's step.
    rows = awkward_gradients()
    found = params_of(fo.chain(fo.adam(0.0), fo.subtract_decayed_weights(0.1)), rows)
    expected = [[p * 0.9**t for p in START] for t in range(1, 31)]
    assert_same_trajectory(found, expected, FLOAT64)


def test_soft_thresholding_reaches_the_sparse_minimum():
    # min ½ (p − c)² + λ |p| lies at sign(c) max(|c| − λ, 0), and is kept.
    c, lr, l1 = torch.tensor([3.0, -0.5, 0.2, 0.0, -2.0], dtype=torch.float64), 0.1, 0.5
    tx = fo.chain(fo.sgd(lr), fo.soft_threshold(lr, l1))
    p = torch.zeros(5, dtype=torch.float64)
    state = tx.init_state(p)
    for _ in range(500):
        update, state = tx.update(p - c, state, p)
        p = fo.apply_updates(p, update)
    # Each step takes a tenth off the error: 0.9 ** 500 = 1e-23; what is left is rounding.
    torch.testing.assert_close(p, c.sign() * (c.abs() - l1).clamp(min=0), rtol=1e-13, atol=0)
    assert p.tolist()[1:4] == [0.0, 0.0, 0.0]


# The laws take two steps, in which RAdam adapts nothing.


@pytest.mark.parametrize("make", [fo.scale_by_radam, functools.partial(fo.scale_by_belief, eps_root=1e-3, rectify=True)])
def test_derivatives_once_radam_adapts(make):
    tx = make((0.9, 0.9))
    g = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64, requires_grad=True)
    b2 = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def update(g, b2):
        state = {**tx.init_state(g.detach()), "step": torch.tensor(12)}
        for _ in range(2):
            u, state = tx.update(g, state, None, {"betas": (0.9, b2)})
        return u

    assert torch.autograd.gradcheck(update, (g, b2))
    assert torch.autograd.gradgradcheck(update, (g, b2), atol=1e-4)


# Numbers for each leaf.


def test_one_number_a_leaf():
    params = {"w": torch.ones(2, 3, dtype=torch.bfloat16), "z": torch.ones(2, dtype=torch.complex64)}
    state = fo.scale_by_nadam(state_dtype=torch.float32).init_state(params)
    for name, p in params.items():
        assert state["mu_product"][name].shape == () and state["mu_product"][name].dtype == torch.float64
        assert state["exp_avg"][name].dtype == (torch.complex64 if p.is_complex() else torch.float32)
    lr = torch.tensor(0.5, dtype=torch.float64)
    eta = fo.scale_by_asgd().init_state(params, {"lr": lr})["eta"]["w"]
    lr.fill_(0.1)
    assert eta == 0.5  # no alias of the hyper-parameter


def test_complex_parameters_start_filled_in_both_parts():
    z = torch.ones(2, dtype=torch.complex64).conj()
    assert fo.scale_by_rss(0.5).init_state(z)["sum"].tolist() == [0.5 + 0.5j] * 2
    assert fo.scale_by_rprop(0.25).init_state(z)["step_size"].tolist() == [0.25 + 0.25j] * 2


def test_torch_params_of_awkward_gradients():
    # The drop-in tests see well-behaved gradients; these see what goes wrong.
    rows = awkward_gradients(50)
    pairs = [
        (fo.nadam(0.01, weight_decay=0.1), torch.optim.NAdam, {"lr": 0.01, "weight_decay": 0.1}, 1e-6),
        (fo.radam(0.01, weight_decay=0.1), torch.optim.RAdam, {"lr": 0.01, "weight_decay": 0.1}, FLOAT64),
        (fo.adamax(0.01, weight_decay=0.1), torch.optim.Adamax, {"lr": 0.01, "weight_decay": 0.1}, FLOAT64),
        (
            fo.adagrad(0.01, 0.1, 0.1, 0.1),
            torch.optim.Adagrad,
            dict(lr=0.01, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.1),
            FLOAT64,
        ),
        (fo.adadelta(1.0, weight_decay=0.1), torch.optim.Adadelta, {"lr": 1.0, "weight_decay": 0.1}, FLOAT64),
        (fo.rmsprop(0.01, weight_decay=0.1), torch.optim.RMSprop, {"lr": 0.01, "weight_decay": 0.1}, FLOAT64),
        (fo.rprop(0.01), torch.optim.Rprop, {"lr": 0.01}, FLOAT64),
        # torch's step size is a float32.
        (fo.asgd(0.01), torch.optim.ASGD, {"lr": 0.01}, 1e-6),
    ]
    for ours, theirs, options, tolerance in pairs:
        assert_same_trajectory(params_of(ours, rows), torch_params_of(theirs, rows, **options), tolerance)
