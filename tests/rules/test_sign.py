"""Sign, signSGD and Signum in plain floats, and how they are related."""

import math

import pytest
import torch
from trajectories import FLOAT64, START, assert_same_trajectory, awkward_gradients, columns, params_of, transposed, updates_of

import functional_optim as fo


def sign(x):
    return math.copysign(1.0, x) if x else 0.0


def paper_signum(gs, p, lr, beta):
    """Bernstein et al., Algorithm 2, for one element."""
    m, found = 0.0, []
    for g in gs:
        m = beta * m + (1 - beta) * g
        p = p - lr * sign(m)
        found.append(p)
    return found


def test_scale_by_sign_in_plain_floats():
    rows = awkward_gradients()
    assert updates_of(fo.scale_by_sign(), rows).tolist() == [[sign(g) for g in row] for row in rows]


@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_signum_is_the_papers_loop(momentum):
    rows = awkward_gradients()
    expected = transposed(paper_signum(gs, p, 0.1, momentum) for p, gs in zip(START, columns(rows), strict=True))
    assert_same_trajectory(params_of(fo.signum(lr=0.1, momentum=momentum), rows), expected, FLOAT64)


def test_signum_without_memory_is_sign_sgd():
    rows = awkward_gradients()
    assert torch.equal(params_of(fo.signum(momentum=0.0), rows), params_of(fo.sign_sgd(), rows))


def test_lion_with_equal_betas_and_no_decay_is_signum():
    rows = awkward_gradients()
    lion = params_of(fo.lion(lr=0.1, betas=(0.8, 0.8), weight_decay=0.0), rows)
    assert torch.equal(lion, params_of(fo.signum(lr=0.1, momentum=0.8), rows))


def test_complex_numbers_get_the_sign_of_each_part():
    z = torch.tensor([3 - 4j, 2j], dtype=torch.complex64)
    assert fo.scale_by_sign().update(z, {})[0].tolist() == [1 - 1j, 1j]
