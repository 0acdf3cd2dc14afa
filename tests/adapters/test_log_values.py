"""The numbers that a run is worth watching for: the right ones, told apart, and neither read nor copied."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import functional_optim as fo
from functional_optim.adapters import AdamW, OptimizerAdapter, log_values

PARAMS = {"w": torch.tensor([3.0, 4.0]), "b": torch.tensor([12.0])}


def floats(values):
    return {name: float(value) for name, value in values.items()}


def after(tx, steps, hparams=None):
    """The state after some steps with the parameters as gradients."""
    state = tx.init_state(PARAMS, hparams)
    for _ in range(steps):
        _, state = tx.update(PARAMS, state, PARAMS, hparams)
    return state


def test_what_a_chain_shows_is_what_was_computed():
    schedule = fo.linear(0.5, 0.1, 4)
    tx = fo.chain(fo.monitor("grad"), fo.clip_by_global_norm(max_norm=1.0), fo.monitor("clipped"))
    tx = fo.accumulate(fo.scheduled(fo.chain(tx, fo.scale_by_learning_rate()), lr=schedule), every=2)
    values = floats(fo.log_values(tx, after(tx, 5)))
    assert values == {
        "max_norm": 1.0,
        "lr": schedule(2),
        "micro_step": 1.0,
        "gradient_step": 2.0,
        "schedule_step": 2.0,
        "grad_norm": 13.0,
        "clipped_norm": pytest.approx(1.0, abs=1e-6),  # float32
    }


def test_pairs_and_values_per_leaf_have_a_name_each():
    tx = fo.adam(betas=(0.8, 0.99))
    values = floats(fo.log_values(tx, after(tx, 1), {"lr": fo.PerLeaf({"w": 0.1, "b": 0.2})}))
    assert {name: values[name] for name in ("betas.0", "betas.1", "lr.w", "lr.b")} == {
        "betas.0": 0.8,
        "betas.1": 0.99,
        "lr.w": 0.1,
        "lr.b": 0.2,
    }


def test_what_has_the_same_name_is_told_apart_as_in_state_get():
    branches = {"a": fo.chain(fo.monitor("grad"), fo.sgd(lr=0.1)), "b": fo.chain(fo.monitor("grad"), fo.sgd(lr=0.2))}
    tx = fo.partition(branches, fo.by_name({"w": "a", "": "b"}))
    state = after(tx, 1)
    values = fo.log_values(tx, state)
    assert floats(values) == {"a.lr": 0.1, "b.lr": 0.2, "a.monitor_grad.grad_norm": 5.0, "b.monitor_grad.grad_norm": 12.0}
    assert fo.state_get(state, "a.monitor_grad.grad_norm") is values["a.monitor_grad.grad_norm"]


def test_an_entry_of_the_state_does_not_hide_a_hyper_parameter():
    @fo.whole_tree(shared={"lr": 7.0}, hparams={"lr": 0.5})
    def odd(hp):
        return lambda gs, ps, shared: (gs, shared)

    tx = fo.chain(odd())
    assert floats(fo.log_values(tx, after(tx, 1))) == {"lr": 0.5, "odd.lr": 7.0}


@pytest.mark.parametrize(
    "tx",
    [
        fo.chain(fo.monitor("grad"), fo.scheduled(fo.adamw(), lr=fo.warmup_cosine(0.1, 2, 9))),
        fo.skip_large_updates(fo.prodigy()),
        fo.mechanize(fo.sgd()),
    ],
    ids=lambda tx: tx.name,
)
def test_nothing_is_read(tx):
    on_meta = {name: p.to("meta") for name, p in PARAMS.items()}  # where there is nothing to read
    state = tx.init_state(on_meta)
    assert all(value.shape == () for value in fo.log_values(tx, state).values())


def test_numbers_under_vmap_stay_batched():
    def logged(lr):
        return fo.log_values(fo.scale_by_learning_rate(), {}, {"lr": 2 * lr})["lr"]

    assert torch.vmap(logged)(torch.tensor([1.0, 2.0])).tolist() == [2.0, 4.0]


def test_a_state_of_another_transform_is_an_error():
    with pytest.raises(ValueError, match="not one of scheduled|not one of sgd"):
        fo.log_values(fo.scheduled(fo.sgd(), lr=fo.constant(0.1)), {})


# Behind an optimizer.


class NothingLarge(TorchDispatchMode):
    """Fails where anything makes a tensor of more than one element."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        assert not isinstance(out, torch.Tensor) or out.numel() <= 1 or out._base is not None, func
        return out


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def step(net, optimizer, times=1):
    for _ in range(times):
        optimizer.zero_grad()
        net(torch.ones(5, 3)).square().mean().backward()
        optimizer.step()


def chained():
    tx = fo.chain(fo.monitor("grad"), fo.clip_by_global_norm(), fo.adamw(), fo.monitor())
    return fo.accumulate(fo.scheduled(tx, lr=fo.linear(0.1, 0.0, 10)), every=2)


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_shows_what_the_function_does_and_makes_nothing_large(fused):
    net, tx = model(), chained()
    optimizer = OptimizerAdapter(net.named_parameters(), tx, fused=fused)
    step(net, optimizer, 3)
    with NothingLarge():
        values = log_values(optimizer)
    run = fo.adapters.functional_state(optimizer)
    expected = fo.log_values(fo.adapters.transform_of(optimizer), run.state, run.hparams)
    assert floats(values) == pytest.approx(floats(expected), rel=1e-12)
    assert floats(values)["lr"] == pytest.approx(0.09) and floats(values)["micro_step"] == 1
    norm = torch.stack([p.grad.norm() for p in net.parameters()]).norm()
    # The mean of two gradients, at points that lie a clipped step apart.
    assert floats(values)["grad_norm"] == pytest.approx(float(norm), rel=0.5) and floats(values)["update_norm"] > 0


def test_an_optimizer_that_has_not_stepped_stays_as_it_is():
    optimizer = OptimizerAdapter(model().named_parameters(), chained())
    values = floats(log_values(optimizer))
    assert values["lr"] == 0.1 and values["lr_factor"] == 1.0 and values["grad_norm"] == 0.0 and not optimizer.state


def test_after_a_step_it_takes_no_look_at_the_whole_state(monkeypatch):
    net = model()
    optimizer = OptimizerAdapter(net.named_parameters(), chained())
    step(net, optimizer)
    monkeypatch.setattr(optimizer, "started", lambda *args, **kwargs: pytest.fail("all states were looked at"))
    assert log_values(optimizer)["micro_step"] == 1


def test_groups_are_told_apart_where_they_differ():
    net = model()
    groups = [{"params": net[0].parameters(), "weight_decay": 0.1}, {"params": net[2].parameters(), "weight_decay": 0.0}]
    optimizer = OptimizerAdapter(groups, fo.chain(fo.monitor("grad"), fo.adamw()), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    step(net, optimizer)
    scheduler.step()
    values = floats(log_values(optimizer))
    assert values["lr"] == 0.05
    assert values["group_0.weight_decay"] == 0.1 and values["group_1.weight_decay"] == 0.0
    norm = torch.stack([p.grad.norm() for p in net.parameters()]).norm()
    assert values["grad_norm"] == pytest.approx(float(norm), rel=1e-6)  # float32


def test_torchs_classes_show_their_numbers_also_where_groups_have_transforms_of_their_own():
    net = model()
    optimizer = AdamW([{"params": net[0].parameters(), "amsgrad": True}, {"params": net[2].parameters()}], lr=0.25)
    step(net, optimizer)
    values = floats(log_values(optimizer))
    assert values["lr"] == 0.25 and values["betas.1"] == 0.999 and values["weight_decay"] == 0.01


def test_a_rate_in_force_is_the_branchs_times_the_factor():
    net = model()
    branches = {"matrix": fo.adamw(lr=0.5), "vector": fo.sgd(lr=0.25)}
    optimizer = OptimizerAdapter(net.named_parameters(), fo.partition(branches, fo.by_ndim({2: "matrix"}, "vector")))
    optimizer.param_groups[0]["lr"] = 0.5
    values = floats(log_values(optimizer))
    assert (values["lr_factor"], values["matrix.lr"], values["vector.lr"]) == (0.5, 0.25, 0.125)


def test_other_optimizers_are_refused():
    with pytest.raises(TypeError, match="optimizer is a SGD: expected an OptimizerAdapter"):
        log_values(torch.optim.SGD(model().parameters(), lr=0.1))
