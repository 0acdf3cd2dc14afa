"""Parameters of low precision with a float32 copy: it is trained as if it were alone, and they are it, rounded."""

import functools
import warnings

import pytest
import torch
from engines import Plain, assert_close, assert_same_progress, parameters, params_of, run, ways

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter

LOW = [torch.float16, torch.bfloat16]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def train(tx, p, gradients):
    state = tx.init_state(p)
    for g in gradients:
        update, state = tx.update(g, state, p)
        p = fo.apply_updates(p, update)
    return p, state


@pytest.mark.parametrize("dtype", LOW)
def test_the_copy_is_what_float32_training_gives(dtype):
    p = randn(1000).to(dtype)
    gradients = [randn(1000, seed=seed).to(dtype) for seed in range(50)]
    low, state = train(fo.with_master_copy(fo.adamw(lr=1e-3)), p, gradients)
    full, alone = train(fo.adamw(lr=1e-3), p.float(), [g.float() for g in gradients])
    assert torch.equal(state["fp32_copy"], full)
    assert torch.equal(state["adamw"]["scale_by_adam"]["exp_avg"], alone["scale_by_adam"]["exp_avg"])
    assert low.dtype == dtype and state["fp32_copy"].dtype == torch.float32
    # The copy, rounded; but where it lies at a tie, to 2⁻⁸ of the last way, or 2⁻¹¹, the other neighbour is as near.
    off = low != full.to(dtype)
    assert off.float().mean() < 0.01
    unit = torch.finfo(dtype).eps * full.abs()
    assert ((low.float() - full).abs() <= 0.51 * unit + torch.finfo(dtype).tiny).all()


def test_steps_too_small_for_the_parameter_add_up():
    p = torch.ones((), dtype=torch.bfloat16)
    gradients = [torch.ones_like(p)] * 1000
    # bfloat16 has nothing between 1 - 2⁻⁸ and 1: a step of 1e-4 is lost.
    assert train(fo.sgd(lr=1e-4), p, gradients)[0] == 1.0
    low, state = train(fo.with_master_copy(fo.sgd(lr=1e-4)), p, gradients)
    # A thousand float32 roundings of 3e-8, all one way.
    assert state["fp32_copy"].item() == pytest.approx(0.9, abs=3e-5)
    assert low == torch.tensor(0.9).bfloat16()


def test_what_a_step_cannot_reach_the_next_one_does():
    # From 1 to −0.3: the way of −1.3 has a coarser grid in float16 than −0.3 has.
    p, target = torch.tensor(1.0, dtype=torch.float16), 0.3001
    tx = fo.with_master_copy(fo.sgd(lr=1.0))
    p, state = train(tx, p, [torch.tensor(1.0 + target, dtype=torch.float16)])
    first = (p.float() - state["fp32_copy"]).abs()
    update, state = tx.update(torch.zeros_like(p), state, p)
    second = (fo.apply_updates(p, update).float() - state["fp32_copy"]).abs()
    assert second <= first and second <= 2**-13


def test_tampering_with_the_parameter_is_undone():
    # The copy is the truth: whatever the parameter has become, the update leads to it.
    p = randn(10).half()
    tx = fo.with_master_copy(fo.sgd(lr=0.0))
    state = tx.init_state(p)
    update, _ = tx.update(torch.ones_like(p), state, p + 0.125)
    assert torch.equal(fo.apply_updates(p + 0.125, update), p)


def test_a_float64_parameter_is_its_own_copy():
    p, gradients = randn(20).double(), [randn(20, seed=seed).double() for seed in range(20)]
    with_copy, state = train(fo.with_master_copy(fo.adam()), p, gradients)
    assert state["fp32_copy"].dtype == torch.float64
    # w - p and back: two roundings.
    torch.testing.assert_close(with_copy, train(fo.adam(), p, gradients)[0], rtol=1e-14, atol=1e-15)


def test_it_needs_the_parameters():
    p = torch.ones(2)
    tx = fo.with_master_copy(fo.sgd())
    with pytest.raises(ValueError, match="with_master_copy needs the parameters"):
        tx.update(p, tx.init_state(p))


def test_a_parameter_without_gradient_keeps_its_copy():
    params = {"a": torch.ones(2, dtype=torch.float16), "b": torch.ones(2, dtype=torch.float16)}
    tx = fo.with_master_copy(fo.adam(lr=0.1))
    updates, state = tx.update({"a": torch.ones(2, dtype=torch.float16), "b": None}, tx.init_state(params), params)
    assert updates["b"] is None and torch.equal(state["fp32_copy"]["b"], torch.ones(2))
    assert not torch.equal(state["fp32_copy"]["a"], torch.ones(2))


@pytest.mark.parametrize("dtype", LOW)
def test_behind_the_adapter_groups_counts_and_checkpoints(dtype):
    def make():
        p, q = (torch.nn.Parameter(randn(4, seed=seed).to(dtype)) for seed in (1, 2))
        return [p, q], OptimizerAdapter([{"params": p, "lr": 0.1}, {"params": q}], fo.with_master_copy(fo.adamw()), lr=0.01)

    (p, q), optimizer = make()
    alone = [torch.nn.Parameter(x.detach().float()) for x in (p, q)]
    reference = torch.optim.AdamW([{"params": alone[:1], "lr": 0.1}, {"params": alone[1:]}], lr=0.01)
    for t in range(10):
        for i, (x, y) in enumerate(zip((p, q), alone, strict=True)):
            x.grad = randn(4, seed=10 * t + i).to(dtype) if i == 0 or t % 2 else None
            y.grad = None if x.grad is None else x.grad.float()
        optimizer.step()
        reference.step()
        if t == 5:
            (r, s), fresh = make()
            fresh.load_state_dict(optimizer.state_dict())
            with torch.no_grad():
                r.copy_(p)
                s.copy_(q)
            (p, q), optimizer = (r, s), fresh
    for x, y in zip((p, q), alone, strict=True):
        # Ten float32 steps, AdamW's factor 1 - lr·λ rounded otherwise.
        torch.testing.assert_close(optimizer.state[x]["fp32_copy"], y.detach(), rtol=2e-6, atol=1e-6)
        assert optimizer.state[x]["step"] == reference.state[y]["step"]
        torch.testing.assert_close(x.detach().float(), y.detach(), rtol=torch.finfo(dtype).eps, atol=0)


INSIDE_AND_OUTSIDE = {
    "alone": lambda: fo.with_master_copy(fo.adamw(eps=0.1)),
    "a rule before, which sees the parameter": lambda: fo.chain(
        fo.clip_by_global_norm(), fo.subtract_decayed_weights(0.1), fo.with_master_copy(fo.sgd(momentum=0.9))
    ),
    "a sum inside": lambda: fo.with_master_copy(fo.chain(fo.clip_by_global_norm(), fo.adamw(eps=0.1))),
    "rules with shapes inside": lambda: fo.with_master_copy(
        fo.chain(fo.trace(), fo.scale_by_trust_ratio(), fo.centralize(), fo.scale_by_learning_rate(0.1))
    ),
    "in a gate": lambda: fo.accumulate(fo.with_master_copy(fo.adamw(eps=0.1)), every=2),
    "a gate inside": lambda: fo.with_master_copy(fo.accumulate(fo.adamw(eps=0.1), every=2)),
    "in a branch": lambda: fo.partition(
        {"matrix": fo.with_master_copy(fo.adamw(eps=0.1)), "rest": fo.sgd(momentum=0.9)}, fo.by_ndim({2: "matrix"}, "rest")
    ),
    "what is called inside": lambda: fo.with_master_copy(fo.chain(fo.trace(0.5), fo.mechanize(fo.adam(eps=0.1)))),
}
# What is done afterwards concerns the parameter: there the wrapper is called as it is.
CALLED = {
    "a rule after": lambda: fo.chain(fo.with_master_copy(fo.adamw(eps=0.1)), fo.scale(0.5)),
    "norms": lambda: fo.log_norms(fo.with_master_copy(fo.adamw(eps=0.1))),
    "a copy of a copy": lambda: fo.with_master_copy(fo.with_master_copy(fo.adamw(eps=0.1))),
}


@pytest.mark.parametrize("name", INSIDE_AND_OUTSIDE | CALLED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [OptimizerAdapter, functools.partial(OptimizerAdapter, fused=True)], ids=["lists", "kernels"])
@pytest.mark.filterwarnings("ignore:fused=True, but")
def test_engines_step_the_copy_itself(name, dtype, make):
    make_transform = (INSIDE_AND_OUTSIDE | CALLED)[name]
    plain, other = (each(parameters([(3, 4), (150, 100), (), (0,)], dtype), make_transform()) for each in (Plain, make))
    run(plain, other, steps=6)
    assert_same_progress(plain, other, dtype)
    for p, q in zip(params_of(plain), params_of(other), strict=True):
        assert_close(
            [plain.state[p].get("fp32_copy", p)], [other.state[q].get("fp32_copy", q)], torch.promote_types(dtype, torch.float32)
        )
    called = {link.transform.name for step in other._steps.values() if step.plan for link in step.plan.links if link.rule is None}
    assert ("with_master_copy" in called) == (name in CALLED) or ways(other) == {"WHOLE"}


def test_the_copy_is_read_once_more_than_a_parameter():
    """AdamW of bfloat16: gradient 2, copy and two slots of 4 read and written; then the copy once more, and the parameter."""
    optimizer = OptimizerAdapter(parameters([(3, 4)], torch.bfloat16), fo.with_master_copy(fo.adamw()))
    run(optimizer, steps=1)
    (row,) = optimizer.explain().stages
    assert (row.reads, row.writes) == (2 + 12 + 4, 12 + 2)


@pytest.mark.parametrize("fused", [False, True])
def test_a_parameter_that_nothing_inside_concerns_steps_its_copy(fused):
    """A hundred steps of 1e-3 from 1: each is too small for bfloat16, where the parameter would stand still."""
    only_matrices = fo.masked(fo.clip_by_value(10.0), lambda name, leaf: leaf.ndim > 0)
    tx = fo.chain(fo.scale_by_learning_rate(1e-3), fo.with_master_copy(only_matrices))
    params = [torch.nn.Parameter(torch.ones(shape, dtype=torch.bfloat16)) for shape in ((2,), ())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The wrapper is called, which `fused` tells.
        optimizer = OptimizerAdapter(params, tx, fused=fused)
        for _ in range(100):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
    for p in params:
        torch.testing.assert_close(optimizer.state[p]["fp32_copy"], torch.full(p.shape, 0.9), rtol=1e-5, atol=0.0)
        torch.testing.assert_close(p.detach(), torch.full(p.shape, 0.9, dtype=torch.bfloat16), rtol=0.01, atol=0.0)


@pytest.mark.parametrize("dtype, tie", [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)])
def test_update_is_as_near_as_its_dtype_lets_it_be_and_step_is_nearest(dtype, tie):
    p, g, tx = randn(10_000).to(dtype), randn(10_000, seed=1).to(dtype), fo.with_master_copy(fo.adamw(lr=0.02))
    state = tx.init_state(p)
    update, new = tx.update(g, state, p)
    moved, copy = p + update, new["fp32_copy"]
    nearest, way = copy.to(dtype), (copy - p.float()).abs()
    off = moved != nearest
    middle = (moved.double() + nearest.double()) / 2
    assert ((middle - copy).abs() <= tie * way)[off].all() and off.any()
    assert torch.equal(tx.step(g, state, p)[0], nearest)
