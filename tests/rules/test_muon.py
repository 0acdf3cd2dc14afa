"""Muon: the iteration in plain floats, what it tends to, one product for equal shapes, torch.optim.Muon and optax."""

import inspect
import io

import pytest
import torch
from loops import randn
from trajectories import FLOAT64, assert_params_close, set_gradients

import functional_optim as fo
from functional_optim import adapters
from functional_optim.rules import newton_schulz
from functional_optim.rules.newton_schulz import orthogonalized
from functional_optim.symmetric import gram, quadratic

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def product(a, b):
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a]


def transposed(a):
    return [list(column) for column in zip(*a, strict=True)]


def paper_orthogonalized(x, steps):
    """Jordan et al. 2024, `newtonschulz5`, on lists of lists."""
    a, b, c = COEFFICIENTS
    tall = len(x) > len(x[0])
    x = transposed(x) if tall else x
    norm = max(sum(value * value for row in x for value in row) ** 0.5, 1e-7)
    x = [[value / norm for value in row] for row in x]
    for _ in range(steps):
        gram = product(x, transposed(x))
        square = product(gram, gram)
        mixed = [[b * g + c * s for g, s in zip(*rows, strict=True)] for rows in zip(gram, square, strict=True)]
        x = [[a * u + v for u, v in zip(*rows, strict=True)] for rows in zip(x, product(mixed, x), strict=True)]
    return transposed(x) if tall else x


def paper_muon(gs, mu, nesterov, steps, factor):
    """Momentum and orthogonalisation; gradients and updates are lists of lists."""
    m = [[0.0] * len(gs[0][0]) for _ in gs[0]]
    found = []
    for g in gs:
        m = [[mu * a + (1 - mu) * b for a, b in zip(*rows, strict=True)] for rows in zip(m, g, strict=True)]
        ahead = [[mu * a + (1 - mu) * b for a, b in zip(*rows, strict=True)] for rows in zip(m, g, strict=True)]
        found.append([[factor * x for x in row] for row in paper_orthogonalized(ahead if nesterov else m, steps)])
    return found


def updates_of(tx, gs):
    state, found = tx.init_state(gs[0]), []
    for g in gs:
        update, state = tx.update(g, state)
        found.append(update)
    return found


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(
    "shape, adjust, factor",
    [
        ((2, 3), None, 1.0),
        ((4, 2), "original", 2**0.5),
        ((3, 3), None, 1.0),
        ((4, 2), "match_rms_adamw", 0.4),
        ((2, 4), "spectral_unclamped", 0.5**0.5),
    ],
)
def test_the_papers_loop(shape, adjust, factor, nesterov):
    gs = [randn(*shape, seed=seed) for seed in range(5)]
    expected = paper_muon([g.tolist() for g in gs], 0.9, nesterov, 5, factor)
    found = updates_of(fo.scale_by_muon(0.9, nesterov=nesterov, adjust_lr_fn=adjust), gs)
    for u, e in zip(found, expected, strict=True):
        # The iteration doubles small singular values, and with them their rounding, at each of five steps.
        torch.testing.assert_close(u, torch.tensor(e, dtype=torch.float64), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_with_newtons_coefficients_it_tends_to_the_closest_orthogonal_matrix(shape):
    g = randn(*shape)
    p, _, q = torch.linalg.svd(g, full_matrices=False)
    found = orthogonalized(g[None], [(15 / 8, -10 / 8, 3 / 8)], 1e-7, 40)[0]
    # 40 steps bring each singular value of this g to 1, to rounding.
    torch.testing.assert_close(found, p @ q, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", [511, 512, 600])
@pytest.mark.parametrize("count", [1, 2])
def test_a_symmetric_product_is_computed_by_half_and_is_the_whole_one(count, rows):
    from torch.utils.flop_counter import FlopCounterMode

    x = randn(count, rows, 20)
    with FlopCounterMode(display=False) as counter:
        square = gram(x)
    flops = 2 * count * 20 * rows**2
    # Strips of 128 rows: 10 of 16 blocks, or of five rows of blocks, the last smaller.
    assert counter.get_total_flops() == flops if rows < 512 else counter.get_total_flops() <= 0.63 * flops
    # Sums of 20 and of 600 products in two orders.
    torch.testing.assert_close(square, x @ x.mT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(quadratic(square, 2.0, -0.5), 2 * square - 0.5 * square @ square, rtol=1e-11, atol=1e-9)


def test_five_steps_bring_singular_values_near_1():
    values = torch.linalg.svdvals(orthogonalized(randn(1, 20, 60), [COEFFICIENTS], 1e-7, 5))
    assert 0.65 < values.min() and values.max() < 1.25


def test_a_zero_gradient_moves_nothing():
    g = torch.zeros(2, 3, requires_grad=True)
    update, _ = fo.scale_by_muon().update(g, fo.scale_by_muon().init_state(g.detach()))
    assert torch.equal(update, torch.zeros(2, 3))
    (slope,) = torch.autograd.grad(update.sum(), g)
    assert slope.isfinite().all()


def test_more_dimensions_are_the_first_by_the_rest():
    g = randn(4, 3, 2, 2)
    tx = fo.scale_by_muon()
    cube, matrix = (tx.update(x, tx.init_state(x))[0] for x in (g, g.reshape(4, 12)))
    assert torch.equal(cube, matrix.reshape(g.shape))


def test_equal_shapes_share_one_product(monkeypatch):
    params = {"a": randn(3, 4), "b": randn(3, 4, seed=1), "c": randn(3, 2, 2), "d": randn(4, 3), "e": randn(3, 4, seed=2)}
    tx = fo.scale_by_muon()
    apart = {name: tx.update(g, tx.init_state(g))[0] for name, g in params.items()}
    seen = []

    def counting(x, *args):
        seen.append(tuple(x.shape))
        return orthogonalized(x, *args)

    monkeypatch.setattr("functional_optim.rules.muon.orthogonalized", counting)
    together, _ = tx.update(params, tx.init_state(params))
    assert sorted(seen) == [(1, 3, 4), (1, 4, 3), (3, 3, 4)]
    for name, update in together.items():
        # A batched product may sum in another order.
        torch.testing.assert_close(update, apart[name], rtol=1e-11, atol=1e-11)


def test_leaves_with_numbers_of_their_own_are_not_stacked():
    params = {"a": randn(3, 4), "b": randn(3, 4, seed=1)}
    tx = fo.scale_by_muon()
    hparams = {"momentum": fo.PerLeaf({"a": 0.5, "b": 0.9})}
    state = tx.init_state(params, hparams)
    _, state = tx.update(params, state, None, hparams)
    for name, mu in (("a", 0.5), ("b", 0.9)):
        torch.testing.assert_close(state["momentum_buffer"][name], (1 - mu) * params[name], rtol=1e-15, atol=0)


@fo.per_tensor(slots=("m",), hparams={"weight": 0.5}, batched=True)
def mix_batched(hp, t):
    def rule(g, p, m):
        m = hp["weight"] * m + g
        return m.reshape(len(m), -1).sum(1).reshape(-1, *[1] * (g.ndim - 1)) * p + t, m

    return rule


@fo.per_tensor(slots=("m",), hparams={"weight": 0.5})
def mix_one_by_one(hp, t):
    def rule(g, p, m):
        m = hp["weight"] * m + g
        return m.sum() * p + t, m

    return rule


def test_a_batched_rule_is_the_rule_one_by_one():
    params = {"a": randn(2, 3), "b": None, "c": randn(2, 3, seed=1), "d": randn(), "e": randn(2, 3).float()}
    grads = {**params, "a": None}
    batched, single = mix_batched(), mix_one_by_one()
    states = [tx.init_state(params) for tx in (batched, single)]
    for _ in range(2):
        (found, states[0]), (expected, states[1]) = (
            tx.update(grads, state, params) for tx, state in zip((batched, single), states, strict=True)
        )
        for name, update in expected.items():
            assert (update is None and found[name] is None) or torch.allclose(found[name], update, rtol=1e-6)
            assert update is None or found[name].dtype == update.dtype == params[name].dtype


@pytest.mark.parametrize("make", [fo.scale_by_muon, fo.orthogonalize, fo.scale_by_shape, fo.scale_by_dion, fo.scale_by_dion2])
def test_a_vector_is_refused_when_the_state_or_the_optimizer_is_made(make):
    tx = fo.chain(make(), fo.scale_by_learning_rate())
    said = rf"{make.__name__} takes parameters of at least 2 dimensions, but b has shape \(3,\).*fo.by_role"
    with pytest.raises(ValueError, match=said):
        tx.init_state({"w": randn(2, 2), "b": randn(3)})
    p, q = torch.nn.Parameter(randn(2, 2)), torch.nn.Parameter(randn(3))
    with pytest.raises(ValueError, match=said):
        adapters.OptimizerAdapter([("w", p), ("b", q)], tx)
    optimizer = adapters.OptimizerAdapter([("w", p)], tx)
    with pytest.raises(ValueError, match=said):
        optimizer.add_param_group({"params": [("b", q)]})
    assert len(optimizer.param_groups) == 1
    labelled = fo.partition({"matrix": tx, "vector": fo.sgd()}, {"w": "matrix", "b": "vector"})
    adapters.OptimizerAdapter([("w", p), ("b", q)], labelled)


@pytest.mark.parametrize("make", [fo.scale_by_muon, fo.orthogonalize, fo.scale_by_shape, fo.scale_by_dion])
def test_a_frozen_vector_is_refused_when_it_is_to_be_stepped(make):
    tx = fo.chain(make(), fo.scale_by_learning_rate(0.1))
    p, q, r = torch.nn.Parameter(randn(2, 2)), torch.nn.Parameter(randn(3)), torch.nn.Parameter(randn(2))
    said = r"takes parameters of at least 2 dimensions, but group 0, parameter 1 has shape \(3,\)\."
    with pytest.raises(ValueError, match=said):
        adapters.OptimizerAdapter([p, q], tx)
    q.requires_grad_(False)
    optimizer = adapters.OptimizerAdapter([p, q], tx)
    optimizer.add_param_group({"params": [r.requires_grad_(False)]})
    for _ in range(2):
        p.grad = randn(2, 2)
        optimizer.step()
    assert optimizer.state.keys() <= {p}
    for freed in (r, q):
        freed.requires_grad_(freed is r)  # What has a gradient is stepped, frozen or not.
        freed.grad = randn(*freed.shape)
        before, state = p.clone(), {name: x.clone() for name, x in optimizer.state[p].items()}
        with pytest.raises(ValueError, match=said if freed is q else r"but group 1, parameter 0 has shape \(2,\)\."):
            optimizer.step()
        assert torch.equal(p, before) and all(torch.equal(x, state[name]) for name, x in optimizer.state[p].items())
        freed.requires_grad_(False)
        freed.grad = None
    optimizer.step()
    assert not torch.equal(p, before)


MATRIX_RULES = [fo.scale_by_muon, fo.orthogonalize, fo.scale_by_shape, fo.scale_by_dion, fo.scale_by_dion2, fo.scale_by_lmo]


@pytest.mark.parametrize("make", [*MATRIX_RULES, fo.scale_by_mean_side])
@pytest.mark.parametrize("shape", [(4, 0), (0, 4), (0, 0), (3, 0, 2)])
def test_nothing_is_done_to_a_matrix_without_elements(make, shape):
    p = torch.zeros(*shape)
    update, _ = make().update(p, make().init_state(p), p)
    assert torch.equal(update, p)


def pure_steps(tx, params, grads):
    return fo.apply_updates(params, tx.update(grads, tx.init_state(params), params)[0])


def lent_steps(tx, params, grads):
    return fo.fused(tx).step(grads, tx.init_state(params), params)[0]


def optimizer_steps(tx, params, grads, **options):
    own = [torch.nn.Parameter(p.clone()) for p in params]
    for p, g in zip(own, grads, strict=True):
        p.grad = g
    adapters.OptimizerAdapter(own, tx, **options).step()
    return [p.detach() for p in own]


def fused_steps(tx, params, grads):
    return optimizer_steps(tx, params, grads, fused=True)


@pytest.mark.parametrize("empty", [(0, 4), (4, 0)])
@pytest.mark.parametrize(
    "run", [pure_steps, optimizer_steps, *(pytest.param(each, marks=pytest.mark.full) for each in (lent_steps, fused_steps))]
)
@pytest.mark.filterwarnings("ignore:.*it needs the shapes", "ignore:.* is fused, but", "ignore:fused=True, but")
def test_a_matrix_without_elements_changes_nothing_for_others(run, empty):
    tx = fo.chain(fo.scale_by_muon(), fo.scale_by_learning_rate(1.0))
    params, grads = ([randn(*shape, seed=i).float() for shape in ((16, 4), (2, 2), empty)] for i in range(2))
    expected = [*pure_steps(tx, params[:2], grads[:2]), params[2]]
    for found, p in zip(run(tx, params, grads), expected, strict=True):
        # Kernels round elsewhere, and the iteration doubles it at each of five steps.
        torch.testing.assert_close(found, p, rtol=1e-4, atol=1e-4)


def test_options_out_of_range():
    with pytest.raises(ValueError, match=r"adjust_lr_fn = 'spectral': expected one of None, 'original', 'match_rms_adamw'"):
        fo.scale_by_muon(adjust_lr_fn="spectral")
    with pytest.raises(ValueError, match=r"ns_steps = 100 is outside \[0, 100\)"):
        fo.scale_by_muon(ns_steps=100)


def test_optax():
    import jax
    import optax

    # optax corrects the bias of the momentum: a factor, which the norm takes away where nothing is looked ahead.
    gs = [randn(3, 4, seed=seed) for seed in range(6)]
    with jax.enable_x64(True):
        tx = optax.contrib.scale_by_muon(beta=0.9, eps=0.0, nesterov=False)
        state = tx.init(jax.numpy.zeros((3, 4)))
        expected = []
        for g in gs:
            u, state = tx.update(jax.numpy.array(g.tolist()), state)
            expected.append(torch.tensor(u.tolist(), dtype=torch.float64))
    for u, e in zip(updates_of(fo.scale_by_muon(0.9, eps=0.0, nesterov=False), gs), expected, strict=True):
        torch.testing.assert_close(u, e, rtol=1e-11, atol=1e-11)


# torch.optim.Muon, which iterates in bfloat16.

SHAPES = [(3, 4), (4, 3), (3, 4), (2, 2), (1, 5)]


def twins(first, second, dtype=torch.float64):
    def make(cls):
        params = [torch.nn.Parameter(randn(*shape, seed=i).to(dtype)) for i, shape in enumerate(SHAPES)]
        return cls([{"params": params[:3], **first}, {"params": params[3:], **second}])

    return make(adapters.Muon), make(torch.optim.Muon)


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def walk(ours, theirs, steps, tolerance, first=0):
    for t in range(first, first + steps):
        set_gradients(params_of(ours), t)
        for p, q in zip(params_of(ours), params_of(theirs), strict=True):
            q.grad = p.grad.clone()  # the very same: a gradient that is off by rounding may round otherwise in bfloat16
        ours.step()
        theirs.step()
        assert_params_close(params_of(ours), params_of(theirs), tolerance)


OPTIONS = [
    ({}, {"lr": 0.02}),
    ({"lr": 0.1, "nesterov": False}, {"lr": 0.02, "momentum": 0.8, "weight_decay": 0.0}),
    ({"lr": 0.1, "adjust_lr_fn": "match_rms_adamw"}, {"lr": 0.02, "adjust_lr_fn": "original", "eps": 1e-3}),
]


# In float32, torch's factor 1 - lr·λ is off by up to 6e-8 at each of 50 steps.
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, FLOAT64), (torch.float32, 5e-6)], ids=str)
@pytest.mark.parametrize("first, second", OPTIONS, ids=str)
def test_50_steps_retrace_torch(first, second, dtype, tolerance):
    walk(*twins(first, second, dtype), steps=50, tolerance=tolerance)


def test_50_steps_of_other_iterations():
    # A sum that lies between two numbers of bfloat16 rounds to the other one, now and then, if it is taken in another order: the
    # update of that element, of size 1, is 2⁻⁸ off, times the learning rate of 0.1.
    options = {"lr": 0.1, "ns_steps": 3}, {"lr": 0.02, "ns_coefficients": (1.875, -1.25, 0.375), "ns_steps": 8}
    walk(*twins(*options), steps=50, tolerance=4 * 0.1 * 2**-8)


@pytest.mark.parametrize("is_native", [True, False])
def test_a_large_matrix_is_torchs_to_a_unit_of_bfloat16(monkeypatch, is_native):
    """Whether or not the processor multiplies numbers of 16 bits."""
    monkeypatch.setattr(newton_schulz, "multiplies", lambda dtype, device: is_native)
    g = randn(40, 70)
    p, q = (torch.nn.Parameter(torch.zeros(40, 70, dtype=torch.float64)) for _ in range(2))
    for cls, x in ((adapters.Muon, p), (torch.optim.Muon, q)):
        x.grad = g.clone()
        cls([x], lr=1.0).step()
    # Sums of 70 products in another order round to a neighbour now and then: a unit is 2⁻⁸, and 5 steps carry it on.
    torch.testing.assert_close(p, q, rtol=0, atol=2**-6)
    u = fo.orthogonalize(ns_dtype=torch.bfloat16).update(g, {})[0]
    assert torch.equal(u, u.bfloat16().double())


def saved(optimizer):
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("source", [0, 1], ids=["ours", "torch's"])
def test_checkpoints_cross_over(source):
    pair = twins(*OPTIONS[1])
    walk(*pair, steps=5, tolerance=FLOAT64)
    fresh = twins({}, {})[1 - source]
    with torch.no_grad():
        for p, q in zip(params_of(fresh), params_of(pair[source]), strict=True):
            p.copy_(q)
    fresh.load_state_dict(saved(pair[source]))
    walk(*(fresh, pair[source]), steps=5, tolerance=FLOAT64, first=5)


def test_the_class_is_torchs():
    ours, theirs = (inspect.signature(cls.__init__).parameters.values() for cls in (adapters.Muon, torch.optim.Muon))
    *same, rounding = ((p.name, p.kind, p.default) for p in ours)
    assert same == [(p.name, p.kind, p.default) for p in theirs] and rounding[0] == "rounding"
    mine, other = twins({}, {})
    assert mine.defaults == other.defaults
    walk(mine, other, 1, FLOAT64)
    for p, q in zip(params_of(mine), params_of(other), strict=True):
        assert mine.state[p].keys() == other.state[q].keys() == {"momentum_buffer"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": -1.0}, "lr = -1.0 is outside"),
        ({"momentum": -0.1}, "momentum = -0.1 is outside"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1 is outside"),
        ({"adjust_lr_fn": "spectral"}, "adjust_lr_fn = 'spectral'"),
    ],
)
def test_what_torch_refuses(options, message):
    for cls, text in ((torch.optim.Muon, None), (adapters.Muon, r"param_groups\[0\]: .*" + message)):
        with pytest.raises(ValueError, match=text):
            cls([torch.nn.Parameter(randn(2, 2))], **options)


# The whole optimizer.


def test_muon_routes_matrices_to_muon_and_the_rest_to_adamw():
    names = {"dense": (3, 4), "bias": (4,), "scale": (), "conv": (4, 2, 2), "head": (3, 4)}
    params = {name: randn(*shape, seed=i) for i, (name, shape) in enumerate(names.items())}
    hparams = {"lr": 0.02, "weight_decay": 0.3}
    tx = fo.muon()
    state = tx.init_state(params, hparams)
    mine = dict(params)
    torchs = {name: torch.nn.Parameter(p.reshape(4, 4) if name == "conv" else p.clone()) for name, p in params.items()}
    matrices, rest = ([torchs[name] for name in group] for group in (("dense", "conv", "head"), ("bias", "scale")))
    optimizers = [
        torch.optim.Muon(matrices, **hparams, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.95), **hparams),
    ]
    for t in range(10):
        grads = {name: randn(*shape, seed=100 * t + i) for i, (name, shape) in enumerate(names.items())}
        updates, state = tx.update(grads, state, mine, hparams)
        mine = fo.apply_updates(mine, updates)
        for name, p in torchs.items():
            p.grad = grads[name].reshape(p.shape)
        for optimizer in optimizers:
            optimizer.step()
        for name, p in torchs.items():
            torch.testing.assert_close(mine[name], p.detach().reshape(names[name]), rtol=FLOAT64, atol=FLOAT64)
    assert set(state) == {"muon", "adamw"}
    assert set(state["muon"]["scale_by_muon"]["momentum_buffer"]) == {"dense", "conv", "head"}


@pytest.mark.parametrize("shapes", [[(2, 3), (3, 2)], [(3,), ()]])
def test_muon_without_vectors_or_without_matrices(shapes):
    params = [randn(*shape) for shape in shapes]
    tx = fo.muon()
    updates, _ = tx.update(params, tx.init_state(params), params)
    assert all(u.abs().max() > 0 for u in updates)


def test_one_learning_rate_for_each_branch():
    params = {"w": randn(2, 3), "b": randn(3)}
    tx = fo.muon(weight_decay=0.0)
    state = tx.init_state(params)
    updates, _ = tx.update(params, state, params, {"muon.lr": 0.0})
    assert not updates["w"].any() and updates["b"].any()
    updates, _ = tx.update(params, state, params, {"adamw.lr": 0.0})
    assert updates["w"].any() and not updates["b"].any()


def test_muon_behind_the_adapter():
    shapes = [(3, 4), (4,), (3, 4)]
    p = [torch.nn.Parameter(randn(*shape, seed=i)) for i, shape in enumerate(shapes)]
    optimizer = adapters.OptimizerAdapter(p, fo.muon(), lr=0.02)
    params, tx = [x.detach().clone() for x in p], fo.muon(lr=0.02)
    state = tx.init_state(params)
    for t in range(5):
        set_gradients(p, t)
        updates, state = tx.update([x.grad for x in p], state, params)
        params = fo.apply_updates(params, updates)
        optimizer.step()
        assert_params_close(p, params, FLOAT64)
    assert [sorted(name for name in optimizer.state[x] if not name.endswith("step")) for x in p] == [
        ["momentum_buffer"],
        ["exp_avg", "exp_avg_sq"],
        ["momentum_buffer"],
    ]


@pytest.mark.parametrize("fused", [False, True])
def test_only_products_are_computed_matrix_by_matrix(fused):
    """The momentum before, and the factor, the decay and the rate behind, are of elements; the factors differ."""
    p = [torch.nn.Parameter(randn(*shape)) for shape in [(8, 6), (6, 8), (12, 6)]]
    optimizer = adapters.OptimizerAdapter(p, fo.muon(adjust_lr_fn="original"), fused=fused)
    set_gradients(p, 0)
    optimizer.step()
    (step,) = optimizer._steps.values()
    stages = [[(stage.fuses, len(stage.links)) for stage in part.passage.stages] for part in step.plan.parts]
    assert stages == [[(True, 1), (False, 1), (True, 3)]] * 3 and not step.plan.refusals


def test_the_momentum_is_torchs_to_the_last_digit():
    p = [torch.nn.Parameter(randn(300, 300).float()), torch.nn.Parameter(randn(4, 6, seed=1).float())]
    q = [torch.nn.Parameter(x.detach().clone()) for x in p]
    ours, theirs = adapters.Muon(p), torch.optim.Muon(q)
    for t in range(3):
        for i, (x, y) in enumerate(zip(p, q, strict=True)):
            x.grad = randn(*x.shape, seed=10 * t + i).float()
            y.grad = x.grad.clone()
        ours.step()
        theirs.step()
    for x, y in zip(p, q, strict=True):
        assert torch.equal(ours.state[x]["momentum_buffer"], theirs.state[y]["momentum_buffer"])


@pytest.mark.parametrize("shape", [(3,), (), (2, 2, 2)])
def test_other_shapes(shape):
    for cls in (torch.optim.Muon, adapters.Muon):
        with pytest.raises(ValueError, match="2D parameters"):
            cls([torch.nn.Parameter(randn(*shape))])
    optimizer = adapters.Muon([torch.nn.Parameter(randn(2, 2))])
    with pytest.raises(ValueError, match=r"param_groups\[1\]: Muon takes 2D parameters only"):
        optimizer.add_param_group({"params": torch.nn.Parameter(randn(*shape))})
    assert len(optimizer.param_groups) == 1
