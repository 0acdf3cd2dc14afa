"""`OptimizerAdapter`: the pure form in place, over groups; names, copies and errors. Its contract is in test_contract_*.py."""

import copy
import pickle
from itertools import product

import numpy as np
import pytest
import torch
from subjects import advance, params_in, through_a_file
from trajectories import (
    assert_params_close,
    assert_unchanged,
    drifting_gradient,
    set_gradients,
    snapshot,
    start_params,
    walk_together,
)

import functional_optim as fo
from functional_optim.adapters import SGD, AdamW, OptimizerAdapter

# Equal formulas, each operation rounding at 1.1e-16, over 50 steps of a contraction.
FLOAT64 = 1e-12


def parameter(*values, dtype=torch.float64):
    return torch.nn.Parameter(torch.tensor(values, dtype=dtype))


def decaying(step):
    return 0.9 ** (1.0 * step)


def composed():
    """A chain with a whole-tree scalar, two counts, slots and a decay."""
    return fo.chain(
        fo.clip_by_global_norm(2.0),
        fo.scale_by_adam(amsgrad=True),
        fo.trace(0.5, 0.3),
        fo.add_decayed_weights(0.1),
        fo.scale_by_schedule(decaying),
        fo.scale_by_learning_rate(0.05),
    )


# The same numbers as the pure form, as torch, and over groups.


def test_the_adapter_is_the_pure_form():
    tx = composed()
    optimizer = OptimizerAdapter(start_params(), tx)
    params = {str(i): p.detach().clone() for i, p in enumerate(start_params())}
    state = tx.init_state(params)
    for t in range(30):
        set_gradients(params_in(optimizer), t)
        optimizer.step()
        grads = {key: drifting_gradient(p, t, int(key)) for key, p in params.items()}
        u, state = tx.update(grads, state, params)
        params = fo.apply_updates(params, u)
        # The host counts in Python numbers, the pure form in tensors: two ways to round the same scalars.
        assert_params_close(params_in(optimizer), list(params.values()), FLOAT64)


@pytest.mark.parametrize(
    "tx, theirs, options",
    [
        (fo.sgd(0.1, 0.9, nesterov=True), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (fo.adam(0.1, amsgrad=True), torch.optim.Adam, {"lr": 0.1, "amsgrad": True}),
        (
            fo.adamw(0.1, (0.8, 0.9), 1e-4, 0.3),
            torch.optim.AdamW,
            {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.3},
        ),
    ],
)
def test_whole_optimizers_retrace_torch(tx, theirs, options):
    walk_together(OptimizerAdapter(start_params(), tx), theirs(start_params(), **options), 50, FLOAT64)


def test_a_global_norm_spans_all_groups():
    tx = fo.chain(fo.clip_by_global_norm(0.7), fo.adamw())

    def groups():
        a, b, c, d = start_params()
        return [{"params": [a, b], "lr": 0.1, "weight_decay": 0.3}, {"params": [c, d], "lr": 0.02, "betas": (0.5, 0.6)}]

    ours, theirs = OptimizerAdapter(groups(), tx), torch.optim.AdamW(groups())
    clipped = 0
    for t in range(50):
        for optimizer in (ours, theirs):
            set_gradients(params_in(optimizer), t)
        clipped += torch.nn.utils.clip_grad_norm_(params_in(theirs), 0.7) > 0.7
        ours.step()
        theirs.step()
        assert_params_close(params_in(ours), params_in(theirs), FLOAT64)
    assert clipped > 40


def test_each_group_may_have_its_own_bound_on_the_norm_of_all():
    a, b = parameter(3.0), parameter(4.0)
    optimizer = OptimizerAdapter(
        [{"params": [a], "max_norm": 1.0}, {"params": [b], "max_norm": 100.0}],
        fo.chain(fo.clip_by_global_norm(), fo.sgd()),
        lr=1.0,
    )
    a.grad, b.grad = a.detach().clone(), b.detach().clone()
    optimizer.step()
    # The norm of both is 5: a is scaled by 1/5 (and torch's 1e-6), b not at all.
    assert a.item() == pytest.approx(3 - 3 / (5 + 1e-6), rel=1e-14) and b.item() == 0


def test_skipped_parameters_do_not_count_in_the_norm():
    a, b = parameter(3.0), parameter(4.0)
    optimizer = OptimizerAdapter([a, b], fo.chain(fo.clip_by_global_norm(3.0), fo.sgd()), lr=1.0)
    a.grad = torch.tensor([3.0]).double()
    optimizer.step()
    assert a.item() == pytest.approx(3e-6 / 3, rel=1e-5)  # scaled by 3 / (3 + 1e-6) only
    assert b.item() == 4.0


def test_groups_are_hyper_parameters_and_defaults_fill_in():
    tx = fo.adamw(lr=0.5, eps=1e-3)
    optimizer = OptimizerAdapter([{"params": [parameter(1.0)], "eps": 1e-6}, {"params": [parameter(1.0)]}], tx, lr=0.25)
    assert optimizer.defaults == {"betas": (0.9, 0.999), "eps": 1e-3, "weight_decay": 0.01, "lr": 0.25}
    first, second = optimizer.param_groups
    assert (first["lr"], first["eps"]) == (0.25, 1e-6) and (second["lr"], second["eps"]) == (0.25, 1e-3)


def test_what_is_written_into_a_group_is_what_the_next_step_uses():
    p, q = parameter(0.0), parameter(0.0)
    optimizer = OptimizerAdapter([{"params": [p]}, {"params": [q]}], fo.sgd(lr=1.0))
    p.grad = q.grad = torch.ones(1).double()
    for lr, other in ((0.5, 1.0), (0.25, 0.25), (torch.tensor(2.0).double(), 0.0)):
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = lr, other
        before = p.item(), q.item()
        optimizer.step()
        assert p.item() == before[0] - float(lr) and q.item() == before[1] - other


# Slots.


def test_two_traces_in_a_chain_keep_separate_buffers_under_distinct_names():
    p = parameter(0.0)
    optimizer = OptimizerAdapter([p], fo.chain(fo.trace(0.5), fo.trace(0.5), fo.sgd(1.0)))
    travelled = []
    for t in range(6):
        before = p.item()
        p.grad = torch.tensor([1.0 if t == 0 else 0.0]).double()
        optimizer.step()
        travelled.append(before - p.item())
    # The impulse response of two filters in a row.
    assert travelled == pytest.approx([(t + 1) * 0.5**t for t in range(6)], rel=1e-13)
    state = optimizer.state[p]
    assert set(state) == {"step", "trace.momentum_buffer", "trace_1.step", "trace_1.momentum_buffer"}
    assert state["trace.momentum_buffer"].item() == 0.5**5 and state["trace_1.momentum_buffer"].item() == 6 * 0.5**5


def test_the_norm_and_the_state_survive_a_float32_scalar_and_an_empty_parameter():
    params = [torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.zeros(0, 3)), torch.nn.Parameter(torch.ones(2))]
    optimizer = OptimizerAdapter(params, composed())
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert [p.dtype for p in params] == [torch.float32] * 3
    for p in params:
        assert all(v.dtype == torch.float32 for v in optimizer.state[p].values())


# A rule may return anything it was given: the writing in place must not show.


@fo.elementwise(slots=("previous",))
def delayed(hp):
    """The update of the step before."""
    return lambda u, p, previous: (previous, u)


@fo.elementwise(slots=("newest", "older", "oldest"))
def history(hp):
    """The update of three steps ago, through a shift register."""
    return lambda u, p, newest, older, oldest: (oldest + 0 * u, u, newest, older)


@fo.elementwise(slots={"anchor": lambda p, hp: p}, hparams={"pull": 0.5})
def towards_start(hp):
    """A pull back to where the parameter began."""
    return lambda u, p, anchor: (u + hp["pull"] * (anchor - p), anchor)


@fo.elementwise(slots={"anchor": lambda p, hp: p.detach()}, hparams={"pull": 0.5})
def towards_detached_start(hp):
    """The same, from a tensor that shares the parameter's memory and does not say so."""
    return lambda u, p, anchor: (u + hp["pull"] * (anchor - p), anchor)


@fo.elementwise(slots=("last",))
def remembers_the_parameter(hp):
    """The parameter of the step before, in the update."""
    return lambda u, p, last: (u + 0.1 * last, p)


# Eagerly these are the same operations: the same bits. Fused, a parameter is rounded once a step where it was rounded twice.
FUSED_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}
RETURNING_INPUTS = [delayed, history, towards_start, towards_detached_start, remembers_the_parameter]


# In other dtypes kernels are those of float32, but that in bfloat16 what a rule returns is a copy.
IN_BFLOAT16 = [towards_start, remembers_the_parameter]


@pytest.mark.parametrize(
    ("rule", "dtype", "fused"),
    [
        *product(RETURNING_INPUTS, (torch.float64, torch.float32, torch.bfloat16), [False]),
        *product(RETURNING_INPUTS, [torch.float32], [True]),
        *product(IN_BFLOAT16, [torch.bfloat16], [True]),
        *(pytest.param(rule, torch.float64, True, marks=pytest.mark.full) for rule in RETURNING_INPUTS),
        *(
            pytest.param(rule, torch.bfloat16, True, marks=pytest.mark.full)
            for rule in RETURNING_INPUTS
            if rule not in IN_BFLOAT16
        ),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_rules_that_return_their_inputs_are_the_pure_form(rule, dtype, fused):
    for tx in (fo.chain(fo.sgd(0.25), rule()), fo.chain(rule(), fo.scale(-0.25))):
        params = {str(i): p.detach().clone() for i, p in enumerate(start_params(dtype))}
        optimizer = OptimizerAdapter(start_params(dtype), tx, fused=fused)
        state = tx.init_state({key: p.clone() for key, p in params.items()})
        for t in range(6):
            set_gradients(params_in(optimizer), t)
            grads = {key: p.grad.clone() for key, p in zip(params, params_in(optimizer), strict=True)}
            optimizer.step()
            u, state = tx.update(grads, state, params)
            params = fo.apply_updates(params, u)
            assert_params_close(params_in(optimizer), list(params.values()), FUSED_TOLERANCE[dtype] if fused else 0)


def test_a_link_inserted_into_a_chain_takes_no_slot_from_another():
    """Both have a `momentum_buffer`; the checkpoint's belonged to one of them, and nothing says to which."""
    p = parameter(1.0)
    saved = OptimizerAdapter([p], fo.chain(fo.trace(0.5), fo.sgd(1.0)))
    advance(saved, 2)
    loaded = OptimizerAdapter([p], fo.chain(fo.rename_hparams(fo.trace(0.9), momentum="slow"), fo.trace(0.5), fo.sgd(1.0)))
    with pytest.warns(UserWarning, match=r"Starting anew: trace, trace_1\. Left out: 'momentum_buffer'"):
        loaded.load_state_dict(saved.state_dict())
    advance(loaded, 1)
    assert {"trace.momentum_buffer", "trace_1.momentum_buffer"} < set(loaded.state[p])
    assert torch.equal(loaded.state[p]["momentum_buffer"], saved.state[p]["momentum_buffer"])


def test_a_value_shared_by_all_parameters_is_kept_when_one_is_skipped_or_comes_late():
    # A transform by hand with one count for everything: parameters that sit out a step must not turn it back.
    seen = []

    def update(updates, state, params, hparams):
        seen.append(state["calls"].item())
        return updates, {"calls": state["calls"] + 1}

    counter = fo.Transform(lambda params, hparams: {"calls": torch.zeros(())}, update, name="counter")
    a, b, c = parameter(1.0), parameter(1.0), parameter(1.0)
    optimizer = OptimizerAdapter([a, b, c], fo.chain(counter, fo.sgd()))
    for with_gradient in ([b], [b], [a, b], [c], [b, c], [a], [a, b, c]):
        for p in (a, b, c):
            p.grad = torch.ones_like(p) if p is b and b in with_gradient or any(p is q for q in with_gradient) else None
        optimizer.step()
    assert seen == [0, 1, 2, 3, 4, 5, 6]


# Saving, loading, copying.


def reloaded(optimizer, tx, params):
    again = OptimizerAdapter(params, tx)
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    return again


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_checkpoint_goes_on_bit_by_bit(dtype):
    straight, stopped = (OptimizerAdapter(start_params(dtype), composed()) for _ in range(2))
    for optimizer in (straight, stopped):
        optimizer.param_groups[0]["lr"] = 0.07
        advance(optimizer, 10)
    again = reloaded(stopped, composed(), [torch.nn.Parameter(p.detach().clone()) for p in params_in(stopped)])
    assert again.param_groups[0]["lr"] == 0.07
    walk_together(straight, again, 10, 0, first=10)
    for mine, other in zip(straight.state.values(), again.state.values(), strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[k], other[k]) and mine[k].dtype == other[k].dtype for k in mine)


@pytest.mark.parametrize("load", ["state_dict", "deepcopy", "pickle"])
def test_float32_slots_of_a_bfloat16_parameter_survive(load):
    tx = fo.adamw(0.1, state_dtype=torch.float32)
    straight, stopped = (OptimizerAdapter(start_params(torch.bfloat16), tx) for _ in range(2))
    advance(straight, 5)
    advance(stopped, 5)
    slots = stopped.state[params_in(stopped)[0]]
    # The moments hold digits that bfloat16 has not.
    assert slots["exp_avg_sq"].dtype == torch.float32 and not torch.equal(
        slots["exp_avg_sq"], slots["exp_avg_sq"].bfloat16().float()
    )
    if load == "state_dict":
        again = reloaded(stopped, tx, [torch.nn.Parameter(p.detach().clone()) for p in params_in(stopped)])
    else:
        again = copy.deepcopy(stopped) if load == "deepcopy" else pickle.loads(pickle.dumps(stopped))
    for p, q in zip(params_in(stopped), params_in(again), strict=True):
        for name, slot in stopped.state[p].items():
            assert again.state[q][name].dtype == slot.dtype and torch.equal(again.state[q][name], slot)
    walk_together(straight, again, 5, 0, first=5)


def test_a_checkpoint_survives_an_inserted_link():
    optimizer = OptimizerAdapter(start_params(), fo.adamw(0.1))
    advance(optimizer, 4)
    longer = fo.chain(fo.clip_by_global_norm(1e9), fo.adamw(0.1))
    again = reloaded(optimizer, longer, [torch.nn.Parameter(p.detach().clone()) for p in params_in(optimizer)])
    walk_together(optimizer, again, 4, 0, first=4)


# Groups.


def test_a_group_added_in_mid_training():
    ours, theirs = OptimizerAdapter(start_params(), fo.adamw(0.1)), torch.optim.AdamW(start_params(), lr=0.1)
    walk_together(ours, theirs, 5, FLOAT64)
    for optimizer in (ours, theirs):
        optimizer.add_param_group({"params": start_params(torch.float64, [(2, 2)]), "lr": 0.3, "weight_decay": 0.5})
    walk_together(ours, theirs, 10, FLOAT64, first=5)
    steps = [ours.state[p]["step"].item() for p in params_in(ours)]
    assert steps == [15, 15, 15, 15, 10]


@pytest.mark.parametrize(
    "group, error, message",
    [
        ({"lr": -0.1}, ValueError, r"param_groups\[{}\]: lr = -0.1 is outside \[0, inf\)"),
        ({"betas": (0.9, 1.0)}, ValueError, r"param_groups\[{}\]: betas\[1\] = 1.0 is outside \[0, 1\)"),
        ({"betas": 0.9}, TypeError, r"param_groups\[{}\]: betas = 0.9: expected 2 values, as in \(0.9, 0.999\)"),
        ({"lr": "0.1"}, TypeError, r"param_groups\[{}\]: lr = '0.1' is a str: expected a number or a \(\) tensor"),
        ({"eps": float("nan")}, ValueError, r"param_groups\[{}\]: eps = nan is outside"),
    ],
)
def test_the_numbers_of_a_group_are_checked(group, error, message):
    first, second = start_params(torch.float64, [(2,), (3,)])
    with pytest.raises(error, match=message.format(1)):
        OptimizerAdapter([{"params": [first]}, {"params": [second], **group}], fo.adamw())
    optimizer = OptimizerAdapter([first], fo.adamw())
    with pytest.raises(error, match=message.format(1)):
        optimizer.add_param_group({"params": [second], **group})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [second]})


def test_groups_with_equal_parameter_names_are_all_stepped():
    # A generator and a discriminator in one optimizer: both have a "0.weight".
    one, two = torch.nn.Sequential(torch.nn.Linear(2, 1)), torch.nn.Sequential(torch.nn.Linear(2, 1))
    optimizer = OptimizerAdapter(
        [{"params": one.named_parameters()}, {"params": two.named_parameters(), "lr": 0.5}], fo.sgd(lr=0.25)
    )
    before = [p.detach().clone() for p in params_in(optimizer)]
    for p in params_in(optimizer):
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p, then, lr in zip(params_in(optimizer), before, (0.25, 0.25, 0.5, 0.5), strict=True):
        assert torch.equal(p.detach(), then - lr)


@pytest.mark.parametrize(
    "name, tx",
    [
        ("step", fo.chain(fo.scale_by_schedule(decaying), fo.adamw(0.1))),
        ("exp_avg", fo.adamw(0.1)),
        ("lr", fo.sgd(0.1, 0.9)),
        ("params", fo.sgd(0.1, 0.9)),
        ("scale_by_learning_rate", fo.sgd(0.1)),
        ("scale_by_schedule", fo.chain(fo.scale_by_schedule(decaying))),
        ("scale_by_adam", fo.chain(fo.scale_by_adam())),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_parameter_may_have_any_name(name, tx):
    ours, theirs = OptimizerAdapter([(name, parameter(1.0, -2.0))], tx), OptimizerAdapter([parameter(1.0, -2.0)], tx)
    walk_together(ours, theirs, 4, 0)
    mine, other = (o.state[params_in(o)[0]] for o in (ours, theirs))
    assert mine.keys() == other.keys()


# A failed step changes nothing.


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(
    "make",
    [lambda p: OptimizerAdapter(p, composed()), lambda p: AdamW(p), lambda p: SGD(p, 0.1, 0.9)],
    ids=["chain", "AdamW", "SGD"],
)
def test_a_failed_step_changes_nothing(make, steps):
    def broken(number):
        optimizer = make([{"params": start_params()[:2]}, {"params": start_params()[2:], "weight_decay": 0.5}])
        advance(optimizer, steps)
        set_gradients(params_in(optimizer), 9)
        if number == 0:
            params_in(optimizer)[3].grad = torch.eye(2).to_sparse().double()
        elif number == 1:
            optimizer.param_groups[1]["lr"] = -1.0
        elif number == 2:
            optimizer.param_groups[1]["lr"] = "fast"
        else:
            optimizer.param_groups[1]["weight_decay"] = float("nan")
        return optimizer

    for number, message in enumerate(("sparse", r"lr.* = -1.0 is outside", "lr.* = 'fast' is a str", "weight_decay.* = nan")):
        optimizer = broken(number)
        before = snapshot(optimizer)
        with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
            optimizer.step()
        assert_unchanged(optimizer, before)
        # Mended, it goes on as if nothing had been.
        for group in optimizer.param_groups:
            group.update(lr=0.1, weight_decay=0.1)
        witness = make([{"params": start_params()[:2]}, {"params": start_params()[2:], "weight_decay": 0.5}])
        advance(witness, steps)
        for group in witness.param_groups:
            group.update(lr=0.1, weight_decay=0.1)
        walk_together(optimizer, witness, 2, 0, first=20)


def test_a_refused_first_step_leaves_nothing_behind():
    """The plan that was made for it holds a state that nobody stored."""
    refused, plain = (
        OptimizerAdapter([torch.nn.Parameter(torch.ones(3))], fo.chain(fo.trace(0.9), fo.scale_by_polyak(0.1))) for _ in "ab"
    )
    for optimizer in (refused, plain):
        optimizer.param_groups[0]["params"][0].grad = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="needs 'value'"):
        refused.step()
    for optimizer in (refused, plain):
        for _ in range(3):
            optimizer.step(value=torch.tensor(1.0))
    assert refused.state_dict()["state"].keys() == {0}
    torch.testing.assert_close(refused.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_a_slot_of_the_wrong_shape_is_refused_before_anything_is_written():
    optimizer = OptimizerAdapter(start_params(), fo.adamw())
    advance(optimizer, 2)
    state = optimizer.state[params_in(optimizer)[1]]
    state["exp_avg"] = state["exp_avg"][:1].clone()
    set_gradients(params_in(optimizer), 2)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"exp_avg.*shape"):
        optimizer.step()
    assert_unchanged(optimizer, before)


# Names in errors.


def test_errors_name_the_parameter():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    optimizer = OptimizerAdapter(model.named_parameters(), fo.sgd())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model[1].weight.grad = torch.eye(2).to_sparse()
    with pytest.raises(TypeError, match=r"grads\['1.weight'\] is sparse"):
        optimizer.step()
    optimizer = OptimizerAdapter([{"params": [parameter(1.0)]}, {"params": model.parameters()}], fo.sgd())
    with pytest.raises(TypeError, match=r"grads\['group 1, parameter 2'\] is sparse"):
        optimizer.step()


def test_a_number_gone_wrong_names_the_group():
    a, b = start_params(torch.float64, [(2,), (2,)])
    optimizer = OptimizerAdapter([{"params": [a]}, {"params": [b]}], fo.sgd())
    set_gradients([a, b], 0)
    optimizer.param_groups[1]["lr"] = float("nan")
    with pytest.raises(ValueError, match=r"param_groups\[1\]: lr = nan is outside \[0, inf\)"):
        optimizer.step()


def test_a_parameter_that_is_renamed_in_its_group_is_called_so():
    p = parameter(1.0)
    optimizer = OptimizerAdapter([("old", p)], fo.sgd(1.0))
    advance(optimizer, 2)
    optimizer.param_groups[0]["param_names"][0] = "new"
    p.grad = torch.ones_like(p).to_sparse()
    with pytest.raises(TypeError, match="new"):
        optimizer.step()


def test_an_array_in_a_group_is_looked_at_anew_at_each_step():
    betas, p = np.array([0.9, 0.99]), torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = OptimizerAdapter([p], fo.lion(lr=1.0, weight_decay=0.0), betas=(0.9, 0.99))
    optimizer.param_groups[0]["betas"] = betas
    for beta, expected in ((0.9, 0.01), (0.1, 0.01 * 0.1 + 0.9)):
        betas[1] = 1 - (0.01 if beta == 0.9 else 0.9)
        p.grad = torch.ones_like(p)
        optimizer.step()
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], torch.full_like(p, expected))
