"""SOAP and `rotate`: a loop of plain operations that keeps its momentum unrotated, what happens now and then, and derivatives."""

import math

import pytest
import torch
from loops import errors, randn

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter
from functional_optim.testing import check_transform

SHAPES = {"matrix": (6, 6), "another": (6, 6), "vector": (5,), "scalar": ()}
LR, BETAS, EPS, BETA = 0.02, (0.9, 0.95), 1e-8, 0.8


def contracted(x, bases):
    """x with each dimension contracted with the rows of its matrix, by einsum."""
    letters = "abcd"
    for i, q in enumerate(bases):
        if q is not None:
            old = letters[: x.ndim]
            x = torch.einsum(f"{old},{old[i]}z->{old.replace(old[i], 'z')}", x, q)
    return x


def gram(g, i):
    """The inner products of the slices along one dimension."""
    rows = torch.stack([g.select(i, j).flatten() for j in range(g.shape[i])])
    return rows @ rows.T


class Soap:
    """Vyas et al. 2024, algorithm 3, for one tensor, the momentum kept as it is and turned anew at each step."""

    def __init__(self, shape, every, largest=100, vectors=False, decay=0.0):
        self.every, self.decay, self.t, self.shape = every, decay, 0, shape
        kept = [n <= largest and (len(shape) > 1 or vectors) for n in shape]
        self.gg = [torch.zeros(n, n, dtype=torch.float64) if keep else None for n, keep in zip(shape, kept, strict=True)]
        self.q = []
        self.m = torch.zeros(shape, dtype=torch.float64)
        self.v = torch.zeros(shape, dtype=torch.float64)

    def step(self, p, g):
        """The next parameter."""
        (b1, b2), self.t, original = BETAS, self.t + 1, p.shape
        g, p = g.reshape(self.shape), p.reshape(self.shape)
        p = p - LR * self.decay * p
        s = self.t - 1
        if s:
            back = [None if q is None else q.T for q in self.q]
            self.m = b1 * self.m + (1 - b1) * g
            self.v = b2 * self.v + (1 - b2) * contracted(g, self.q) ** 2
            u = contracted(contracted(self.m, self.q) / (self.v.sqrt() + EPS), back)
            p = p - LR * math.sqrt(1 - b2**s) / (1 - b1**s) * u
        self.gg = [None if gg is None else BETA * gg + (1 - BETA) * gram(g, i) for i, gg in enumerate(self.gg)]
        if s == 0:
            self.q = [None if gg is None else torch.linalg.eigh(gg)[1].fliplr() for gg in self.gg]
        elif s % self.every == 0:
            for i, (gg, q) in enumerate(zip(self.gg, self.q, strict=True)):
                if gg is not None:
                    order = (q.T @ gg @ q).diag().argsort(descending=True)
                    self.v = self.v.index_select(i, order)
                    self.q[i] = torch.linalg.qr(gg @ q[:, order])[0]
        return p.reshape(original)


def distance(found, expected, start):
    """The largest error, as a share of the largest displacement."""
    return max(
        float((found[k] - expected[k]).abs().max() / (expected[k] - start[k]).abs().max().clamp(min=1e-300)) for k in start
    )


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dims, convolution", [(2, (6, 3, 1, 2)), (4, (4, 3, 2, 2))])
@pytest.mark.parametrize("every", [1, 7])
def test_soap_is_the_papers_loop(every, dims, convolution, decay):
    """All factors are of full rank: a null space may be turned as the eigensolver likes."""
    folded = {**SHAPES, "convolution": (6, 6) if dims == 2 else convolution}
    tx = fo.soap(LR, BETAS, EPS, decay, BETA, precondition_frequency=every, dims=dims)
    found = errors(tx, {**SHAPES, "convolution": convolution}, lambda name, p: Soap(folded[name], every, decay=decay))
    # Power iterations and their inverses on matrices of condition up to 1e4.
    assert max(found.values()) < 1e-9, found


def test_large_dimensions_and_vectors_are_turned_as_asked():
    params = {"wide": randn(3, 5, seed=1), "vector": randn(1, seed=1)}
    loops = {"wide": Soap((3, 5), 2, largest=3), "vector": Soap((1,), 2, vectors=True)}
    tx = fo.soap(LR, BETAS, EPS, 0.0, BETA, precondition_frequency=2, max_precond_dim=3, precondition_1d=True)
    start, state, expected = params, tx.init_state(params), params
    assert {name: tuple(x.shape) for name, x in state["rotate"]["Q.1"].items()} == {"wide": (0, 0), "vector": (0, 0)}
    assert {name: tuple(x.shape) for name, x in state["rotate"]["Q.0"].items()} == {"wide": (3, 3), "vector": (1, 1)}
    for step in range(12):
        grads = {name: randn(*p.shape, seed=step) for name, p in params.items()}
        updates, state = tx.update(grads, state, params)
        params = fo.apply_updates(params, updates)
        expected = {name: loops[name].step(expected[name], grads[name]) for name in expected}
    assert distance(params, expected, start) < 1e-9


def test_in_its_own_basis_a_rule_is_what_it_was():
    """Of diagonal gradients by falling size the eigenvectors are the axes."""
    gs = [torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64) + 0.1 * randn(3, seed=seed)) for seed in range(9)]
    rotated, plain = fo.rotate(fo.scale_by_adam(), precondition_frequency=3), fo.scale_by_adam()
    state, plain_state = rotated.init_state(gs[0]), plain.init_state(gs[0])
    _, state = rotated.update(gs[0], state)
    for g in gs[1:]:
        u, state = rotated.update(g, state)
        expected, plain_state = plain.update(g, plain_state)
        torch.testing.assert_close(u, expected, rtol=1e-12, atol=1e-12)


def test_the_momentum_of_other_rules_is_turned_with_the_basis():
    """Momentum is linear: turned there and back, it is what it was, whatever the basis."""
    tx = fo.rotate(fo.trace(0.9), precondition_frequency=1)
    state, plain_state = tx.init_state(randn(4, 3)), fo.trace(0.9).init_state(randn(4, 3))
    _, state = tx.update(randn(4, 3), state)
    for seed in range(1, 9):
        u, state = tx.update(randn(4, 3, seed=seed), state)
        expected, plain_state = fo.trace(0.9).update(randn(4, 3, seed=seed), plain_state)
        torch.testing.assert_close(u, expected, rtol=1e-11, atol=1e-11)


def test_a_chain_may_be_inside():
    """Its links' slots are told apart, turned or not, and of their dtypes; it is one transform, whose links see one basis."""
    links = fo.ema(0.8), fo.rename_hparams(fo.scale_by_rms(state_dtype=torch.float32), alpha="rms_alpha"), fo.trace(0.5)
    tx = fo.rotate(fo.chain(*links), precondition_frequency=2)
    g = {"w": randn(4, 3), "b": randn(2)}
    state = tx.init_state(g)
    slots = {"ema.exp_avg", "scale_by_rms.square_avg", "trace.momentum_buffer"}
    assert slots < set(state) and state["scale_by_rms.square_avg"]["w"].dtype == torch.float32
    _, state = tx.update(g, state)
    inner = fo.chain(*links)
    basis = [state[f"Q.{i}"]["w"] for i in range(2)]
    turned = {"w": basis[0].T @ randn(4, 3, seed=1) @ basis[1], "b": randn(2, seed=1)}
    expected, _ = inner.update(turned, inner.init_state(turned), None, {"rms_alpha": 0.3})
    found, _ = tx.update({"w": randn(4, 3, seed=1), "b": randn(2, seed=1)}, state, None, {"rms_alpha": 0.3})
    torch.testing.assert_close(found["w"], basis[0] @ expected["w"] @ basis[1].T, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found["b"], expected["b"], rtol=1e-12, atol=1e-12)


def test_nan_goes_where_it_comes_from():
    """A decomposition of a stack must not raise for one of its matrices; a step may be left out."""
    params = {"bad": randn(3, 3, seed=1), "good": randn(3, 3, seed=2)}
    for tx in (fo.soap(precondition_frequency=1), fo.shampoo(), fo.galore(update_proj_gap=1, rank=2)):
        for first_bad in (0, 2):
            state, clean = tx.init_state(params), tx.init_state(params)
            for step in range(4):
                grads = {name: randn(3, 3, seed=10 * step + i) for i, name in enumerate(params)}
                expected, clean = tx.update(grads, clean, params)
                if step >= first_bad:
                    grads["bad"] = torch.full((3, 3), torch.nan, dtype=torch.float64)
                found, state = tx.update(grads, state, params)
                assert torch.equal(found["good"], expected["good"])
            assert found["bad"].isnan().all()
        skipping = fo.apply_if_finite(tx)
        state = skipping.init_state(params)
        update, state = skipping.update(grads, state, params)
        assert all((x == 0).all() for x in update.values())
        _, state = skipping.update(params, state, params)
        update, _ = skipping.update(params, state, params)
        assert all(x.isfinite().all() for x in update.values())


def test_a_matrix_rule_may_be_inside():
    """The closest orthogonal matrix turns with the basis."""
    muon = fo.scale_by_muon(0.0, nesterov=False)
    tx = fo.rotate(muon)
    state = tx.init_state(randn(4, 4))
    for seed in range(3):
        _, state = tx.update(randn(4, 4, seed=seed), state)
    u, _ = tx.update(randn(4, 4, seed=3), state)
    expected, _ = muon.update(randn(4, 4, seed=3), muon.init_state(randn(4, 4)))
    torch.testing.assert_close(u, expected, rtol=1e-10, atol=1e-10)


def count_calls(monkeypatch, name):
    calls, original = [], getattr(torch.linalg, name)

    def counted(x, *others, **options):
        calls.append(x.shape)
        return original(x, *others, **options)

    monkeypatch.setattr(torch.linalg, name, counted)
    return calls


@pytest.mark.parametrize("pure", [True, False])
def test_between_two_bases_nothing_is_decomposed(monkeypatch, pure):
    tx, params = fo.soap(precondition_frequency=4), {name: randn(4, 4, seed=1) for name in "abc"}
    leaves = [p.clone().requires_grad_() for p in params.values()]
    # The optimizer tries a new chain on something small.
    optimizer, state, seen = OptimizerAdapter(leaves, tx), tx.init_state(params), []
    eigh, qr = count_calls(monkeypatch, "eigh"), count_calls(monkeypatch, "qr")
    for step in range(10):
        if pure:
            _, state = tx.update({name: randn(4, 4, seed=step) for name in params}, state, params)
        else:
            for leaf in leaves:
                leaf.grad = randn(4, 4, seed=step)
            optimizer.step()
        seen.append((len(eigh), len(qr)))
    # One call for rows and one for columns, of three matrices each.
    assert seen == [(2, 0)] * 4 + [(2, 2)] * 4 + [(2, 4)] * 2
    assert {tuple(shape) for shape in eigh + qr} == {(3, 4, 4)}


METHODS_OF_DECOMPOSITIONS = {
    "soap": (lambda **offset: fo.rotate(fo.scale_by_adam(), precondition_frequency=4, **offset), "qr"),
    "shampoo": (lambda **offset: fo.scale_by_shampoo(precondition_frequency=4, **offset), "eigh"),
    "kl_shampoo": (lambda **offset: fo.scale_by_kl_shampoo(precondition_frequency=4, **offset), "qr"),
    "psgd_kron": (lambda **offset: fo.scale_by_psgd_kron(update_probability=0.25, **offset), "solve_triangular"),
    "splus": (lambda **offset: fo.scale_by_splus(inverse_every=4, **offset), "eigh"),
    "galore": (lambda **offset: fo.project(fo.scale_by_adam(), rank=2, update_proj_gap=4, **offset), "svd"),
}
OFFSETS = {"splus": "inverse_offset", "galore": "update_proj_offset"}


@pytest.mark.parametrize("pure", [True, False])
@pytest.mark.parametrize("method", METHODS_OF_DECOMPOSITIONS)
def test_with_offsets_matrices_take_turns_and_each_is_what_it_is_alone(monkeypatch, method, pure):
    make, decomposition = METHODS_OF_DECOMPOSITIONS[method]
    offset = OFFSETS.get(method, "precondition_offset")
    starts = [randn(4, 4, seed=i) for i in range(4)]
    alone = []
    for i, start in enumerate(starts):
        tx, p = make(**{offset: i}), start
        state = tx.init_state(p)
        for step in range(11):
            u, state = tx.update(randn(4, 4, seed=10 * i + step), state, p)
            p = p - 0.1 * u
        alone.append(p)
    tx, leaves = make(), [start.clone().requires_grad_() for start in starts]
    chain = fo.chain(tx, fo.scale_by_learning_rate(0.1))
    optimizer = OptimizerAdapter([{"params": [leaf], offset: i} for i, leaf in enumerate(leaves)], chain)
    ps, state = starts, tx.init_state(starts)
    calls, seen = count_calls(monkeypatch, decomposition), []
    for step in range(11):
        before = len(calls)
        grads = [randn(4, 4, seed=10 * i + step) for i in range(4)]
        if pure:
            us, state = tx.update(grads, state, ps, {offset: fo.PerLeaf([0, 1, 2, 3])})
            ps = [p - 0.1 * u for p, u in zip(ps, us, strict=True)]
        else:
            for leaf, g in zip(leaves, grads, strict=True):
                leaf.grad = g
            optimizer.step()
            ps = [leaf.detach() for leaf in leaves]
        seen.append(sum(shape[0] for shape in calls[before:]))
    first = 3 if method == "shampoo" else 1  # Its roots wait for as many gradients as lie between two of them.
    one = 1 if method == "galore" else 2
    assert seen[first:] == [one] * (11 - first), "one matrix a step: of rows and of columns, or as it is"
    for p, expected in zip(ps, alone, strict=True):
        # The adapter subtracts in other operations.
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)


def test_a_run_goes_on_in_the_middle_of_a_period():
    def fresh():
        p = randn(4, 4, seed=1).requires_grad_()
        return p, OptimizerAdapter([p], fo.soap(precondition_frequency=4))

    def run(p, optimizer, steps):
        for step in steps:
            p.grad = randn(4, 4, seed=step)
            optimizer.step()

    (p, optimizer), (q, other) = fresh(), fresh()
    run(p, optimizer, range(6))
    with torch.no_grad():
        q.copy_(p)
    other.load_state_dict(optimizer.state_dict())
    run(p, optimizer, range(6, 12))
    run(q, other, range(6, 12))
    assert torch.equal(p, q)


def test_derivatives_through_a_new_basis_take_it_for_a_constant():
    """The slots after a step with a new basis: its derivative is that of the same step with the basis that came out."""
    tx = fo.rotate(fo.scale_by_adam(eps=0.1), precondition_frequency=1)
    g, state = [randn(3, 3, seed=seed) for seed in range(4)], tx.init_state(randn(3, 3))
    for seed in range(3):
        _, state = tx.update(g[seed], state)
    basis = [tx.update(g[3], state)[1][f"Q.{i}"] for i in range(2)]

    def momentum(g):
        return tx.update(g, state)[1]["exp_avg"]

    def expected(g):
        old = state["Q.0"].T @ g @ state["Q.1"]
        m = 0.9 * state["exp_avg"] + 0.1 * old
        return basis[0].T @ (state["Q.0"] @ m @ state["Q.1"].T) @ basis[1]

    torch.testing.assert_close(momentum(g[3]), expected(g[3]), rtol=1e-12, atol=1e-12)
    v = randn(3, 3, seed=9)
    step = 1e-6
    differences = (expected(g[3] + step * v) - expected(g[3] - step * v)) / (2 * step)
    for derivative in (torch.func.jvp(momentum, (g[3],), (v,))[1], torch.autograd.functional.jvp(momentum, g[3], v)[1]):
        # A linear function: differences are exact but for rounding, 1e-16 / 1e-6.
        torch.testing.assert_close(derivative, differences, rtol=1e-8, atol=1e-8)


@pytest.mark.full
def test_three_bases_keep_the_laws():
    params = {"cube": randn(2, 1, 2), "vector": randn(2)}
    check_transform(fo.rotate(fo.scale_by_adam(), precondition_1d=True, dims=3), params)


def test_the_slots_of_the_rule_may_be_of_another_dtype():
    tx = fo.soap(state_dtype=torch.bfloat16)
    state = tx.init_state({"w": torch.zeros(2, 3)})
    for _ in range(2):
        _, state = tx.update({"w": torch.ones(2, 3)}, state, {"w": torch.zeros(2, 3)})
    dtypes = {name: x["w"].dtype for name, x in state["rotate"].items() if name != "step"}
    assert dtypes == {
        **dict.fromkeys(("GG.0", "GG.1", "Q.0", "Q.1"), torch.float32),
        **dict.fromkeys(("exp_avg", "exp_avg_sq"), torch.bfloat16),
    }


def test_what_is_no_rule_for_one_tensor_is_refused():
    for tx in (fo.accumulate(fo.adam(), 2), fo.clip_by_global_norm(), fo.scale_by_sophia(), fo.scale_by_factored_rms()):
        with pytest.raises(TypeError, match="rotate takes a rule of one tensor's gradient and slots"):
            fo.rotate(tx)
    with pytest.raises(ValueError, match="precondition_frequency = 0"):
        fo.rotate(fo.scale_by_adam(), precondition_frequency=0)
    for inner in (fo.add_decayed_weights(), fo.adamw()):
        tx, p = fo.rotate(inner), randn(2, 2)
        with pytest.raises(ValueError, match="without the parameters, which have no place"):
            tx.update(p, tx.update(p, tx.init_state(p), p)[1], p)
