"""What is made of Muon's parts: schedules of coefficients, rows, shapes, grafting, the ball; NorMuon and AdaMuon."""

import math
from typing import Any

import pytest
import torch
from loops import Descent, errors, randn
from trajectories import FLOAT64

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter
from functional_optim.rules.newton_schulz import SCHEDULES

SHAPES = {
    "wide": (3, 5),
    "tall": (6, 2),
    "square": (4, 4),
    "square_too": (4, 4),
    "convolution": (4, 3, 2, 2),
    "vector": (5,),
    "scalar": (),
}
MUON = (3.4445, -4.7750, 2.0315)


def polynomial_of_singular_values(x, triples, divisor):
    """An odd polynomial of a matrix is that of its singular values."""
    p, s, qt = torch.linalg.svd(x, full_matrices=False)
    s = s / divisor
    for a, b, c in triples:
        s = a * s + b * s**3 + c * s**5
    return p @ s.diag() @ qt


@pytest.mark.parametrize("shape", [(3, 5), (6, 2), (4, 4)])
@pytest.mark.parametrize("name, margin, eps", [("polar_express", 1.02, 1e-6), ("quintic", 1.0, 0.0), ("muon", 1.0, 0.0)])
@pytest.mark.parametrize("steps", [3, 5, 7])
def test_each_step_has_its_coefficients_and_the_last_ones_are_repeated(name, margin, eps, steps, shape):
    x = randn(*shape)
    triples = [*SCHEDULES[name], *[SCHEDULES[name][-1]] * steps][:steps]
    expected = polynomial_of_singular_values(x, triples, margin * x.norm() + eps)
    found, _ = fo.orthogonalize(name, eps, ns_steps=steps).update(x, {})
    # Each step enlarges small singular values, and their rounding, up to eightfold.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    muon = fo.scale_by_muon(0.0, name, eps, nesterov=False, ns_steps=steps, adjust_lr_fn="match_rms_adamw")
    found, _ = muon.update(x, muon.init_state(x))
    torch.testing.assert_close(found, 0.2 * math.sqrt(max(shape)) * expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["polar_express", "quintic"])
def test_with_its_own_coefficients_each_step_comes_nearer(name):
    x = randn(30, 30)
    values = {each: torch.linalg.svdvals(fo.orthogonalize(each).update(x, {})[0]) for each in ("muon", name)}
    assert (values[name] - 1).abs().mean() < (values["muon"] - 1).abs().mean()


def test_triples_of_ones_own():
    x = randn(4, 4)
    triples = [MUON, MUON, (2.0, -1.5, 0.5)]
    expected = polynomial_of_singular_values(x, [*triples, triples[-1]], x.norm())
    torch.testing.assert_close(fo.orthogonalize(triples, ns_steps=4).update(x, {})[0], expected, rtol=1e-10, atol=1e-10)
    assert "ns_coefficients" not in fo.scale_by_muon(ns_coefficients=triples).hparams


def newton_schulz(x, steps=5):
    """Jordan et al. 2024, for one matrix."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm()
    a, b, c = MUON
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class NorMuon:
    """Li et al. 2025, algorithm 1, for one matrix; the momentum is a mean."""

    def __init__(self, shape):
        self.m, self.v = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[0], 1, dtype=torch.float64)

    def direction(self, g):
        """The update before the learning rate."""
        self.m = 0.9 * self.m + 0.1 * g
        o = newton_schulz(0.9 * self.m + 0.1 * g)
        self.v = 0.95 * self.v + 0.05 * o.square().mean(1, keepdim=True)
        scaled = o / (self.v.sqrt() + 1e-10)
        return scaled * o.norm() / (scaled.norm() + 1e-10) * max(1, g.shape[0] / g.shape[1]) ** 0.5


class AdaMuon:
    """Si et al. 2025, algorithm 1, for one matrix, with Nesterov's momentum."""

    def __init__(self, shape):
        self.m, self.v = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)

    def direction(self, g):
        """The update before the learning rate."""
        self.m = 0.9 * self.m + g
        o = newton_schulz((g + 0.9 * self.m).sign())
        self.v = 0.95 * self.v + 0.05 * o.square()
        scaled = o / (self.v.sqrt() + 1e-8)
        return 0.2 * math.sqrt(g.numel()) * scaled / (scaled.norm() + 1e-8)


class AdamW:
    """What vectors and scalars get."""

    def __init__(self, shape):
        self.m, self.v, self.t = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64), 0

    def direction(self, g):
        """The update before the learning rate."""
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.95 * self.v + 0.05 * g * g
        return self.m / (1 - 0.9**self.t) / ((self.v / (1 - 0.95**self.t)).sqrt() + 1e-8)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "loop, tx",
    [
        (NorMuon, fo.normuon(0.02, momentum=0.9, adjust_lr_fn="original", ns_dtype=None)),
        (AdaMuon, fo.adamuon(0.02, momentum=0.9, ns_dtype=None)),
    ],
    ids=["normuon", "adamuon"],
)
def test_the_papers_loops(loop, tx, decay):
    def descent(name, p):
        flat = (p.shape[0], p[0].numel()) if p.ndim > 1 else p.shape
        own = (loop if p.ndim > 1 else AdamW)(flat)
        return Descent(lambda g: own.direction(g.reshape(flat)).reshape(g.shape), 0.02, decay)

    found = errors(tx, SHAPES, descent, weight_decay=decay)
    # Each of five steps of the iteration triples the rounding of small singular values.
    assert max(found.values()) < 1e-10, found


def test_cautious_decay_shrinks_where_the_step_does():
    p, u = torch.tensor([2.0, -2.0, 2.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 3.0])
    found, _ = fo.cautious_decay(0.5).update(u, {}, p)
    assert found.tolist() == [2.0, 1.0, 1.0, 3.0]


def test_scale_to_rms_and_by_shape():
    u = randn(6, 2)
    for found, factor in (
        (fo.scale_by_shape(), math.sqrt(3)),
        (fo.scale_by_shape("match_rms_adamw"), 0.2 * math.sqrt(6)),
        (fo.scale_by_shape("spectral_unclamped"), math.sqrt(3)),
    ):
        torch.testing.assert_close(found.update(u, {})[0], factor * u, rtol=FLOAT64, atol=0)
    found, _ = fo.scale_to_rms(0.3, rms_eps=0.0).update(u, {})
    torch.testing.assert_close(found, 0.3 * u / u.square().mean().sqrt(), rtol=FLOAT64, atol=0)


def test_graft_has_the_direction_of_the_one_and_the_size_of_the_other():
    params = {"a": randn(3, 4), "b": randn(2), "zero": randn(2)}
    adam, momentum = fo.scale_by_adam(), fo.trace()
    tx = fo.graft(momentum, adam)
    state = tx.init_state(params), momentum.init_state(params), adam.init_state(params)
    for step in range(3):
        grads = {name: randn(*p.shape, seed=step) for name, p in params.items()}
        grads["zero"] = torch.zeros(2, dtype=torch.float64)
        (u, one), (direction, two), (size, three) = (t.update(grads, s) for t, s in zip((tx, momentum, adam), state, strict=True))
        state = one, two, three
        for name in ("a", "b"):
            assert torch.cosine_similarity(u[name].flatten(), direction[name].flatten(), dim=0) > 1 - 1e-12
            torch.testing.assert_close(u[name].norm(), size[name].norm(), rtol=FLOAT64, atol=0)
        assert torch.equal(u["zero"], grads["zero"])
    with pytest.raises(ValueError, match="both have a hyper-parameter 'eps'"):
        fo.graft(fo.scale_by_rms(eps=1e-3), fo.scale_by_adam())


@pytest.mark.parametrize("fused", [False, True])
def test_hyperball_goes_round_on_the_sphere(fused):
    """The loop of HeavyBall's `hyperball_step`, in plain operations."""
    start = {"a": randn(3, 4, seed=1), "b": randn(5, seed=2), "zero": torch.zeros(2, dtype=torch.float64)}
    leaves = {name: p.clone().requires_grad_() for name, p in start.items()}
    optimizer = OptimizerAdapter(leaves.items(), fo.hyperball(fo.scale_by_adam(), lr=0.3), fused=fused)
    adam, expected = fo.scale_by_adam(), dict(start)
    state = adam.init_state(start)
    for step in range(5):
        grads = {name: randn(*p.shape, seed=10 + step) for name, p in start.items()}
        u, state = adam.update(grads, state)
        for name, radius in {name: p.norm() for name, p in start.items()}.items():
            q = expected[name] - 0.3 * radius * u[name] / u[name].norm()
            expected[name] = q * radius / q.norm().clamp(min=1e-12)
            leaves[name].grad = grads[name]
        optimizer.step()
    for name, p in expected.items():
        torch.testing.assert_close(leaves[name].detach(), p, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(leaves[name].detach().norm(), start[name].norm(), rtol=1e-11, atol=0)


def test_bad_arguments():
    pair: Any = (1.0, 2.0)
    with pytest.raises(ValueError, match="coefficients = 'newton': expected one of 'muon', 'polar_express', 'quintic'"):
        fo.orthogonalize("newton")
    with pytest.raises(ValueError, match=r"expected the \(a, b, c\) of one step or more"):
        fo.orthogonalize([pair])
    with pytest.raises(ValueError, match=r"ns_steps = 100 is outside"):
        fo.orthogonalize(ns_steps=100)
    with pytest.raises(ValueError, match="adjust_lr_fn = 'tall': expected one of"):
        fo.scale_by_shape("tall")
    for tx in (fo.orthogonalize(), fo.scale_by_shape()):
        with pytest.raises(ValueError, match=r"at least 2 dimensions, but a parameter has shape \(3,\)"):
            tx.update(randn(3), {})


def test_rows_come_out_alike_and_the_whole_as_large_as_it_was():
    tx, u = fo.scale_by_row_rms(0.5, row_eps=0.0), randn(3, 4)
    found, state = tx.update(u, tx.init_state(u))
    torch.testing.assert_close(found.norm(), u.norm(), rtol=FLOAT64, atol=0)
    torch.testing.assert_close(found.norm(dim=1), (u.norm() / math.sqrt(3)).expand(3), rtol=FLOAT64, atol=0)
    torch.testing.assert_close(state["second_momentum_buffer"], 0.5 * u.square().mean(1), rtol=FLOAT64, atol=0)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_in_calls_or_by_the_formula_it_is_one_iteration(dtype):
    """Where nobody watches, a product and a sum are one call, in the low dtype; under `vmap` and with tensors they are not."""
    x = randn(3, 5, 4).float()
    tx = fo.orthogonalize("quintic", ns_dtype=dtype)
    found = torch.stack([tx.update(each, {})[0] for each in x])
    watched = torch.vmap(lambda each: tx.update(each, {})[0])(x)
    tensors = torch.stack([tx.update(each, {}, None, {"ns_eps": torch.tensor(1e-7)})[0] for each in x])
    # The low dtype rounds at 2⁻⁸, and sums of other orders fall to either side; each step enlarges that by up to 4.
    tolerance = 1e-5 if dtype is None else 0.05
    torch.testing.assert_close(found, watched, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(tensors, watched, rtol=1e-6, atol=1e-6)
    tracked = x[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(tx.update(tracked, {})[0].sum(), tracked)
    assert slope.isfinite().all()


def test_the_low_dtype_is_as_torchs():
    """Bit for bit: a matrix in float32, and Muon's own coefficients."""
    p = torch.nn.Parameter(randn(6, 4).float())
    q = torch.nn.Parameter(p.detach().clone())
    ours, theirs = fo.adapters.Muon([p], lr=0.1, weight_decay=0.0), torch.optim.Muon([q], lr=0.1, weight_decay=0.0)
    for seed in range(3):
        p.grad = q.grad = randn(6, 4, seed=seed).float()
        ours.step()
        theirs.step()
    # The step and the momentum round in float32; the iteration in between does not differ.
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
