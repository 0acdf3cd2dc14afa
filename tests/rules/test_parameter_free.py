"""DoG, DoWG, Prodigy and D-Adaptation: the papers' loops over all parameters together, and optax."""

import math

import pytest
import torch
from trajectories import FLOAT64, START, assert_same_trajectory, awkward_gradients, optax_params_of

import functional_optim as fo
from functional_optim import trees

# Gradients that point away from a solution some steps off, so that distances grow and estimates rise; no huge column, which would
# be all that the sums see.
ROWS = [[min(max(g, -2.0), 2.0) - 0.5 * s for g, s in zip(row, START, strict=True)] for row in awkward_gradients(40)]


def split(values):
    """One row as a tree of two leaves: sums have to cross them."""
    values = torch.tensor(values, dtype=torch.float64)
    return {"a": values[:5].reshape(5, 1), "b": values[5:]}


def params_of(tx, rows, hparams=lambda t: None):
    params = split(START)
    state, found = tx.init_state(params, hparams(0)), []
    for t, row in enumerate(rows):
        updates, state = tx.update(split(row), state, params, hparams(t))
        params = fo.apply_updates(params, updates)
        found.append(torch.cat([params["a"].reshape(-1), params["b"]]))
    return torch.stack(found), state


def dot(xs, ys):
    return sum(x * y for x, y in zip(xs, ys, strict=True))


def paper_dog(rows, rho, eps):
    """Ivgi et al., equation 1 and section 3.3."""
    p, total = list(START), 0.0
    largest, found = rho * (1 + math.sqrt(dot(START, START))), []
    for g in rows:
        off = [x - x0 for x, x0 in zip(p, START, strict=True)]
        largest = max(largest, math.sqrt(dot(off, off)))
        total += dot(g, g)
        p = [x - largest / math.sqrt(total + eps) * y for x, y in zip(p, g, strict=True)]
        found.append(p)
    return found


def paper_dowg(rows, eps):
    """Khaled et al., Algorithm 1."""
    p, squared, total, found = list(START), eps, 0.0, []
    for g in rows:
        off = [x - x0 for x, x0 in zip(p, START, strict=True)]
        squared = max(squared, dot(off, off))
        total += squared * dot(g, g)
        p = [x - squared / (math.sqrt(total) + eps) * y for x, y in zip(p, g, strict=True)]
        found.append(p)
    return found


def test_dog_is_the_papers_loop_and_optax():
    assert_same_trajectory(params_of(fo.dog(reps_rel=1e-3), ROWS)[0], paper_dog(ROWS, 1e-3, 1e-8), FLOAT64)
    theirs = optax_params_of(lambda optax: optax.contrib.dog(1.0, ("heuristic", 1e-3), weight_decay=0.1), ROWS)
    assert_same_trajectory(params_of(fo.dog(reps_rel=1e-3, weight_decay=0.1), ROWS)[0], theirs, FLOAT64)


def test_dowg_is_the_papers_loop_and_optax():
    assert_same_trajectory(params_of(fo.dowg(eps=1e-2), ROWS)[0], paper_dowg(ROWS, 1e-2), FLOAT64)
    theirs = optax_params_of(lambda optax: optax.contrib.dowg(0.7, None, 1e-2, weight_decay=0.1), ROWS)
    assert_same_trajectory(params_of(fo.dowg(0.7, 1e-2, 0.1), ROWS)[0], theirs, FLOAT64)


def test_the_rules_of_dog_and_dowg_leave_learning_rate_and_sign_to_the_link_after_them():
    for scaled, expected in [
        (fo.scale_by_dog(1e-3, 1e-2), paper_dog(ROWS, 1e-3, 1e-2)),
        (fo.scale_by_dowg(0.1), paper_dowg(ROWS, 0.1)),
    ]:
        assert_same_trajectory(params_of(fo.chain(scaled, fo.scale(-1.0)), ROWS)[0], expected, FLOAT64)


def test_dog_of_one_step_moves_by_the_length_it_was_told():
    tx = fo.dog(reps_rel=0.25, eps=1e-300)
    p = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor(4.0)}
    updates, _ = tx.update({"a": torch.tensor([0.0, 2.0]), "b": torch.tensor(-1.0)}, tx.init_state(p), p)
    moved = math.hypot(*updates["a"].tolist(), updates["b"].item())
    assert moved == pytest.approx(0.25 * (1 + 5), rel=1e-6)  # float32


def nobody(t):
    """The elements that have a learning rate of 0 at a step."""
    return ()


def paper_prodigy(rows, lrs, d0, coefficient, decays, corrected, safeguarded, out=nobody):
    """Mishchenko & Defazio, Algorithm 4 as the authors' program has it, with a decay and 1 or 0 times the rate for each element.

    Their program goes on to move and decay what has a rate of 0; here it stays.
    """
    b1, b2, eps = 0.9, 0.99, 1e-8
    b3 = math.sqrt(b2)
    d, r = d0, 0.0
    m, v, s = [0.0] * 8, [0.0] * 8, [0.0] * 8
    p, found = list(START), []
    for t, (g, lr) in enumerate(zip(rows, lrs, strict=True), 1):
        k = math.sqrt(1 - b2**t) / (1 - b1**t) if corrected else 1.0
        dlr, r = d * lr * k, b3 * r
        live = [i for i in range(8) if i not in out(t - 1)]
        for i in live:
            r += d / d0 * dlr * g[i] * (START[i] - p[i])
            m[i] = b1 * m[i] + (1 - b1) * d * g[i]
            v[i] = b2 * v[i] + (1 - b2) * d * d * g[i] * g[i]
            s[i] = b3 * s[i] + d / d0 * (d if safeguarded else dlr) * g[i]
        d = max(d, coefficient * r / sum(abs(s[i]) for i in live))
        for i in live:
            p[i] = p[i] - dlr * decays[i] * p[i] - dlr * m[i] / (math.sqrt(v[i]) + d * eps)
        found.append(list(p))
    return found, d


@pytest.mark.parametrize("corrected, safeguarded", [(False, False), (True, False), (False, True)])
def test_prodigy_is_the_papers_loop(corrected, safeguarded):
    lrs = [min(1.0, (t + 1) / 10) for t in range(40)]
    expected, d = paper_prodigy(ROWS, lrs, 1e-3, 2.0, [0.1] * 8, corrected, safeguarded)
    tx = fo.prodigy(
        1.0,
        (0.9, 0.99),
        weight_decay=0.1,
        d0=1e-3,
        d_coef=2.0,
        use_bias_correction=corrected,
        safeguard_warmup=safeguarded,
    )
    found, state = params_of(tx, ROWS, lambda t: {"lr": lrs[t]})
    # d grows from 1e-3 by ratios of sums that cancel in part: its rounding comes back in every later step.
    assert_same_trajectory(found, expected, 1e-10)
    assert state["scale_by_prodigy"]["d"].item() == pytest.approx(d, rel=1e-10)
    assert d > 2e-3  # the estimate has moved


def test_the_rule_of_prodigy_leaves_learning_rate_and_sign_to_the_link_after_it():
    expected, _ = paper_prodigy(ROWS, [0.5] * 40, 1e-3, 1.0, [0.1] * 8, True, False)
    scaled = fo.scale_by_prodigy(0.5, (0.9, 0.99), weight_decay=0.1, d0=1e-3, use_bias_correction=True)
    assert_same_trajectory(params_of(fo.chain(scaled, fo.scale(-0.5)), ROWS)[0], expected, 1e-10)  # as above


def test_prodigy_is_optax():
    theirs = optax_params_of(lambda optax: optax.contrib.prodigy(1.0, (0.9, 0.99), estim_lr0=1e-3, weight_decay=0.1), ROWS)
    ours, _ = params_of(fo.prodigy(1.0, (0.9, 0.99), weight_decay=0.1, d0=1e-3, use_bias_correction=True), ROWS)
    assert_same_trajectory(ours, theirs, 1e-10)  # as above


def paper_dadapt(rows, d0, decays, corrected, out=nobody):
    """Defazio & Mishchenko, Algorithm 5 as the authors' program has it, with the same liberty."""
    b1, b2, eps = 0.9, 0.99, 1e-8
    root = math.sqrt(b2)
    d, r = d0, 0.0
    m, v, s = [0.0] * 8, [0.0] * 8, [0.0] * 8
    p, found = list(START), []
    for t, g in enumerate(rows, 1):
        e, agreement = d * (math.sqrt(1 - b2**t) / (1 - b1**t) if corrected else 1.0), 0.0
        live = [i for i in range(8) if i not in out(t - 1)]
        for i in live:
            agreement += e * g[i] * s[i] / (math.sqrt(v[i]) + eps)
            m[i] = b1 * m[i] + e * (1 - b1) * g[i]
            v[i] = b2 * v[i] + (1 - b2) * g[i] * g[i]
            s[i] = root * s[i] + e * (1 - root) * g[i]
        r = root * r + (1 - root) * agreement
        d = max(d, r / ((1 - root) * sum(abs(s[i]) for i in live)))
        for i in live:
            p[i] = p[i] - e * decays[i] * p[i] - m[i] / (math.sqrt(v[i]) + eps)
        found.append(list(p))
    return found, d


@pytest.mark.parametrize("corrected", [False, True])
def test_dadapt_adam_is_the_papers_loop(corrected):
    expected, d = paper_dadapt(ROWS, 1e-2, [0.1] * 8, corrected)
    tx = fo.dadapt_adam(1.0, (0.9, 0.99), weight_decay=0.1, d0=1e-2, use_bias_correction=corrected)
    found, state = params_of(tx, ROWS)
    assert_same_trajectory(found, expected, 1e-10)  # as for Prodigy
    assert state["scale_by_d_adaptation"]["d"].item() == pytest.approx(d, rel=1e-10)
    assert d > 2e-2


def test_the_rule_of_d_adaptation_is_the_whole_optimizer():
    expected, _ = paper_dadapt(ROWS, 1e-2, [0.1] * 8, True)
    tx = fo.scale_by_d_adaptation(1.0, (0.9, 0.99), weight_decay=0.1, d0=1e-2, use_bias_correction=True)
    assert_same_trajectory(params_of(tx, ROWS)[0], expected, 1e-10)


def test_dadapt_adam_is_optax():
    theirs = optax_params_of(lambda optax: optax.contrib.dadapt_adamw(1.0, (0.9, 0.99), estim_lr0=1e-2, weight_decay=0.1), ROWS)
    ours, _ = params_of(fo.dadapt_adam(1.0, (0.9, 0.99), weight_decay=0.1, d0=1e-2, use_bias_correction=True), ROWS)
    assert_same_trajectory(ours, theirs, 1e-10)


@pytest.mark.parametrize("tx", [fo.dog(), fo.dowg(), fo.prodigy(), fo.dadapt_adam()], ids=lambda tx: tx.name)
def test_without_any_gradient_nothing_moves_and_nothing_is_nan(tx):
    params = {"a": torch.ones(3), "b": torch.ones(())}
    state = tx.init_state(params)
    for grads in ({"a": torch.zeros(3), "b": torch.zeros(())}, {"a": None, "b": None}, {"a": torch.zeros(3), "b": None}):
        updates, state = tx.update(grads, state, params)
        assert all(u is None or u.tolist() in (0.0, [0.0] * 3) for u in updates.values())
    updates, _ = tx.update({"a": torch.ones(3), "b": torch.ones(())}, state, params)
    assert all(bool(u.isfinite().all()) and bool((u < 0).all()) for u in updates.values())


DECAYS = [0.1] * 5 + [0.0] * 3


def late(t):
    """The second leaf joins at step 3 and sits out from step 20 to 25."""
    return range(5, 8) if t < 3 or 20 <= t < 25 else ()


def grouped(t, number=float):
    rate = number(0.0 if late(t) else 1.0)
    return {"lr": fo.PerLeaf({"a": number(1.0), "b": rate}), "weight_decay": fo.PerLeaf({"a": number(0.1), "b": number(0.0)})}


PARAMETER_FREE = [
    (
        fo.prodigy(betas=(0.9, 0.99), d0=1e-3, use_bias_correction=True),
        paper_prodigy(ROWS, [1.0] * 40, 1e-3, 1.0, DECAYS, True, False, late),
    ),
    (fo.dadapt_adam(betas=(0.9, 0.99), d0=1e-2), paper_dadapt(ROWS, 1e-2, DECAYS, False, late)),
]


@pytest.mark.parametrize("tx, paper", PARAMETER_FREE, ids=["prodigy", "dadapt"])
def test_groups_have_a_decay_of_their_own_and_may_have_a_rate_of_0(tx, paper):
    expected, d = paper
    for number in (float, lambda x: torch.tensor(x, dtype=torch.float64)):
        found, state = params_of(tx, ROWS, lambda t, number=number: grouped(t, number))
        assert_same_trajectory(found, expected, 1e-10)  # as above
        assert fo.state_get(state, "d").item() == pytest.approx(d, rel=1e-10)

    params = split(START)
    leaves = {name: torch.nn.Parameter(x.clone()) for name, x in params.items()}
    optimizer = fo.adapters.OptimizerAdapter([{"params": [x]} for x in leaves.values()], tx)
    for t, row in enumerate(ROWS):
        for group, name in zip(optimizer.param_groups, leaves, strict=True):
            leaves[name].grad = split(row)[name]
            group |= {key: value.tree[name] for key, value in grouped(t).items()}
        optimizer.step()
    assert_same_trajectory(torch.cat([leaves["a"].detach().reshape(-1), leaves["b"].detach()])[None], expected[-1:], 1e-10)


@pytest.mark.parametrize("tx", [fo.prodigy(), fo.dadapt_adam()], ids=lambda tx: tx.name)
def test_rates_are_equal_or_0(tx):
    params = {"a": torch.ones(3), "b": torch.ones(())}
    with pytest.raises(ValueError, match="learning rates 0.5, 1.0. They must be equal, or 0"):
        tx.update(params, tx.init_state(params), params, {"lr": fo.PerLeaf({"a": 1.0, "b": 0.5})})
    with pytest.raises(ValueError, match="takes one 'betas' for all parameters"):
        tx.update(params, tx.init_state(params), params, {"betas": fo.PerLeaf({"a": (0.9, 0.99), "b": (0.8, 0.99)})})
    _, state = tx.update(params, tx.init_state(params), params, {"lr": 1.0})
    still, after = tx.update(params, state, params, {"lr": 0.0})
    assert all(u.eq(0).all() for u in still.values())
    kept = [fo.state_set(s, "step", torch.tensor(0)) for s in (state, after)]
    assert all(map(torch.equal, *map(trees.leaves, kept)))


def test_the_first_step_in_closed_form():
    # x₀ = (3, 4) over two leaves, g = (0.6, −0.8): norms 5 and 1.
    p = {"a": torch.tensor([3.0], dtype=torch.float64), "b": torch.tensor(4.0, dtype=torch.float64)}
    g = {"a": torch.tensor([0.6], dtype=torch.float64), "b": torch.tensor(-0.8, dtype=torch.float64)}
    adam = {name: x / (math.sqrt(0.001) * x.abs() + 1e-8) for name, x in g.items()}  # m and v hold 0.1 g and 0.001 g²
    for tx, expected in [
        (fo.scale_by_dog(0.1, 3.0), {name: 0.1 * (1 + 5) / math.sqrt(1 + 3) * x for name, x in g.items()}),
        (fo.scale_by_dowg(0.25), {name: 0.25 / (math.sqrt(0.25) + 0.25) * x for name, x in g.items()}),
        (fo.scale_by_prodigy(d0=0.01), {name: 0.01 * 0.1 * x for name, x in adam.items()}),
        (fo.scale_by_d_adaptation(2.0, d0=0.01), {name: -2 * 0.01 * 0.1 * x for name, x in adam.items()}),
    ]:
        updates, _ = tx.update(g, tx.init_state(p), p)
        for name, update in updates.items():
            torch.testing.assert_close(update, expected[name], rtol=1e-13, atol=0)
