"""Scion and its norms: the authors' loop in plain operations, and closed forms."""

import math

import pytest
import torch
from loops import errors, randn

import functional_optim as fo

MUON = (3.4445, -4.7750, 2.0315)
SHAPES = {"wide": (3, 5), "tall": (6, 2), "square": (4, 4), "twin": (4, 4)}
REST = {"line": (4, 3, 2), "convolution": (4, 3, 2, 2), "vector": (5,), "scalar": ()}


def polynomial(x):
    """Five steps of Newton and Schulz's iteration, of the singular values."""
    p, s, qt = torch.linalg.svd(x, full_matrices=False)
    s = s / (x.norm() + 1e-7)
    for _ in range(5):
        s = MUON[0] * s + MUON[1] * s**3 + MUON[2] * s**5
    return p @ s.diag() @ qt


def rows(x):
    return torch.stack([torch.linalg.vector_norm(row) for row in x])


# Of a tensor: the authors' norms, each in the order of its formula.
LMOS = {
    "spectral": lambda g: math.sqrt(g.shape[0] / g.shape[1]) * polynomial(g),
    "col_norm": lambda g: (g.T / (g.shape[1] * rows(g.T) / math.sqrt(g.shape[0]) + 1e-8)[:, None]).T,
    "row_norm": lambda g: g / (math.sqrt(g.shape[1]) * rows(g) + 1e-8)[:, None],
    "sign": lambda g: torch.where(g > 0, 1.0, -1.0).double() / g.shape[1],
    "bias_rms": lambda g: g / ((g * g).mean().sqrt() + 1e-8),
}


def automatic(g):
    if g.ndim < 2:
        return LMOS["bias_rms"](g)
    if g.ndim == 2:
        return LMOS["spectral"](g)
    k = g.shape[2] ** (g.ndim - 2)
    return math.sqrt(g.shape[0] / g.shape[1]) / k * polynomial(g.reshape(g.shape[0], -1)).reshape(g.shape)


class Scion:
    """Pethick et al. 2025, algorithms 1 and 2."""

    def __init__(self, lmo, radius, constrained):
        self.lmo, self.radius, self.constrained, self.m = lmo, radius, constrained, 0.0

    def step(self, p, g):
        self.m = 0.1 * g + 0.9 * self.m
        return (1 - 0.02 if self.constrained else 1) * p - 0.02 * self.radius * self.lmo(self.m)


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("norm", ["auto", "spectral", "col_norm", "row_norm", "sign"])
def test_the_authors_loop(norm, constrained):
    tx = fo.scion(0.02, radius=3.0, norm=norm, ns_dtype=None, weight_decay=float(constrained))
    lmo = automatic if norm == "auto" else LMOS[norm]
    shapes = SHAPES | REST if norm == "auto" else SHAPES
    found = errors(tx, shapes, lambda name, p: Scion(lmo, 3.0, constrained))
    # Each of five steps of the iteration triples the rounding of small singular values.
    assert max(found.values()) < 1e-10, found


def test_without_normalisation_and_transposed():
    g = randn(3, 5)
    for norm, factor in (("spectral", math.sqrt(5)), ("col_norm", 5.0), ("row_norm", math.sqrt(5)), ("sign", 5.0)):
        plain, _ = fo.scale_by_lmo(norm, norm_eps=0.0).update(g, {})
        found, _ = fo.scale_by_lmo(norm, norm_eps=0.0, normalized=False).update(g, {})
        torch.testing.assert_close(found, factor * plain, rtol=1e-12, atol=0)
        turned, _ = fo.scale_by_lmo(norm, norm_eps=0.0, transpose=True).update(g.T, {})
        torch.testing.assert_close(turned.T, plain, rtol=1e-12, atol=0)


def test_each_direction_is_of_length_one_in_its_norm():
    g = randn(4, 6)
    u, _ = fo.scale_by_lmo("row_norm").update(g, {})
    torch.testing.assert_close(u.norm(dim=1), torch.full((4,), 1 / math.sqrt(6), dtype=torch.float64), rtol=1e-7, atol=0)
    u, _ = fo.scale_by_lmo("col_norm", normalized=False).update(g, {})
    torch.testing.assert_close(u.square().mean(0).sqrt(), torch.ones(6, dtype=torch.float64), rtol=1e-7, atol=0)


def test_layers_of_different_kinds_by_partition():
    params = {"hidden": randn(4, 4), "head": randn(3, 4)}
    tx = fo.partition(
        {"hidden": fo.scion(radius=50.0), "ends": fo.scion(norm="sign", radius=3e3)}, {"hidden": "hidden", "head": "ends"}
    )
    update, _ = tx.update(params, tx.init_state(params), params, {"lr": 1.0})
    torch.testing.assert_close(update["head"] + params["head"], -3e3 / 4 * params["head"].sign(), rtol=1e-12, atol=0)


def test_what_is_unfit_is_refused():
    with pytest.raises(ValueError, match="norm = 'frobenius': expected one of 'auto', 'spectral'"):
        fo.scion(norm="frobenius")
    with pytest.raises(ValueError, match=r"norm = 'sign' of scale_by_lmo is one of tensors of 2 dimensions, but .* shape \(3,\)"):
        fo.scale_by_lmo("sign").update(randn(3), {})
