"""Identity of `trace` and `sgd`: the loop of torch's documentation, torch.optim.SGD, optax, closed forms and reductions."""

import pytest
import torch
from trajectories import (
    FLOAT32,
    FLOAT64,
    START,
    assert_same_trajectory,
    awkward_gradients,
    columns,
    optax_params_of,
    optax_updates_of,
    paper_momentum,
    params_of,
    torch_params_of,
    transposed,
    updates_of,
)

import functional_optim as fo


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dampening", [0.0, 0.3, -0.5, 1.0])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
def test_trace_is_the_loop(momentum, dampening, nesterov):
    rows = awkward_gradients()
    expected = transposed(paper_momentum(gs, momentum, dampening, nesterov) for gs in columns(rows))
    found = updates_of(fo.trace(nesterov=nesterov), rows, hparams={"momentum": momentum, "dampening": dampening})
    assert_same_trajectory(found, expected, FLOAT64)
    assert_same_trajectory(updates_of(fo.trace(momentum, dampening, nesterov=nesterov), rows), expected, FLOAT64)


def test_the_slot_is_the_buffer():
    rows = awkward_gradients()
    tx = fo.trace(0.8, 0.25, nesterov=True)
    state = tx.init_state(torch.tensor(START, dtype=torch.float64))
    assert set(state) == {"step", "momentum_buffer"}
    buffers = transposed(paper_momentum(gs, 0.8, 0.25) for gs in columns(rows))
    found = []
    for row in rows:
        _, state = tx.update(torch.tensor(row, dtype=torch.float64), state)
        found.append(state["momentum_buffer"])
    assert state["step"].item() == len(rows)
    assert_same_trajectory(torch.stack(found), buffers, FLOAT64)


OPTIONS = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.4},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    {"lr": 0.1, "weight_decay": 0.3},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.3},
    {"lr": 0.1, "momentum": 0.5, "nesterov": True, "weight_decay": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sgd_retraces_torch(options):
    rows = awkward_gradients(50)
    assert_same_trajectory(params_of(fo.sgd(**options), rows), torch_params_of(torch.optim.SGD, rows, **options), FLOAT64)
    theirs = torch_params_of(torch.optim.SGD, rows, torch.float32, **options)
    assert_same_trajectory(params_of(fo.sgd(**options), rows, torch.float32), theirs, FLOAT32)


@pytest.mark.parametrize("nesterov", [False, True])
def test_trace_and_sgd_are_optax(nesterov):
    rows = awkward_gradients(50)
    expected = optax_updates_of(lambda optax: optax.trace(0.9, nesterov=nesterov), rows)
    assert_same_trajectory(updates_of(fo.trace(0.9, nesterov=nesterov), rows), expected, FLOAT64)
    expected = optax_params_of(lambda optax: optax.sgd(0.1, 0.9, nesterov=nesterov), rows)
    assert_same_trajectory(params_of(fo.sgd(0.1, 0.9, nesterov=nesterov), rows), expected, FLOAT64)


@pytest.mark.parametrize("nesterov", [False, True])
def test_trace_without_momentum_is_the_identity(nesterov):
    rows = awkward_gradients()
    assert torch.equal(updates_of(fo.trace(0.0, nesterov=nesterov), rows), torch.tensor(rows, dtype=torch.float64))


def test_sgd_with_momentum_0_and_decay_0_is_plain_descent():
    rows = awkward_gradients()
    plain = params_of(fo.sgd(0.1), rows)
    assert torch.equal(params_of(fo.sgd(0.1, momentum=0.0, weight_decay=0.0), rows), plain)
    expected, p = [], list(START)
    for row in rows:
        p = [x - 0.1 * g for x, g in zip(p, row, strict=True)]
        expected.append(p)
    assert_same_trajectory(plain, expected, FLOAT64)


def test_a_steady_gradient_gathers_a_geometric_series():
    mu = 0.9
    u = updates_of(fo.trace(mu), [[2.0]] * 60)
    expected = [[2.0 * (1 - mu**t) / (1 - mu)] for t in range(1, 61)]
    assert_same_trajectory(u, expected, FLOAT64)


def test_full_dampening_keeps_the_first_gradient_only():
    # 1 − τ = 0: m = μᵗ⁻¹ g₁, which holds only if the first step is not dampened.
    rows = awkward_gradients()
    expected = [[0.5**t * g for g in rows[0]] for t in range(len(rows))]
    assert_same_trajectory(updates_of(fo.trace(0.5, 1.0), rows), expected, FLOAT64)


def test_dampening_1_minus_mu_is_a_moving_average_from_the_first_gradient():
    rows = awkward_gradients()
    found = updates_of(fo.trace(0.9, 0.9), rows)
    average, expected = list(rows[0]), []
    for t, row in enumerate(rows):
        if t:
            average = [0.9 * a + 0.1 * g for a, g in zip(average, row, strict=True)]
        expected.append(list(average))
    assert_same_trajectory(found, expected, FLOAT64)


def test_momentum_and_dampening_may_change_at_every_step():
    rows = awkward_gradients()
    momenta = [0.9 - 0.02 * t for t in range(30)]
    found = params_of(fo.sgd(momentum=0.9), rows, hparams=lambda t: {"lr": 0.1, "momentum": momenta[t], "dampening": 0.01 * t})
    p = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    expected = []
    for t, row in enumerate(rows):
        optimizer.param_groups[0].update(momentum=momenta[t], dampening=0.01 * t)
        p.grad = torch.tensor(row, dtype=torch.float64)
        optimizer.step()
        expected.append(p.detach().clone())
    assert_same_trajectory(found, torch.stack(expected), FLOAT64)


@pytest.mark.parametrize("options", [{"nesterov": True}, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}])
def test_nesterov_needs_a_momentum_and_no_dampening(options):
    with pytest.raises(ValueError, match=r"nesterov=True needs a momentum and dampening=0, but got momentum="):
        fo.sgd(**options)


def test_sgd_has_only_the_knobs_it_was_asked_for():
    assert set(fo.sgd().hparams) == {"lr"}
    assert set(fo.sgd(momentum=0.9).hparams) == {"lr", "momentum", "dampening"}
    assert set(fo.sgd(weight_decay=0.1).hparams) == {"lr", "weight_decay"}
    assert fo.sgd().init_state(torch.zeros(2)) == {"scale_by_learning_rate": {}}
