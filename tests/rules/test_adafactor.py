"""Adafactor: the paper's algorithm in plain floats, torch.optim.Adafactor, optax, and what factors lose."""

import inspect
import io
import math

import pytest
import torch
from loops import randn
from trajectories import FLOAT32, FLOAT64, assert_params_close, set_gradients, start_params, walk_together

import functional_optim as fo
from functional_optim import adapters


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def paper_factored(gs, tau, eps):
    """Shazeer & Stern 2018, Algorithm 4, on lists of lists, with torch's place of ε₁."""
    rows, columns, found = [0.0] * len(gs[0]), [0.0] * len(gs[0][0]), []
    for t, g in enumerate(gs, 1):
        beta = 1 - t**tau
        squares = [[x * x for x in row] for row in g]
        rows = [beta * r + (1 - beta) * mean(row) for r, row in zip(rows, squares, strict=True)]
        columns = [beta * c + (1 - beta) * mean(column) for c, column in zip(columns, zip(*squares, strict=True), strict=True)]
        roots = [[max(math.sqrt(r * c / max(mean(rows), eps)), eps) for c in columns] for r in rows]
        found.append([[x / y for x, y in zip(*pair, strict=True)] for pair in zip(g, roots, strict=True)])
    return found


def paper_unfactored(gs, tau, eps):
    v, found = 0.0, []
    for t, g in enumerate(gs, 1):
        beta = 1 - t**tau
        v = beta * v + (1 - beta) * g * g
        found.append(g / max(math.sqrt(v), eps))
    return found


def updates_of(tx, gs):
    state, found = tx.init_state(gs[0]), []
    for g in gs:
        update, state = tx.update(g, state)
        found.append(update)
    return torch.stack(found)


@pytest.mark.parametrize("tau, eps", [(-0.8, 1e-30), (-0.5, 0.3), (0.0, 1e-3), (-2.0, None)])
def test_the_papers_loop(tau, eps):
    gs = [randn(3, 4, seed=seed) * (seed != 2) for seed in range(8)]
    number = 2.0**-52 if eps is None else eps
    expected = torch.tensor(paper_factored([g.tolist() for g in gs], tau, number), dtype=torch.float64)
    torch.testing.assert_close(updates_of(fo.scale_by_factored_rms(tau, eps), gs), expected, rtol=FLOAT64, atol=FLOAT64)
    vectors = [g[0] for g in gs]
    columns = zip(*(g.tolist() for g in vectors), strict=True)
    expected = torch.tensor([paper_unfactored(column, tau, number) for column in columns], dtype=torch.float64).T
    torch.testing.assert_close(updates_of(fo.scale_by_factored_rms(tau, eps), vectors), expected, rtol=FLOAT64, atol=FLOAT64)


def test_of_more_dimensions_the_last_two_are_factored():
    gs = [randn(2, 3, 4, seed=seed) for seed in range(4)]
    tx = fo.scale_by_factored_rms()
    apart = torch.stack([updates_of(tx, [g[i] for g in gs]) for i in range(2)], 1)
    torch.testing.assert_close(updates_of(tx, gs), apart, rtol=1e-14, atol=0)
    state = tx.init_state(gs[0])
    assert [tuple(state[name].shape) for name in ("row_var", "col_var", "variance")] == [(2, 3, 1), (2, 1, 4), (0,)]
    state = tx.init_state(torch.zeros(()))
    assert [tuple(state[name].shape) for name in ("row_var", "col_var", "variance")] == [(0,), (0,), ()]


def test_of_squares_of_rank_1_nothing_is_lost():
    gs = [torch.outer(randn(3, seed=seed), randn(4, seed=seed + 10)) for seed in range(1)]
    factored, whole = (
        updates_of(fo.scale_by_factored_rms(), gs),
        updates_of(fo.scale_by_factored_rms(), [g.flatten() for g in gs]),
    )
    torch.testing.assert_close(factored.flatten(1), whole, rtol=1e-13, atol=0)


@pytest.mark.parametrize("eps", [None, 1e-30, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_gradients(eps, dtype):
    g = torch.zeros(3, 4, dtype=dtype)
    g[1] = 1.0
    tx = fo.scale_by_factored_rms(eps1=eps)
    state = tx.init_state(g)
    for gradient in (torch.zeros_like(g), g, g):
        update, state = tx.update(gradient, state)
        assert update.isfinite().all() and not update[0].any()


def optax_updates(make, gs, p):
    import jax
    import optax

    with jax.enable_x64(True):
        tx, found = make(optax), []
        p = jax.numpy.array(p.tolist())
        state = tx.init(p)
        for g in gs:
            u, state = tx.update(jax.numpy.array(g.tolist()), state, p)
            p = optax.apply_updates(p, u)
            found.append(u.tolist())
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 4), (5, 2)])
def test_optax(shape):
    gs = [randn(*shape, seed=seed) for seed in range(20)]
    theirs = optax_updates(lambda optax: optax.scale_by_factored_rms(min_dim_size_to_factor=1), gs, gs[0])
    # optax adds 1e-30 to g², which float64 does not see; it computes 1 - t^τ in float32, 6e-8 off.
    torch.testing.assert_close(updates_of(fo.scale_by_factored_rms(eps1=1e-30), gs), theirs, rtol=3e-7, atol=3e-7)

    p = randn(*shape, seed=99)
    theirs = optax_updates(lambda optax: optax.adafactor(0.02, min_dim_size_to_factor=1), gs, p)
    tx = fo.adafactor(0.02)
    state, found = tx.init_state(p), []
    for g in gs:
        u, state = tx.update(g, state, p)
        p = fo.apply_updates(p, u)
        found.append(u)
    # In 20 steps 1 / √t never falls below the learning rate.
    torch.testing.assert_close(torch.stack(found), theirs, rtol=3e-7, atol=3e-7)


def test_the_relative_step_falls_with_time():
    tx = fo.chain(fo.scale_by_relative_step(0.5), fo.scale_by_learning_rate(0.5))
    state, found = tx.init_state(torch.zeros(())), []
    for _ in range(9):
        u, state = tx.update(torch.tensor(-1.0, dtype=torch.float64), state)
        found.append(u.item())
    assert found == pytest.approx([0.5] * 4 + [t**-0.5 for t in range(5, 10)], rel=1e-15)
    zero = fo.scale_by_relative_step(0.0)
    assert zero.update(torch.ones(()), zero.init_state(torch.zeros(())))[0] == 1.0


# torch.optim.Adafactor.

OPTIONS = [
    ({}, {"lr": 0.5}),
    ({"lr": 0.3, "beta2_decay": -0.5, "eps": (None, 0.5)}, {"lr": 0.02, "d": 1.5, "eps": (1e-2, 1e-3)}),
    # In float32 torch multiplies by 1 - lr·λ, whose rounding adds up over the steps; 1 - 2⁻¹⁰ is exact.
    ({"lr": 2**-5, "weight_decay": 2**-5}, {"lr": 2**-2, "weight_decay": 2**-8, "maximize": True}),
]


def twins(first, second, dtype=torch.float64, **defaults):
    def make(cls):
        a, b, c, d = start_params(dtype)
        return cls([{"params": [a, b], **first}, {"params": [c, d], **second}], **defaults)

    return make(adapters.Adafactor), make(torch.optim.Adafactor)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, FLOAT64), (torch.float32, 2 * FLOAT32)], ids=str)
@pytest.mark.parametrize("first, second", OPTIONS, ids=str)
def test_50_steps_retrace_torch(first, second, dtype, tolerance):
    walk_together(*twins(first, second, dtype), steps=50, tolerance=tolerance)


def test_under_a_scheduler_and_with_other_options_on_the_way():
    pair = twins({"lr": 0.3}, {"lr": 0.02})
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 30) for o in pair]
    walk_together(*pair, steps=20, tolerance=FLOAT64, schedulers=schedulers)
    for optimizer in pair:
        optimizer.param_groups[1].update(eps=(1e-3, 1e-2), weight_decay=0.1, beta2_decay=-0.7, maximize=True, d=2.0)
    walk_together(*pair, steps=20, tolerance=FLOAT64, schedulers=schedulers, first=20)


def test_skipped_parameters():
    pair = twins({}, {"lr": 0.1})
    for t in range(12):
        for optimizer in pair:
            params = [p for group in optimizer.param_groups for p in group["params"]]
            set_gradients(params, t)
            if t % 3 == 0:
                params[0].grad = params[2].grad = None
            optimizer.step()
        assert_params_close(*([p for g in o.param_groups for p in g["params"]] for o in pair), FLOAT64)


@pytest.mark.parametrize("source", [0, 1], ids=["ours", "torch's"])
def test_checkpoints_cross_over(source):
    pair = twins(*OPTIONS[1])
    walk_together(*pair, steps=5, tolerance=FLOAT64)
    fresh = twins({}, {})[1 - source]
    with torch.no_grad():
        for a, b in zip(fresh.param_groups, pair[source].param_groups, strict=True):
            for p, q in zip(a["params"], b["params"], strict=True):
                p.copy_(q)
    buffer = io.BytesIO()
    torch.save(pair[source].state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    walk_together(*((fresh, pair[1]) if source else (pair[0], fresh)), steps=10, tolerance=FLOAT64, first=5)


def test_the_class_is_torchs():
    ours, theirs = (inspect.signature(cls.__init__).parameters.values() for cls in (adapters.Adafactor, torch.optim.Adafactor))
    *same, rounding = ((p.name, p.kind, p.default) for p in ours)
    assert same == [(p.name, p.kind, p.default) for p in theirs] and rounding[0] == "rounding"
    mine, other = twins({}, {})
    assert mine.defaults == other.defaults
    walk_together(mine, other, steps=2, tolerance=FLOAT64)
    for slots, theirs in zip(mine.state.values(), other.state.values(), strict=True):
        # The counts of links, and the slots that are empty, come on top.
        own = {name: x for name, x in slots.items() if x.numel() and not name.endswith("step")}
        assert own.keys() == theirs.keys() - {"step"} and slots["step"] == theirs["step"]
        for name, x in own.items():
            torch.testing.assert_close(x, theirs[name], rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": -1.0}, r"lr = -1.0 is outside \[0, inf\)"),
        ({"beta2_decay": 0.1}, r"beta2_decay = 0.1 is outside \(-inf, 0\]"),
        ({"eps": (-1.0, 1e-3)}, r"eps1 = -1.0 is outside \[0, inf\)"),
        ({"eps": (None, -1.0)}, r"min_scale = -1.0 is outside \[0, inf\)"),
        ({"d": 0.5}, r"d = 0.5 is outside \[1, inf\)"),
        ({"weight_decay": -1.0}, r"weight_decay = -1.0 is outside \[0, inf\)"),
    ],
)
def test_what_torch_refuses(options, message):
    with pytest.raises(ValueError):
        torch.optim.Adafactor(start_params(), **options)
    with pytest.raises(ValueError, match=r"param_groups\[0\]: " + message):
        adapters.Adafactor(start_params(), **options)
