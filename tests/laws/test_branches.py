"""Schedules, partitions and masks in both engines, against calling the transform."""

import copy
import functools
import pickle

import pytest
import torch
from engines import (
    Plain,
    assert_same_progress,
    by_hand,
    clip_by_largest,
    parameters,
    params_of,
    project,
    run,
    scale_rows,
    set_gradients,
    ways,
)

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter, stepping
from functional_optim.adapters.engine.backends import rows
from functional_optim.transform import Transform

SHAPES = [(3, 4), (150, 100), (5,), (7,), (0,), (1,), (4, 3), (9,)]
COSINE = fo.warmup_cosine(0.1, 4, 20)
DIMENSIONS = fo.by_ndim({2: "matrix"}, otherwise="rest")
Fused = functools.partial(OptimizerAdapter, fused=True)


def matrices(matrix, rest):
    return fo.partition({"matrix": matrix, "rest": rest}, DIMENSIONS)


def decayed_matrices():
    return fo.masked(fo.add_decayed_weights(0.1), lambda name, leaf: leaf.ndim > 1)


def betas(step):
    return (0.9 - 0.02 * step, torch.tensor(0.99) if step % 2 else 0.999)


def nested():
    """Two clocks, one inside the other, and names that change on the way."""
    inner = fo.scheduled(fo.rename_hparams(fo.adam(), lr="rate", eps="inner_eps"), rate=lambda step: 1 / (1 + step))
    return fo.scheduled(fo.chain(inner, fo.scale_by_learning_rate()), lr=COSINE, inner_eps=lambda step: 1e-8 * 2**step)


def by_size():
    """A partition in a branch of another, with names that reach through both."""
    small = fo.partition({"odd": fo.sgd(lr=0.2), "even": fo.adam()}, lambda name, leaf: "odd" if leaf.numel() % 2 else "even")
    return matrices(fo.adamw(lr=0.01), fo.chain(fo.clip_by_global_norm(), small))


ELEMENTWISE = {
    "scheduled": lambda: fo.scheduled(fo.adamw(), lr=COSINE, weight_decay=fo.linear(0.1, 0.0, 10), betas=betas),
    "switched": lambda: fo.scheduled(fo.sgd(momentum=0.9), lr=lambda step: 0.1 if step < 7 else 0.01),
    "nested": nested,
    "clip, then scheduled": lambda: fo.chain(fo.clip_by_global_norm(), fo.scheduled(fo.adamw(), lr=COSINE)),
    "scheduled clip": lambda: fo.scheduled(fo.chain(fo.trace(), fo.clip_by_global_norm(), fo.scale(-0.1)), max_norm=growing_norm),
    "two branches": lambda: matrices(fo.sgd(lr=0.1, momentum=0.9), fo.adamw()),
    "branches with schedules": lambda: matrices(
        fo.scheduled(fo.adamw(), lr=COSINE), fo.scheduled(fo.sgd(momentum=0.9), lr=COSINE)
    ),
    "scheduled branches": lambda: fo.scheduled(
        matrices(fo.adamw(), fo.sgd(momentum=0.9)), **{"lr": COSINE, "matrix.lr": lambda step: 0.2 / (1 + step)}
    ),
    "partition in a branch": by_size,
    "clips": lambda: fo.chain(
        fo.clip_by_global_norm(),
        matrices(fo.chain(fo.trace(), fo.clip_by_global_norm(), fo.scale_by_learning_rate(0.1)), fo.adamw()),
        fo.rename_hparams(fo.clip_by_global_norm(0.2), max_norm="last_norm"),
    ),
    "masked": lambda: fo.chain(fo.scale_by_adam(), decayed_matrices(), fo.scale_by_learning_rate()),
    "masked alone": lambda: fo.masked(fo.sgd(lr=0.1), lambda name, leaf: leaf.ndim > 1),
    "frozen branch": lambda: fo.scheduled(matrices(fo.adamw(), fo.freeze()), lr=COSINE),
    "sums in a branch": lambda: fo.chain(
        matrices(fo.chain(fo.scale(2.0), project()), fo.trace()), fo.scale_by_learning_rate(0.1)
    ),
    "no sum": lambda: fo.chain(matrices(fo.trace(), fo.scale_by_adam()), clip_by_largest(), fo.scale_by_learning_rate(0.1)),
}
WITH_SHAPES = {
    "muon": lambda: matrices(fo.muon(ns_steps=1), fo.adamw()),
    "clip, then muon": lambda: fo.chain(
        fo.clip_by_global_norm(), matrices(fo.scheduled(fo.muon(ns_steps=1), lr=COSINE), fo.adamw()), decayed_matrices()
    ),
    "a norm of both": lambda: fo.chain(matrices(scale_rows(), fo.scale_by_adam()), fo.clip_by_global_norm(), decayed_matrices()),
    "no sum of both": lambda: fo.chain(matrices(fo.trace(), scale_rows()), clip_by_largest(), fo.scale_by_learning_rate(0.1)),
    "rows for all": lambda: fo.chain(matrices(fo.trace(), fo.scale_by_adam()), scale_rows(), fo.scale_by_learning_rate()),
}
ALL = ELEMENTWISE | WITH_SHAPES


def growing_norm(step):
    return 0.5 + 0.1 * step


def made(make, transform, dtype=torch.float64, **hparams):
    shapes = [shape for shape in SHAPES if shape != (0,)] if transform in WITH_SHAPES else SHAPES
    return make(parameters(shapes, dtype), ALL[transform](), **hparams)


def refuse(*args, **kwargs):
    raise AssertionError("the transform was called")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 4000)
    monkeypatch.setattr(rows, "SMALL", 500)


@pytest.fixture
def without_the_transform(monkeypatch):
    """Run optimizers, and fail where one calls its transform."""

    def run_it(*optimizers, **options):
        with monkeypatch.context() as patch:
            patch.setattr(Transform, "update", refuse)
            patch.setattr(stepping, "whole_step", refuse)
            run(*optimizers, **options)

    return run_it


@pytest.mark.parametrize("name", ALL)
def test_fused(name, without_the_transform):
    plain, fused = made(Plain, name), made(Fused, name)
    run(plain)
    without_the_transform(fused)
    assert_same_progress(plain, fused, torch.float64)


@pytest.mark.parametrize("name", [name for name in ALL if name != "rows for all"])
def test_eager(name, without_the_transform):
    plain, eager = made(Plain, name), made(OptimizerAdapter, name)
    run(plain)
    without_the_transform(eager)
    assert_same_progress(plain, eager, torch.float64)


@pytest.mark.parametrize("make", [OptimizerAdapter, Fused])
@pytest.mark.parametrize("name", ["clips", "scheduled branches"])
def test_in_low_precision(name, make):
    plain, other = made(Plain, name, torch.bfloat16), made(make, name, torch.bfloat16)
    run(plain, other, steps=8)
    assert_same_progress(plain, other, torch.bfloat16)


@pytest.mark.parametrize("make", [OptimizerAdapter, Fused])
def test_names_of_the_parameters_choose(make, without_the_transform):
    def optimizer(make):
        named = list(
            zip(("body.weight", "body.bias", "norm.weight"), parameters([(3, 4), (3,), (4,)], torch.float64), strict=True)
        )
        by_name = fo.partition({"norm": fo.sgd(lr=0.1), "rest": fo.adamw()}, fo.by_name({"norm": "norm", ".*": "rest"}))
        return make(named, fo.chain(fo.masked(fo.scale(0.5), {"body.bias": True}), by_name))

    plain, other = optimizer(Plain), optimizer(make)
    run(plain)
    without_the_transform(other)
    assert_same_progress(plain, other, torch.float64)


@pytest.mark.parametrize("make", [Plain, OptimizerAdapter, Fused])
def test_a_clock_around_a_branch_with_a_clock(make):
    """Each runs for all parameters alike, also for those that sit out, or don't go through it but keep it for others."""
    branches = matrices(fo.sgd(), fo.scheduled(fo.sgd(), lr=lambda step: 0.1 * step))
    transform = fo.scheduled(branches, **{"matrix.lr": lambda step: 1.0 + step})
    matrix, vector = parameters([(2, 2), (3,)], torch.float64)
    start = [matrix.detach().clone(), vector.detach().clone()]
    optimizer = make([matrix, vector], transform)
    for step in range(6):
        matrix.grad, vector.grad = torch.ones_like(matrix) if step % 3 else None, torch.ones_like(vector)
        optimizer.step()
    torch.testing.assert_close(matrix.detach(), start[0] - (2 + 3 + 5 + 6))
    torch.testing.assert_close(vector.detach(), start[1] - 0.1 * (1 + 2 + 3 + 4 + 5))
    clocks = [list(map(int, optimizer.state[p].values())) for p in (matrix, vector)]
    assert clocks == [[6, 6], [6, 6]] and "schedule_step" in optimizer.state[matrix].keys() & optimizer.state[vector].keys()


# Hyper-parameters: those of a branch, those that all share, defaults, groups.


@pytest.mark.parametrize("make", [OptimizerAdapter, Fused])
def test_a_branch_has_its_own_value_or_the_common_one_or_its_default(make, without_the_transform):
    plain, other = made(Plain, "partition in a branch"), made(make, "partition in a branch")
    own, inner = {"matrix.lr": 0.5}, {"rest.odd.lr": 0.7}
    further = {"rest.lr": 0.05, "matrix.betas": (0.5, 0.6), "max_norm": 0.1}
    for step, given in enumerate([{}, own, {"lr": 0.3}, inner, further]):
        for optimizer in (plain, other):
            optimizer.param_groups[0].update(given)
        run(plain, steps=2, first=2 * step)
        without_the_transform(other, steps=2, first=2 * step)
        assert_same_progress(plain, other, torch.float64)


@pytest.mark.parametrize("make", [OptimizerAdapter, Fused])
def test_groups_cut_across_branches(make, without_the_transform):
    def optimizer(make):
        p = parameters(SHAPES, torch.float64)
        groups = [{"params": p[::2], "lr": 0.1, "rest.lr": 0.2}, {"params": p[1::2], "weight_decay": 0.3, "rest.lr": 0.01}]
        return make(groups, ELEMENTWISE["clips"](), lr=0.05)

    plain, other = optimizer(Plain), optimizer(make)
    run(plain)
    without_the_transform(other)
    assert_same_progress(plain, other, torch.float64)


@pytest.mark.parametrize("make", [Plain, OptimizerAdapter, Fused])
def test_groups_that_disagree_on_what_is_given_are_refused(make):
    p = parameters([(3, 4), (5,), (4, 4)], torch.float64)
    optimizer = make([{"params": p[:2]}, {"params": p[2:]}], ELEMENTWISE["two branches"]())
    run(optimizer, steps=2)
    optimizer.param_groups[0]["matrix.lr"] = 0.5
    before = copy.deepcopy(p)
    with pytest.raises(ValueError, match=r"some groups give 'matrix.lr' and others don't"):
        run(optimizer, steps=1)
    assert all(map(torch.equal, before, p))
    p[2].grad = None  # What a group says counts where it has gradients.
    optimizer.step()


# Counts.


@pytest.mark.parametrize("name", ["scheduled branches", "branches with schedules", "clips", "clip, then muon"])
@pytest.mark.parametrize("make", [OptimizerAdapter, Fused])
def test_frozen_and_late_parameters_have_counts_of_their_own_and_clocks_for_all(name, make):
    plain, other = made(Plain, name), made(make, name)
    for step in range(10):
        set_gradients(step, params_of(plain), params_of(other))
        for optimizer in (plain, other):
            for i, p in enumerate(params_of(optimizer)):
                if i == 2 or (i in (0, 3) and step < 3) or (i == 1 and step % 3 == 0):
                    p.grad = None
            optimizer.step()
    assert_same_progress(plain, other, torch.float64)
    assert not other.state[params_of(other)[2]]
    if name == "scheduled branches":
        assert [int(other.state[params_of(other)[i]]["schedule_step"]) for i in (0, 1, 4)] == [10, 10, 10]
        assert [int(other.state[params_of(other)[i]]["step"]) for i in (0, 1, 4)] == [7, 6, 10]


@pytest.mark.parametrize("make", [OptimizerAdapter, Fused])
def test_a_clock_that_is_set_is_seen(make):
    plain, other = made(Plain, "scheduled branches"), made(make, "scheduled branches")
    run(plain, other, steps=2)
    for optimizer in (plain, other):
        optimizer.state[params_of(optimizer)[1]]["schedule_step"].fill_(11.0)
    run(plain, other, steps=2, first=2)
    assert_same_progress(plain, other, torch.float64)


@pytest.mark.parametrize("make", [OptimizerAdapter, Fused])
def test_a_schedule_may_return_a_tensor_that_changes(make):
    value = torch.tensor(0.1)
    transform = fo.scheduled(fo.sgd(), lr=lambda step: value)
    plain, other = (m(parameters(SHAPES, torch.float64), transform) for m in (Plain, make))
    run(plain, other, steps=4)
    value.fill_(0.5)
    run(plain, other, steps=2, first=4)
    assert_same_progress(plain, other, torch.float64)


def test_checkpoints_go_round():
    """From one to the next and on, through what a file keeps."""
    optimizers = [made(make, "scheduled branches") for make in (Plain, OptimizerAdapter, Fused)]
    run(*optimizers, steps=3)
    for first in (3, 6, 9):
        saved = [pickle.loads(pickle.dumps(optimizer.state_dict())) for optimizer in optimizers]
        for optimizer, found in zip(optimizers, saved[1:] + saved[:1], strict=True):
            optimizer.load_state_dict(found)
        run(*optimizers, steps=3, first=first)
    for optimizer in optimizers[1:]:
        assert_same_progress(optimizers[0], optimizer, torch.float64)


def failing(step):
    if step >= 3:
        raise LookupError(f"no value for step {step}")
    return 0.1


@fo.per_tensor(slots=("m",))
def failing_from_the_third_step(hp, t):
    if t > 2:
        raise ValueError(f"no more than 2 steps, but this is number {t}")
    return lambda u, p, m: (u + m, u)


def test_a_rule_for_shapes_that_raises_changes_nothing():
    eager = OptimizerAdapter(parameters(SHAPES), fo.chain(matrices(failing_from_the_third_step(), fo.adamw()), fo.scale(0.1)))
    run(eager, steps=2)
    before = copy.deepcopy([[q, *eager.state[q].values()] for q in params_of(eager)])
    with pytest.raises(ValueError, match="no more than 2 steps, but this is number 3"):
        run(eager, steps=1)
    after = [[q, *eager.state[q].values()] for q in params_of(eager)]
    assert all(torch.equal(x, y) for xs, ys in zip(before, after, strict=True) for x, y in zip(xs, ys, strict=True))


@pytest.mark.parametrize("make", [Plain, OptimizerAdapter, Fused])
def test_a_schedule_that_raises_changes_nothing(make):
    p = parameters(SHAPES, torch.float64)
    optimizer = make(p, matrices(fo.adamw(), fo.scheduled(fo.sgd(momentum=0.9), lr=failing)))
    run(optimizer, steps=3)
    before = copy.deepcopy([[q, *optimizer.state[q].values()] for q in p])
    with pytest.raises(LookupError, match="no value for step 3"):
        run(optimizer, steps=1)
    after = [[q, *optimizer.state[q].values()] for q in p]
    assert all(torch.equal(x, y) for xs, ys in zip(before, after, strict=True) for x, y in zip(xs, ys, strict=True))


# What is left to the transform.


@pytest.mark.parametrize("wrap", [by_hand, lambda: fo.mechanize(fo.sgd())], ids=["by hand", "mechanize"])
def test_what_is_no_rule_in_a_branch_warns_once(wrap):
    plain, fused = (make(parameters([(3, 4), (5,)]), matrices(wrap(), fo.adamw())) for make in (Plain, Fused))
    with pytest.warns(UserWarning, match="fused=True, but matrix.* is no rule for one tensor") as caught:
        run(plain, fused, steps=4)
    assert len(caught) == 1
    assert_same_progress(plain, fused)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["scheduled branches", "clips", "clip, then muon"])
def test_on_a_gpu(name):
    plain, fused = made(Plain, name), made(Fused, name)
    for optimizer in (plain, fused):
        for p in params_of(optimizer):
            p.data = p.data.cuda()
    run(plain, fused)
    assert ways(fused) == {"COMPILED"}
    assert_same_progress(plain, fused, torch.float64)
