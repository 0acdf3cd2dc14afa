"""What `lr` is behind the adapter: the rate where there is one, else a factor of all rates, by `with_lr_factor`."""

import copy
import warnings

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from trajectories import assert_params_close

import functional_optim as fo
from functional_optim.adapters import AdamW, OptimizerAdapter, functional_state, load_by_name, load_functional_state, transform_of

LABELS = fo.by_name({"w": "w", ".*": "b"})
SCHEDULE = fo.linear(0.1, 0.02, steps=8)


def halved(step):
    return 0.5**step


# A chain as a function of how its rates are multiplied: whoever wants a factor f writes f times the rate. Each has its rate
# elsewhere; and how it is built, with numbers that are given and not multiplied, is the reference.
CHAINS = {
    "a schedule": lambda f: fo.scheduled(fo.adamw(weight_decay=0.1), lr=lambda step: f * SCHEDULE(step)),
    "under a norm": lambda f: fo.chain(fo.clip_by_global_norm(), fo.scheduled(fo.sgd(), lr=lambda step: f * SCHEDULE(step))),
    "branches": lambda f: fo.partition({"w": fo.adamw(lr=0.1 * f, weight_decay=0.5), "b": fo.sgd(lr=0.2 * f)}, LABELS),
    "one frozen": lambda f: fo.partition({"w": fo.scheduled(fo.adam(), lr=lambda s: f * SCHEDULE(s)), "b": fo.freeze()}, LABELS),
    "a factor that is scheduled": lambda f: fo.chain(fo.scale_by_adam(), fo.scale_by_schedule(lambda s: -f * SCHEDULE(s))),
    "both schedules": lambda f: fo.scheduled(
        fo.chain(fo.scale_by_adam(), fo.scale_by_schedule(halved), fo.scale_by_learning_rate()), lr=lambda s: f * SCHEDULE(s)
    ),
    "a constant": lambda f: fo.chain(fo.clip_by_global_norm(), fo.scale_by_adam(), fo.scale(-0.1 * f)),
    "a constant of another default": lambda f: fo.chain(fo.scale_by_adam(), fo.set_defaults(fo.scale(-9.0), factor=-0.1 * f)),
    "only a sign": lambda f: fo.chain(fo.scale_by_adam(), fo.scale(0.1 * f), fo.negate()),
    "a master copy": lambda f: fo.with_master_copy(fo.scheduled(fo.adamw(), lr=lambda step: f * SCHEDULE(step))),
    "an average": lambda f: fo.scheduled(fo.schedule_free(fo.sgd()), lr=lambda step: f * SCHEDULE(step)),
    "lookahead": lambda f: fo.lookahead(fo.scheduled(fo.sgd(), lr=lambda step: f * SCHEDULE(step)), sync_period=2),
    "Adafactor's step": lambda f: fo.scheduled(fo.adafactor(), lr=lambda step: f * 4 * SCHEDULE(step)),
    "another name": lambda f: fo.rename_hparams(fo.sgd(lr=0.1 * f), lr="rate"),
    "every second": lambda f: fo.accumulate(fo.scheduled(fo.sgd(), lr=lambda step: f * SCHEDULE(step)), every=2),
    "branches in branches": lambda f: fo.partition(
        {
            "w": fo.masked(fo.scheduled(fo.sgd(), lr=lambda s: f * SCHEDULE(s)), lambda name, leaf: True),
            "b": fo.scheduled(fo.sgd(), lr=lambda s: f),
        },
        LABELS,
    ),
}


def params(dtype=torch.float64):
    return {
        "w": torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=dtype)),
        "b": torch.nn.Parameter(torch.tensor([0.3, -0.7], dtype=dtype)),
    }


def step(optimizer, t):
    for group in optimizer.param_groups:
        for i, p in enumerate(group["params"]):
            p.grad = torch.cos(torch.arange(p.numel(), dtype=p.dtype) + t + i).view(p.shape)
    optimizer.step()


def made(tx, dtype=torch.float64, **kwargs):
    return OptimizerAdapter(list(params(dtype).items()), tx, **kwargs)


def tensors(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
@pytest.mark.parametrize("name", CHAINS)
def test_a_factor_in_the_groups_is_one_of_the_rate(name, fused):
    if fused and name not in ("a schedule", "branches", "a factor that is scheduled"):
        return  # The others take the ways of these, or no kernel.
    optimizer, plain = made(CHAINS[name](1.0), fused=fused), made(CHAINS[name](1.0))
    for each in optimizer.param_groups:
        assert each["lr"] == 1.0 and each["lr_is_factor"] is True
    for group in optimizer.param_groups:
        group["lr"] = 0.25
    optimizer._watch.is_over = True  # what warns is tested below
    witness = made(CHAINS[name](0.25))
    for t in range(4):
        for each in (optimizer, witness, plain):
            step(each, t)
    assert_params_close(tensors(optimizer), tensors(witness), 1e-14 if not fused else 1e-12)
    assert not all(torch.allclose(p, q) for p, q in zip(tensors(optimizer), tensors(plain), strict=True))
    # The state is that of the transform as it is given.
    assert [set(slots) for slots in optimizer.state.values()] == [set(slots) for slots in plain.state.values()]


@pytest.mark.parametrize("name", CHAINS)
def test_a_factor_of_1_changes_no_bit(name):
    tx = CHAINS[name](1.0)
    values = {key: p.detach() for key, p in params().items()}
    grads = {key: p + 1 for key, p in values.items()}
    for transform in (tx, fo.with_lr_factor(tx)):
        state, now = transform.init_state(values), values
        for _ in range(3):
            updates, state = transform.update(grads, state, now)
            now = fo.apply_updates(now, updates)
        if transform is tx:
            expected = now
    assert all(torch.equal(now[key], expected[key]) for key in values)


def test_groups_may_differ_in_the_factor():
    named = params()
    tx = fo.scheduled(fo.adamw(weight_decay=0.1), lr=SCHEDULE)
    optimizer = OptimizerAdapter([{"params": [("w", named["w"])], "lr": 0.1}, {"params": [("b", named["b"])]}], tx)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1.0]
    witnesses = [made(CHAINS["a schedule"](f)) for f in (0.1, 1.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing drives it
        for t in range(3):
            for p, shift in zip(tensors(optimizer), (0, 1), strict=True):
                p.grad = torch.cos(torch.arange(p.numel(), dtype=p.dtype) + t + shift).view(p.shape)
            optimizer.step()
            for witness in witnesses:
                step(witness, t)
    assert_params_close(tensors(optimizer), [tensors(witnesses[0])[0], tensors(witnesses[1])[1]], 1e-14)


def test_what_has_a_rate_keeps_it():
    for tx, hparams in ((fo.adamw(lr=0.3), {}), (CHAINS["branches"](1.0), {"lr": 0.3}), (fo.sgd(), {"lr": 0.3})):
        optimizer = made(tx, **hparams)
        assert optimizer.param_groups[0]["lr"] == 0.3 and "lr_is_factor" not in optimizer.param_groups[0]
        assert transform_of(optimizer) is tx
    named = params()
    groups = [{"params": [(name, p)], "lr": rate} for (name, p), rate in zip(named.items(), (0.3, 0.4), strict=True)]
    assert "lr_is_factor" not in OptimizerAdapter(groups, CHAINS["branches"](1.0)).param_groups[0]


def test_a_branchs_own_rate_is_multiplied_too():
    optimizer = made(CHAINS["branches"](1.0), **{"b.lr": 0.5})
    for t in range(2):
        step(optimizer, t)
    witness = made(CHAINS["branches"](1.0), **{"b.lr": 0.25, "w.lr": 0.05})
    again = made(CHAINS["branches"](1.0), **{"b.lr": 0.5})
    again.param_groups[0]["lr"] = 0.5
    for t in range(2):
        step(witness, t)
        step(again, t)
    assert_params_close(tensors(again), tensors(witness), 1e-14)


# A factor that a chain was given by hand.


@pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
@pytest.mark.parametrize("name", CHAINS)
def test_a_factor_given_by_hand_is_one_beside_that_of_the_groups(name, fused):
    if fused and name not in ("a schedule", "only a sign", "a factor that is scheduled"):
        return
    optimizer, witness = made(fo.with_lr_factor(CHAINS[name](1.0)), fused=fused), made(CHAINS[name](0.125))
    optimizer._watch.is_over = True
    (group,) = optimizer.param_groups
    assert (group["lr"], group["lr_factor"], group["lr_is_factor"]) == (1.0, 1.0, True)
    group.update(lr=0.25, lr_factor=0.5)
    for t in range(3):
        step(optimizer, t)
        step(witness, t)
    assert_params_close(tensors(optimizer), tensors(witness), 1e-14 if not fused else 1e-12)
    hparams = functional_state(optimizer).hparams
    assert (hparams["lr_factor"], hparams["lr_factor_1"]) == (0.5, 0.25)
    load_functional_state(optimizer, *functional_state(optimizer)[:2], {"lr_factor": 0.1, "lr_factor_1": 0.2})
    assert (group["lr"], group["lr_factor"]) == (0.2, 0.1)


def test_a_factor_given_by_hand_leaves_the_rate_a_rate():
    named = params()
    groups = [{"params": [("w", named["w"])], "lr": 0.5, "lr_factor": 0.25}, {"params": [("b", named["b"])], "lr": 0.1}]
    optimizer = OptimizerAdapter(groups, fo.with_lr_factor(fo.adamw()))
    assert all("lr_is_factor" not in group for group in optimizer.param_groups)
    halves = params()
    witness = OptimizerAdapter([{**group, "params": [(k, halves[k])]} for k, group in zip("wb", groups, strict=True)], fo.adamw())
    witness.param_groups[0]["lr"] = 0.125
    for t in range(3):
        step(optimizer, t)
        step(witness, t)
    assert_params_close(tensors(optimizer), tensors(witness), 1e-14)


def test_a_factor_that_follows_a_schedule_multiplies_that_of_the_groups():
    tx = fo.scheduled(fo.with_lr_factor(fo.scheduled(fo.sgd(), lr=SCHEDULE)), lr_factor=halved)
    optimizer, witness = made(tx), made(fo.scheduled(fo.sgd(), lr=lambda step: 0.3 * halved(step) * SCHEDULE(step)))
    optimizer._watch.is_over = True
    optimizer.param_groups[0]["lr"] = 0.3
    for t in range(3):
        step(optimizer, t)
        step(witness, t)
    assert_params_close(tensors(optimizer), tensors(witness), 1e-14)


def test_factors_have_different_names():
    tx = fo.with_lr_factor(fo.sgd(lr=0.5))
    for taken in (tx, fo.chain(fo.clip_by_global_norm(), tx), fo.rename_hparams(tx, lr_factor="mine")):
        with pytest.raises(ValueError, match="has a hyper-parameter 'lr_factor': call the factor otherwise, name="):
            fo.with_lr_factor(taken)
    both = fo.with_lr_factor(tx, name="other")
    updates, _ = both.update(torch.tensor(1.0), both.init_state(torch.tensor(0.0)), None, {"lr_factor": 0.5, "other": 0.25})
    assert updates == -0.0625


# Schedulers.


@pytest.mark.parametrize("name", ["branches", "a constant", "another name"])
def test_torchs_schedulers_drive_the_factor(name):
    optimizer, witness = made(CHAINS[name](1.0)), made(CHAINS[name](1.0))
    scheduler = CosineAnnealingLR(optimizer, T_max=6)
    for t in range(5):
        for group in witness.param_groups:
            group["lr"] = (1 + torch.tensor(torch.pi * t / 6, dtype=torch.float64).cos().item()) / 2
        step(optimizer, t)
        step(witness, t)
        scheduler.step()
    assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]] != [1.0]
    # torch's cosine is a recursion.
    assert_params_close(tensors(optimizer), tensors(witness), 1e-12)


@pytest.mark.parametrize("name", ["a schedule", "a factor that is scheduled", "one frozen", "a master copy"])
def test_a_scheduler_on_a_chain_with_a_schedule_is_told_of_once(name):
    optimizer, witness = made(CHAINS[name](1.0)), made(CHAINS[name](1.0))
    scheduler = LambdaLR(optimizer, halved)
    step(optimizer, 0)  # at a factor of 1
    scheduler.step()
    with pytest.warns(
        UserWarning, match=r"param_groups\[0\]: something drives lr, which is 0.5 now; .*the two multiply"
    ) as record:
        step(optimizer, 1)
        scheduler.step()
        step(optimizer, 2)
    assert len(record) == 1 and record[0].filename == __file__
    for t, f in enumerate((1.0, 0.5, 0.25)):
        witness._watch.is_over = True
        witness.param_groups[0]["lr"] = f
        step(witness, t)
    assert_params_close(tensors(optimizer), tensors(witness), 0)


def test_the_recipe_of_the_warning_leaves_the_chains_schedule_alone():
    optimizer, plain = made(CHAINS["a schedule"](1.0)), made(CHAINS["a schedule"](1.0))
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    for t in range(4):
        step(optimizer, t)
        step(plain, t)
        scheduler.step()
    assert_params_close(tensors(optimizer), tensors(plain), 0)


def test_a_scheduler_on_a_chain_without_any_rate_is_told_that_it_changes_nothing():
    tx = fo.Transform(lambda params, hp: {}, lambda u, state, params, hp: ({k: -0.1 * g for k, g in u.items()}, state))
    optimizer = made(tx)
    scheduler = LambdaLR(optimizer, halved)
    step(optimizer, 0)
    scheduler.step()
    with pytest.warns(UserWarning, match="something drives lr, .*changes nothing"):
        step(optimizer, 1)
    with pytest.raises(ValueError, match="has no learning rate that a factor could multiply"):
        fo.with_lr_factor(tx)


# Checkpoints: what is saved as a rate or a factor, into what takes a rate or a factor.


def trained(kind, lr):
    """A branched chain whose groups hold a rate, or a factor."""
    optimizer = made(CHAINS["branches"](1.0), **({"lr": 0.3} if kind == "rate" else {}))
    for group in optimizer.param_groups:
        group["lr"] = lr
    step(optimizer, 0)
    return optimizer


@pytest.mark.parametrize("by_name", [False, True], ids=["by position", "by name"])
@pytest.mark.parametrize("saved", ["rate", "factor"])
@pytest.mark.parametrize("loaded", ["rate", "factor"])
def test_loading_keeps_the_meaning_and_where_that_differs_the_value(saved, loaded, by_name):
    source, target = trained(saved, 0.125), trained(loaded, 0.5)
    LambdaLR(target, halved)
    assert target.param_groups[0]["initial_lr"] == 0.5
    state_dict = copy.deepcopy(source.state_dict())
    load = (lambda: load_by_name(target, state_dict)) if by_name else (lambda: target.load_state_dict(state_dict))
    if saved == loaded:
        load()
    else:
        kinds = {"rate": "a learning rate", "factor": "a factor of learning rates"}
        told = rf"lr = 0.125 of the checkpoint is {kinds[saved]}, and here it is {kinds[loaded]}, which stays 0.5"
        with pytest.warns(UserWarning, match=told):
            load()
        assert target.param_groups[0]["initial_lr"] == 0.5
    group = target.param_groups[0]
    assert group["lr"] == (0.125 if saved == loaded else 0.5) and ("lr_is_factor" in group) == (loaded == "factor")
    for p, q in zip(tensors(target), tensors(source), strict=True):
        assert all(torch.equal(x, source.state[q][name]) for name, x in target.state[p].items())
    # And it goes on with that.
    with torch.no_grad():
        for p, q in zip(tensors(target), tensors(source), strict=True):
            p.copy_(q)
    witness = made(
        CHAINS["branches"](group["lr"]) if loaded == "factor" else CHAINS["branches"](1.0),
        **({} if loaded == "factor" else {"lr": group["lr"]}),
    )
    witness.load_state_dict({**witness.state_dict(), "state": source.state_dict()["state"]})
    with torch.no_grad():
        for p, q in zip(tensors(witness), tensors(source), strict=True):
            p.copy_(q)
    step(target, 1)
    step(witness, 1)
    assert_params_close(tensors(target), tensors(witness), 1e-15)


def test_a_rate_of_torchs_class_is_no_factor_and_the_other_way_round():
    plain = AdamW(list(params().items()), lr=0.125)
    step(plain, 0)
    scheduled = made(fo.scheduled(fo.adamw(), lr=SCHEDULE))
    with pytest.warns(UserWarning) as record:
        scheduled.load_state_dict(plain.state_dict())
    told = [str(each.message) for each in record]
    assert "is a learning rate, and here it is a factor of learning rates, which stays 1.0" in told[0]
    assert "'schedule_step'" in told[1] and len(told) == 2
    assert scheduled.param_groups[0]["lr"] == 1.0
    step(scheduled, 1)
    with pytest.warns(UserWarning, match="is a factor of learning rates, and here it is a learning rate, which stays 0.125"):
        plain.load_state_dict(scheduled.state_dict())
    assert plain.param_groups[0]["lr"] == 0.125 and "lr_is_factor" not in plain.param_groups[0]


def test_a_checkpoint_of_before_groups_had_an_lr():
    source, target = made(CHAINS["a schedule"](1.0)), made(CHAINS["a schedule"](1.0))
    step(source, 0)
    old = source.state_dict()
    for group in old["param_groups"]:
        del group["lr"], group["lr_is_factor"]
    target.load_state_dict(old)
    assert target.param_groups[0]["lr"] == 1.0 and target.param_groups[0]["lr_is_factor"] is True
    step(target, 1)


def test_a_group_added_with_an_lr_is_told_what_it_is():
    made(CHAINS["branches"](1.0)).add_param_group({"params": [("w2", torch.nn.Parameter(torch.ones(2)))]})  # without: nothing
    optimizer = made(CHAINS["branches"](1.0))
    with pytest.warns(UserWarning, match=r"param_groups\[1\]: lr = 0.1 is a factor of the branches' own rates") as record:
        optimizer.add_param_group({"params": [("w2", torch.nn.Parameter(torch.ones(2)))], "lr": 0.1})
    assert record[0].filename == __file__


def test_a_group_that_is_refused_leaves_nothing_to_watch():
    scheduled = fo.scheduled(fo.sgd(), lr=SCHEDULE)
    chain = fo.partition({"w": scheduled, "b": scheduled}, fo.by_name({"w": "w", "b.*": "b"}))
    optimizer, witness = made(chain), made(chain)
    with pytest.raises(ValueError, match="v"):
        optimizer.add_param_group({"params": [("v", torch.nn.Parameter(torch.ones(2)))], "lr": 0.5})
    for each in (optimizer, witness):
        each.add_param_group({"params": [("b2", torch.nn.Parameter(torch.ones(2)))]})
        step(each, 0)
    assert_params_close(tensors(optimizer), tensors(witness), 0)


# The pure form.


def test_a_run_taken_out_computes_what_the_adapter_does():
    optimizer = made(CHAINS["branches"](1.0))
    optimizer.param_groups[0]["lr"] = 0.25
    step(optimizer, 0)
    tx, (values, state, hparams) = transform_of(optimizer), functional_state(optimizer)
    assert hparams["lr_factor"] == 0.25
    grads = {"w": torch.ones_like(values["w"]), "b": torch.ones_like(values["b"])}
    updates, state = tx.update(grads, state, values, hparams)
    for name, p in zip("wb", tensors(optimizer), strict=True):
        p.grad = grads[name]
    optimizer.step()
    assert_params_close(tensors(optimizer), list(fo.apply_updates(values, updates).values()), 1e-15)
    load_functional_state(optimizer, values, state, {"lr_factor": 0.5})
    assert optimizer.param_groups[0]["lr"] == 0.5
    in_force = fo.hparams_at(tx, state, {"lr_factor": 0.5})
    assert (in_force["w.lr"], in_force["b.lr"]) == (0.05, 0.1)


def test_the_factor_can_be_swept_and_differentiated():
    tx = fo.with_lr_factor(fo.scheduled(fo.sgd(), lr=SCHEDULE))

    def end(f):
        p, state = torch.tensor(2.0, dtype=torch.float64), tx.init_state(torch.tensor(2.0, dtype=torch.float64))
        for _ in range(3):
            update, state = tx.update(2 * p, state, p, {"lr_factor": f})
            p = p + update
        return p

    factors = torch.tensor([0.5, 1.0], dtype=torch.float64)
    rates = [0.1, 0.09, 0.08]
    expected = [2.0 * torch.tensor([1 - 2 * f * rate for rate in rates], dtype=torch.float64).prod() for f in factors]
    torch.testing.assert_close(torch.vmap(end)(factors), torch.stack(expected))
    assert torch.autograd.gradcheck(end, factors[0].clone().requires_grad_())


def test_asking_for_a_state_tells_nothing_and_leaves_the_factor():
    model = torch.nn.Linear(2, 2)
    optimizer = OptimizerAdapter(model.named_parameters(), CHAINS["a schedule"](1.0))
    state = get_optimizer_state_dict(model, optimizer)
    assert state["param_groups"][0]["lr"] == 1.0 == optimizer.param_groups[0]["lr"]
