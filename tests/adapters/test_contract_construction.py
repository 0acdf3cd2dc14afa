"""The contract of torch.optim.Optimizer, on every drop-in class and three chains: making one, and its groups."""

import warnings

import pytest
import torch
from subjects import (
    advance,
    another,
    assert_same_bits,
    assert_same_run,
    every_counterpart,
    every_eager,
    every_one,
    numbers_of,
    params_in,
)
from trajectories import set_gradients, start_params

import functional_optim as fo
from functional_optim.adapters import AdamW, OptimizerAdapter

# The next step is the same under another rate: of the one it sets but the first step sizes, the other computes its rate a step
# ahead, as their counterparts in torch do.
SLOW_TO_FOLLOW = {"Rprop", "ASGD"}


@every_one
def test_it_is_an_optimizer(subject):
    optimizer = subject.make(subject.params(torch.float64))
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert type(optimizer).__name__ in repr(optimizer) and "Parameter Group 0" in repr(optimizer)
    assert optimizer.state == {} and callable(optimizer.zero_grad)


@every_eager
def test_parameters_come_in_many_forms(subject):
    model = torch.nn.Module()
    model.weight, model.bias = subject.params(shapes=[(2, 3), (2,)])
    expected = list(model.parameters())
    named = dict(model.named_parameters())
    for params in (
        model.parameters(),
        expected,
        tuple(expected),
        named.values(),
        named.items(),
        model.named_parameters(),
        [{"params": model.parameters()}],
        [{"params": iter([model.weight])}, {"params": model.bias}],
        ({"params": [pair]} for pair in named.items()),
    ):
        optimizer = subject.make(params)
        assert [id(p) for p in params_in(optimizer)] == [id(p) for p in expected]
    assert optimizer.param_groups[1]["param_names"] == ["bias"]
    assert subject.make(named.items()).param_groups[0]["param_names"] == ["weight", "bias"]
    assert subject.make(named.items()).state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@every_eager
def test_what_is_no_list_of_parameters_is_refused(subject):
    p, q = subject.params(shapes=[(2,), (3,)])
    for error, message, params in (
        (TypeError, "params", p),
        (ValueError, "empty parameter list", []),
        (ValueError, "empty parameter list", iter(())),
        (TypeError, "set", {p, q}),
        (TypeError, "set", [{"params": {p, q}}]),
        (ValueError, "non-leaf", [p * 2]),
        (ValueError, "more than one parameter group", [{"params": [p]}, {"params": [q, p]}]),
        (TypeError, "optimize Tensors", [1.0]),
        (TypeError, "optimize Tensors", ["weight"]),
        (ValueError, "with/without names", [{"params": [("p", p)]}, {"params": [q]}]),
    ):
        with pytest.raises(error, match=message):
            subject.make(params)


@every_eager
def test_a_parameter_twice_in_a_group_is_warned_of_as_in_torch(subject):
    (p,) = subject.params(shapes=[(2,)])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        subject.make([p, p])


@every_eager
def test_unfit_numbers_are_refused_in_the_constructor_and_in_a_group(subject):
    optimizer = subject.make(subject.params(torch.float64))
    numbers = numbers_of(optimizer)
    assert numbers
    for name, value in numbers.items():
        bad = tuple(float("nan") for _ in value) if isinstance(value, tuple) else float("nan")
        with pytest.raises(ValueError, match=name):
            subject.make(subject.params(torch.float64), **{name: bad})
        with pytest.raises(ValueError, match=rf"param_groups\[1\]: .*{name}"):
            subject.make([{"params": subject.params(torch.float64)}, {"params": subject.params(torch.float64), name: bad}])
        with pytest.raises(TypeError, match=name):
            subject.make(subject.params(torch.float64), **{name: "much"})
        with pytest.raises(ValueError, match=rf"param_groups\[1\]: .*{name}"):
            optimizer.add_param_group({"params": subject.params(torch.float64), name: bad})
    for name in {"lr", "weight_decay", "eps"} & numbers.keys():
        with pytest.raises(ValueError, match=rf"{name} = -1"):
            subject.make(subject.params(torch.float64), **{name: -1.0})
    if "betas" in numbers:
        for betas in ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9)):
            with pytest.raises(ValueError, match=r"betas\[[01]\]"):
                subject.make(subject.params(torch.float64), betas=betas)
    assert len(optimizer.param_groups) == 1
    advance(optimizer, 1)


@every_one
def test_an_unfit_number_in_a_group_is_found_at_the_step(subject):
    a, b, c, d = subject.params()
    optimizer = subject.make([{"params": [a, b]}, {"params": [c, d]}])
    advance(optimizer, 1)
    for name, value in numbers_of(optimizer).items():
        before = [p.detach().clone() for p in params_in(optimizer)]
        optimizer.param_groups[1][name] = tuple(float("nan") for _ in value) if isinstance(value, tuple) else float("nan")
        set_gradients(params_in(optimizer), 1)
        with pytest.raises(ValueError, match=rf"param_groups\[1\]: .*{name}"):
            optimizer.step()
        assert_same_bits([p.detach() for p in params_in(optimizer)], before)
        optimizer.param_groups[1][name] = value
    advance(optimizer, 1)


@every_eager
def test_keys_of_ones_own_are_kept(subject):
    own = {"initial_lr": 0.1, "max_momentum": 0.9, "label": ["head"], "lr_scale": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = subject.make([{"params": subject.params(torch.float64), **own}])
        advance(optimizer, 1)
        optimizer.load_state_dict(optimizer.state_dict())
    assert own.items() <= optimizer.param_groups[0].items()


@pytest.mark.parametrize(
    "typo, meant", [("weight_decy", "weight_decay"), ("beta", "betas"), ("LR", "lr"), ("wieght_decay", "weight_decay")]
)
def test_a_misspelt_key_is_kept_with_a_warning(typo, meant):
    with pytest.warns(UserWarning, match=rf"param_groups\[0\] has a key '{typo}'.* Did you mean '{meant}'\?") as caught:
        optimizer = AdamW([{"params": start_params(), typo: 0.1}])
    assert len(caught) == 1 and optimizer.param_groups[0][typo] == 0.1
    with pytest.warns(UserWarning, match=r"param_groups\[1\]"):
        optimizer.add_param_group({"params": start_params(), typo: 0.1})


def test_an_argument_of_the_optimizer_in_a_group_is_told_of():
    group = {"params": start_params(), "rounding": "error_bits"}
    with pytest.warns(UserWarning, match=r"argument of the optimizer.* AdamW\(\.\.\., rounding='error_bits'\)") as caught:
        AdamW([group])
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"OptimizerAdapter\(\.\.\., fused=True\)"):
        OptimizerAdapter([{**group, "rounding": "nearest", "fused": True}], fo.adamw())


def test_a_misspelt_key_of_a_group_that_was_refused_is_told_of_again():
    known, new = start_params(), start_params()
    optimizer = AdamW(known)
    with pytest.warns(UserWarning, match="weight_decy"), pytest.raises(ValueError, match="more than one"):
        optimizer.add_param_group({"params": known, "weight_decy": 0.1})
    with pytest.warns(UserWarning, match="weight_decy"):
        optimizer.add_param_group({"params": new, "weight_decy": 0.1})


@every_eager
def test_the_defaults_are_complete_and_every_group_has_them(subject):
    a, b, c, d = subject.params(torch.float64)
    number, value = next(iter(numbers_of(subject.make([a])).items()))
    other = another(subject.make([a]), number)
    optimizer = subject.make([{"params": [a, b]}, {"params": [c, d], number: other}])
    if not subject.theirs:  # Which may leave some to the chain, as torch has it.
        assert set(optimizer.transform_for(optimizer.param_groups[0]).hparams) == optimizer.defaults.keys()
    for group in optimizer.param_groups:
        assert group.keys() - {"params"} == optimizer.defaults.keys()
    first, second = optimizer.param_groups
    assert first[number] == value == optimizer.defaults[number] and second[number] == other


@every_counterpart
def test_the_groups_are_torchs(subject):
    ours, theirs = subject.make(subject.params(torch.float64)), subject.theirs(subject.params(torch.float64))
    assert ours.defaults == theirs.defaults
    assert [group.keys() for group in ours.param_groups] == [group.keys() for group in theirs.param_groups]


@every_one
def test_a_number_is_read_from_the_group_at_every_step(subject):
    """As if the optimizer had been made with it: another one, made with the number, goes on from the same state."""
    for name in numbers_of(subject.make(subject.params())):
        live = subject.make(subject.params(torch.float64))
        advance(live, 2)
        made = subject.make([torch.nn.Parameter(p.detach().clone()) for p in params_in(live)], **{name: another(live, name)})
        made.load_state_dict({"state": live.state_dict()["state"], "param_groups": made.state_dict()["param_groups"]})
        unmoved = subject.make([torch.nn.Parameter(p.detach().clone()) for p in params_in(live)])
        unmoved.load_state_dict(live.state_dict())
        live.param_groups[0][name] = another(live, name)
        for optimizer in (live, made, unmoved):
            advance(optimizer, 1, first=2)
        assert_same_run(live, made)
        if name == "lr" and subject.name not in SLOW_TO_FOLLOW:
            assert not torch.equal(params_in(live)[0], params_in(unmoved)[0])


@every_one
def test_the_list_of_parameters_is_live(subject):
    a, b, c, d = subject.params()
    optimizer = subject.make([a, b])
    advance(optimizer, 1)
    optimizer.param_groups[0]["params"].append(c)
    optimizer.param_groups[0]["params"].remove(a)
    before = [p.detach().clone() for p in (a, b, c)]
    advance(optimizer, 1, first=1)
    assert torch.equal(a, before[0]) and not torch.equal(b, before[1]) and not torch.equal(c, before[2])
    del d


@every_one
def test_a_tensor_learning_rate_is_live(subject):
    if "lr" not in subject.make(subject.params(torch.float64)).defaults:
        pytest.skip("has no learning rate")
    rate = torch.tensor(0.5, dtype=torch.float64)
    tensor, number = subject.make(subject.params(), lr=rate), subject.make(subject.params(), lr=0.5)
    for t, lr in enumerate((0.5, 0.25, 0.125)):
        rate.fill_(lr)
        number.param_groups[0]["lr"] = lr
        for optimizer in (tensor, number):
            advance(optimizer, 1, first=t)
        for p, q in zip(params_in(tensor), params_in(number), strict=True):
            # The rate is a power of two; a () float64 tensor scales float32 numbers as a Python number does, to rounding.
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert tensor.param_groups[0]["lr"] is rate


@every_one
def test_a_group_added_in_mid_training_is_one_of_its_own(subject):
    a, b, c, d = subject.params()
    optimizer = subject.make([a, b])
    advance(optimizer, 2)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [a]})
    optimizer.add_param_group({"params": [c, d]})
    assert optimizer.param_groups[1].keys() == optimizer.param_groups[0].keys()
    advance(optimizer, 2, first=2)
    counts = [[int(v) for k, v in optimizer.state[p].items() if k.endswith("step")] for p in (a, b, c, d)]
    assert all(set(each) <= {4} for each in counts[:2]) and all(set(each) <= {2} for each in counts[2:])
    if not subject.couples:
        twin = subject.params()[2:]
        alone = subject.make(twin)
        for t in (2, 3):
            set_gradients([*subject.params()[:2], *twin], t)
            alone.step()
        torch.testing.assert_close([c, d], twin, rtol=1e-6, atol=1e-7)  # packed with others, a fused step may round otherwise
