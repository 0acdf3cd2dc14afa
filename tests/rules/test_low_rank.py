"""GaLore, Fira and APOLLO: the papers' loops in plain operations, what is done now and then, and what derivatives are of."""

import math

import pytest
import torch
from loops import errors, randn

import functional_optim as fo
from functional_optim.philox import normal
from functional_optim.testing import LAWS, check_law, derivatives_are_right
from functional_optim.trials import Trial

SHAPES = {
    "square": (5, 5),
    "another": (5, 5),
    "wide": (4, 7),
    "tall": (6, 3),
    "convolution": (4, 3, 1, 2),
    "vector": (5,),
    "scalar": (),
}
LR, BETAS, EPS, GAP, RANK, SEED = 0.02, (0.8, 0.9), 1e-6, 7, 2, 3


class Projected:
    """Adam in a projection, in the order of the authors' programs; matrices are (rows, columns)."""

    def __init__(self, p, way, scale, decay, random):
        self.way, self.scale, self.decay, self.random = way, scale, decay, random
        self.t, self.m, self.v, self.basis, self.last, self.transposed = 0, 0.0, 0.0, None, None, False

    def adam(self, g):
        """Without the correction of its start."""
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * g
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * g * g
        return self.m / (self.v.sqrt() + EPS)

    def new_basis(self, g):
        """Of a matrix with fewer rows than columns, or of a transposed one: singular vectors have the signs of the original's."""
        if self.random:
            return normal((g.shape[0], RANK), SEED, self.t, 0) / math.sqrt(RANK)
        if self.transposed:
            return torch.linalg.svd(g.T, full_matrices=False)[2][:RANK].T
        return torch.linalg.svd(g, full_matrices=False)[0][:, :RANK]

    def direction(self, g):
        """Of a matrix with fewer rows than columns."""
        if (self.t - 1) % GAP == 0:
            self.basis = self.new_basis(g)
        low = self.basis.T @ g
        update = self.adam(low)
        within = self.scale * self.basis @ update
        if self.way == "back":
            return within
        if self.way == "tensor":
            ratio = update.norm() / (low.norm() + 1e-8)
        else:
            ratio = torch.stack([update[:, j].norm() / (low[:, j].norm() + 1e-8) for j in range(g.shape[1])])
        part = (g - self.basis @ low) * ratio if self.way == "rest" else math.sqrt(self.scale) * g * ratio
        limit = 1.0 if self.last is None else max(float(part.norm() / (self.last + 1e-8)), 1.01) / 1.01
        self.last = part.norm() / limit
        return part / limit + (within if self.way == "rest" else 0.0)

    def step(self, p, g):
        self.t += 1
        x = g.reshape(g.shape[0], -1) if g.ndim > 1 else g
        if g.ndim < 2:
            u = self.adam(g)
        elif x.shape[0] < x.shape[1]:
            u = self.direction(x).reshape(g.shape)
        else:
            self.transposed = True
            u = self.direction(x.T).T.reshape(g.shape)
        u = math.sqrt(1 - BETAS[1] ** self.t) / (1 - BETAS[0] ** self.t) * u
        return p - LR * u - LR * self.decay * p


OPTIONS = {"rank": RANK, "update_proj_gap": GAP}
OPTIMIZERS = {
    "galore": (fo.galore(LR, BETAS, EPS, scale=0.25, **OPTIONS), "back", 0.25, False),
    "fira": (fo.fira(LR, BETAS, EPS, **OPTIONS), "rest", 1.0, False),
    "apollo": (fo.apollo(LR, BETAS, EPS, scale=2.0, seed=SEED, **OPTIONS), "channel", 2.0, True),
    "apollo-mini": (fo.apollo(LR, BETAS, EPS, scale=128.0, seed=SEED, scale_type="tensor", **OPTIONS), "tensor", 128.0, True),
    "apollo-svd": (fo.apollo(LR, BETAS, EPS, proj="svd", **OPTIONS), "channel", 1.0, False),
}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_authors_loops(name, decay):
    tx, way, scale, random = OPTIMIZERS[name]
    found = errors(tx, SHAPES, lambda _, p: Projected(p, way, scale, decay, random), weight_decay=decay)
    # Singular vectors of random matrices, the values of some of which lie 1e-2 apart.
    assert max(found.values()) < 1e-9, found


@pytest.mark.parametrize("law", [law for law in LAWS if law is not derivatives_are_right])
def test_with_singular_vectors_all_other_laws_hold(law):
    params = {"wide": randn(2, 3), "twin": randn(2, 3, seed=1), "tall": randn(3, 2), "vector": randn(2), "scalar": randn()}
    check_law(law, Trial(fo.project(fo.scale_by_adam(), rank=1, way="rest", update_proj_gap=2), params))


def test_derivatives_take_the_singular_vectors_for_constants():
    tx, g, v = fo.project(fo.trace(), rank=1), randn(3, 4), randn(3, 4, seed=1)
    basis = torch.linalg.svd(g)[0][:, :1]
    found = torch.func.jvp(lambda g: tx.update(g, tx.init_state(g))[0], (g,), (v,))[1]
    torch.testing.assert_close(found, basis @ basis.T @ v, rtol=1e-12, atol=1e-12)


def test_of_full_rank_a_linear_rule_is_what_it_was():
    """P Pᵀ = I, and momentum in any basis is momentum, while that stays."""
    for shape in [(3, 5), (5, 3), (4, 4)]:
        tx, plain = fo.project(fo.trace(), rank=9), fo.trace()
        state, other = tx.init_state(randn(*shape)), plain.init_state(randn(*shape))
        for seed in range(3):
            (u, state), (expected, other) = (t.update(randn(*shape, seed=seed), s) for t, s in ((tx, state), (plain, other)))
            torch.testing.assert_close(u, expected, rtol=1e-12, atol=1e-12)


def test_state_is_as_much_smaller_and_of_the_dtype_asked_for():
    params = {"w": torch.zeros(100, 20), "stack": torch.zeros(3, 6, 10), "b": torch.zeros(7)}
    state = fo.project(fo.scale_by_adam(state_dtype=torch.bfloat16), rank=4).init_state(params)
    shapes = {name: {key: tuple(x.shape) for key, x in slot.items()} for name, slot in state.items() if name != "step"}
    low = {"w": (100, 4), "stack": (3, 60), "b": (7,)}
    assert shapes == {"ortho_matrix": {"w": (20, 4), "stack": (3, 3), "b": (0, 0)}, "exp_avg": low, "exp_avg_sq": low}
    assert state["exp_avg"]["w"].dtype == torch.bfloat16 and state["ortho_matrix"]["w"].dtype == torch.float32
    stack = fo.per_matrix(fo.project(fo.trace(), rank=4)).init_state(params)
    assert {key: tuple(x["stack"].shape) for key, x in stack.items() if key != "step"} == {
        "ortho_matrix": (3, 6, 4),
        "momentum_buffer": (3, 4, 10),
    }


def test_nothing_is_decomposed_in_between(monkeypatch):
    calls, original = [], torch.linalg.svd

    def counted(x, **options):
        calls.append(x.shape)
        return original(x, **options)

    params = {name: randn(4, 6) for name in "abc"}
    leaves = [p.clone().requires_grad_() for p in params.values()]
    optimizer = fo.adapters.OptimizerAdapter(leaves, fo.galore(update_proj_gap=3, rank=2))
    monkeypatch.setattr(torch.linalg, "svd", counted)
    seen = []
    for step in range(7):
        for leaf in leaves:
            leaf.grad = randn(4, 6, seed=step)
        optimizer.step()
        seen.append(len(calls))
    assert seen == [1, 1, 1, 2, 2, 2, 3] and set(calls) == {(3, 4, 6)}


def test_what_is_unfit_is_refused():
    with pytest.raises(TypeError, match="project takes a rule of one tensor's gradient and slots"):
        fo.project(fo.clip_by_global_norm())
    with pytest.raises(ValueError, match="way = 'sideways': expected one of 'back', 'rest', 'channel', 'tensor'"):
        fo.project(fo.trace(), way="sideways")
    with pytest.raises(ValueError, match="rank = 0"):
        fo.galore(rank=0)
    with pytest.raises(ValueError, match="scale_type = 'rest'"):
        fo.apollo(scale_type="rest")
