"""Parameters that have a gradient in some steps only, and groups with numbers of their own: nothing is planned anew, and the
numbers are those of calling the transform."""

import random

import pytest
import torch
from engines import Plain, assert_same_progress, parameters, params_of

import functional_optim as fo
from functional_optim.adapters import AdamW, OptimizerAdapter
from functional_optim.adapters.engine import step, trace
from functional_optim.adapters.engine.backends import foreach

SHAPES = [(3, 4), (40, 30), (), (7,), (0,), (1,), (2, 3, 5), (5,), (6, 2), (9,), (200, 100)]

CHAINS = {
    "adamw": lambda: fo.adamw(eps=0.1),
    "momentum": lambda: fo.sgd(momentum=0.9, weight_decay=0.1),
    "no slots": lambda: fo.sgd(0.1),
    "clip": lambda: fo.chain(fo.clip_by_global_norm(), fo.adamw(eps=0.1)),
    "a warm-up of its own": lambda: fo.chain(fo.scale_by_radam(), fo.scale_by_learning_rate()),
    "a schedule": lambda: fo.scheduled(fo.adamw(eps=0.1), lr=fo.warmup_cosine(0.1, 4, 20)),
    "numbers by leaf": lambda: fo.chain(fo.cautious(fo.scale_by_lion()), fo.scale_by_learning_rate()),
    "a monitor": lambda: fo.chain(fo.monitor("grad"), fo.adamw(eps=0.1)),
    "matrices": lambda: fo.partition(
        {"matrix": fo.chain(fo.scale_by_muon(), fo.scale_by_learning_rate()), "rest": fo.adamw(eps=0.1)},
        fo.by_ndim({2: "matrix"}, otherwise="rest"),
    ),
    "a partition": lambda: fo.partition(
        {"matrix": fo.chain(fo.scale_by_adam(eps=0.1), fo.scale_by_learning_rate()), "rest": fo.sgd(0.1, momentum=0.9)},
        fo.by_ndim({2: "matrix"}, otherwise="rest"),
    ),
}


def fused(params, transform, **hparams):
    return OptimizerAdapter(params, transform, fused=True, **hparams)


def some_gradients(t, optimizers, share=0.5):
    """The same random ones for all."""
    generator, chosen = torch.Generator().manual_seed(t), random.Random(t)
    for columns in zip(*map(params_of, optimizers), strict=True):
        has, g = chosen.random() < share, torch.randn(columns[0].shape, generator=generator, dtype=columns[0].dtype)
        for p in columns:
            p.grad = g.clone() if has else None


def walked(optimizers, steps=12, share=0.5):
    for t in range(steps):
        some_gradients(t, optimizers, share)
        for optimizer in optimizers:
            optimizer.step()


def in_groups(shapes=SHAPES, dtype=torch.float64, size=2):
    params = parameters(shapes, dtype)
    return [{"params": params[i : i + size], "lr": 0.01 * (i + 1)} for i in range(0, len(params), size)]


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("make", [OptimizerAdapter, fused])
def test_any_parameters_may_sit_a_step_out(name, make):
    plain, other = (kind(parameters(SHAPES, torch.float64), CHAINS[name]()) for kind in (Plain, make))
    walked([plain, other])
    assert_same_progress(plain, other, torch.float64)


@fo.elementwise(slots=("m",), hparams={"lr": 0.1})
def eager_at_first(hp, t):
    """A rule that asks how many updates there have been."""
    factor = 1.0 if t > 3 else 0.25

    def rule(g, p, m):
        m = 0.5 * m + g
        return -hp["lr"] * factor * m, m

    return rule


def test_a_rule_may_get_other_answers_for_some_parameters():
    plain, other = (kind(parameters(SHAPES, torch.float64), eager_at_first()) for kind in (Plain, OptimizerAdapter))
    walked([plain, other])
    assert_same_progress(plain, other, torch.float64)
    assert not any(stage.reason for stage in other.explain().stages), "no way was refused"


@pytest.mark.parametrize("name", ["adamw", "momentum", "a warm-up of its own", "clip", "a schedule", "numbers by leaf"])
@pytest.mark.parametrize("make", [OptimizerAdapter, fused])
@pytest.mark.parametrize("size", [1, 4])
def test_groups_step_together_with_their_own_numbers(name, make, size):
    plain, other = (kind(in_groups(size=size), CHAINS[name]()) for kind in (Plain, make))
    walked([plain, other], share=0.7)
    assert_same_progress(plain, other, torch.float64)
    plan = next(iter(other._steps.values())).plan
    small = [part for part in plan.parts if part.leaves[0].param.numel() in range(1, 500) and part.leaves[0].param.ndim < 2]
    assert len(small) < len(SHAPES) // 2, "groups are no reason to be apart"


@pytest.mark.parametrize("make", [AdamW, lambda p: AdamW(p, fused=True)])
def test_as_torch(make):
    ours, theirs = make(parameters(SHAPES, torch.float64)), torch.optim.AdamW(parameters(SHAPES, torch.float64))
    walked([ours, theirs])
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)
        assert ours.state[p].get("step", 0) == theirs.state[q].get("step", 0)


@pytest.mark.parametrize("make", [OptimizerAdapter, fused])
def test_nothing_is_planned_anew_once_everybody_has_been_there(make, monkeypatch):
    optimizer = make(parameters(SHAPES), fo.chain(fo.clip_by_global_norm(), fo.adamw()))
    walked([optimizer], share=1.0, steps=2)
    walked([optimizer])
    monkeypatch.setattr(step, "PlannedStep", None)
    monkeypatch.setattr(trace, "trace", None)
    programs = []
    monkeypatch.setattr(foreach, "program_of", lambda *given: programs.append(given))
    walked([optimizer])
    assert not programs


def test_one_program_serves_any_counts(monkeypatch):
    """Of a hundred updates of a rule that asks for nothing, a program for numbers and one for columns of them."""
    written, program_of = [], foreach.program_of
    monkeypatch.setattr(foreach, "program_of", lambda *given: written.append(given) or program_of(*given))
    optimizer = OptimizerAdapter(parameters([(3,)] * 12), fo.adamw())
    walked([optimizer], steps=1, share=1.0)
    walked([optimizer], steps=40)
    assert len(written) == 2


def test_a_gradient_of_another_layout_that_goes_and_comes():
    plain, other = (kind(parameters([(3, 4), (5, 6)], torch.float64), fo.adamw(eps=0.1)) for kind in (Plain, OptimizerAdapter))
    for t in range(6):
        some_gradients(t, [plain, other], 1.0)
        for optimizer in (plain, other):
            p, q = params_of(optimizer)
            p.grad = None if t % 3 == 1 else p.grad.t().contiguous().t()
            q.grad = None if t % 3 == 2 else q.grad
            optimizer.step()
    assert_same_progress(plain, other, torch.float64)


def test_of_a_parameter_without_a_gradient_nothing_is_kept_alive_or_counted():
    optimizer = AdamW(parameters([(3,), (4,)]))
    some_gradients(0, [optimizer], 1.0)
    optimizer.step()
    p, q = params_of(optimizer)
    q.grad, version, slots = None, q._version, [x.clone() for x in optimizer.state[q].values()]
    optimizer.step()
    assert q._version == version and all(map(torch.equal, optimizer.state[q].values(), slots))
    assert optimizer.state[p]["step"] == 2


@pytest.mark.parametrize("gate", [fo.apply_if_finite, fo.skip_large_updates])
@pytest.mark.parametrize("late", [0, 1])
def test_a_gate_in_a_branch_that_has_no_gradient_yet(gate, late):
    """It looks at gradients, and in the first steps there are none of its branch."""
    tx = fo.partition({"matrix": gate(fo.adamw(eps=0.1)), "rest": fo.sgd(0.1)}, fo.by_ndim({2: "matrix"}, otherwise="rest"))
    optimizers = [make(parameters([(3, 4), (5,)], torch.float64), tx) for make in (OptimizerAdapter, Plain)]
    for t in range(4):
        some_gradients(t, optimizers, share=1.0)
        if t <= late:
            for optimizer in optimizers:
                params_of(optimizer)[0].grad = None
        for optimizer in optimizers:
            optimizer.step()
        assert_same_progress(*optimizers, torch.float64)
