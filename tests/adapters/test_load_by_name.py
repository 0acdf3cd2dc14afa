"""`load_by_name`: checkpoints matched by the names of parameters, strictly or in part."""

import copy

import pytest
import torch
from subjects import advance, assert_same_bits, assert_same_run, every_eager, kept_state, params_in
from trajectories import start_params

import functional_optim as fo
from functional_optim.adapters import AdamW, OptimizerAdapter, load_by_name

NAMES = ["stem.weight", "stem.bias", "scale", "head.weight"]


def named(order=(0, 1, 2, 3), params=None):
    params = params or start_params(torch.float32)
    return [(NAMES[i], params[i]) for i in order]


def by_name(optimizer):
    return {name: p for group in optimizer.param_groups for name, p in zip(group["param_names"], group["params"], strict=True)}


def step_by_name(optimizer, t):
    """The gradients that `advance` gives to the parameters in their usual order."""
    found = by_name(optimizer)
    ordered = OptimizerAdapter([found[name] for name in NAMES if name in found], fo.scale(0.0))
    advance(ordered, 1, first=t)
    optimizer.step()


@every_eager
def test_another_order_and_other_groups_go_on(subject):
    saved, straight = (subject.make(named(params=subject.params()), lr=0.02) for _ in range(2))
    for t in range(3):
        step_by_name(saved, t)
        step_by_name(straight, t)
    other = named((3, 1, 0, 2), subject.params())
    with torch.no_grad():
        for name, p in other:
            p.copy_(by_name(saved)[name])
    again = subject.make([{"params": other[:1]}, {"params": other[1:]}])
    report = load_by_name(again, saved.state_dict())
    assert not report and report.missing == report.unexpected == report.mismatched == report.groups == []
    for name, p in by_name(saved).items():
        assert_same_bits(kept_state(again, by_name(again)[name]), kept_state(saved, p))
    assert [group["lr"] for group in again.param_groups] == [0.02, 0.02]
    assert [group["param_names"] for group in again.param_groups] == [["head.weight"], ["stem.bias", "stem.weight", "scale"]]
    for t in range(3, 6):
        step_by_name(again, t)
        step_by_name(straight, t)
    for name, p in by_name(straight).items():
        found = {"p": by_name(again)[name].detach(), **kept_state(again, by_name(again)[name])}
        # A step goes over them in another order, and may round otherwise.
        torch.testing.assert_close(found, {"p": p.detach(), **kept_state(straight, p)}, rtol=1e-5, atol=1e-6)


def trained(order=(0, 1, 2, 3), **options):
    optimizer = AdamW(named(order), **options)
    step_by_name(optimizer, 0)
    return optimizer


def test_strict_refuses_what_does_not_fit_and_changes_nothing():
    optimizer = trained((0, 1, 3))
    before = copy.deepcopy(optimizer.state_dict())
    saved = trained((0, 1, 2), lr=0.5).state_dict()
    with pytest.raises(ValueError, match=r"missing=\['head.weight'\], unexpected=\['scale'\].*strict=False loads what does"):
        load_by_name(optimizer, saved)
    wide = AdamW([(name, torch.nn.Parameter(torch.ones(9))) for name in ("stem.weight", "stem.bias", "head.weight")])
    advance(wide, 1)
    with pytest.raises(ValueError, match=r"mismatched=\['stem.weight', .*'exp_avg' has shape \(9,\), expected \(3, 4\)"):
        load_by_name(optimizer, wide.state_dict())
    assert_same_bits(optimizer.state_dict(), before)


def test_in_part_it_loads_what_fits_and_says_what_did_not():
    saved = trained((0, 1, 2), lr=0.5)
    optimizer = trained((0, 1, 3))
    shape = saved.state_dict()
    shape["state"] = {**shape["state"], 1: {**shape["state"][1], "exp_avg": torch.zeros(7)}}
    report = load_by_name(optimizer, shape, strict=False)
    assert report and (report.missing, report.unexpected) == (["head.weight"], ["scale"])
    assert report.mismatched == ["stem.bias"] and report.groups == []
    assert optimizer.param_groups[0]["lr"] == 0.5
    ours = by_name(optimizer)
    assert_same_bits(dict(optimizer.state[ours["stem.weight"]]), dict(saved.state[by_name(saved)["stem.weight"]]))
    assert not optimizer.state.get(ours["stem.bias"]) and not optimizer.state.get(ours["head.weight"])
    step_by_name(optimizer, 1)
    assert [int(optimizer.state[ours[name]]["step"]) for name in ("stem.weight", "stem.bias", "head.weight")] == [2, 1, 1]


def test_a_group_whose_parameters_come_from_groups_that_disagree_keeps_its_numbers():
    first, second = named()[:2], named()[2:]
    saved = AdamW([{"params": first, "lr": 0.5}, {"params": second, "lr": 0.25}])
    step_by_name(saved, 0)
    optimizer = AdamW(named(), lr=0.125)
    with pytest.raises(ValueError, match=r"groups=\[0\]"):
        load_by_name(optimizer, saved.state_dict())
    assert load_by_name(optimizer, saved.state_dict(), strict=False).groups == [0]
    assert optimizer.param_groups[0]["lr"] == 0.125 and len(optimizer.state) == 4


def test_names_may_come_from_a_model():
    model = torch.nn.Linear(2, 3)
    saved, optimizer = AdamW(model.named_parameters()), AdamW([model.bias, model.weight])
    advance(saved, 1)
    assert not load_by_name(optimizer, saved.state_dict(), model=model)
    assert_same_bits(optimizer.state[model.weight], saved.state[model.weight])
    assert "param_names" not in optimizer.param_groups[0]
    with pytest.raises(ValueError, match=r"parameter 0 of param_groups\[0\] has no name: it is not in the Linear"):
        load_by_name(optimizer, saved.state_dict(), model=torch.nn.Linear(2, 3))


def test_names_in_place_of_numbers_as_distributed_checkpoints_have_them():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = torch.nn.Linear(2, 3)
    saved = AdamW(model.parameters(), lr=0.25)
    advance(saved, 2)
    optimizer = AdamW(reversed(list(model.named_parameters())))
    assert not load_by_name(optimizer, get_optimizer_state_dict(model, saved))
    assert optimizer.param_groups[0]["lr"] == 0.25
    for p in model.parameters():
        assert_same_bits(optimizer.state[p], saved.state[p])


def test_torchs_checkpoint_by_name():
    saved = torch.optim.AdamW(named((2, 0, 1, 3)), lr=0.02)
    step_by_name(saved, 0)
    optimizer = AdamW(named())
    assert not load_by_name(optimizer, saved.state_dict())
    step_by_name(optimizer, 1)
    assert {int(optimizer.state[p]["step"]) for p in params_in(optimizer)} == {2}


@pytest.mark.parametrize(
    "ours, saved, message",
    [
        (start_params(), named(), r"parameter 0 of param_groups\[0\] has no name: pass model=, or make the optimizer with names"),
        (named(), start_params(), r"param_groups\[0\] of the checkpoint has no param_names"),
        ([("w", p) for p in start_params()], named(), "two parameters of the optimizer are called 'w'"),
        (named(), [("w", p) for p in start_params()], "two parameters of the checkpoint are called 'w'"),
    ],
    ids=["no names", "none saved", "ours not unique", "saved not unique"],
)
def test_names_must_be_there_and_unique(ours, saved, message):
    with pytest.raises(ValueError, match=message):
        load_by_name(AdamW(ours), AdamW(saved).state_dict(), strict=False)


def test_hooks_are_called_as_by_load_state_dict():
    optimizer, calls = trained(), []
    optimizer.register_load_state_dict_pre_hook(lambda own, found: calls.append("pre"))
    optimizer.register_load_state_dict_post_hook(lambda own: calls.append("post"))
    load_by_name(optimizer, trained().state_dict())
    assert calls == ["pre", "post"]
    assert_same_run(optimizer, trained())
