"""SPlus: the authors' loop in plain operations, its units, and its average."""

import pytest
import torch
from loops import errors, randn

import functional_optim as fo

SHAPES = {"matrix": (5, 5), "twin": (5, 5), "convolution": (4, 2, 1, 2), "vector": (5,), "scalar": ()}
LR, BETAS, EVERY = 0.5, (0.9, 0.95), 4


class SPlus:
    """Frans et al. 2025, algorithm 1, as in the authors' program in JAX."""

    def __init__(self, p, decay):
        self.decay, self.t, self.m = decay, 0, torch.zeros_like(p)
        self.sides = [torch.zeros(n, n, dtype=torch.float64) for n in p.shape] if p.ndim == 2 else []
        self.q = [torch.eye(n, dtype=torch.float64) for n in p.shape] if p.ndim == 2 else []

    def step(self, p, g):
        self.t += 1
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * g
        if p.ndim != 2:
            return p - LR * 0.01 * (self.m.sign() + self.decay * p)
        u = self.q[0] @ (self.q[0].T @ self.m @ self.q[1]).sign() @ self.q[1].T
        self.sides = [BETAS[1] * s + (1 - BETAS[1]) * new for s, new in zip(self.sides, (g @ g.T, g.T @ g), strict=True)]
        if self.t == 1 or self.t % EVERY == 0:
            self.q = [torch.linalg.eigh(side)[1] for side in self.sides]
        return p - LR * 2 / sum(p.shape) * (u + self.decay * p)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_authors_loop(decay):
    tx = fo.splus(LR, BETAS, decay, nonstandard_constant=0.01, inverse_every=EVERY)
    found = errors(tx, SHAPES, lambda _, p: SPlus(p, decay))
    assert max(found.values()) < 1e-9, found


def test_large_matrices_are_not_turned_and_have_the_others_units():
    tx, g = fo.splus(1.0, max_dim=3, weight_decay=0.0, nonstandard_constant=0.25), {"wide": randn(2, 5), "small": randn(2, 3)}
    update, _ = tx.update(g, tx.init_state(g), g)
    assert torch.equal(update["wide"], -0.25 * g["wide"].sign())
    torch.testing.assert_close(update["small"], -0.4 * g["small"].sign(), rtol=1e-12, atol=0)
    state = fo.scale_by_splus(max_dim=3).init_state(g)
    assert state["Q.0"]["wide"].shape == (2, 2) and state["Q.1"]["wide"].shape == (0, 0)


def test_an_average_is_evaluated():
    tx, p = fo.splus(ema_decay=0.5), randn(3, 3)
    new, state = tx.step(randn(3, 3, seed=1), tx.init_state(p), p)
    torch.testing.assert_close(fo.evaluated(tx, state, new), (p + new) / 2, rtol=1e-12, atol=1e-12)


def test_the_units_are_a_link_of_their_own():
    for shape, factor in (((2, 6), 0.25), ((3,), 0.5), ((), 0.5), ((2, 2, 2), 0.5), ((2, 9), 0.5)):
        u = randn(*shape)
        torch.testing.assert_close(fo.scale_by_mean_side(0.5, max_dim=8).update(u, {})[0], factor * u, rtol=1e-12, atol=0)
