"""Checkpoints of another chain: each rule goes on with its slots and its count, or starts afresh; the warning says which."""

import copy
from contextlib import nullcontext

import pytest
import torch
from subjects import advance, params_in, through_a_file
from trajectories import assert_params_close, drifting_gradient, start_params, walk_together

import functional_optim as fo
from functional_optim.adapters import Adam, OptimizerAdapter, functional_state, load_by_name

# Equal formulas in float64; the host counts in Python numbers, the pure form in tensors.
FLOAT64 = 1e-12


def halving(step):
    return 0.5**step


def link(*transforms):
    return fo.chain(*transforms, fo.scale_by_learning_rate(0.1))


ADAM = ("scale_by_adam",)
SCHEDULE = fo.scale_by_schedule(halving)
EARLY_CLOCK = fo.chain(SCHEDULE, name="early")

# The chain that was saved, the one that loads it; the states that go on, by the keys to them here and there; what is said.
CHANGES = {
    "the same": (
        link(fo.trace(), fo.scale_by_adam()),
        link(fo.trace(), fo.scale_by_adam()),
        {ADAM: ADAM, ("trace",): ("trace",)},
        "",
    ),
    "a link more": (
        link(fo.scale_by_adam()),
        link(fo.scale_by_adam(), fo.trace()),
        {ADAM: ADAM},
        r"Loaded: scale_by_adam\. Starting anew: trace\.",
    ),
    "a link before it": (link(fo.scale_by_adam()), link(fo.ema(), fo.scale_by_adam()), {ADAM: ADAM}, "Starting anew: ema"),
    "a link less": (
        link(fo.trace(), fo.scale_by_adam()),
        link(fo.scale_by_adam()),
        {ADAM: ADAM},
        r"Loaded: scale_by_adam\. Left out: 'momentum_buffer', which nothing here keeps",
    ),
    "a count more": (
        link(fo.scale_by_adam()),
        link(EARLY_CLOCK, fo.scale_by_adam()),
        {ADAM: ADAM},
        "Starting anew: early.scale_by_schedule",
    ),
    "a count less": (link(EARLY_CLOCK, fo.scale_by_adam()), link(fo.scale_by_adam()), {ADAM: ADAM}, ""),
    "one count of two": (
        link(SCHEDULE, EARLY_CLOCK),
        link(EARLY_CLOCK),
        {("early", "scale_by_schedule"): ("early", "scale_by_schedule")},
        "",
    ),
    "of two alike one": (link(fo.trace(0.5), fo.trace(0.5)), link(fo.trace(0.5)), {("trace",): ("trace",)}, "Left out: "),
    "of one two alike": (
        link(fo.trace(0.5)),
        link(fo.trace(0.5), fo.trace(0.5)),
        {},
        r"Starting anew: trace, trace_1\.",
    ),
    "into a named optimizer": (link(fo.scale_by_adam()), fo.adam(0.1), {ADAM: ADAM}, ""),
    "into a wrapper": (
        fo.adam(0.1),
        fo.lookahead(fo.adam(0.1), sync_period=2),
        {ADAM: ("adam", *ADAM)},
        r"Loaded: adam.scale_by_adam\. Starting anew: lookahead",
    ),
    "out of a wrapper": (
        fo.lookahead(fo.adam(0.1), sync_period=2),
        fo.adam(0.1),
        {("adam", *ADAM): ADAM},
        "Left out: 'slow_params'",
    ),
    "into accumulation": (
        fo.adam(0.1),
        fo.accumulate(fo.adam(0.1), 2),
        {ADAM: ("inner", *ADAM)},
        r"scale_by_adam\. Starting anew: .*'mean_grad', 'micro_step'",
    ),
    "onto a schedule": (
        fo.adam(0.1),
        fo.scheduled(fo.adam(0.1), eps=halving),
        {ADAM: ("inner", *ADAM)},
        r"scale_by_adam\. Starting anew: 'schedule_step'",
    ),
    "off a schedule": (
        fo.scheduled(fo.adam(0.1), eps=halving),
        fo.adam(0.1),
        {("inner", *ADAM): ADAM},
        "Left out: 'schedule_step'",
    ),
    "another rule": (
        link(fo.scale_by_adamax()),
        link(fo.scale_by_adam()),
        {},
        r"Starting anew: scale_by_adam \(the checkpoint lacks 'exp_avg_sq'\)",
    ),
    "other pairs alike": (
        link(fo.trace(), fo.ema(), fo.trace()),
        link(fo.scale_by_adam(), fo.trace(), fo.trace()),
        {("trace",): ("trace",), ("trace_1",): ("trace_1",)},
        "Starting anew: scale_by_adam",
    ),
}


def part(state, keys):
    for key in keys:
        state = state[key]
    return state


def with_part(state, keys, new):
    return {**state, keys[0]: with_part(state[keys[0]], keys[1:], new)} if keys else new


# Both engines take their state in one way; three changes stand for all.
EACH = [*((name, False) for name in CHANGES), *((name, True) for name in ("a link more", "a count more", "another rule"))]


@pytest.mark.parametrize("name, fused", EACH)
def test_a_rule_goes_on_whole_or_starts_afresh(name, fused):
    old, new, kept, message = CHANGES[name]
    before, after = OptimizerAdapter(start_params(), old), OptimizerAdapter(start_params(), new, fused=fused)
    advance(before, 3)
    for p, q in zip(params_in(after), params_in(before), strict=True):
        p.data.copy_(q)
    with pytest.warns(UserWarning, match=message) if message else nullcontext():
        after.load_state_dict(through_a_file(before.state_dict()))
    params, saved, _ = functional_state(before)
    state = new.init_state(params)
    for there, here in kept.items():
        state = with_part(state, here, part(saved, there))
    for t in range(3, 7):
        advance(after, 1, first=t)
        updates, state = new.update({k: drifting_gradient(p, t, int(k)) for k, p in params.items()}, state, params)
        params = fo.apply_updates(params, updates)
        assert_params_close(params_in(after), list(params.values()), FLOAT64)


def matrices_and_the_rest():
    return fo.partition(
        {"plain": fo.adam(0.1), "matrix": fo.adamw(0.1, weight_decay=0.0)}, fo.by_ndim({2: "matrix"}, otherwise="plain")
    )


@pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
def test_torchs_checkpoint_goes_on_in_every_branch(fused):
    """And back: what a parameter's slots are called depends on what it goes through, not on the branches beside."""
    theirs = torch.optim.Adam(start_params(), 0.1)
    advance(theirs, 20)
    ours = OptimizerAdapter(start_params(), matrices_and_the_rest(), fused=fused)
    for p, q in zip(params_in(ours), params_in(theirs), strict=True):
        p.data.copy_(q)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    walk_together(ours, theirs, 5, FLOAT64, first=20)
    assert all(slots.keys() == {"step", "exp_avg", "exp_avg_sq"} for slots in ours.state.values())
    again = torch.optim.Adam(params_in(ours), 0.1)
    again.load_state_dict({**again.state_dict(), "state": ours.state_dict()["state"]})
    walk_together(again, theirs, 5, FLOAT64, first=25)


@pytest.mark.parametrize(
    "theirs, told",
    [
        (
            torch.optim.AdamW,
            r"Loaded: rotate\. Starting anew: rotate of parameter 'w' \(the checkpoint lacks 'GG\.0', [^)]*\)\.$",
        ),
        (torch.optim.Adamax, r"in part\. Starting anew: rotate \(the checkpoint lacks 'GG\.0', [^)]*'exp_avg_sq'\)\. Left out"),
    ],
)
def test_a_rule_that_starts_anew_in_some_parameters_is_told_of_once_and_of_which(theirs, told):
    """SOAP is Adam in vectors, and more in matrices."""
    w, b = (torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,)))
    source, target = theirs([w, b]), OptimizerAdapter([("w", w), ("b", b)], fo.soap())
    advance(source, 1)
    with pytest.warns(UserWarning, match=told):
        target.load_state_dict(source.state_dict())
    assert ("exp_avg_sq" in target.state[b]) == (theirs is torch.optim.AdamW) and "exp_avg_sq" not in target.state[w]


def test_by_name_it_is_the_same():
    named = [(str(i), p) for i, p in enumerate(start_params())]
    source = OptimizerAdapter(named, fo.adam(0.1))
    advance(source, 3)
    target = OptimizerAdapter(list(reversed(named)), fo.lookahead(fo.adam(0.1)))
    with pytest.warns(UserWarning, match=r"scale_by_adam\. Starting anew: lookahead"):
        assert not load_by_name(target, source.state_dict())
    for _, p in named:
        assert torch.equal(target.state[p]["exp_avg"], source.state[p]["exp_avg"]) and int(target.state[p]["step"]) == 3


def test_a_checkpoint_that_lacks_a_slot_of_one_parameter():
    """That parameter's rule starts afresh; those of the others go on; of a torch class, too."""
    for make in (Adam, lambda p: OptimizerAdapter(p, fo.adam())):
        source, target = make(start_params()), make(start_params())
        advance(source, 3)
        saved = source.state_dict()
        del saved["state"][1]["exp_avg"]
        with pytest.warns(UserWarning, match=r"scale_by_adam of parameter 1 \(the checkpoint lacks 'exp_avg'\)") as caught:
            target.load_state_dict(saved)
        assert caught[0].filename == __file__, "where the user is"
        advance(target, 1, first=3)
        assert [int(target.state[p]["step"]) for p in params_in(target)] == [4, 1, 4, 4]
