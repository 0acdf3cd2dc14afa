"""Shampoo: the papers' loop in plain operations, what happens now and then, and its reductions."""

import pytest
import torch
from loops import Descent, errors, randn

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter

SHAPES = {"matrix": (5, 5), "another": (5, 5), "wide": (3, 6), "vector": (4,), "scalar": ()}


def inverse_root(x, epsilon, order):
    """By an eigendecomposition that is not symmetric's."""
    values, vectors = torch.linalg.eig(x)
    values, vectors = values.real, vectors.real
    values = values - values.min().clamp(max=0.0) + epsilon
    return vectors @ (values ** (-1 / order)).diag() @ torch.linalg.inv(vectors)


class Shampoo:
    """Shi et al. 2023, algorithm 2 without grafting, for one matrix (a vector is one column), factors started at 0."""

    def __init__(self, shape, betas, epsilon, every):
        self.shape, self.betas, self.epsilon, self.every, self.t = shape, betas, epsilon, every, 0
        self.ls = [torch.zeros(n, n, dtype=torch.float64) for n in shape]
        self.rs = [torch.eye(n, dtype=torch.float64) for n in shape]
        self.m = torch.zeros(shape, dtype=torch.float64)

    def direction(self, g):
        """The update before the learning rate."""
        (b1, b2), self.t = self.betas, self.t + 1
        original, g = g.shape, g.reshape(self.shape)
        grams = [g @ g.T, g.T @ g] if g.ndim == 2 else [g.outer(g)]
        self.ls = [old + x if b2 == 1 else b2 * old + (1 - b2) * x for old, x in zip(self.ls, grams, strict=True)]
        if self.t % self.every == 0:
            correction = 1 if b2 == 1 else 1 - b2**self.t
            self.rs = [inverse_root(x / correction, self.epsilon, 2 * len(self.ls)) for x in self.ls]
        self.m = b1 * self.m + (1 - b1) * g
        u = self.m / (1 - b1**self.t)
        return (self.rs[0] @ u @ self.rs[1] if g.ndim == 2 else self.rs[0] @ u).reshape(original)


@pytest.mark.parametrize("betas", [(0.9, 1.0), (0.8, 0.95)])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_papers_loop(betas, every, decay):
    shapes, flat = {**SHAPES, "convolution": (4, 2, 1, 2)}, {**SHAPES, "scalar": (1,), "convolution": (4, 4)}
    tx = fo.shampoo(0.02, betas, 1e-3, decay, precondition_frequency=every)
    found = errors(tx, shapes, lambda name, p: Descent(Shampoo(flat[name], betas, 1e-3, every).direction, 0.02, decay))
    # ε is 1e-3 of the eigenvalues, so that their rounding is amplified as little.
    assert max(found.values()) < 1e-9, found


def test_one_gradient_is_orthogonalised():
    """With sums, of a single gradient U Σ Vᵀ the update is U Vᵀ: (Σ²)^(−1/4) twice."""
    g = randn(4, 4)
    p, _, qt = torch.linalg.svd(g)
    tx = fo.scale_by_shampoo((0.0, 1.0), 0.0)
    torch.testing.assert_close(tx.update(g, tx.init_state(g))[0], p @ qt, rtol=1e-9, atol=1e-9)


def test_of_a_scalar_it_is_adagrad():
    tx, other = fo.scale_by_shampoo((0.0, 1.0), 0.0), fo.scale_by_rss(0.0, eps=0.0)
    state, other_state = tx.init_state(randn()), other.init_state(randn())
    for seed in range(4):
        (u, state), (v, other_state) = tx.update(randn(seed=seed), state), other.update(randn(seed=seed), other_state)
        torch.testing.assert_close(u, v, rtol=1e-12, atol=0)


def test_larger_dimensions_have_no_preconditioner_and_the_others_a_root_the_larger():
    g = randn(2, 5)
    tx = fo.scale_by_shampoo((0.0, 1.0), 0.1, max_preconditioner_dim=3)
    expected = inverse_root(g @ g.T, 0.1, 2) @ g
    torch.testing.assert_close(tx.update(g, tx.init_state(g))[0], expected, rtol=1e-11, atol=1e-11)
    tx = fo.scale_by_shampoo((0.0, 1.0), 0.1, root=2)
    expected = inverse_root(g @ g.T, 0.1, 2) @ g @ inverse_root(g.T @ g, 0.1, 2)
    torch.testing.assert_close(tx.update(g, tx.init_state(g))[0], expected, rtol=1e-10, atol=1e-10)


def test_grafted_it_is_as_large_as_the_other():
    params = {"w": randn(4, 3)}
    tx = fo.shampoo(1.0, (0.9, 0.99), grafting=fo.scale_by_sign())
    update, _ = tx.update(params, tx.init_state(params), params)
    torch.testing.assert_close(update["w"].norm(), torch.tensor(12.0, dtype=torch.float64).sqrt(), rtol=1e-12, atol=0)


def test_derivatives_take_new_roots_for_constants():
    """A step with new roots is linear in the gradient then."""
    tx, state = fo.scale_by_shampoo((0.9, 0.99), 1e-3), fo.scale_by_shampoo().init_state(randn(3, 3))
    _, state = tx.update(randn(3, 3, seed=1), state)
    g, v = randn(3, 3, seed=2), randn(3, 3, seed=3)
    _, new = tx.update(g, state)
    expected = new["roots.0"] @ (0.1 * v) @ new["roots.1"] / (1 - 0.9**2)
    found = torch.func.jvp(lambda g: tx.update(g, state)[0], (g,), (v,))[1]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_roots_are_written_only_when_they_are_new():
    """Whatever is stacked: a tensor that was not written has the version that it had."""
    params = [torch.nn.Parameter(randn(4, 4, seed=i)) for i in range(3)]
    opt = OptimizerAdapter(params, fo.shampoo(precondition_frequency=2))
    written = []
    for step in range(4):
        for i, p in enumerate(params):
            p.grad = randn(4, 4, seed=10 * step + i)
        roots = [x for p in params for name, x in opt.state[p].items() if "roots" in name]
        versions = [x._version for x in roots]
        opt.step()
        written.append([x._version > old for x, old in zip(roots, versions, strict=True)])
    assert written[1:] == [[True] * 6, [False] * 6, [True] * 6]


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_no_offset_takes_a_root_of_too_few_gradients(offset):
    """After one gradient of a matrix the other directions have only epsilon, and the next gradient would go 100 times too far."""
    tx = fo.scale_by_shampoo(precondition_offset=offset, precondition_frequency=3)
    generator, p = torch.Generator().manual_seed(0), torch.zeros(6, 5)
    state, largest = tx.init_state(p), 0.0
    for _ in range(10):
        g = torch.randn(6, 5, generator=generator)
        update, state = tx.update(g, state, p)
        largest = max(largest, (update.norm() / g.norm()).item())
    assert largest < 5
