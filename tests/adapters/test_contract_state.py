"""The contract of torch.optim.Optimizer, on every drop-in class and three chains: state, checkpoints and copies."""

import copy
import io
import pickle
import warnings
from contextlib import nullcontext

import pytest
import torch
from subjects import (
    EAGER,
    FUSED,
    Subject,
    advance,
    assert_same_bits,
    assert_same_run,
    every_counterpart,
    every_eager,
    every_one,
    every_uncoupled,
    params_in,
    through_a_file,
)
from trajectories import assert_params_close, drifting_gradient, snapshot, start_params, walk_together

import functional_optim as fo
from functional_optim.adapters import SGD, Adadelta, Adam, AdamW, OptimizerAdapter, RMSprop
from functional_optim.adapters.state.layout import Key

FLOAT64 = 1e-12


def over_copies(make, optimizer):
    """Another optimizer, over copies of the parameters."""
    return make([torch.nn.Parameter(p.detach().clone()) for p in params_in(optimizer)])


def is_plain(value):
    if isinstance(value, dict):
        return type(value) is dict and all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, torch.Tensor | int | float | str | bool)


@every_one
def test_the_state_is_created_lazily_flat_and_of_tensors(subject):
    optimizer = subject.make(subject.params())
    assert optimizer.state == {} and optimizer.state_dict()["state"] == {}
    params_in(optimizer)[0].grad = torch.ones(3, 4)
    optimizer.step()
    assert set(optimizer.state) == {params_in(optimizer)[0]}
    advance(optimizer, 1)
    for p in params_in(optimizer):
        assert type(optimizer.state[p]) is dict
        for name, value in optimizer.state[p].items():
            # Distributed checkpoints flatten tensors and numbers, and nothing else.
            assert isinstance(name, str) and isinstance(value, torch.Tensor)
            assert not value.requires_grad and value.grad_fn is None
            assert value.dtype == torch.float32 or not value.ndim
    assert is_plain(optimizer.state_dict())


@every_counterpart
def test_the_state_has_torchs_names_shapes_and_dtypes(subject):
    ours, theirs = subject.make(subject.params(torch.float64)), subject.theirs(subject.params(torch.float64))
    walk_together(ours, theirs, 2, subject.tolerance)
    for p, q in zip(params_in(ours), params_in(theirs), strict=True):
        # Where torch keeps no count, ours does; and torch notes what it has not as None.
        expected = {name: value for name, value in theirs.state[q].items() if value is not None}
        # A slot that a parameter of this shape has no use for is empty.
        assert {name for name, x in ours.state[p].items() if x.numel() and not name.endswith("step")} == expected.keys() - {
            "step"
        }
        for name in expected.keys() & ours.state[p].keys():
            # Numbers are float64 here, and in torch of the default dtype.
            assert ours.state[p][name].dtype == torch.as_tensor(expected[name]).dtype or not ours.state[p][name].ndim
            assert_params_close([ours.state[p][name].double()], [torch.as_tensor(expected[name]).double()], subject.tolerance)


# Resuming.


@every_one
def test_a_checkpoint_goes_on_bit_by_bit(subject):
    straight, stopped = subject.pair()
    for optimizer in (straight, stopped):
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        advance(optimizer, 4)
    again = over_copies(subject.make, stopped)
    again.load_state_dict(through_a_file(stopped.state_dict()))
    assert again.param_groups[0]["lr"] == 0.01
    assert_same_run(again, stopped)
    advance(straight, 3, first=4)
    advance(again, 3, first=4)
    assert_same_run(again, straight)


IN_ANOTHER_PROCESS = [*EAGER, FUSED[0]]


def go_on(shared, pickled, checkpoints):
    """In another process: step optimizers whose tensors are shared, pickled ones, and fresh ones that load checkpoints."""
    sent, loaded = pickle.loads(pickled), []
    for subject, optimizer, checkpoint in zip(IN_ANOTHER_PROCESS, sent, checkpoints, strict=True):
        loaded.append(over_copies(subject.make, optimizer))
        loaded[-1].load_state_dict(torch.load(io.BytesIO(checkpoint), weights_only=True))
    for optimizer in (*shared, *sent, *loaded):
        advance(optimizer, 2, first=3)
    return pickle.dumps((sent, loaded))


def test_another_process_goes_on_bit_by_bit():
    """All subjects at once: a process takes seconds to start."""
    shared, checkpoints = [subject.make(subject.params()) for subject in IN_ANOTHER_PROCESS], []
    for optimizer in shared:
        advance(optimizer, 3)
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        checkpoints.append(buffer.getvalue())
    pickled = pickle.dumps(shared)
    straight = pickle.loads(pickled)
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        sent, loaded = pickle.loads(pool.apply(go_on, (shared, pickled, checkpoints)))
    for here, there, again, common in zip(straight, sent, loaded, shared, strict=True):
        advance(here, 2, first=3)
        assert_same_run(there, here)
        assert_same_run(again, here)
        # The other process has written into the memory of this one, as torch's optimizers do.
        assert_same_bits(params_in(common), params_in(here))


@every_one
def test_loading_takes_copies_and_can_be_repeated(subject):
    source, target = subject.pair()
    advance(source, 2)
    saved = source.state_dict()
    target.load_state_dict(saved)
    before = copy.deepcopy(saved)
    advance(target, 2, first=2)
    assert_same_bits(source.state_dict(), before)
    target.load_state_dict(saved)
    assert_same_bits(target.state_dict(), before)


@every_eager
def test_slots_keep_their_dtype_when_they_are_loaded(subject):
    """torch rounds the float32 moments of a bfloat16 parameter to bfloat16."""
    source = subject.make(subject.params())
    advance(source, 3)
    target = subject.make([torch.nn.Parameter(p.detach().bfloat16()) for p in params_in(source)])
    target.load_state_dict(through_a_file(source.state_dict()))
    assert_same_bits(target.state_dict()["state"], source.state_dict()["state"])

    # A slot that a parameter does without is empty.
    def dtypes_of_slots():
        return [{name: value.dtype for name, value in target.state[p].items() if value.numel()} for p in params_in(target)]

    dtypes = dtypes_of_slots()
    assert torch.bfloat16 not in {dtype for each in dtypes for dtype in each.values()}
    advance(target, 1, first=3)
    assert dtypes_of_slots() == dtypes


@every_one
def test_a_checkpoint_of_the_first_moment(subject):
    """Before any step, there is no state; and none is made up."""
    optimizer, twin = subject.pair()
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert optimizer.state == {}
    advance(optimizer, 2)
    advance(twin, 2)
    assert_same_run(optimizer, twin)


# Copies.


@every_one
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_copy_goes_on_by_itself(subject, copied, steps):
    optimizer, witness = subject.pair()
    advance(optimizer, steps)
    advance(witness, steps)
    torch.optim.lr_scheduler.StepLR(optimizer, 100)  # Wraps the object's `step` in a function that can't be pickled.
    again = copied(optimizer)
    assert type(again) is type(optimizer) and again.defaults == optimizer.defaults
    assert not {id(p) for p in params_in(again)} & {id(p) for p in params_in(optimizer)}
    before = snapshot(optimizer)
    advance(again, 2, first=steps)
    advance(witness, 2, first=steps)
    assert_same_run(again, witness)
    assert_same_bits(snapshot(optimizer), before)


class Averaged(AdamW):
    """A subclass with attributes of its own: a number, a tensor, a private one."""

    window = 1

    def __init__(self, params, window, **options):
        self.window = window
        self.history = [torch.zeros(2)]
        super().__init__(params, **options)
        self._secret = "kept"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_of_a_subclass_has_its_attributes(copied):
    optimizer = Averaged(start_params(), 5, lr=0.1)
    optimizer.history[0] += 1
    advance(optimizer, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    again = copied(optimizer)
    assert (again.window, again._secret) == (5, "kept") and torch.equal(again.history[0], torch.ones(2))
    advance(again, 1, first=2)
    advance(optimizer, 1, first=2)
    assert_same_run(again, optimizer)


# What people do to the state.


@every_uncoupled
def test_a_cleared_state_starts_afresh(subject):
    optimizer = subject.make(subject.params())
    advance(optimizer, 3)
    fresh = over_copies(subject.make, optimizer)
    optimizer.state.clear()
    advance(optimizer, 2)
    advance(fresh, 2)
    assert_same_run(optimizer, fresh)


@every_one
def test_blank_and_missing_states_start_afresh_and_the_others_go_on(subject):
    optimizer, twin = subject.pair()
    for one in (optimizer, twin):
        advance(one, 2)
    first, second = params_in(optimizer)[:2]
    optimizer.state[first] = {}
    del optimizer.state[second]
    saved = optimizer.state_dict()
    twin.load_state_dict(saved)
    assert saved["state"][0] == {} and 1 not in saved["state"]
    for one in (optimizer, twin):
        advance(one, 1, first=2)
    assert_same_run(optimizer, twin)
    for p, steps in zip(params_in(optimizer), (1, 1, 3, 3), strict=True):
        assert {int(value) for name, value in optimizer.state[p].items() if name.endswith("step")} <= {steps}


def rules_in(optimizer):
    """What the first parameter calls the slots and the count of each rule."""
    (layout,) = optimizer._layouts.values()
    key = Key(0, 0)
    return [[layout.names(key)[value.path] for value in rule] for rule in layout.rules_of(key)]


@every_eager
def test_a_rule_that_lacks_a_slot_starts_afresh_and_says_so(subject):
    """With all its slots and its count, as those of a parameter that comes to its first step."""
    optimizer = subject.make(subject.params())
    advance(optimizer, 1)
    p = params_in(optimizer)[0]
    for rule in rules_in(optimizer):
        for name in [name for name in rule if not name.endswith("step") and optimizer.state[p][name].numel()]:
            advance(optimizer, 2)
            new = over_copies(subject.make, optimizer)
            del optimizer.state[p][name]
            with warned_of(name) if len(rule) > 1 else nullcontext():
                advance(optimizer, 1, first=2)
            advance(new, 1, first=2)
            found, expected = (
                {slot: state[slot] for slot in rule} for state in (optimizer.state[p], new.state[params_in(new)[0]])
            )
            assert all(int(count) == 1 for slot, count in found.items() if slot.endswith("step"))
            if not subject.couples and len(rules_in(optimizer)) == 1:  # Else it may have got other updates to work on.
                assert_same_bits(found, expected)


def warned_of(name):
    return pytest.warns(UserWarning, match=f"starts afresh, for '{name}' of 'group 0, parameter 0' is missing")


@every_eager
def test_numbers_in_a_loaded_state_become_tensors(subject):
    """Counts were Python numbers once."""
    optimizer, twin = subject.pair()
    advance(optimizer, 2)
    advance(twin, 2)
    saved = optimizer.state_dict()
    for slots in saved["state"].values():
        slots.update({name: int(value) for name, value in slots.items() if name.endswith("step")})
    again = over_copies(subject.make, optimizer)
    again.load_state_dict(saved)
    advance(again, 1, first=2)
    advance(twin, 1, first=2)
    assert_same_run(again, twin)


# From and to torch.optim.


def behind_the_adapter(subject: Subject):
    """The transform of a drop-in class, as a chain behind `OptimizerAdapter`."""
    (group,) = subject.make(subject.params(torch.float64)).param_groups
    transform = subject.make(subject.params(torch.float64)).transform_for(group)
    return lambda params: OptimizerAdapter(params, transform)


@every_counterpart
@pytest.mark.parametrize("chained", [False, True], ids=["class", "chain"])
def test_a_checkpoint_of_torch_goes_on_in_ours(subject, chained):
    theirs = subject.theirs(subject.params(torch.float64), lr=0.02)
    advance(theirs, 5)
    ours = over_copies(behind_the_adapter(subject) if chained else subject.make, theirs)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    assert ours.param_groups[0]["lr"] == 0.02
    walk_together(ours, theirs, 10, subject.tolerance, first=5)


@every_counterpart
@pytest.mark.parametrize("chained", [False, True], ids=["class", "chain"])
def test_our_checkpoint_goes_on_in_torch(subject, chained):
    ours = (behind_the_adapter(subject) if chained else subject.make)(subject.params(torch.float64))
    ours.param_groups[0]["lr"] = 0.02
    advance(ours, 5)
    theirs, saved = over_copies(subject.theirs, ours), through_a_file(ours.state_dict())
    if chained:  # It has no options, and no number that it makes no use of; torch takes a group as it is.
        saved["param_groups"] = [{**theirs.state_dict()["param_groups"][0], **saved["param_groups"][0]}]
    theirs.load_state_dict(saved)
    assert theirs.param_groups[0]["lr"] == 0.02
    walk_together(ours, theirs, 10, subject.tolerance, first=5)


@every_counterpart
def test_a_class_and_its_chain_read_each_others_checkpoints_bit_by_bit(subject):
    ours, chained = subject.make(subject.params()), behind_the_adapter(subject)(subject.params())
    advance(ours, 3)
    chained = over_copies(behind_the_adapter(subject), ours)
    chained.load_state_dict(ours.state_dict())
    back = over_copies(subject.make, chained)
    back.load_state_dict(chained.state_dict())
    for optimizer in (ours, chained, back):
        advance(optimizer, 3, first=3)
    assert_same_bits(params_in(chained), params_in(ours))
    assert_same_run(back, ours)


def test_a_checkpoint_of_adam_leaves_adamw_decoupled_as_in_torch():
    coupled, ours, theirs = Adam(start_params(), weight_decay=0.5), AdamW(start_params()), torch.optim.AdamW(start_params())
    advance(coupled, 3)
    for optimizer in (ours, theirs):
        optimizer.load_state_dict(coupled.state_dict())
        assert optimizer.param_groups[0]["decoupled_weight_decay"] is True
    walk_together(ours, theirs, 5, FLOAT64, first=3)


# Checkpoints that don't fit.


@every_eager
def test_another_number_of_groups_or_parameters_is_refused(subject):
    a, b, c, d = subject.params()
    optimizer = subject.make([{"params": [a, b]}, {"params": [c, d]}])
    advance(optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    for groups, message in (
        ([subject.params(torch.float64)], "the checkpoint has groups of 4 parameters, this optimizer of 2 and 2"),
        (
            [subject.params(torch.float64)[:1], subject.params(torch.float64)[1:]],
            "has groups of 1 and 3 parameters, this optimizer of 2 and 2.*load_by_name",
        ),
    ):
        other = subject.make([{"params": own} for own in groups])
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(other.state_dict())
        assert_same_bits(optimizer.state_dict(), before)
    advance(optimizer, 1, first=2)


@every_eager
def test_slots_of_other_shapes_are_refused(subject):
    optimizer, other = (
        subject.make(subject.params(torch.float64)),
        subject.make(subject.params(torch.float64, [(7,)] * 4)),
    )
    advance(optimizer, 2)
    advance(other, 2)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"param_groups\[0\], parameter 0.*: .* (it belongs to another parameter|another kind)"):
        optimizer.load_state_dict(other.state_dict())
    assert_same_bits(optimizer.state_dict(), before)


def adagrad_like(params):
    return OptimizerAdapter(params, fo.chain(fo.scale_by_adam(), fo.scale_by_learning_rate()))


FOREIGN = [
    (SGD, torch.optim.AdamW, r"param_groups\[0\] has .*'betas'.* lacks 'dampening', 'momentum'.*no checkpoint of SGD"),
    (AdamW, torch.optim.SGD, r"param_groups\[0\] has .*'momentum'.* lacks 'betas', 'eps'.*no checkpoint of AdamW"),
    (AdamW, lambda p: torch.optim.SGD(p, 0.1, 0.9), r"holds 'momentum_buffer', this optimizer keeps 'exp_avg', 'exp_avg_sq'"),
    (Adadelta, torch.optim.RMSprop, r"has 'alpha' and lacks 'rho': .*no checkpoint of Adadelta"),  # Both keep `square_avg`.
    (Adam, torch.optim.Adadelta, r"the checkpoint holds 'acc_delta', 'square_avg', this optimizer keeps 'exp_avg', 'exp_avg_sq'"),
    (
        adagrad_like,
        lambda p: torch.optim.SGD(p, 0.1, 0.9),
        r"holds 'momentum_buffer', this optimizer keeps .*another kind saved",
    ),
    (lambda p: OptimizerAdapter(p, fo.sgd(0.1, 0.9)), torch.optim.AdamW, r"holds 'exp_avg', .* keeps 'momentum_buffer'"),
]


@pytest.mark.parametrize("ours, theirs, message", FOREIGN, ids=range(len(FOREIGN)))
def test_a_checkpoint_of_another_kind_is_refused(ours, theirs, message):
    source, target = theirs(start_params()), ours(start_params())
    advance(source, 2)
    advance(target, 2)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(source.state_dict())
    assert_same_bits(target.state_dict(), before)


@pytest.mark.parametrize(
    "ours, theirs, message",
    [
        (AdamW, torch.optim.SGD, r"has 'dampening', 'momentum', 'nesterov' and lacks 'betas', 'eps': .* no checkpoint of AdamW"),
        (
            RMSprop,
            torch.optim.AdamW,
            r"has 'betas' and lacks 'alpha', 'momentum': .* no checkpoint of RMSprop",
        ),  # Both have `eps`.
        (RMSprop, lambda p: torch.optim.SGD(p, 0.1, 0.9, 0.5), r"has 'dampening' and lacks 'alpha', 'eps'"),
        (RMSprop, lambda p: torch.optim.SGD(p, 0.1, 0.9), r"has 'dampening', .* and lacks 'alpha', 'eps'"),
    ],
    ids=["none in common", "eps in common", "momentum in common", "what is off"],
)
def test_a_checkpoint_of_another_kind_without_state_is_refused(ours, theirs, message):
    target = ours(start_params())
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match=rf"param_groups\[0\] {message}"):
        target.load_state_dict(theirs(start_params()).state_dict())
    assert_same_bits(target.state_dict(), before)


def changed(state_dict, **entries):
    """A checkpoint whose groups have other entries."""
    return {**state_dict, "param_groups": [{**group, **entries} for group in state_dict["param_groups"]]}


@pytest.mark.parametrize("make", [lambda p: OptimizerAdapter(p, fo.adamw()), AdamW], ids=["a chain", "a class"])
@pytest.mark.parametrize("entries", [{"eps": (None, 1e-3)}, {"lr": -1.0}, {"betas": 0.9}, {"weight_decay": None}], ids=str)
def test_a_checkpoint_with_a_number_that_every_step_would_refuse_is_refused(make, entries):
    source, target = make(start_params()), make(start_params())
    advance(source, 2)
    before, saved = copy.deepcopy(target.state_dict()), changed(source.state_dict(), **entries)
    with pytest.raises(ValueError, match=rf"param_groups\[0\] .* has {next(iter(entries))} = .* replace its param_groups"):
        target.load_state_dict(saved)
    assert_same_bits(target.state_dict(), before)
    target.load_state_dict({**saved, "param_groups": target.state_dict()["param_groups"]})
    advance(target, 1)


def test_a_checkpoint_of_adafactor_without_state_is_refused_by_a_chain_that_has_one_eps():
    target = OptimizerAdapter(start_params(), fo.adamw())
    with pytest.raises(ValueError, match=r"has eps = \(None, 0\.001\), which this optimizer can't take; its own is 1e-08"):
        target.load_state_dict(torch.optim.Adafactor(start_params()).state_dict())


@pytest.mark.parametrize(
    "make, entries",
    [
        (AdamW, {"lr": torch.tensor([0.1]), "betas": [0.8, torch.tensor(0.9)]}),
        (lambda p: OptimizerAdapter(p, fo.adamw()), {"lr": torch.tensor(0.1), "betas": [0.8, 0.9]}),
        # What cyclic schedulers write, and torch's classes step with.
        (AdamW, {"betas": (1.5, 0.9)}),
        (lambda p: OptimizerAdapter(p, fo.scheduled(fo.adamw(), lr=lambda step: 0.1)), {"lr": 1.0}),
        (lambda p: SGD(p, 0.1), {"betas": "somebody's own"}),
    ],
    ids=["tensors", "tensors in a chain", "betas out of range", "a factor", "no number of this optimizer"],
)
def test_a_checkpoint_with_numbers_that_steps_take_is_loaded(make, entries):
    target = make(start_params())
    is_odd = entries.get("betas", (0,))[0] == 1.5
    with pytest.warns(UserWarning, match="out of range") if is_odd else nullcontext() as told:
        target.load_state_dict(changed(make(start_params()).state_dict(), **entries))
        advance(target, 1)
    assert not is_odd or len(told) == 1
    assert entries.items() <= target.param_groups[0].items()


def test_numbers_in_a_checkpoint_without_state_that_a_chain_does_not_take():
    target = OptimizerAdapter(start_params(), fo.sgd(momentum=0.9))
    with pytest.warns(
        UserWarning, match=r"its groups have 'betas', 'eps', which nothing here takes, and lack .*'momentum'"
    ) as told:
        target.load_state_dict(torch.optim.AdamW(start_params(), lr=0.5).state_dict())
    assert len(told) == 1
    assert target.param_groups[0]["lr"] == 0.5 and target.param_groups[0]["momentum"] == 0.9
    # What is off is missing nowhere; nor are numbers of people's own, or links that came in since.
    clipped = OptimizerAdapter(start_params(), fo.chain(fo.clip_by_global_norm(), fo.sgd()))
    clipped.load_state_dict(torch.optim.SGD(start_params(), 0.5).state_dict())
    clipped.load_state_dict(OptimizerAdapter([{"params": start_params(), "lr_scale": 0.1}], fo.sgd()).state_dict())


@pytest.mark.parametrize(
    "theirs, transform, message",
    [
        (lambda p: torch.optim.AdamW(p, amsgrad=True), fo.adamw(), "Left out: 'max_exp_avg_sq'"),
        (torch.optim.AdamW, fo.adamw(amsgrad=True), r"Starting anew: scale_by_adam \(the checkpoint lacks 'max_exp_avg_sq'\)"),
        (
            lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True),
            fo.sgd(0.1, 0.9),
            "its groups have nesterov=True, this one was built with nesterov=False",
        ),
        (
            lambda p: torch.optim.AdamW(p, maximize=True),
            fo.adamw(),
            "its groups have maximize=True, this one was built with maximize=False",
        ),
    ],
    ids=["amsgrad", "no amsgrad", "nesterov", "maximize"],
)
def test_a_checkpoint_of_a_somewhat_different_chain_is_loaded_with_a_warning(theirs, transform, message):
    source, target = theirs(start_params()), OptimizerAdapter(start_params(), transform)
    advance(source, 2)
    with pytest.warns(UserWarning, match=message) as caught:
        target.load_state_dict(source.state_dict())
    assert len(caught) == 1
    advance(target, 1, first=2)


def test_options_switched_in_mid_training_are_no_other_kind():
    optimizer = SGD(start_params(), 0.1, 0.9)
    advance(optimizer, 2)
    optimizer.param_groups[0]["momentum"] = 0.0  # The buffers stay, as in torch.
    again = over_copies(SGD, optimizer)
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    assert "momentum_buffer" in again.state[params_in(again)[0]]
    for one in (optimizer, again):
        one.param_groups[0]["momentum"] = 0.9
    walk_together(again, optimizer, 3, 0, first=2)


@pytest.mark.parametrize("wrap", [fo.lookahead, fo.ema_params, fo.schedule_free], ids=lambda wrap: wrap.__name__)
def test_copies_of_parameters_are_left_out_where_nothing_keeps_them_up_to_date(wrap):
    w = torch.nn.Parameter(torch.ones(4))
    saved = OptimizerAdapter([w], wrap(fo.sgd(0.1)))
    saved.init_state()
    without = OptimizerAdapter([w], fo.sgd(0.1, momentum=0.9))
    state = saved.state_dict()
    state["state"][0]["momentum_buffer"] = torch.ones(4)
    with pytest.warns(UserWarning, match="Left out"):
        without.load_state_dict(state)
    held = [name for name, value in without.state[w].items() if torch.is_tensor(value) and value.shape == w.shape]
    assert held == ["momentum_buffer"]


@pytest.mark.parametrize("rounding", ["master_copy", "error_bits", "kahan"])
@pytest.mark.parametrize(
    "make", [AdamW, lambda p, lr, **given: OptimizerAdapter(p, fo.adamw(lr), **given)], ids=["class", "chain"]
)
def test_digits_of_parameters_are_left_out_where_nothing_keeps_them_up_to_date(make, rounding):
    """Kept in the state and saved again, an old master copy would undo the steps without it."""
    w = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))

    def gone_on(optimizer, steps):
        for _ in range(steps):
            w.grad = torch.ones_like(w)
            optimizer.step()
        return through_a_file(optimizer.state_dict())

    with warnings.catch_warnings(action="ignore"):  # The chain's tell what starts anew.
        saved = gone_on(make([w], lr=0.1, rounding=rounding), 1)
        without = make([w], lr=0.1)
        without.load_state_dict(saved)
        saved = gone_on(without, 10)
        again = make([w], lr=0.1, rounding=rounding)
        again.load_state_dict(saved)
    before = w.detach().clone()
    gone_on(again, 1)
    assert set(without.state[w]) == {"step", "exp_avg", "exp_avg_sq"}
    torch.testing.assert_close(w.detach(), before - 0.1, rtol=0, atol=0.01)  # a step of Adam is of length lr


def test_a_transform_by_hand_that_reads_values_is_loaded_unseen():
    """Slots can't be foreseen without values where `init` looks at them; nothing is refused then."""

    def init(params, hparams):
        return {"scale": {key: torch.full_like(p, float(p.abs().max())) for key, p in params.items()}}

    tx = fo.Transform(init, lambda u, s, p, hp: (u, s), name="by_hand")
    source, target = (OptimizerAdapter(start_params(), fo.chain(tx, fo.sgd())) for _ in range(2))
    advance(source, 2)
    target.load_state_dict(source.state_dict())
    assert drifting_gradient(params_in(target)[0], 0, 0).shape == target.state[params_in(target)[0]]["scale"].shape


def test_none_in_a_checkpoint_is_no_slot():
    """As older versions of torch.optim.SGD saved a momentum that there was not yet."""
    optimizer = SGD(start_params(), lr=0.1)
    saved = optimizer.state_dict()
    optimizer.load_state_dict({**saved, "state": {0: {"momentum_buffer": None}}})
    assert all(value is not None for slots in optimizer.state.values() for value in slots.values())
