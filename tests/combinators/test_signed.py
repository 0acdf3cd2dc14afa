"""`cautious` and `with_gradient_signs`: the papers' loops, the transforms they wrap, and where they are refused."""

import math

import pytest
import torch
from trajectories import FLOAT64, START, assert_same_trajectory, awkward_gradients, columns, paper_adam, params_of, updates_of

import functional_optim as fo

ROWS = awkward_gradients()


def adam_rows():
    """The paper's Adam, one row per step."""
    return list(zip(*(paper_adam(gs) for gs in columns(ROWS)), strict=True))


def test_cautious_is_the_papers_loop():
    expected = []
    for us, gs in zip(adam_rows(), ROWS, strict=True):
        # Liang et al., the lines of the authors' program.
        mask = [float(u * g > 0) for u, g in zip(us, gs, strict=True)]
        share = max(sum(mask) / len(mask), 1e-3)
        expected.append([u * k / share for u, k in zip(us, mask, strict=True)])
    found = updates_of(fo.cautious(fo.scale_by_adam()), ROWS)
    assert_same_trajectory(found, expected, FLOAT64)
    assert (found == 0).sum() > 8 and len({sum(x != 0 for x in row) for row in expected}) > 2


def test_the_share_of_a_tensor_without_agreement_is_bounded():
    tx = fo.cautious(fo.scale(-1.0))
    assert tx.update(torch.ones(3), tx.init_state(torch.ones(3)))[0].tolist() == [0.0, 0.0, 0.0]
    # One of 2000 elements agrees: enlarged by 1000, not by 2000.
    g = torch.full((2000,), -1.0)
    g[7] = 1.0
    keep = fo.cautious(fo.chain(fo.trace(momentum=1.0)))
    _, state = keep.update(torch.full((2000,), 5.0), keep.init_state(g))
    assert keep.update(g, state)[0][7].item() == pytest.approx(6000.0, rel=1e-6)  # float32


def test_grams_is_the_papers_loop():
    lr, decay = 0.01, 0.1
    expected, p = [], list(START)
    for us, gs in zip(adam_rows(), ROWS, strict=True):
        signs = [math.copysign(1.0, g) if g else 0.0 for g in gs]
        p = [x - lr * (abs(u) * s + decay * x) for x, u, s in zip(p, us, signs, strict=True)]
        expected.append(p)
    assert_same_trajectory(params_of(fo.grams(lr, eps=1e-8, weight_decay=decay), ROWS), expected, FLOAT64)


def test_the_state_is_that_of_what_is_inside():
    p = {"w": torch.ones(2)}
    inner = fo.chain(fo.clip_by_value(), fo.scale_by_adam())
    assert fo.cautious(inner).init_state(p).keys() == inner.init_state(p).keys()
    assert fo.cautious(inner).hparams == inner.hparams
    assert repr(fo.cautious(fo.scale_by_lion())) == "cautious(scale_by_lion(betas=(0.9, 0.99)))"


def test_complex_elements_are_pairs_of_reals():
    z = torch.tensor([[3.0, -4.0], [1.0, 2.0]])
    for wrap in (fo.cautious, fo.with_gradient_signs):
        tx = wrap(fo.chain(fo.trace(), fo.scale_by_adam()))
        pairs, _ = tx.update(z, tx.init_state(z))
        numbers, _ = tx.update(torch.view_as_complex(z), tx.init_state(torch.view_as_complex(z)))
        assert torch.equal(torch.view_as_real(numbers), pairs)


@pytest.mark.parametrize("wrap", [fo.cautious, fo.with_gradient_signs])
def test_a_learning_rate_inside_is_refused(wrap):
    for inner in (fo.adamw(), fo.rename_hparams(fo.sgd(), lr="step_size"), fo.madgrad()):
        with pytest.raises(ValueError, match="learning rate and turns the sign. Put that after it"):
            wrap(inner)
    with pytest.raises(TypeError, match="not a Transform"):
        wrap(fo.scale_by_adam)
