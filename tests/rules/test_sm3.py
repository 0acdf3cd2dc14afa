"""SM3 against its paper's loop over cover sets, its bound, and what it reduces to."""

import itertools
import math

import pytest
import torch
from trajectories import (
    FLOAT64,
    assert_same_trajectory,
    awkward_gradients,
    columns,
    random_tree,
    transposed,
    tree_run,
    updates_of,
)

import functional_optim as fo


def paper_sm3(gradients, shape, mu, eps):
    """Anil et al., Algorithm SM3-II, with a cover set per slice of each axis; momentum as optax has it. Flat rows."""
    indices = list(itertools.product(*map(range, shape)))
    accumulated = {(axis, i): 0.0 for axis, size in enumerate(shape) for i in range(size)}
    m, found = [0.0] * len(indices), []
    for row in gradients:
        new = dict.fromkeys(accumulated, 0.0)
        for k, (index, g) in enumerate(zip(indices, row, strict=True)):
            sets = list(enumerate(index))
            v = min(accumulated[s] for s in sets) + g * g
            for s in sets:
                new[s] = max(new[s], v)
            m[k] = mu * m[k] + (1 - mu) * g / math.sqrt(v + eps)
        accumulated = new
        found.append(list(m))
    return found, list(accumulated.values())


@pytest.mark.parametrize("shape", [(8,), (2, 4), (4, 2), (2, 2, 2), (1, 8)])
@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_scale_by_sm3_is_the_papers_loop(shape, mu):
    rows = awkward_gradients()
    tx = fo.scale_by_sm3(mu, eps=1e-6)
    state, found = tx.init_state(torch.zeros(shape, dtype=torch.float64)), []
    for row in rows:
        update, state = tx.update(torch.tensor(row, dtype=torch.float64).reshape(shape), state)
        found.append(update.flatten())
    expected, accumulated = paper_sm3(rows, shape, mu, 1e-6)
    assert_same_trajectory(torch.stack(found), expected, FLOAT64)
    assert state["accumulators"].tolist() == pytest.approx(accumulated, rel=1e-14)


def test_of_vectors_and_scalars_it_is_adagrad():
    rows = awkward_gradients()
    expected = []
    for gs in columns(rows):
        total, path = 0.0, []
        for g in gs:
            total += g * g
            path.append(g / math.sqrt(total + 1e-8))
        expected.append(path)
    assert_same_trajectory(updates_of(fo.scale_by_sm3(momentum=0.0), rows), transposed(expected), FLOAT64)
    single = updates_of(fo.scale_by_sm3(momentum=0.0), [row[0] for row in rows])
    assert_same_trajectory(single.unsqueeze(1), [[x] for x in expected[0]], FLOAT64)


def test_it_moves_no_further_than_adagrad():
    """The accumulators bound the sum of squares from above."""
    trees = [random_tree(seed, ("matrix", "filter")) for seed in range(20)]
    found = tree_run(fo.scale_by_sm3(momentum=0.0), trees)
    for name, updates in found.items():
        gradients = torch.stack([tree[name].flatten() for tree in trees[1:]])
        adagrad = gradients / ((gradients * gradients).cumsum(0) + 1e-8).sqrt()
        assert (updates.abs() <= adagrad.abs() * (1 + 1e-12)).all()  # equal at the first step, to rounding
        assert (updates.abs() < 0.999 * adagrad.abs()).any()


def test_the_state_is_a_number_per_row_and_column():
    params = {"matrix": torch.zeros(30, 20), "scalar": torch.zeros(()), "none": torch.zeros(0, 3), "empty": torch.zeros(0)}
    tx = fo.scale_by_sm3()
    state = tx.init_state(params)
    assert {name: tuple(x.shape) for name, x in state["accumulators"].items()} == {
        "matrix": (50,),
        "scalar": (1,),
        "none": (3,),
        "empty": (0,),
    }
    updates, after = tx.update(params, state)
    assert all(updates[name].shape == params[name].shape for name in params)
    assert all(after["accumulators"][name].shape == state["accumulators"][name].shape for name in params)


def test_sm3_steps_down_by_the_learning_rate():
    trees = [random_tree(seed) for seed in range(10)]
    found, rule = tree_run(fo.sm3(lr=0.5, momentum=0.8), trees), tree_run(fo.scale_by_sm3(0.8), trees)
    for name in found:
        assert torch.equal(found[name], -0.5 * rule[name])
