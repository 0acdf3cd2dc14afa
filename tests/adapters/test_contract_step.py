"""The contract of torch.optim.Optimizer, on every drop-in class and three chains: a step."""

import copy
import functools

import pytest
import torch
from engines import ways
from subjects import (
    EAGER,
    FUSED,
    Subject,
    advance,
    assert_same_bits,
    assert_same_run,
    bits,
    each,
    every_counterpart,
    every_eager,
    every_one,
    every_uncoupled,
    params_in,
)
from trajectories import assert_params_close, drifting_gradient, set_gradients, snapshot, walk_together

from functional_optim.adapters import AdamW

FLOAT64 = 1e-12
# Packed with other parameters, a step may take another path over the same formula.
PACKED = {"rtol": 1e-6, "atol": 1e-7}


def counts(optimizer, p):
    """All step counts that a parameter keeps."""
    return {int(value) for name, value in optimizer.state.get(p, {}).items() if name.endswith("step")}


@every_one
def test_the_subject_is_what_its_name_says(subject):
    optimizer = subject.make(subject.params())
    advance(optimizer, 1)
    assert ("COMPILED" in ways(optimizer)) == subject.fused


@every_one
def test_a_parameter_without_gradient_is_skipped_and_counts_for_itself(subject):
    early, late, never = subject.params(shapes=[(2, 3), (4,), (2,)])
    optimizer = subject.make([early, late, never])
    start = never.detach().clone()
    for t in range(6):
        early.grad = drifting_gradient(early, t, 0)
        late.grad = drifting_gradient(late, t, 1) if t >= 3 and t != 4 else None
        before = late.detach().clone(), copy.deepcopy(optimizer.state.get(late, {}))
        optimizer.step()
        if late.grad is None:
            assert torch.equal(late, before[0])
            assert_same_bits(dict(optimizer.state.get(late, {})), dict(before[1]))
            assert t > 3 or late not in optimizer.state
    assert never not in optimizer.state and torch.equal(never, start)
    assert counts(optimizer, early) <= {6} and counts(optimizer, late) <= {2}
    assert counts(optimizer, early) or not counts(optimizer, late)
    if not subject.couples:
        fresh = subject.params(shapes=[(2, 3), (4,)])[1]
        alone = subject.make([fresh])
        for t in (3, 5):
            fresh.grad = drifting_gradient(fresh, t, 1)
            alone.step()
        torch.testing.assert_close(late, fresh, **PACKED)


@every_counterpart
def test_skipped_and_late_parameters_are_torchs(subject):
    ours, theirs = subject.make(subject.params(torch.float64)), subject.theirs(subject.params(torch.float64))
    stepped = set()
    for t in range(12):
        for optimizer in (ours, theirs):
            set_gradients(params_in(optimizer), t)
            for i, p in enumerate(params_in(optimizer)):
                if (i == 0 and t < 4) or (i == 1 and t % 3 == 0) or i == 3:
                    p.grad = None
            optimizer.step()
        assert_params_close(params_in(ours), params_in(theirs), subject.tolerance)
        stepped.update(i for i, p in enumerate(params_in(ours)) if p.grad is not None)
        for i, (p, q) in enumerate(zip(params_in(ours), params_in(theirs), strict=True)):
            assert (p in ours.state) == (i in stepped)  # torch's Adagrad has all of its state from the start.
            if i in stepped and "step" in theirs.state[q]:
                assert ours.state[p]["step"] == theirs.state[q]["step"]


@every_one
def test_no_gradient_at_all_is_a_step_that_does_nothing(subject):
    optimizer = subject.make(subject.params())
    assert optimizer.step() is None
    assert optimizer.state == {}
    assert_same_bits([p.detach() for p in params_in(optimizer)], [p.detach() for p in subject.params()])
    advance(optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    optimizer.step()
    assert_same_bits(optimizer.state_dict(), before)


@every_one
def test_the_closure_is_called_once_with_gradients_enabled_and_its_loss_returned(subject):
    optimizer, twin = subject.pair()
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        calls.append(1)
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params_in(optimizer))
        loss.backward()
        return loss

    for p in params_in(twin):
        p.grad = 2 * p.detach()
    expected = sum(p.detach().square().sum() for p in params_in(optimizer))
    with torch.no_grad():
        loss = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    twin.step()
    assert torch.equal(loss, expected) and len(calls) == 1
    assert_same_run(optimizer, twin)
    assert torch.is_tensor(optimizer.step(closure=closure))


@every_one
def test_parameters_are_written_in_place_and_gradients_are_not(subject):
    optimizer = subject.make(subject.params())
    params = params_in(optimizer)
    for t in range(3):
        set_gradients(params, t)
        before = [(id(p), p.data_ptr(), p._version) for p in params]
        grads = [(p.grad, p.grad.clone(), p.grad._version) for p in params]
        slots = [{k: (v, v.data_ptr()) for k, v in optimizer.state.get(p, {}).items()} for p in params]
        optimizer.step()
        for p, (identity, pointer, version) in zip(params_in(optimizer), before, strict=True):
            # Autograd notices a change by the version: it must have moved.
            assert id(p) == identity and p.data_ptr() == pointer and p._version > version
            assert p.requires_grad and p.is_leaf and p.grad_fn is None
        for p, (grad, copied, version) in zip(params, grads, strict=True):
            assert p.grad is grad and torch.equal(grad, copied) and grad._version == version
        for p, own in zip(params, slots, strict=True):
            for name, (slot, pointer) in own.items():
                assert optimizer.state[p][name] is slot and slot.data_ptr() == pointer


@every_one
def test_an_old_graph_is_not_silently_wrong_after_a_step(subject):
    optimizer = subject.make(subject.params())
    losses = [(p * p).sum() for p in params_in(optimizer)]
    advance(optimizer, 1)
    for loss in losses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@every_one
def test_no_random_numbers_are_consumed(subject):
    before = torch.get_rng_state()
    optimizer = subject.make(subject.params())
    advance(optimizer, 2)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    advance(copy.deepcopy(optimizer), 1)
    assert torch.equal(torch.get_rng_state(), before)


@every_uncoupled
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_stays_in_its_own_parameter(subject, bad):
    ours, clean = subject.pair()
    for t in range(3):
        set_gradients(params_in(ours), t)
        set_gradients(params_in(clean), t)
        params_in(ours)[1].grad[2] = bad
        ours.step()
        clean.step()
    for i in (0, 2, 3):
        assert_same_bits(params_in(ours)[i].detach(), params_in(clean)[i].detach())
        assert all(slot.isfinite().all() for slot in ours.state[params_in(ours)[i]].values())


@every_one
def test_no_rate_and_no_gradient_leave_every_bit(subject):
    if "lr" not in subject.make(subject.params(torch.float64)).defaults:
        pytest.skip("has no learning rate")
    params = [*subject.params(), torch.nn.Parameter(torch.tensor([0.0, -0.0, 1e-40]).view(subject.shape((3,))))]
    before = [p.detach().clone() for p in params]
    optimizer = subject.make(params, lr=0.0)
    for _ in range(2):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for p, then in zip(params, before, strict=True):
        assert torch.equal(bits(p), bits(then))


# Parameters of all kinds.


@every_eager  # Fused, each dtype takes a kernel of its own; test_fused.py compares them.
def test_parameters_of_several_dtypes(subject):
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    start = torch.linspace(1, 2, 3, dtype=torch.float64).view(subject.shape((3,)))
    params = [torch.nn.Parameter(start.to(dtype, copy=True)) for dtype in dtypes]
    optimizer = subject.make(params)
    for group in optimizer.param_groups:
        group["lr"] = 0.05  # A step that bfloat16 can see.
    for _ in range(3):
        for p in params:
            p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    for p, dtype in zip(params, dtypes, strict=True):
        assert p.dtype == dtype
        # All go the same way; the coarsest, bfloat16, rounds to 2**-9 a step.
        torch.testing.assert_close(p.detach().double(), params[3].detach(), rtol=3 * 2**-8, atol=0)
    assert (params[3] < start).all()


def odd_params(subject, make):
    """Transposed, strided, channels last, a scalar, an empty one, a view of an offset."""
    x = torch.arange(24, dtype=torch.float64).reshape(4, 6).sin()
    y, z, v = x.clone(), x.clone(), x.clone()
    tensors = [x.t(), y[:, ::2], y.reshape(2, 3, 2, 2).to(memory_format=torch.channels_last), z[0, 0], z[:0], v[1:, 3]]
    return [torch.nn.Parameter(make(t)) for t in tensors if t.ndim == 2 or not subject.matrices]


@every_eager
def test_any_layout_has_the_numbers_of_a_contiguous_one(subject):
    odd, plain = odd_params(subject, lambda x: x), odd_params(subject, lambda x: x.contiguous().clone())
    strides = [p.stride() for p in odd]
    assert any(not p.is_contiguous() for p in odd)
    walk_together(subject.make(odd), subject.make(plain), 5, subject.tolerance)
    assert [p.stride() for p in odd] == strides
    for p in odd:  # A gradient laid out otherwise than its parameter.
        if p.ndim == 2:
            p.grad = p.grad.t().contiguous().t()
    subject.make(odd).step()


@each([subject for subject in EAGER if not subject.complex])
def test_complex_parameters_are_refused_where_a_rule_takes_none(subject):
    p = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.complex64))
    optimizer = subject.make([p])
    p.grad = torch.ones_like(p)
    # torch's classes raise RuntimeError.
    with pytest.raises((TypeError, RuntimeError), match="takes no complex|does not support complex"):
        optimizer.step()
    assert optimizer.state == {} and torch.equal(p, torch.ones_like(p))


@each([subject for subject in EAGER if subject.complex])
def test_a_complex_parameter_is_a_pair_of_reals(subject):
    pairs = [torch.nn.Parameter(p.detach().double()) for p in subject.params(shapes=[(3, 2), (2,)])]
    numbers = [torch.nn.Parameter(torch.view_as_complex(p.detach().clone())) for p in pairs]
    ours, real = subject.make(numbers), subject.make(pairs)
    for t in range(5):
        set_gradients(pairs, t)
        for z, p in zip(numbers, pairs, strict=True):
            z.grad = torch.view_as_complex(p.grad.clone())
        ours.step()
        real.step()
    assert_params_close([torch.view_as_real(z.detach()) for z in numbers], pairs, subject.tolerance)


@every_one
def test_a_tied_parameter_is_stepped_once(subject):
    def model():
        generator = torch.Generator().manual_seed(0)
        first, last = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
        first.weight = last.weight = torch.nn.Parameter(torch.randn(3, 3, generator=generator))
        return torch.nn.Sequential(first, torch.nn.Tanh(), last)

    tied, x = model(), torch.linspace(-1, 1, 6).reshape(2, 3)
    single = torch.nn.Parameter(tied[0].weight.detach().clone())
    ours, alone = subject.make(subject.of(tied)), subject.make([single])
    assert len(params_in(ours)) == 1
    for _ in range(3):
        ours.zero_grad()
        tied(x).square().sum().backward()
        single.grad = tied[0].weight.grad.clone()
        ours.step()
        alone.step()
    assert tied[0].weight is tied[2].weight
    assert_same_bits(single.detach(), tied[0].weight.detach())


@every_one
def test_frozen_and_unfrozen(subject):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    model[0].requires_grad_(False)
    optimizer = subject.make(subject.of(model))
    x, start = torch.ones(4, 2), copy.deepcopy(model.state_dict())

    def step():
        optimizer.zero_grad()
        (model(x).sum() - 5).square().backward()
        optimizer.step()

    step()
    assert set(optimizer.state) == set(subject.of(model[1]))
    assert torch.equal(model[0].weight, start["0.weight"]) and not torch.equal(model[1].weight, start["1.weight"])
    model.requires_grad_(True)
    step()
    assert not torch.equal(model[0].weight, start["0.weight"])
    assert all(counts(optimizer, p) <= {1} for p in subject.of(model[0]))
    assert all(counts(optimizer, p) <= {2} for p in subject.of(model[1]))


@every_one
def test_replaced_data_is_what_is_stepped(subject):
    ours, twin = subject.pair()
    advance(ours, 2)
    advance(twin, 2)
    for p, q in zip(params_in(ours), params_in(twin), strict=True):
        p.data = torch.full_like(p, 0.25)
        q.detach().fill_(0.25)
    pointers = [p.data_ptr() for p in params_in(ours)]
    advance(ours, 2, first=2)
    advance(twin, 2, first=2)
    assert_same_bits([p.detach() for p in params_in(ours)], [p.detach() for p in params_in(twin)])
    assert [p.data_ptr() for p in params_in(ours)] == pointers


@every_eager
def test_a_module_cast_in_mid_training(subject):
    """The parameters change their dtype, the slots keep theirs, and the numbers go on."""
    model = torch.nn.Linear(3, 2)
    optimizer = subject.make(subject.of(model))
    advance(optimizer, 3)
    slots = {k: v.dtype for k, v in optimizer.state[model.weight].items()}
    witness = copy.deepcopy(optimizer)
    for t, dtype in enumerate((torch.float64, torch.float64, torch.bfloat16, torch.bfloat16)):
        model.to(dtype)
        assert params_in(optimizer)[0] is model.weight and model.weight.dtype == dtype
        for one in (optimizer, witness):
            for i, p in enumerate(params_in(one)):
                p.grad = drifting_gradient(torch.zeros_like(p, dtype=torch.bfloat16), t, i).to(p.dtype)
            one.step()
        assert {k: v.dtype for k, v in optimizer.state[model.weight].items()} == slots
    # Two steps and two casts that round to 2**-9 of a parameter below 1.
    assert_params_close([p.detach().float() for p in params_in(optimizer)], params_in(witness), 4 * 2**-9)


# One that is stepped by its transform as a whole, since its counts stay on the device.
WHOLE = Subject("AdamW, whole", functools.partial(AdamW, capturable=True))


@each([*EAGER, FUSED[2], WHOLE])
def test_a_gradient_wider_or_narrower_than_its_parameter(subject):
    """Computed wide, and added in the parameter's precision: what the gradient rounds to changes nothing else."""
    for dtype, other in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        start = torch.linspace(1, 2, 5, dtype=torch.bfloat16).view(subject.shape((5,)))
        mixed, same = [torch.nn.Parameter(start.to(dtype, copy=True)) for _ in range(2)]
        mixed.grad_dtype = None  # Any.
        ours, twin = subject.make([mixed]), subject.make([same])
        for t in range(3):
            grad = drifting_gradient(start, t, 0)  # exact in either dtype
            mixed.grad, same.grad = grad.to(other), grad.to(dtype)
            ours.step()
            twin.step()
        assert mixed.dtype == dtype
        # An update rounded to bfloat16 would be 2**-9 of itself off; a parameter in bfloat16 is, each step.
        assert_params_close([mixed.float()], [same.float()], 1e-6 if dtype == torch.float32 else 3 * 2**-8)


@every_eager
def test_meta_parameters(subject):
    optimizer = subject.make(subject.of(torch.nn.Linear(3, 2, device="meta")))
    for _ in range(2):
        for p in params_in(optimizer):
            p.grad = torch.empty_like(p)
        optimizer.step()
    for p in params_in(optimizer):
        assert p.is_meta and all(v.is_meta for v in optimizer.state[p].values() if v.ndim)
        assert counts(optimizer, p) <= {2}


@each([subject for subject in EAGER if not subject.couples])
def test_parameters_on_several_devices(subject):
    here, nowhere = subject.params(shapes=[(2,)])[0], torch.nn.Parameter(torch.empty(subject.shape((2,)), device="meta"))
    alone = subject.params(shapes=[(2,)])[0]
    both, single = subject.make([here, nowhere]), subject.make([alone])
    for t in range(2):
        nowhere.grad = torch.empty_like(nowhere)
        here.grad, alone.grad = (drifting_gradient(p, t, 0) for p in (here, alone))
        both.step()
        single.step()
    torch.testing.assert_close(here, alone, **PACKED)


@every_eager
def test_fake_tensors(subject):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        params = [torch.nn.Parameter(torch.empty(2, 3)), torch.nn.Parameter(torch.empty(subject.shape((3,))))]
        optimizer = subject.make(params)
        for _ in range(2):
            for p in params:
                p.grad = torch.empty_like(p)
            optimizer.step()
        assert all(p in optimizer.state or not subject.make(params).state for p in params)


@every_one
def test_shared_memory_stays_shared(subject):
    model = torch.nn.Linear(3, 2).share_memory()
    optimizer = subject.make(subject.of(model))
    view = torch.from_numpy(model.weight.detach().numpy())  # another name for the same memory
    advance(optimizer, 2)
    assert model.weight.is_shared() and torch.equal(view, model.weight.detach())


@each([subject for subject in EAGER if subject.name not in ("SGD", "Adagrad")])  # which take them, as torch's do
def test_a_sparse_gradient_is_refused_with_advice_and_nothing_changes(subject):
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    dense = torch.nn.Parameter(torch.ones(subject.shape((2,))))
    optimizer = subject.make([embedding.weight, dense])
    advance(optimizer, 1)
    before = snapshot(optimizer)
    embedding.weight.grad = None
    (embedding(torch.tensor([1, 3])) * dense.view(2)).sum().backward()
    with pytest.raises(TypeError, match=r"is sparse .*: gradients must be dense. Call .to_dense\(\), or embed with sparse=False"):
        optimizer.step()
    assert_same_bits(snapshot(optimizer), before)
    embedding.weight.grad = embedding.weight.grad.to_dense()
    optimizer.step()


@every_one
def test_zero_grad(subject):
    optimizer = subject.make(subject.params())
    set_gradients(params_in(optimizer), 0)
    grads = [p.grad for p in params_in(optimizer)]
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is g and not g.any() for p, g in zip(params_in(optimizer), grads, strict=True))
    optimizer.zero_grad()
    assert all(p.grad is None for p in params_in(optimizer))
