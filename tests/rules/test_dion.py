"""Dion and Dion2: the papers' loops in plain operations, and what they are where they use everything."""

import math

import pytest
import torch
from loops import errors, randn

import functional_optim as fo
from functional_optim.philox import normal

SHAPES = {
    "wide": (3, 5),
    "tall": (6, 2),
    "square": (4, 4),
    "twin": (4, 4),
    "convolution": (4, 3, 1, 2),
    "vector": (5,),
    "scalar": (),
}
LR, MU, BETAS = 0.02, 0.9, (0.9, 0.95)
POLAR = (1.02, 1e-8)


class AdamW:
    """What vectors and scalars get."""

    def __init__(self):
        self.m, self.v, self.t = 0.0, 0.0, 0

    def direction(self, g):
        """The update before the learning rate."""
        self.t += 1
        self.m, self.v = BETAS[0] * self.m + (1 - BETAS[0]) * g, BETAS[1] * self.v + (1 - BETAS[1]) * g * g
        return self.m / (1 - BETAS[0] ** self.t) / ((self.v / (1 - BETAS[1] ** self.t)).sqrt() + 1e-8)


class Dion:
    """Ahn et al. 2025, algorithm 1, P by Gram and Schmidt's process, column after column."""

    def __init__(self, shape, fraction):
        rows, columns = shape
        self.m = torch.zeros(shape, dtype=torch.float64)
        self.q = normal((columns, math.ceil(fraction * min(rows, columns))), 5, 0, 0)

    def direction(self, g):
        """The update before the learning rate."""
        self.m = self.m + g
        columns = []
        for column in (self.m @ self.q).T:
            for _ in range(2):  # Twice is enough.
                for other in columns:
                    column = column - (other @ column) * other
            columns.append(column / column.norm())
        p = torch.stack(columns, 1)
        r = self.m.T @ p
        self.m = self.m - (1 - MU) * p @ r.T
        self.q = torch.stack([column / (column.norm() + 1e-8) for column in r.T], 1)
        return math.sqrt(g.shape[0] / g.shape[1]) * p @ self.q.T


class Dion2:
    """Ahn et al. 2025, for one matrix: rows or columns one by one."""

    def __init__(self, shape, fraction):
        self.m, self.fraction = torch.zeros(shape, dtype=torch.float64), fraction

    def direction(self, g):
        """The update before the learning rate."""
        if g.shape[0] > g.shape[1]:
            self.m = self.m.T
            u = self.rows(g.T)
            self.m = self.m.T
            return math.sqrt(g.shape[0] / g.shape[1]) * u.T
        return math.sqrt(g.shape[0] / g.shape[1]) * self.rows(g)

    def rows(self, g):
        """Of a matrix with no more rows than columns."""
        self.m = self.m + g
        sizes = [float(row.abs().sum()) for row in self.m]
        chosen = sorted(range(len(sizes)), key=lambda i: -sizes[i])[: math.ceil(self.fraction * len(sizes))]
        p, s, qt = torch.linalg.svd(self.m[chosen], full_matrices=False)
        s = s / (POLAR[0] * self.m[chosen].norm() + POLAR[1])
        for a, b, c in fo.rules.newton_schulz.SCHEDULES["polar_express"]:
            s = a * s + b * s**3 + c * s**5
        u = torch.zeros_like(self.m)
        u[chosen] = p @ s.diag() @ qt
        self.m = self.m.clone()
        self.m[chosen] *= MU
        return u


class Stepping:
    """A loop of directions with decay."""

    def __init__(self, inner, decay):
        self.inner, self.decay = inner, decay

    def step(self, p, g):
        x = g.reshape(g.shape[0], -1) if g.ndim > 1 else g
        return p - LR * self.decay * p - LR * self.inner.direction(x).reshape(g.shape)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("name", ["dion", "dion2"])
def test_the_authors_loops(name, fraction, decay):
    tx = {
        "dion": lambda: fo.dion(LR, decay, MU, BETAS, seed=5, rank_fraction=fraction),
        "dion2": lambda: fo.dion2(LR, decay, MU, BETAS, fraction=fraction, ns_dtype=None),
    }[name]()

    def loop(_, p):
        shape = (p.shape[0], p[0].numel()) if p.ndim > 1 else ()
        matrices = {"dion": Dion, "dion2": Dion2}[name]
        return Stepping(matrices(shape, fraction) if p.ndim > 1 else AdamW(), decay)

    found = errors(tx, SHAPES, loop)
    # The rounding of small singular values is enlarged: by the condition of M Q, and by five steps of an iteration.
    assert max(found.values()) < 1e-9, found


def test_with_all_directions_dion_orthogonalises():
    tx, g = fo.scale_by_dion(0.0), randn(4, 6)
    state = tx.init_state(g)
    for _ in range(200):  # Power iterations on one matrix: what μ = 0 takes away, the gradient brings again.
        u, state = tx.update(g, state)
    p, _, qt = torch.linalg.svd(g, full_matrices=False)
    torch.testing.assert_close(u, math.sqrt(4 / 6) * p @ qt, rtol=1e-6, atol=1e-6)


def test_with_all_rows_dion2_is_muon_of_the_same_momentum():
    g = randn(3, 5)
    u, state = fo.scale_by_dion2(0.9, fraction=1.0).update(g, fo.scale_by_dion2().init_state(g))
    expected, _ = fo.orthogonalize("polar_express", 1e-8).update(g, {})
    torch.testing.assert_close(u, math.sqrt(3 / 5) * expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state["momentum_buffer"], 0.9 * g, rtol=1e-12, atol=0)


def test_rows_that_wait_keep_their_momentum():
    tx = fo.scale_by_dion2(0.5, fraction=0.3)
    g = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    u, state = tx.update(g, tx.init_state(g))
    assert u[0].abs().sum() == 0 and u[1].abs().sum() > 0 and u[2].abs().sum() == 0
    assert state["momentum_buffer"].tolist() == [[1.0] * 4, [1.0] * 4, [0.0, 1.0, 0.0, 0.0]]


def test_what_is_unfit_is_refused():
    for tx in (fo.scale_by_dion(), fo.scale_by_dion2()):
        with pytest.raises(
            ValueError, match=rf"{tx.name} takes parameters of at least 2 dimensions, but a parameter has shape \(3,\)"
        ):
            tx.init_state(randn(3))
    with pytest.raises(ValueError, match="rank_fraction = 0"):
        fo.dion(rank_fraction=0)
    with pytest.raises(ValueError, match="fraction = 1.5"):
        fo.dion2(fraction=1.5)
