"""PSGD Kron: kron_torch's formulas by einsum and inverses, given our probes; what it tends to, its schedule, its seed."""

import itertools
import math

import pytest
import torch
from loops import Descent, errors, randn

import functional_optim as fo
from functional_optim.philox import normal
from functional_optim.rules.psgd_kron import _fits

SHAPES = {"matrix": (5, 4), "another": (5, 4), "row": (1, 3), "vector": (4,), "vector_too": (4,), "scalar": ()}


def lower_bound(x):
    """Of the spectral norm of a symmetric matrix, as in psgd_torch."""
    largest = x.abs().max()
    x = x / largest
    column = x[:, (x * x).sum(0).argmax()]
    y = column @ x
    return largest * (x @ (y / y.norm())).norm()


class Kron:
    """One matrix, or one column where it has one dimension. Diagonal factors are kept as matrices."""

    def __init__(self, shape, beta, rate, triangular, scale):
        self.shape, self.beta, self.rate, self.t = shape, beta, rate, 0
        self.triangular = [triangular and n > 1 for n in shape]
        self.q = [scale ** (1 / len(shape)) * torch.eye(n, dtype=torch.float64) for n in shape]
        self.m = torch.zeros(shape, dtype=torch.float64)

    def direction(self, g, do_fit):
        """The update before the learning rate."""
        self.t += 1
        original, g = g.shape, g.reshape(self.shape)
        self.m = self.beta * self.m + (1 - self.beta) * g
        x = self.m / (1 - self.beta**self.t)
        if do_fit:
            v = normal((1, *self.shape), 7, self.t, 0)[0]
            a = self.whitened(x + 2.0**-11.5 * x.abs().mean() * v, self.q)
            b = self.whitened(v, [torch.linalg.inv(q).T for q in self.q])
            new = []
            for i, q in enumerate(self.q):
                rows = [y.movedim(i, 0).reshape(y.shape[i], -1) for y in (a, b)]
                first, second = (y @ y.T for y in rows)
                if self.triangular[i]:
                    new.append(q - self.rate * (first - second).triu() @ q / lower_bound(first + second))
                else:
                    largest = (first + second).diag().max()
                    new.append(q - self.rate * (first - second).diag().diag() @ q / largest)
            self.q = new
        u = self.whitened(x, [q.T @ q for q in self.q])
        return (u * min(1.0, 1.1 / float(u.square().mean().sqrt()))).reshape(original)

    def whitened(self, x, factors):
        """Each dimension times its matrix."""
        x = factors[0] @ x
        return x @ factors[1].T if x.ndim == 2 else x


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("share, largest", [(None, 8192), (0.5, 8192), (None, 1)])
def test_the_programs_loop(share, largest, decay):
    shapes, flat = {**SHAPES, "convolution": (4, 2, 1, 2)}, {**SHAPES, "scalar": (1,), "convolution": (4, 4)}
    options = {"update_probability": share, "max_size_triangular": largest, "precond_init_scale": 0.5}
    tx = fo.psgd_kron(0.02, 0.9, decay, 0.1, 7, **options)

    def loop(name, p):
        kron = Kron(flat[name], 0.9, 0.1, len(flat[name]) > 1 and largest > 1, 0.5)
        fits = itertools.cycle([share is None, True])
        return Descent(lambda g: kron.direction(g, next(fits)), 0.02, decay)

    found = errors(tx, shapes, loop)
    assert max(found.values()) < 1e-10, found


def test_it_whitens():
    """Of gradients L z R with normal z, whose second moments are L Lᵀ and RᵀR, QᵀQ G comes to have the second moment of z."""
    left, right = torch.diag(torch.tensor([4.0, 1.0, 0.2], dtype=torch.float64)), torch.eye(3, dtype=torch.float64)
    left = torch.linalg.qr(randn(3, 3, seed=5))[0] @ left
    tx = fo.scale_by_psgd_kron(0.0)
    state, seen = tx.init_state(randn(3, 3)), []
    for step in range(1500):
        # The rate of the fit falls, so that it settles.
        g = left @ randn(3, 3, seed=step) @ right
        u, state = tx.update(g, state, None, {"precond_lr": 0.3 / (1 + step / 100)})
        seen.append(state["Q.0"].T @ state["Q.0"] @ g @ state["Q.1"].T @ state["Q.1"])
    seconds = torch.stack([x @ x.T / 3 for x in seen[750:]]).mean(0)
    # 750 draws of nine numbers: 4 % for each element, and the fit is as noisy.
    assert float((seconds / seconds.diag().mean() - torch.eye(3, dtype=torch.float64)).abs().max()) < 0.15
    assert 0.8 < float(seconds.diag().mean()) < 1.25


def test_how_often_it_fits():
    counts = [_fits(t, None) for t in range(10_000)]
    assert counts[:501] == list(range(501))
    rate = [(counts[t + 100] - counts[t]) / 100 for t in (1450, 8000)]
    assert rate == pytest.approx([math.exp(-1.0), 0.03], abs=0.011)
    assert [_fits(torch.tensor(t), None) for t in (0, 7, 1500, 9000)] == [counts[t] for t in (0, 7, 1500, 9000)]
    assert [_fits(t, 0.1) for t in range(0, 31, 10)] == [0, 1, 2, 3]


def test_the_factors_of_a_product_are_brought_to_one_size_now_and_then():
    tx = fo.scale_by_psgd_kron(0.0, precond_lr=0.0)
    g = randn(2, 3)
    state = tx.init_state(g)
    skewed = {**state, "Q.0": 4.0 * state["Q.0"], "Q.1": state["Q.1"] / 4}
    for step, size in ((98, 4.0), (99, 1.0), (100, 4.0)):
        u, new = tx.update(g, {**skewed, "step": torch.tensor(step)})
        assert float(new["Q.0"].max()) == pytest.approx(size)
        torch.testing.assert_close(u, g * min(1.0, 1.1 / float(g.square().mean().sqrt())), rtol=1e-11, atol=0)


def test_probes_are_told_by_the_seed():
    tx, g = fo.scale_by_psgd_kron(), randn(3, 3)
    state = tx.init_state(g)
    one, same, other = (tx.update(g, state, None, {"seed": seed})[0] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"update_probability = 0.0 is outside \(0, 1\]"):
        fo.scale_by_psgd_kron(update_probability=0.0)
    with pytest.raises(ValueError, match=r"precond_init_scale = 0.0 is outside \(0, inf\)"):
        fo.psgd_kron(precond_init_scale=0.0)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,)])
@pytest.mark.parametrize("make", [fo.psgd_kron, fo.normuon, fo.soap, fo.shampoo])
def test_tensors_without_elements(make, shape):
    params = {"none": torch.zeros(shape), "some": torch.ones(3, 4)}
    tx = make()
    updates, state = tx.update({name: torch.ones_like(p) for name, p in params.items()}, tx.init_state(params), params)
    assert updates["none"].shape == shape and updates["some"].isfinite().all() and updates["some"].any()
