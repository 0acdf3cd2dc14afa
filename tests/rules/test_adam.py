"""Identity of `scale_by_adam`, `adam` and `adamw`: the paper's loop, torch.optim, optax, and what they reduce to."""

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
    params_of,
    torch_params_of,
    transposed,
    updates_of,
)

import functional_optim as fo

SETTINGS = [
    {"betas": (0.9, 0.999), "eps": 1e-8},
    {"betas": (0.5, 0.6), "eps": 1e-3},
    {"betas": (0.0, 0.999), "eps": 1e-8},
    {"betas": (0.9, 0.0), "eps": 1e-8},
    {"betas": (0.99, 0.9), "eps": 1.0},
]


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_scale_by_adam_is_the_papers_loop(setting, amsgrad):
    rows = awkward_gradients()
    (b1, b2), eps = setting["betas"], setting["eps"]
    expected = transposed(paper_adam(gs, b1, b2, eps, amsgrad) for gs in columns(rows))
    assert_same_trajectory(updates_of(fo.scale_by_adam(amsgrad=amsgrad), rows, hparams=setting), expected, FLOAT64)
    # The same numbers as defaults of the constructor.
    assert_same_trajectory(updates_of(fo.scale_by_adam((b1, b2), eps, amsgrad=amsgrad), rows), expected, FLOAT64)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_slots_are_the_papers_moments(amsgrad):
    rows = awkward_gradients()
    tx = fo.scale_by_adam(betas=(0.8, 0.95), amsgrad=amsgrad)
    state = tx.init_state(torch.tensor(START, dtype=torch.float64))
    m, v, w = [0.0] * 8, [0.0] * 8, [0.0] * 8
    for t, row in enumerate(rows, 1):
        _, state = tx.update(torch.tensor(row, dtype=torch.float64), state)
        m = [0.8 * a + (1 - 0.8) * g for a, g in zip(m, row, strict=True)]
        v = [0.95 * a + (1 - 0.95) * g * g for a, g in zip(v, row, strict=True)]
        w = [max(a, b) for a, b in zip(w, v, strict=True)]
        assert state["step"].dtype == torch.int64 and state["step"].item() == t
        names = {"exp_avg": m, "exp_avg_sq": v} | ({"max_exp_avg_sq": w} if amsgrad else {})
        assert set(state) == {"step", *names}
        for name, expected in names.items():
            # m cancels, so compare with the size of its terms; the squares are sums of positive terms.
            atol = 1e-14 * max(map(abs, row)) if name == "exp_avg" else 0
            torch.testing.assert_close(state[name], torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=atol)


def test_a_constant_gradient_gives_its_sign():
    # m̂ = g and v̂ = g² at every step, whatever the betas: a closed form that sees each bias correction.
    for g in (3.0, -1e-3, 1e6):
        u = updates_of(fo.scale_by_adam(betas=(0.7, 0.97)), [[g]] * 40)
        expected = g / (abs(g) + 1e-8)
        # 40 steps of rounding; the corrections 1 - b**t are exact to 1e-16 / (1 - b) = 3e-15.
        torch.testing.assert_close(u, torch.full_like(u, expected), rtol=1e-12, atol=0)


def test_amsgrad_takes_the_maximum_of_uncorrected_moments():
    # Gradients 1, then 0: v falls. Uncorrected, max(v) is v₁ = 1 - b2 and v̂₂ = (1 - b2) / (1 - b2²) = 1 / (1 + b2).
    # Corrected first, as optax does, the maximum would be 1.
    b1, b2 = 0.5, 0.75
    u = updates_of(fo.scale_by_adam(betas=(b1, b2), eps=0.0, amsgrad=True), [[1.0], [0.0]])
    m_hat = b1 * (1 - b1) / (1 - b1**2)
    # Five float64 operations.
    assert u[1].item() == pytest.approx(m_hat * math.sqrt(1 + b2), rel=1e-14)


OPTIONS = [
    {"lr": 0.01},
    {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-4},
    {"lr": 0.01, "weight_decay": 0.3},
    {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ours, theirs", [(fo.adam, torch.optim.Adam), (fo.adamw, torch.optim.AdamW)])
def test_adam_and_adamw_retrace_torch(ours, theirs, options):
    rows = awkward_gradients(50)
    assert_same_trajectory(params_of(ours(**options), rows), torch_params_of(theirs, rows, **options), FLOAT64)

    single = params_of(ours(**options), rows, torch.float32)
    assert_same_trajectory(single, torch_params_of(theirs, in_float32(rows), **options), FLOAT32)
    # In column 6 the moments cancel, and torch's own float32 run is 1.6e-6 off the float64 one (ours: 2e-7).
    kept = [0, 1, 2, 3, 4, 5, 7]
    expected = torch_params_of(theirs, rows, torch.float32, **options)
    assert_same_trajectory(single[:, kept], expected[:, kept], FLOAT32)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_scale_by_adam_is_optax(setting):
    rows = awkward_gradients(50)
    (b1, b2), eps = setting["betas"], setting["eps"]
    expected = optax_updates_of(lambda optax: optax.scale_by_adam(b1, b2, eps, eps_root=0.0), rows)
    assert_same_trajectory(updates_of(fo.scale_by_adam((b1, b2), eps), rows), expected, FLOAT64)


def test_adam_and_adamw_are_optax():
    rows = awkward_gradients(50)
    expected = optax_params_of(lambda optax: optax.adam(0.02, 0.8, 0.95, 1e-6), rows)
    assert_same_trajectory(params_of(fo.adam(0.02, (0.8, 0.95), 1e-6), rows), expected, FLOAT64)
    expected = optax_params_of(lambda optax: optax.adamw(0.02, 0.8, 0.95, 1e-6, weight_decay=0.3), rows)
    assert_same_trajectory(params_of(fo.adamw(0.02, (0.8, 0.95), 1e-6, weight_decay=0.3), rows), expected, FLOAT64)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_without_decay_is_adam(amsgrad):
    rows = awkward_gradients()
    adam = params_of(fo.adam(0.05, amsgrad=amsgrad), rows)
    assert torch.equal(params_of(fo.adamw(0.05, weight_decay=0.0, amsgrad=amsgrad), rows), adam)
    assert torch.equal(params_of(fo.adam(0.05, weight_decay=0.0, amsgrad=amsgrad), rows), adam)


def test_adam_with_l2_is_not_adamw():
    rows = awkward_gradients()
    l2, decoupled = params_of(fo.adam(0.05, weight_decay=0.1), rows), params_of(fo.adamw(0.05, weight_decay=0.1), rows)
    assert (l2 - decoupled).abs().max() > 1e-2


def test_adamw_without_gradient_shrinks_by_a_known_factor():
    lr, decay = 0.1, 0.5
    p = params_of(fo.adamw(lr, weight_decay=decay), [[0.0] * 8] * 20)
    expected = torch.tensor([[x * (1 - lr * decay) ** t for x in START] for t in range(1, 21)], dtype=torch.float64)
    # 20 products in float64.
    torch.testing.assert_close(p, expected, rtol=1e-14, atol=0)


def test_adam_without_memory_is_rescaled_sign_descent():
    # b1 = b2 = 0: u = g / (|g| + eps).
    rows = awkward_gradients()
    expected = [[g / (abs(g) + 1e-3) for g in row] for row in rows]
    assert_same_trajectory(updates_of(fo.scale_by_adam((0.0, 0.0), 1e-3), rows), expected, FLOAT64)


def test_with_b1_0_adam_is_rmsprop_with_bias_correction():
    # Kingma & Ba, section 5: torch's RMSprop with eps = 0 and its own average corrected by hand.
    rows = [[g + 3.0 for g in row[:1]] for row in awkward_gradients(30)]  # never 0, so that eps may be
    alpha, lr = 0.9, 0.01
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    rmsprop = torch.optim.RMSprop([p], lr=lr, alpha=alpha, eps=0.0)
    u = updates_of(fo.scale_by_adam((0.0, alpha), 0.0), rows)
    for t, row in enumerate(rows, 1):
        before = p.detach().clone()
        p.grad = torch.tensor(row, dtype=torch.float64)
        rmsprop.step()
        theirs = (before - p.detach()) / lr * math.sqrt(1 - alpha**t)
        # The difference of two parameters of size up to 1 over lr: 1e-16 / 0.01, over an update of size about 1.
        torch.testing.assert_close(u[t - 1], theirs, rtol=1e-12, atol=1e-12)


def test_hyper_parameters_may_change_at_every_step():
    rows = awkward_gradients()
    lrs = [0.1 / (1 + t) for t in range(30)]
    beta1s = [0.9 - 0.01 * t for t in range(30)]
    found = params_of(fo.adamw(), rows, hparams=lambda t: {"lr": lrs[t], "betas": (beta1s[t], 0.99), "weight_decay": 0.01 * t})

    p = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    optimizer = torch.optim.AdamW([p])
    expected = []
    for t, row in enumerate(rows):
        optimizer.param_groups[0].update(lr=lrs[t], betas=(beta1s[t], 0.99), weight_decay=0.01 * t)
        p.grad = torch.tensor(row, dtype=torch.float64)
        optimizer.step()
        expected.append(p.detach().clone())
    assert_same_trajectory(found, torch.stack(expected), FLOAT64)


def test_state_dtype_keeps_float32_moments_of_a_bfloat16_parameter():
    rows = awkward_gradients()
    p = torch.tensor(START, dtype=torch.bfloat16)
    tx = fo.scale_by_adam(state_dtype=torch.float32)
    state = tx.init_state(p)
    gradients = [torch.tensor(row, dtype=torch.bfloat16) for row in rows]
    exact = [paper_adam(gs) for gs in columns([g.double().tolist() for g in gradients])]
    for t, g in enumerate(gradients):
        u, state = tx.update(g, state, p)
        assert u.dtype == torch.bfloat16
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32
        # Computed in float32 (1e-6 after 30 steps) and rounded once, to 8 bits: half a unit is 2**-9 = 2e-3.
        expected = torch.tensor([column[t] for column in exact], dtype=torch.float64)
        torch.testing.assert_close(u.double(), expected, rtol=2**-8, atol=1e-6)
    assert tx.init_state(p)["exp_avg"].dtype == torch.float32


def test_state_dtype_of_a_complex_parameter():
    # float32 means the precision; the slots of a complex64 parameter hold both parts.
    tx = fo.scale_by_adam(state_dtype=torch.float32)
    z = torch.tensor([1 + 2j, -3j], dtype=torch.complex64)
    u, state = tx.update(z, tx.init_state(z), z)
    plain, _ = fo.scale_by_adam().update(z, fo.scale_by_adam().init_state(z), z)
    assert torch.equal(u, plain)
    _, again = tx.update(z, state, z)
    assert again["exp_avg"].shape == state["exp_avg"].shape == tx.init_state(z)["exp_avg"].shape


def test_amsgrad_is_adam_with_that_option():
    rows = awkward_gradients()
    assert torch.equal(params_of(fo.amsgrad(0.1, (0.8, 0.9)), rows), params_of(fo.adam(0.1, (0.8, 0.9), amsgrad=True), rows))


def test_the_correction_may_come_later():
    """Right behind, the two are the order of operations at the end of the paper's section 2; and in plain floats."""
    rows = awkward_gradients()
    later = fo.chain(fo.scale_by_adam((0.8, 0.99), 1e-6, debias=False), fo.scale_by_bias_correction((0.8, 0.99)))
    expected = updates_of(fo.scale_by_adam((0.8, 0.99), 1e-6, optimized_update=True), rows)
    torch.testing.assert_close(updates_of(later, rows), expected, rtol=FLOAT64, atol=0)
    m = v = 0.0
    for row, u in zip(rows, updates_of(fo.scale_by_adam((0.8, 0.99), 1e-6, debias=False), rows).tolist(), strict=True):
        m, v = 0.8 * m + 0.2 * row[0], 0.99 * v + 0.01 * row[0] ** 2
        assert u[0] == pytest.approx(m / (v**0.5 + 1e-6), rel=FLOAT64)
