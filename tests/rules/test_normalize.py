"""Centralising, normalising and scaling by the parameter's size, in plain floats."""

import math

import pytest
import torch
from trajectories import awkward_gradients, random_tree

import functional_optim as fo


def test_centralize_subtracts_the_mean_of_each_outputs_weights():
    g = random_tree(3, ("matrix", "vector", "scalar", "filter"))
    u, state = fo.centralize().update(g, {})
    assert state == {}
    for name in ("matrix", "filter"):
        for row, found in zip(g[name], u[name], strict=True):
            values = row.flatten().tolist()
            mean = math.fsum(values) / len(values)
            assert found.flatten().tolist() == pytest.approx([x - mean for x in values], rel=1e-14, abs=1e-15)
    for name in ("vector", "scalar"):
        assert torch.equal(u[name], g[name])


@pytest.mark.parametrize("scale, eps", [(1.0, 1e-6), (3.0, 0.5), (-1.0, 1e-6)])
def test_normalize_by_update_norm_in_plain_floats(scale, eps):
    for row in awkward_gradients():
        norm = math.sqrt(math.fsum(g * g for g in row))
        x = torch.tensor(row, dtype=torch.float64)
        u, _ = fo.normalize_by_update_norm(scale, eps).update({"a": x[:3], "b": [x[3], x[4:]]}, {})
        found = torch.cat([u["a"], u["b"][0].reshape(1), u["b"][1]])
        # A sum of eight squares.
        torch.testing.assert_close(found, x * scale / (norm + eps), rtol=1e-14, atol=0)


@pytest.mark.parametrize("least", [0.0, 1e-3, 2.0])
def test_scaling_by_the_size_of_the_parameter_in_plain_floats(least):
    params, u = random_tree(0), random_tree(1)
    by_norm, _ = fo.scale_by_param_block_norm(least).update(u, {}, params)
    by_rms, _ = fo.scale_by_param_block_rms(least).update(u, {}, params)
    for name, p in params.items():
        square = math.fsum(x * x for x in p.flatten().tolist())
        for found, size in ((by_norm, math.sqrt(square)), (by_rms, math.sqrt(square / p.numel()))):
            torch.testing.assert_close(found[name], max(size, least) * u[name], rtol=1e-14, atol=0)  # twelve squares


@pytest.mark.parametrize("constructor", [fo.scale_by_param_block_norm, fo.scale_by_param_block_rms])
def test_a_parameter_of_zero_can_move_and_has_finite_derivatives(constructor):
    p, u = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert torch.equal(constructor(0.5).update(u, {}, p)[0], 0.5 * u)
    for least in (0.0, 0.5):
        slope = torch.func.grad(lambda p, least=least: constructor(least).update(u, {}, p)[0].sum())(p)
        assert torch.equal(slope, p)


@pytest.mark.parametrize("constructor", [fo.scale_by_param_block_norm, fo.scale_by_param_block_rms, fo.adaptive_grad_clip])
def test_parameters_are_asked_for(constructor):
    with pytest.raises(ValueError, match="failed without the parameters"):
        constructor().update(torch.ones(2), {})
