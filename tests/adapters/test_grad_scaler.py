"""Scaled losses: `torch.amp.GradScaler` over every engine, beside the same gradients without a scale."""

import copy

import pytest
import torch
from engines import Plain, assert_same_progress, by_hand, parameters, params_of, scale_rows, set_gradients

import functional_optim as fo
from functional_optim.adapters import SGD, AdamW, OptimizerAdapter

# A power of 2 takes no digit.
SCALE = 2.0**12

# Each looks at gradients in a way of its own: a norm, a number kept, a sum of gradients, a gate, a whole tensor, all trees.
TRANSFORMS = {
    "clip": lambda: fo.chain(fo.clip_by_global_norm(), fo.adamw()),
    "monitor": lambda: fo.chain(fo.monitor("grad"), fo.sgd(momentum=0.9)),
    "accumulate": lambda: fo.accumulate(fo.sgd(momentum=0.9), every=2),
    "gate": lambda: fo.apply_if_finite(fo.adamw()),
    "clock": lambda: fo.scheduled(fo.adamw(), lr=fo.cosine(0.1, 0.0, 10)),
    "compares": lambda: fo.chain(fo.cautious(fo.scale_by_lion()), fo.scale_by_learning_rate()),
    "per tensor": lambda: fo.chain(fo.clip_by_value(0.5), scale_rows(), fo.scale_by_learning_rate()),
    "by hand": lambda: fo.chain(by_hand(), fo.scale_by_learning_rate()),
}
FULL = [name for name in TRANSFORMS if name not in ("clip", "gate", "by hand")]
WAYS = {
    "fused": lambda params, tx: OptimizerAdapter(params, tx, fused=True),
    "lists": OptimizerAdapter,
    "whole": Plain,
}


def states_of(optimizer):
    return copy.deepcopy([params_of(optimizer), [optimizer.state[p] for p in params_of(optimizer)]])


def is_full(name, way):
    return name in FULL or (way == "fused" and name != "clip")


CASES = [pytest.param(name, way, marks=[pytest.mark.full] * is_full(name, way)) for name in TRANSFORMS for way in WAYS]


@pytest.mark.filterwarnings("ignore:fused=True, but")
@pytest.mark.parametrize(("name", "way"), CASES)
def test_rules_see_true_gradients_and_a_step_with_an_infinite_one_does_not_count(name, way):
    plain, scaled = (WAYS[way](parameters([(3, 4), (150, 100), (7,)]), TRANSFORMS[name]()) for _ in range(2))
    for step in range(5):
        set_gradients(step, params_of(plain), params_of(scaled))
        scaled.grad_scale, scaled.found_inf = torch.tensor(SCALE), torch.tensor(float(step == 2))
        for p in params_of(scaled):
            p.grad.mul_(SCALE)
        if step == 2:
            params_of(scaled)[0].grad[0] = float("inf")
            before = states_of(scaled)
            scaled.step()
            torch.testing.assert_close(states_of(scaled), before, rtol=0, atol=0)
        else:
            plain.step()
            scaled.step()
    assert_same_progress(scaled, plain)


@pytest.mark.parametrize(("ours", "theirs"), [(AdamW, torch.optim.AdamW), (SGD, torch.optim.SGD)], ids=["AdamW", "SGD"])
@pytest.mark.parametrize("unscales", [False, True])
def test_a_scaler_finds_in_them_what_it_finds_in_torchs(ours, theirs, unscales):
    """Its scale falls at the same steps, and the parameters are the same; also where `unscale_` was called, to clip by hand."""
    torch.manual_seed(0)  # Steps of one length circle around a minimum: from a start in twenty, rounding grows beyond 1e-6.
    model = torch.nn.Linear(5, 3)
    models = [model, copy.deepcopy(model)]
    optimizers = [make(m.parameters(), lr=0.1, fused=True) for make, m in zip((ours, theirs), models, strict=True)]
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**100, growth_interval=3) for _ in models]
    for step in range(60):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        for m, optimizer, scaler in zip(models, optimizers, scalers, strict=True):
            optimizer.zero_grad()
            scaler.scale(m(x).square().sum() * 1e10).backward()
            kept = [p.grad.clone() for p in m.parameters()]
            if unscales:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
            scaler.step(optimizer)
            if not unscales and m is models[0]:  # torch's kernel writes the gradients, unscaled.
                torch.testing.assert_close([p.grad for p in m.parameters()], kept, rtol=0, atol=0, equal_nan=True)
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
    assert optimizers[0].state[models[0].weight].get("step", torch.ones(())) > 0
    torch.testing.assert_close(list(models[0].parameters()), list(models[1].parameters()), rtol=1e-5, atol=1e-6)


def test_only_fused_steps_take_unscaling_over():
    """What clips between `unscale_` and `step`, as Lightning does, asks for this, and refuses those."""
    assert not OptimizerAdapter(parameters(), fo.adamw())._step_supports_amp_scaling
    assert OptimizerAdapter(parameters(), fo.adamw(), fused=True)._step_supports_amp_scaling
    assert AdamW([{"params": parameters(), "fused": True}])._step_supports_amp_scaling


def test_float16_gradients_are_unscaled_in_float32():
    """In float16 they would be 0."""
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.float16))
    optimizer = OptimizerAdapter([p], fo.scale_by_adam(eps=0.0, state_dtype=torch.float32), fused=True)
    p.grad = torch.full_like(p, 2.0**-8)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0**20), torch.tensor(0.0)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], torch.full((4,), 0.1 * 2.0**-28))
