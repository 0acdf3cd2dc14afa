"""KL-SOAP and KL-Shampoo: loops of plain operations, and what their moments tend to."""

import math

import pytest
import torch
from loops import errors

import functional_optim as fo

SHAPES = {"matrix": (4, 4), "twin": (4, 4), "convolution": (4, 2, 1, 2), "vector": (5,), "scalar": ()}
LR, BETAS, BETA, EPS, KL_EPS, EVERY = 0.02, (0.9, 0.95), 0.8, 1e-8, 1e-3, 3


def eigenvalues(moment, q):
    return torch.stack([column @ moment @ column for column in q.T]).clamp(min=KL_EPS)


def moments_of(g, left, right):
    """G R⁻¹ Gᵀ / columns and Gᵀ L⁻¹ G / rows, of inverses that are given."""
    return g @ right @ g.T / g.shape[1], g.T @ left @ g / g.shape[0]


def next_basis(moment, q):
    order = (q.T @ moment @ q).diag().argsort(descending=True)
    return torch.linalg.qr(moment @ q[:, order])[0], order


class KlSoap:
    """Lin et al. 2025: SOAP with these moments, eigenvalues read off them."""

    def __init__(self, p, decay):
        self.decay, self.t, self.m, self.v = decay, 0, 0.0, 0.0
        self.is_matrix = p.ndim > 1

    def step(self, p, g):
        self.t += 1
        s, x, moved = self.t - 1, g.reshape(g.shape[0], -1) if self.is_matrix else g, torch.zeros_like(g)
        if s:
            self.m = BETAS[0] * self.m + (1 - BETAS[0]) * x
            turned, momentum = (self.q[0].T @ y @ self.q[1] if self.is_matrix else y for y in (x, self.m))
            self.v = BETAS[1] * self.v + (1 - BETAS[1]) * turned**2
            u = momentum / (self.v.sqrt() + EPS)
            u = self.q[0] @ u @ self.q[1].T if self.is_matrix else u
            moved = math.sqrt(1 - BETAS[1] ** s) / (1 - BETAS[0] ** s) * u.reshape(g.shape)
        if self.is_matrix:
            self.follow(x, s)
        return p - LR * moved - LR * self.decay * p

    def follow(self, x, s):
        """The moments and bases after a gradient."""
        if s == 0:
            self.gg = [(1 - BETA) * y for y in moments_of(x, *(torch.eye(n, dtype=torch.float64) for n in x.shape))]
            self.q = [torch.linalg.eigh(gg)[1].fliplr() for gg in self.gg]
            return
        inverses = [q @ (1 / eigenvalues(gg, q)).diag() @ q.T for gg, q in zip(self.gg, self.q, strict=True)]
        self.gg = [BETA * gg + (1 - BETA) * new for gg, new in zip(self.gg, moments_of(x, *inverses), strict=True)]
        if s % EVERY == 0:
            (left, rows), (right, columns) = map(next_basis, self.gg, self.q)
            self.q, self.v = [left, right], self.v[rows][:, columns]


class KlShampoo:
    """Lin et al. 2025, the moments started at δ I."""

    def __init__(self, p, decay):
        shape = (p.shape[0], p[0].numel())
        self.decay, self.t, self.m = decay, 0, 0.0
        self.gg = [0.1 * torch.eye(n, dtype=torch.float64) for n in shape]
        self.q = [torch.eye(n, dtype=torch.float64) for n in shape]

    def step(self, p, g):
        self.t += 1
        x = g.reshape(g.shape[0], -1)
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * x
        left, right = (q @ (eigenvalues(gg, q) ** -0.5).diag() @ q.T for gg, q in zip(self.gg, self.q, strict=True))
        u = (left @ self.m @ right).reshape(g.shape)
        self.gg = [
            BETAS[1] * gg + (1 - BETAS[1]) * new
            for gg, new in zip(self.gg, moments_of(x, left @ left, right @ right), strict=True)
        ]
        if self.t % EVERY == 0:
            self.q = [next_basis(gg, q)[0] for gg, q in zip(self.gg, self.q, strict=True)]
        return p - LR * u - LR * self.decay * p


class AdamW:
    """What vectors and scalars get beside KL-Shampoo."""

    def __init__(self, decay):
        self.decay, self.t, self.m, self.v = decay, 0, 0.0, 0.0

    def step(self, p, g):
        self.t += 1
        self.m, self.v = BETAS[0] * self.m + (1 - BETAS[0]) * g, BETAS[1] * self.v + (1 - BETAS[1]) * g * g
        u = self.m / (1 - BETAS[0] ** self.t) / ((self.v / (1 - BETAS[1] ** self.t)).sqrt() + EPS)
        return p - LR * u - LR * self.decay * p


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_papers_loops(decay):
    soap = fo.kl_soap(LR, BETAS, EPS, decay, BETA, KL_EPS, precondition_frequency=EVERY)
    found = errors(soap, SHAPES, lambda _, p: KlSoap(p, decay))
    # Power iterations on matrices of condition up to 1e4.
    assert max(found.values()) < 1e-9, found
    shampoo = fo.kl_shampoo(LR, BETAS, EPS, decay, KL_EPS, precondition_frequency=EVERY)
    found = errors(shampoo, SHAPES, lambda _, p: KlShampoo(p, decay) if p.ndim > 1 else AdamW(decay))
    assert max(found.values()) < 1e-9, found


@pytest.mark.full
def test_gradients_come_out_white():
    """Of gradients A Z B with Z white, the moments tend to A Aᵀ and Bᵀ B but for a factor: the update is as white as Z."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.diag(torch.tensor([1.0, 3.0, 10.0])).double(), torch.diag(torch.tensor([0.1, 1.0, 5.0])).double()
    tx = fo.scale_by_kl_shampoo((0.0, 0.999), precondition_frequency=1)
    state, squares = tx.init_state(a), 0.0
    for step in range(6000):
        g = a @ torch.randn(3, 3, generator=generator, dtype=torch.float64) @ b
        u, state = tx.update(g, state)
        squares = squares + u**2 / 2000 if step >= 4000 else squares
    # Means of 2000 squares: √(2 / 2000) = 0.03 off, and moments over 1000 steps alike; the largest of nine three times that.
    torch.testing.assert_close(squares, torch.ones_like(squares), rtol=0.15, atol=0.0)
