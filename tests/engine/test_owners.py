"""Who computes which matrix. What the processes then do is tested on two of them, in `adapters/test_distributed.py`."""

import itertools
import random

import pytest
import torch

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter
from functional_optim.adapters.engine.owners import owners_of
from functional_optim.adapters.engine.placement import Line


@pytest.mark.parametrize("seed", range(20))
def test_the_busiest_has_at_most_four_thirds_of_the_best_plan(seed):
    rng = random.Random(seed)
    # In ascending order, which is the worst for who takes them as they come.
    costs, count = sorted(rng.randint(1, 30) for _ in range(rng.randint(1, 7))), rng.randint(1, 3)
    plans = itertools.product(range(count), repeat=len(costs))
    best = min(busiest(costs, owners, count) for owners in plans)
    assert busiest(costs, owners_of(costs, count), count) * 3 * count <= best * (4 * count - 1)


def test_large_ones_come_first():
    assert busiest([1, 1, 2], owners_of([1, 1, 2], 2), 2) == 2


def busiest(costs, owners, count):
    return max(sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == each) for each in range(count))


@pytest.mark.parametrize(("number", "count"), [(16, 2), (17, 2), (5, 4), (3, 4), (64, 7)])
def test_of_equal_matrices_nobody_has_more_than_a_share_rounded_up(number, count):
    owners = owners_of([5] * number, count)
    assert max(map(owners.count, range(count))) == -(-number // count)


@pytest.mark.parametrize("size", range(1, 6))
def test_pieces_are_those_of_torch(size, monkeypatch):
    monkeypatch.setattr(Line, "size", size)
    for rows in range(9):
        chunks = [tuple(x.shape) for x in torch.empty(rows, 3).chunk(size)] if rows else []
        found = [Line(None, 0, torch.device("cpu")).piece((rows, 3), rank) for rank in range(size)]
        assert found == [*chunks, *[(0, 3)] * (size - len(chunks))]


def test_owners_are_asked_for_among_several_processes():
    w = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = OptimizerAdapter([w], fo.muon(), owners=True)
    w.grad = torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="init_process_group first"):
        optimizer.step()
    assert torch.equal(w, torch.ones(2, 2))
