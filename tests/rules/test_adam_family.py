"""AdEMAMix, ADOPT, LaProp, Adam-atan2, PaLM, AdamC, Adam-mini, StableAdamW, MARS, AdaGC, CAME: the papers' loops and optax."""

import math

import numpy as np
import pytest
import torch
from trajectories import (
    FLOAT64,
    START,
    assert_same_trajectory,
    awkward_gradients,
    columns,
    optax_params_of,
    optax_updates_of,
    paper_adam,
    params_of,
    transposed,
    updates_of,
)

import functional_optim as fo

ROWS = awkward_gradients()


def matrices(steps=30):
    """The awkward gradients as 4 × 2 matrices, a start, and where the columns of trouble lie in them."""
    return torch.tensor(awkward_gradients(steps), dtype=torch.float64).reshape(steps, 4, 2)


def updates_of_matrices(tx, gradients):
    """What a transform returns over the steps for a single parameter of any shape, flat."""
    params = torch.tensor(START, dtype=torch.float64).reshape(gradients[0].shape)
    state, found = tx.init_state(params), []
    for g in gradients:
        update, state = tx.update(g, state, params)
        found.append(update.reshape(-1))
    return torch.stack(found)


# --- Elementwise: one element at a time ---------------------------------------------------------------------------------


def paper_ademamix(gs, betas, alpha, eps, warmup=None):
    """Pagliardini et al., Algorithm 1, with the schedules of its section 3; α and β₃ warm up over the same steps."""
    b1, b2, b3 = betas
    m1 = m2 = v = 0.0
    found = []
    for t, g in enumerate(gs, 1):
        a, b = alpha, b3
        if warmup and t < warmup:
            a = alpha * t / warmup
            b = math.exp(math.log(b1) * math.log(b3) / ((1 - t / warmup) * math.log(b3) + t / warmup * math.log(b1)))
        m1 = b1 * m1 + (1 - b1) * g
        m2 = b * m2 + (1 - b) * g
        v = b2 * v + (1 - b2) * g * g
        found.append((m1 / (1 - b1**t) + a * m2) / (math.sqrt(v / (1 - b2**t)) + eps))
    return found


@pytest.mark.parametrize("warmup", [None, 20])
@pytest.mark.parametrize("betas, alpha, eps", [((0.9, 0.999, 0.9999), 5.0, 1e-8), ((0.5, 0.8, 0.97), 2.0, 1e-3)])
def test_ademamix_is_the_papers_loop(betas, alpha, eps, warmup):
    expected = transposed(paper_ademamix(gs, betas, alpha, eps, warmup) for gs in columns(ROWS))
    tx = fo.scale_by_ademamix(betas, alpha, eps, alpha_warmup=warmup, beta3_warmup=warmup)
    assert_same_trajectory(updates_of(tx, ROWS), expected, FLOAT64)


def test_a_warm_up_of_no_steps_is_none():
    tx = fo.scale_by_ademamix(alpha_warmup=0, beta3_warmup=0)
    assert torch.equal(updates_of(tx, ROWS), updates_of(fo.scale_by_ademamix(), ROWS))


def test_the_half_life_of_the_slow_average_grows_linearly():
    # A gradient of 1 at the first step and 0 after it leaves m₂ = (1 − β₃(1)) β₃(2) β₃(3) …: the ratios of m₂ are the β₃'s.
    tx = fo.scale_by_ademamix((0.9, 0.999, 0.999), beta3_warmup=10)
    state, slow = tx.init_state(torch.zeros((), dtype=torch.float64)), []
    for t in range(14):
        _, state = tx.update(torch.tensor(float(t == 0), dtype=torch.float64), state)
        slow.append(state["exp_avg_slow"].item())
    half_lives = [math.log(0.5) / math.log(b / a) for a, b in zip(slow, slow[1:], strict=False)]
    first, last = math.log(0.5) / math.log(0.9), math.log(0.5) / math.log(0.999)
    # A half-life of 693 steps is -1/log2 of a ratio of 0.999: its rounding, 1e-16, is enlarged 1e3-fold, twice.
    assert half_lives == pytest.approx([first + min(t / 10, 1) * (last - first) for t in range(2, 15)], rel=1e-9)


def test_the_warm_up_may_start_without_memory():
    # β₁ = 0 has half-life 0; that of β₃ grows from there.
    found = updates_of(fo.scale_by_ademamix((0.0, 0.999, 0.99), beta3_warmup=10), ROWS)
    expected = []
    for gs in columns(ROWS):
        m2 = v = 0.0
        path = []
        for t, g in enumerate(gs, 1):
            b = 0.99 ** (1 / min(t / 10, 1))
            m2, v = b * m2 + (1 - b) * g, 0.999 * v + (1 - 0.999) * g * g
            path.append((g + 5 * m2) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8))
        expected.append(path)
    assert_same_trajectory(found, transposed(expected), FLOAT64)


def test_ademamix_is_optax():
    theirs = optax_updates_of(lambda optax: optax.contrib.scale_by_ademamix(0.9, 0.99, 0.999, alpha=5.0), ROWS)
    assert_same_trajectory(updates_of(fo.scale_by_ademamix((0.9, 0.99, 0.999)), ROWS), theirs, FLOAT64)
    theirs = optax_params_of(lambda optax: optax.contrib.ademamix(0.01, weight_decay=0.1), ROWS)
    assert_same_trajectory(params_of(fo.ademamix(0.01, weight_decay=0.1), ROWS), theirs, FLOAT64)


def test_ademamix_without_the_slow_average_is_adam():
    assert torch.equal(updates_of(fo.scale_by_ademamix(alpha=0.0), ROWS), updates_of(fo.scale_by_adam(), ROWS))


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_simplified_ademamix_is_optax(alpha):
    theirs = optax_params_of(lambda optax: optax.contrib.simplified_ademamix(1e-3, 0.9, 0.95, alpha, weight_decay=0.1), ROWS)
    found = params_of(fo.simplified_ademamix(1e-3, (0.9, 0.95), alpha, weight_decay=0.1), ROWS)
    assert_same_trajectory(found, theirs, FLOAT64)


def test_simplified_ademamix_warms_up_as_the_authors_program():
    """Its half-life, of which theirs is one less, grows linearly; they add 1e-8 to every β₁, of which 1e-7 is left in a row."""

    def half_life(beta):
        return math.log(0.5) / math.log(beta + 1e-8) - 1

    expected = []
    for gs in columns(ROWS):
        m, v, column = 0.0, 0.0, []
        for t, g in enumerate(gs, 1):
            a = min(t / 20, 1.0)
            b1 = 0.5 ** (1 / ((1 - a) * half_life(0.8) + a * half_life(0.99) + 1)) if t < 20 else 0.99
            m, v = b1 * m + g, 0.95 * v + 0.05 * g * g
            column.append((m + 0.5 * g) / (math.sqrt(v / (1 - 0.95**t)) + 1e-8))
        expected.append(column)
    # NumPy's float32 of 0.8 is 1.2e-8 off, a hundredth of what is allowed.
    tx = fo.scale_by_simplified_ademamix(alpha=0.5, beta1_warmup=20, min_beta1=np.float32(0.8))
    assert_same_trajectory(updates_of(tx, ROWS), transposed(expected), 3e-6)
    plain = updates_of(fo.scale_by_simplified_ademamix(alpha=0.5), ROWS)
    assert not torch.allclose(plain[1:], updates_of(tx, ROWS)[1:], rtol=1e-2)


def test_simplified_ademamix_without_alpha_is_adam_at_a_larger_rate():
    # m ← β₁ m + g is Adam's m over (1 − β₁); Adam's correction of it is put back by hand.
    found = updates_of(fo.scale_by_simplified_ademamix((0.9, 0.99)), ROWS)
    adam = updates_of(fo.scale_by_adam((0.9, 0.99)), ROWS)
    corrections = torch.tensor([[(1 - 0.9**t) / (1 - 0.9)] for t in range(1, 31)], dtype=torch.float64)
    assert_same_trajectory(found, adam * corrections, FLOAT64)


def paper_adopt(gs, b1, b2, eps, nesterov, clipped):
    """Taniguchi et al., Algorithm 2, with the clip of the authors' program; the first step only starts v."""
    gs = list(gs)
    m, v = 0.0, gs[0] ** 2
    found = [0.0]
    for k, g in enumerate(gs[1:], 1):
        c = g / max(math.sqrt(v), eps)
        c = max(-(k**0.25), min(k**0.25, c)) if clipped else c
        m = b1 * m + (1 - b1) * c
        v = b2 * v + (1 - b2) * g * g
        found.append(b1 * m + (1 - b1) * c if nesterov else m)
    return found


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_adopt_is_the_papers_loop_and_optax(nesterov, clipped):
    tx = fo.scale_by_adopt((0.8, 0.9), 1e-3, nesterov=nesterov, clipped=clipped)
    expected = transposed(paper_adopt(gs, 0.8, 0.9, 1e-3, nesterov, clipped) for gs in columns(ROWS))
    assert_same_trajectory(updates_of(tx, ROWS), expected, FLOAT64)
    options = {"nesterov": nesterov, "use_clipping": clipped}
    theirs = optax_updates_of(lambda optax: optax.contrib.scale_by_adopt(0.8, 0.9, 1e-3, **options), ROWS)
    assert_same_trajectory(updates_of(tx, ROWS), theirs, FLOAT64)


def paper_laprop(gs, betas, eps):
    """Ziyin et al., Algorithm 1."""
    b1, b2 = betas
    m = v = 0.0
    found = []
    for t, g in enumerate(gs, 1):
        v = b2 * v + (1 - b2) * g * g
        scaled = g / (math.sqrt(v / (1 - b2**t)) + eps)
        m = b1 * m + (1 - b1) * scaled
        found.append(m / (1 - b1**t))
    return found


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.99, 0.4)])
def test_laprop_is_the_papers_loop(betas):
    expected = transposed(paper_laprop(gs, betas, 1e-8) for gs in columns(ROWS))
    assert_same_trajectory(updates_of(fo.scale_by_laprop(betas, 1e-8), ROWS), expected, FLOAT64)


def test_laprop_without_momentum_is_adam_without_momentum():
    assert_same_trajectory(
        updates_of(fo.scale_by_laprop((0.0, 0.9), 1e-8), ROWS), updates_of(fo.scale_by_adam((0.0, 0.9)), ROWS), FLOAT64
    )


def test_adam_atan2_is_the_papers_loop():
    def paper(gs, b1, b2, a, b):
        m = v = 0.0
        for t, g in enumerate(gs, 1):
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            yield a * math.atan2(m / (1 - b1**t), b * math.sqrt(v / (1 - b2**t)))

    expected = transposed(paper(gs, 0.8, 0.99, 1.5, 2.0) for gs in columns(ROWS))
    assert_same_trajectory(updates_of(fo.scale_by_adam_atan2((0.8, 0.99), 1.5, 2.0), ROWS), expected, FLOAT64)


def test_adam_atan2_sees_no_scale():
    rows = [[1e-30 * g for g in row] for row in ROWS]
    tx = fo.scale_by_adam_atan2()
    # Columns 4 and 5 would be 1e-42 in any scale; squares of those are below float64's normal numbers.
    keep = [0, 1, 2, 3, 6, 7]
    assert_same_trajectory(updates_of(tx, rows)[:, keep], updates_of(tx, ROWS)[:, keep], FLOAT64)


def test_palm_is_its_loop_and_a_plain_mean_at_decay_minus_1():
    def paper(gs, b1, decay, eps):
        m = v = 0.0
        for t, g in enumerate(gs, 1):
            b2 = 1 - t**decay
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            yield m / (1 - b1**t) / (math.sqrt(v) + eps)

    expected = transposed(paper(gs, 0.9, -0.8, 1e-8) for gs in columns(ROWS))
    assert_same_trajectory(updates_of(fo.scale_by_palm(), ROWS), expected, FLOAT64)

    means = [[gs[t] / (math.sqrt(sum(g * g for g in gs[: t + 1]) / (t + 1)) + 1e-8) for gs in columns(ROWS)] for t in range(30)]
    assert_same_trajectory(updates_of(fo.scale_by_palm(beta1=0.0, beta2_decay=-1.0), ROWS), means, FLOAT64)


def test_adamc_decays_with_the_square_of_the_learning_rate():
    lrs = [0.1 * (1 - t / 30) for t in range(30)]
    found = params_of(fo.adamc(max_lr=0.1), ROWS, hparams=lambda t: {"lr": lrs[t], "weight_decay": 0.3})
    expected = []
    for p, gs in zip(START, columns(ROWS), strict=True):
        path = []
        for lr, u in zip(lrs, paper_adam(gs), strict=True):
            p = p - lr * u - lr * lr / 0.1 * 0.3 * p
            path.append(p)
        expected.append(path)
    assert_same_trajectory(found, transposed(expected), FLOAT64)


def test_the_corrected_decay_is_the_share_of_the_largest_rate():
    tx, p = fo.add_corrected_decayed_weights(0.5, lr=0.2, max_lr=0.8), torch.tensor([4.0, -2.0])
    assert tx.update(torch.tensor([1.0, 1.0]), tx.init_state(p), p)[0].tolist() == pytest.approx([1.5, 0.75], rel=1e-6)  # float32


def test_adamc_at_a_constant_rate_is_adamw():
    # Up to the rounding of λ η / η_max.
    assert_same_trajectory(params_of(fo.adamc(0.05), ROWS), params_of(fo.adamw(0.05), ROWS), FLOAT64)


# --- By tensor ----------------------------------------------------------------------------------------------------------


def norm(xs):
    return math.sqrt(sum(x * x for x in xs))


def paper_mars(rows, b1, gamma, bound):
    """Yuan et al., Algorithm 3 up to the moments: the corrected gradients of one tensor."""
    last, found = rows[0], []
    for row in rows:
        c = [g + gamma * b1 / (1 - b1) * (g - old) for g, old in zip(row, last, strict=True)]
        size = norm(c)
        found.append([x * bound / size for x in c] if size > bound else c)
        last = row
    return found


@pytest.mark.parametrize("bound", [1.0, 1e8, 1e12])  # always clipped, now and then, never
def test_mars_is_the_papers_loop(bound):
    expected = paper_mars(ROWS, 0.8, 0.1, bound)
    assert_same_trajectory(updates_of(fo.mars_correction((0.8, 0.99), 0.1, bound), ROWS), expected, FLOAT64)


def test_mars_hands_its_gradients_to_adamw():
    tx = fo.mars(0.01, weight_decay=0.1)
    corrected = paper_mars(ROWS, 0.95, 0.025, 1.0)
    expected = params_of(fo.adamw(0.01, (0.95, 0.99), weight_decay=0.1), corrected)
    assert_same_trajectory(params_of(tx, ROWS), expected, FLOAT64)


def test_stable_adamw_is_the_papers_loop():
    b1, b2, eps, decay, lr = 0.9, 0.95, 1e-3, 0.1, 0.01
    # The ordinary columns and the spike: the huge column would hide the others in the mean.
    rows = [[row[i] for i in (0, 1, 2, 3, 6, 7)] for row in ROWS]
    p = [START[i] for i in (0, 1, 2, 3, 6, 7)]
    m = v = [0.0] * 6
    tx, params = fo.stable_adamw(lr, (b1, b2), eps, decay), torch.tensor(p, dtype=torch.float64)
    state, clips = tx.init_state(params), 0
    for t, row in enumerate(rows, 1):
        # Algorithm 2 of Wortsman et al., with the correction inside the betas, as they write it.
        own1, own2 = b1 * (1 - b1 ** (t - 1)) / (1 - b1**t), b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)
        m = [own1 * a + (1 - own1) * g for a, g in zip(m, row, strict=True)]
        v = [own2 * a + (1 - own2) * g * g for a, g in zip(v, row, strict=True)]
        rms = math.sqrt(sum(g * g / max(a, eps**2) for g, a in zip(row, v, strict=True)) / 6)
        eta = lr / max(1, rms)
        clips += rms > 1
        p = [x - eta * decay * x - eta * a / (math.sqrt(b) + eps) for x, a, b in zip(p, m, v, strict=True)]
        updates, state = tx.update(torch.tensor(row, dtype=torch.float64), state, params)
        params = fo.apply_updates(params, updates)
        torch.testing.assert_close(params, torch.tensor(p, dtype=torch.float64), rtol=1e-12, atol=1e-12)  # FLOAT64
    assert 0 < clips < 30


def test_stable_adamw_of_a_gradient_that_keeps_its_size_is_not_clipped():
    # v̂ = g², so the mean of g² / v̂ is 1 at every step, and the step is AdamW's: a closed form. Ten times the size is clipped.
    g, p = torch.tensor([3.0, -0.5], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    tx = fo.scale_by_stable_adamw(eps=1e-6, weight_decay=0.1)
    state = tx.init_state(p)
    for _ in range(5):
        update, state = tx.update(g, state, p)
        torch.testing.assert_close(update, g / (g.abs() + 1e-6) + 0.1 * p, rtol=1e-13, atol=0)
    v_hat = (0.99 * (1 - 0.99**5) * g * g + 0.01 * 100 * g * g) / (1 - 0.99**6)
    m_hat = (0.9 * (1 - 0.9**5) * g + 0.1 * 10 * g) / (1 - 0.9**6)
    excess = (100 * g * g / v_hat).mean().sqrt()
    update, _ = tx.update(10 * g, state, p)
    torch.testing.assert_close(update, (m_hat / (v_hat.sqrt() + 1e-6) + 0.1 * p) / excess, rtol=1e-13, atol=0)


@pytest.mark.parametrize("blocks, size", [(1, 8), (2, 4), (None, 2)])
def test_adam_mini_is_the_papers_loop(blocks, size):
    b1, b2, eps = 0.9, 0.95, 1e-8
    found = updates_of_matrices(fo.scale_by_adam_mini((b1, b2), eps, blocks=blocks), matrices())
    parts = []
    for start in range(0, 8, size):
        m, v = [0.0] * size, 0.0
        path = []
        for t, row in enumerate(ROWS, 1):
            g = row[start : start + size]
            m = [b1 * a + (1 - b1) * x for a, x in zip(m, g, strict=True)]
            v = b2 * v + (1 - b2) * sum(x * x for x in g) / size
            path.append([a / (1 - b1**t) / (math.sqrt(v / (1 - b2**t)) + eps) for a in m])
        parts.append(path)
    expected = [sum(pieces, []) for pieces in zip(*parts, strict=True)]
    assert_same_trajectory(found, expected, FLOAT64)


def test_adam_mini_takes_a_vector_as_one_block_and_a_stack_of_matrices_by_its_rows():
    tx = fo.scale_by_adam_mini(blocks=None)
    state = tx.init_state({"vector": torch.zeros(5), "scalar": torch.zeros(()), "stack": torch.zeros(3, 2, 2)})
    assert {name: tuple(slot.shape) for name, slot in state["exp_avg_sq"].items()} == {"vector": (), "scalar": (), "stack": (3,)}
    stack = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0))
    whole, _ = tx.update({"stack": stack}, tx.init_state({"stack": stack}))
    flat, _ = tx.update({"stack": stack.reshape(3, 4)}, tx.init_state({"stack": stack.reshape(3, 4)}))
    assert torch.equal(whole["stack"].reshape(3, 4), flat["stack"])


@pytest.mark.parametrize("blocks", [3, 8, 0, -1])
def test_adam_mini_refuses_blocks_that_do_not_fit(blocks):
    p = torch.zeros(4, 2)
    tx = fo.scale_by_adam_mini(blocks=blocks)
    with pytest.raises(ValueError, match=rf"blocks={blocks}: a parameter of shape \(4, 2\) has 4 rows"):
        tx.update(p, tx.init_state(p))


def test_adam_mini_of_one_element_blocks_is_adam():
    column = matrices().reshape(30, 8, 1)
    found = updates_of_matrices(fo.scale_by_adam_mini(blocks=None), column)
    assert_same_trajectory(found, updates_of(fo.scale_by_adam(), ROWS), FLOAT64)


def test_adagc_is_the_papers_loop():
    warmup, absolute, relative, beta = 8, 2.0, 1.05, 0.9
    tx = fo.clip_by_adagc(absolute, relative, beta, warmup_steps=warmup)
    params = {"a": torch.zeros(3, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    state, usual = tx.init_state(params), {}
    for t, row in enumerate(ROWS, 1):
        grads = {"a": [row[0], row[3] + 0.1, row[7] * 1e-5], "b": [row[6], row[2]]}
        everything = norm([g for gs in grads.values() for g in gs])
        updates, state = tx.update({k: torch.tensor(gs, dtype=torch.float64) for k, gs in grads.items()}, state)
        for name, gs in grads.items():
            # Wang et al., Algorithm 1.
            factor = min(1, absolute / everything) if t < warmup else min(1, relative * usual[name] / norm(gs))
            size = factor * norm(gs)
            usual[name] = min(usual.get(name, size), size) if t < warmup else beta * usual[name] + (1 - beta) * size
            torch.testing.assert_close(updates[name].tolist(), [factor * g for g in gs], rtol=1e-13, atol=1e-13)
            assert state["gamma"][name].item() == pytest.approx(usual[name], rel=1e-13)


def test_adagc_takes_a_norm_of_0_for_unknown():
    tx = fo.clip_by_adagc(lambda_abs=100.0, warmup_steps=3)
    state = tx.init_state(torch.zeros(2))
    for g, expected, usual in [(0.0, 0.0, 0.0), (4.0, 4.0, 4.0), (0.0, 0.0, 0.98 * 4), (50.0, 1.05 * 3.92, None)]:
        update, state = tx.update(torch.tensor([g, 0.0]), state)
        # float32: a few roundings of 6e-8.
        assert update.tolist() == pytest.approx([expected, 0.0], rel=1e-6)
        assert usual is None or state["gamma"].item() == pytest.approx(usual, rel=1e-6)
    # Nothing in the warm-up, then something: the first norm is not clipped.
    late = fo.clip_by_adagc(warmup_steps=1)
    update, state = late.update(torch.tensor([3.0, 4.0]), late.init_state(torch.zeros(2)))
    assert update.tolist() == [3.0, 4.0] and state["gamma"].item() == 5.0


def paper_came(gradients, b1, b2, b3, eps1, eps2, threshold):
    """Luo et al., Algorithm 2 for a matrix, after the authors' program; NumPy for rows and columns."""

    def approximate(r, c):
        return (np.outer(r, c) / r.mean()) ** -0.5

    m = r = c = big_r = big_c = 0.0
    found = []
    for g in gradients:
        square = g**2 + eps1
        r = b2 * r + (1 - b2) * square.mean(1)
        c = b2 * c + (1 - b2) * square.mean(0)
        u = g * approximate(r, c)
        u = u / max(1.0, math.sqrt((u**2).mean()) / threshold)
        m = b1 * m + (1 - b1) * u
        instability = (u - m) ** 2 + eps2
        big_r = b3 * big_r + (1 - b3) * instability.mean(1)
        big_c = b3 * big_c + (1 - b3) * instability.mean(0)
        found.append((m * approximate(big_r, big_c)).reshape(-1).tolist())
    return found


@pytest.mark.parametrize("threshold", [1.0, 0.1])
def test_came_is_the_papers_loop(threshold):
    betas, eps = (0.9, 0.99, 0.999), (1e-30, 1e-16)
    # Without the huge and the tiny column, whose row and column means span 40 digits.
    gradients = [np.array([[row[0], row[3], row[7]], [row[2], row[6], row[1]]]) for row in ROWS]
    tx, p = fo.scale_by_came(betas, eps, threshold), torch.zeros(2, 3, dtype=torch.float64)
    state, found = tx.init_state(p), []
    for g in gradients:
        update, state = tx.update(torch.tensor(g), state, p)
        found.append(update.reshape(-1))
    # The confidence divides by roots that may be 1e-8, enlarging the rounding of m by 1e3 relative to the result.
    assert_same_trajectory(torch.stack(found), paper_came(gradients, *betas, *eps, threshold), 1e-10)
    shapes = {name: tuple(slot.shape) for name, slot in state.items()}
    assert shapes == {
        "exp_avg": (2, 3),
        "exp_avg_sq": (0,),
        "exp_avg_sq_row": (2,),
        "exp_avg_sq_col": (3,),
        "exp_avg_res_row": (2,),
        "exp_avg_res_col": (3,),
    }


def test_came_of_a_vector_is_a_clipped_and_averaged_rmsprop():
    b1, b2, eps1 = 0.9, 0.99, 1e-30
    rows = [[row[i] for i in (0, 2, 3, 6, 7)] for row in ROWS]
    m, v, expected = [0.0] * 5, [0.0] * 5, []
    for row in rows:
        v = [b2 * a + (1 - b2) * (g * g + eps1) for a, g in zip(v, row, strict=True)]
        u = [g / math.sqrt(a) for a, g in zip(v, row, strict=True)]
        rms = norm(u) / math.sqrt(5)
        m = [b1 * a + (1 - b1) * x / max(1.0, rms) for a, x in zip(m, u, strict=True)]
        expected.append(m)
    assert_same_trajectory(updates_of(fo.scale_by_came((b1, b2, 0.999), (eps1, 1e-16)), rows), expected, FLOAT64)


def test_came_takes_a_stack_of_matrices_one_by_one():
    stack = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tx = fo.scale_by_came(clip_threshold=1e6)  # the clip is over the whole tensor
    together, _ = tx.update(stack, tx.init_state(stack))
    for i in range(3):
        alone, _ = tx.update(stack[i], tx.init_state(stack[i]))
        torch.testing.assert_close(together[i], alone, rtol=1e-13, atol=0)


# --- Whole optimizers ---------------------------------------------------------------------------------------------------

# Each with the rule whose updates it scales by −lr, after adding its decay; at their defaults but for lr and decay.
WHOLE = [
    (fo.ademamix, fo.scale_by_ademamix()),
    (fo.simplified_ademamix, fo.scale_by_simplified_ademamix()),
    (fo.adopt, fo.scale_by_adopt()),
    (fo.laprop, fo.scale_by_laprop()),
    (fo.adam_atan2, fo.scale_by_adam_atan2()),
    (fo.adam_mini, fo.scale_by_adam_mini((0.9, 0.95))),
    (fo.came, fo.scale_by_came()),
    (fo.grams, fo.with_gradient_signs(fo.scale_by_adam(eps=1e-6))),
    (fo.mars, fo.chain(fo.mars_correction(), fo.scale_by_adam((0.95, 0.99)))),
    (fo.adagc, fo.chain(fo.clip_by_adagc(), fo.scale_by_adam())),
]


@pytest.mark.parametrize("make, rule", WHOLE, ids=lambda x: getattr(x, "__name__", ""))
def test_a_whole_optimizer_is_its_rule_with_decoupled_decay_at_the_learning_rate(make, rule):
    lr, decay = 0.03, 0.2
    assert "weight_decay" not in make().hparams or make is fo.adagc
    p = torch.tensor(START, dtype=torch.float64)
    expected = []
    for u in updates_of(rule, ROWS):
        p = p - lr * (u + decay * p)
        expected.append(p.tolist())
    assert_same_trajectory(params_of(make(lr=lr, weight_decay=decay), ROWS), expected, FLOAT64)
    if make is not fo.adagc:
        without = torch.tensor(START, dtype=torch.float64) - lr * updates_of(rule, ROWS).cumsum(0)
        assert_same_trajectory(params_of(make(lr=lr), ROWS), without, FLOAT64)


@pytest.mark.parametrize("make", [make for make, _ in WHOLE if make is not fo.adagc], ids=lambda make: make.__name__)
def test_slots_of_any_dtype(make):
    # The parameters' dtype by default; what is asked for otherwise.
    p = {"w": torch.ones(4, 2, dtype=torch.bfloat16)}
    for dtype in (torch.bfloat16, torch.float32):
        slots = [x for _, x in _tensors(make(state_dtype=dtype).init_state(p)) if x.is_floating_point()]
        assert slots and {x.dtype for x in slots} == {dtype}
        assert {x.dtype for _, x in _tensors(make().init_state(p)) if x.is_floating_point()} == {torch.bfloat16}


def _tensors(state):
    for name, value in state.items():
        yield from _tensors(value) if isinstance(value, dict) else [(name, value)]


# With options of every kind, on a matrix, and the rule that they are meant for.
WITH_OPTIONS = {
    "adopt": (
        fo.adopt(0.01, (0.8, 0.9), 1e-3, 0.1, nesterov=True, clipped=False),
        fo.scale_by_adopt((0.8, 0.9), 1e-3, nesterov=True, clipped=False),
    ),
    "laprop": (fo.laprop(0.01, (0.8, 0.9), 1e-3, 0.1), fo.scale_by_laprop((0.8, 0.9), 1e-3)),
    "adam_atan2": (fo.adam_atan2(0.01, (0.8, 0.9), 0.1, 1.5, 2.0), fo.scale_by_adam_atan2((0.8, 0.9), 1.5, 2.0)),
    "adam_mini": (fo.adam_mini(0.01, (0.8, 0.9), 1e-3, 0.1, blocks=2), fo.scale_by_adam_mini((0.8, 0.9), 1e-3, blocks=2)),
    "adagc": (
        fo.adagc(0.01, (0.8, 0.9), 1e-3, 0.1, 2.0, 1.1, 0.7, warmup_steps=5),
        fo.chain(fo.clip_by_adagc(2.0, 1.1, 0.7, warmup_steps=5), fo.scale_by_adam((0.8, 0.9), 1e-3)),
    ),
    "came": (fo.came(0.01, (0.8, 0.9, 0.95), (1e-3, 1e-4), 0.1, 0.5), fo.scale_by_came((0.8, 0.9, 0.95), (1e-3, 1e-4), 0.5)),
}


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_every_option_reaches_the_rule(name):
    tx, rule = WITH_OPTIONS[name]
    expected = found = torch.tensor(START, dtype=torch.float64).reshape(4, 2)
    state, rule_state = tx.init_state(found), rule.init_state(expected)
    for g in matrices():
        updates, state = tx.update(g, state, found)
        found = fo.apply_updates(found, updates)
        u, rule_state = rule.update(g, rule_state, expected)
        expected = expected - 0.01 * (u + 0.1 * expected)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # FLOAT64


@pytest.mark.parametrize("nesterov", [False, True])
def test_adopt_is_optax(nesterov):
    theirs = optax_params_of(lambda optax: optax.contrib.adopt(0.01, 0.8, 0.9, 1e-3, nesterov=nesterov), ROWS)
    assert_same_trajectory(params_of(fo.adopt(0.01, (0.8, 0.9), 1e-3, nesterov=nesterov), ROWS), theirs, FLOAT64)


def test_scale_by_stable_adamw_decays_before_it_divides():
    # One gradient of 1, then one of 2: at the second step v̂ = (β₂ + 4) / (1 + β₂), and 4 / v̂ > 1 is clipped.
    b1, b2, decay, p = 0.9, 0.99, 0.1, torch.tensor([3.0], dtype=torch.float64)
    tx = fo.scale_by_stable_adamw((b1, b2), 1e-6, decay)
    first, state = tx.update(torch.ones_like(p), tx.init_state(p), p)
    assert first.item() == pytest.approx(1 / (1 + 1e-6) + decay * 3, rel=1e-12)
    second, _ = tx.update(2 * torch.ones_like(p), state, p)
    v = (b2 + 4) / (1 + b2)
    assert second.item() == pytest.approx(((b1 + 2) / (1 + b1) / (math.sqrt(v) + 1e-6) + decay * 3) / math.sqrt(4 / v), rel=1e-12)


def test_scale_by_stable_adamw_of_a_gradient_that_only_shrinks_is_adam():
    rows = [[g * 0.5**t for g in (1.0, -3.0, 1e-3)] for t in range(30)]
    adam = fo.scale_by_adam((0.9, 0.99), 1e-6)
    tx = fo.scale_by_stable_adamw((0.9, 0.99), 1e-6)
    p = torch.zeros(3, dtype=torch.float64)  # which do not decay
    state, expected = tx.init_state(p), updates_of(adam, rows)
    for row, u in zip(rows, expected, strict=True):
        update, state = tx.update(torch.tensor(row, dtype=torch.float64), state, p)
        torch.testing.assert_close(update, u, rtol=1e-12, atol=0)


def test_add_corrected_decayed_weights_is_a_share_of_the_plain_decay():
    u, p = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([4.0, 8.0], dtype=torch.float64)
    tx = fo.add_corrected_decayed_weights(0.5, lr=0.1, max_lr=0.4)
    update, _ = tx.update(u, tx.init_state(p), p)
    # λ η / η_max = 1/8, up to the rounding of 0.1 / 0.4.
    torch.testing.assert_close(update, torch.tensor([1.5, -1.0], dtype=torch.float64), rtol=1e-15, atol=0)
    update, _ = tx.update(u, tx.init_state(p), p, {"lr": 0.0, "weight_decay": 0.5, "max_lr": 0.4})
    assert torch.equal(update, u)
