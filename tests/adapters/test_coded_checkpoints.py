"""Checkpoints of coded slots: plain tensors, which load into any optimizer of these slots, in codes or not."""

import copy
import io

import pytest
import torch
from torch import nn

import functional_optim as fo


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3))


def stepped(net, optimizer, steps=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 20, generator=generator)).square().mean().backward()
        optimizer.step()
    return optimizer


def coded(net, bits, **how):
    return fo.adapters.OptimizerAdapter(net.named_parameters(), fo.quantized(fo.adamw(), bits, min_size=30, **how))


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_run_goes_on_from_its_own_checkpoint_bit_by_bit(bits):
    net = model()
    optimizer = stepped(net, coded(net, bits))
    other = copy.deepcopy(net)
    resumed = coded(other, bits)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    stepped(net, optimizer, seed=1), stepped(other, resumed, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("bits, tolerance", [(8, 0.13), (4, 1.0)])
def test_torchs_checkpoint_loads_into_codes_and_these_into_float32(bits, tolerance):
    """A code is at most one step away: an eighth in 8 bits, a factor of 2 in 4."""
    net = model()
    saved = stepped(net, torch.optim.AdamW(net.parameters())).state_dict()
    optimizer = coded(net, bits)
    optimizer.load_state_dict(through_a_file(saved))
    assert optimizer.state[net[0].weight]["exp_avg"].dtype == torch.int8
    plain = fo.adapters.AdamW(net.named_parameters())
    plain.load_state_dict(through_a_file(optimizer.state_dict()))
    for number, p in enumerate(net.parameters()):
        old, new = saved["state"][number], plain.state[p]
        assert new["exp_avg_sq"].dtype == torch.float32 and new["step"] == old["step"] == 3
        assert ((new["exp_avg_sq"] > 0) == (old["exp_avg_sq"] > 0)).all()
        there = old["exp_avg"].abs() > old["exp_avg"].abs().max() / 16
        torch.testing.assert_close(new["exp_avg"][there], old["exp_avg"][there], rtol=tolerance, atol=0)
    # And so back into torch's own class.
    torch.optim.AdamW(net.parameters()).load_state_dict(plain.state_dict())


def test_codecs_load_each_others_checkpoints_also_by_name():
    net = model()
    saved = stepped(net, coded(net, 8)).state_dict()
    for other in (
        coded(net, 4),
        coded(net, 8, block=16),
        coded(net, 8, codec=fo.Stochastic()),
        fo.adapters.AdamW(net.named_parameters()),
    ):
        assert not fo.adapters.load_by_name(other, saved)
        before = {name: x.dtype for name, x in other.state[net[0].weight].items()}
        stepped(net, other, 1)
        assert before == {name: x.dtype for name, x in other.state[net[0].weight].items()}


def test_complex_slots_are_pairs_of_reals_in_codes():
    p = torch.randn(20, 20, dtype=torch.complex64, requires_grad=True)
    optimizer, plain = fo.adapters.OptimizerAdapter([p], fo.quantized(fo.adamw())), fo.adapters.AdamW([p])
    p.grad = torch.randn_like(p)
    optimizer.step()
    plain.load_state_dict(optimizer.state_dict())
    codes = optimizer.state[p]["exp_avg"].clone()
    assert plain.state[p]["exp_avg"].dtype == torch.complex64 and codes.shape == (20, 20, 2)
    optimizer.load_state_dict(plain.state_dict())
    assert torch.equal(optimizer.state[p]["exp_avg"], codes)


SINGLE = [
    (4, 1024, (512,)),  # As many bytes as elements.
    (4, 1024, (1, 512)),  # And in their shape.
    (8, 1024, (1, 512)),
    (8, 512, (1, 512)),
    (4, 128, (8, 8)),
    (8, 1024, (17,)),  # The block is not to be seen.
]


@pytest.mark.parametrize("bits, block, shape", SINGLE)
def test_a_single_block_loads_as_what_it_is(bits, block, shape):
    params = [torch.nn.Parameter(torch.ones(shape)) for _ in range(3)]
    txs = [fo.quantized(fo.adam(), each, block=block, min_size=1) for each in (bits, bits, 12 - bits)]
    first, second, other = (fo.adapters.OptimizerAdapter([p], tx, lr=0.1) for p, tx in zip(params, txs, strict=True))
    plain = fo.adapters.Adam([torch.ones(shape, requires_grad=True)])
    generator = torch.Generator().manual_seed(0)
    params[0].grad = torch.randn(shape, generator=generator)
    first.step()
    params[1].data.copy_(params[0])
    second.load_state_dict(through_a_file(first.state_dict()))
    plain.load_state_dict(through_a_file(first.state_dict()))
    old, new, (seen,) = first.state[params[0]], second.state[params[1]], plain.state.values()
    assert all(torch.equal(x, new[name]) for name, x in old.items())
    codec = fo.Blockwise(bits, block, 1)
    assert torch.equal(seen["exp_avg"], codec.decode((old["exp_avg"], old["exp_avg.scale"]), "signed", shape))
    # Of as many bits as it has not, what has the same shapes is encoded again: a code is at most one step away.
    other.load_state_dict(through_a_file(first.state_dict()))
    slots, there = other.state[params[2]], seen["exp_avg"].abs() > seen["exp_avg"].abs().max() / 16
    again = fo.Blockwise(12 - bits, block, 1).decode((slots["exp_avg"], slots["exp_avg.scale"]), "signed", shape)
    torch.testing.assert_close(again[there], seen["exp_avg"][there], rtol=0.13 if bits == 4 else 1.0, atol=0)
    params[0].grad = params[1].grad = torch.randn(shape, generator=generator)
    first.step(), second.step()
    assert torch.equal(*params[:2])


def test_codes_that_do_not_fit_are_refused_and_nothing_is_changed():
    net = model()
    optimizer = stepped(net, coded(net, 8))
    saved, before = through_a_file(optimizer.state_dict()), copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg.scale"] = saved["state"][0]["exp_avg.scale"][:4]
    with pytest.raises(ValueError, match=r"param_groups\[0\], parameter 0.*: 600 codes and 4 scales"):
        optimizer.load_state_dict(saved)
    for number, slots in optimizer.state_dict()["state"].items():
        assert all(torch.equal(x, before["state"][number][name]) for name, x in slots.items())


def test_codes_of_another_shape_are_reported_and_left_out_by_name():
    net, other = model(), nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 4))
    optimizer = coded(other, 8)
    report = fo.adapters.load_by_name(optimizer, stepped(net, coded(net, 8)).state_dict(), strict=False)
    assert report.mismatched == ["2.weight", "2.bias"]
    with pytest.raises(ValueError, match="90 codes and 1 scales.* shape"):
        fo.adapters.load_by_name(optimizer, stepped(net, coded(net, 8)).state_dict())


ROUNDED = [
    (lambda: fo.quantized(fo.adam(), codec=fo.Stochastic()), fo.adam),
    (lambda: fo.quantized(fo.adam(), codec=fo.Stochastic()), lambda: fo.quantized(fo.adam())),  # Too small for codes.
    (lambda: fo.chain(fo.scale_by_adam(state_dtype=torch.bfloat16), fo.scale_by_learning_rate()), fo.adam),
]


@pytest.mark.parametrize("saver, receiver", ROUNDED)
def test_what_was_saved_in_16_bits_goes_on_in_the_precision_of_the_rule_that_loads_it(saver, receiver):
    """Rounded to nearest in bfloat16, an average that moves by less than half of its last digit stands still."""
    w = torch.ones(4, requires_grad=True)
    saving, loading = (fo.adapters.OptimizerAdapter([w], tx()) for tx in (saver, receiver))
    w.grad = torch.full_like(w, 0.1)
    saving.step()
    saved = saving.state[w]["exp_avg_sq"].double()
    loading.load_state_dict(through_a_file(saving.state_dict()))
    w.grad = torch.ones_like(w)
    for _ in range(100):
        loading.step()
    found = loading.state[w]["exp_avg_sq"]
    assert found.dtype == torch.float32
    # float32 adds up 100 roundings at most.
    torch.testing.assert_close(found.double(), 1 - 0.999**100 * (1 - saved), rtol=1e-5, atol=0)


def test_complex_slots_rounded_at_random_load_where_they_were_saved_and_without_a_codec():
    z = torch.randn(3, dtype=torch.complex64, requires_grad=True)
    txs = fo.quantized(fo.adamw(), codec=fo.Stochastic()), fo.adamw()
    optimizer, plain = (fo.adapters.OptimizerAdapter([z], tx) for tx in txs)
    z.grad = torch.randn_like(z)
    optimizer.step()
    before = {name: x.clone() for name, x in optimizer.state[z].items()}
    plain.load_state_dict(through_a_file(optimizer.state_dict()))
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert all(torch.equal(x, before[name]) and x.dtype == before[name].dtype for name, x in optimizer.state[z].items())
    assert torch.equal(plain.state[z]["exp_avg"], torch.view_as_complex(before["exp_avg"].float()))


def test_a_parameter_without_elements_goes_on_with_codes_and_without():
    params = [torch.ones(300, requires_grad=True), torch.zeros(0, 3, requires_grad=True)]
    saving = torch.optim.AdamW(params)
    coding, plain = (fo.adapters.OptimizerAdapter(params, tx) for tx in (fo.quantized(fo.adamw()), fo.adamw()))
    for p in params:
        p.grad = torch.ones_like(p)
    for optimizer, before in ((saving, None), (coding, saving), (plain, coding)):
        if before is not None:
            optimizer.load_state_dict(before.state_dict())
        optimizer.step()  # A rule that starts afresh warns.
    assert [int(optimizer.state[params[1]]["step"]) for optimizer in (saving, coding, plain)] == [1, 2, 3]
    assert set(plain.state[params[1]]) == {"step", "exp_avg", "exp_avg_sq"}
