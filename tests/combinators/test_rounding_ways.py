"""The ways in which parameters of low precision keep what a step adds: each beside float64, its invariants, its bytes."""

import functools
import inspect
import io

import pytest
import torch
from torch import nn

import functional_optim as fo
from functional_optim import adapters
from functional_optim.adapters import OptimizerAdapter, step_in_backward
from functional_optim.combinators.rounding import WAYS
from functional_optim.rules.error_bits import LEAST, STORED, ZERO, spacing

LOW = list(STORED)


def noise(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decoded(p, e):
    """In float64, from the definition: the spacing is a power of 2 that the exponent tells."""
    bits = {torch.bfloat16: 7, torch.float16: 10}[p.dtype]
    exponent = torch.frexp(p.double())[1].double() - 1
    unit = torch.where(p == 0, 0.0, 2.0 ** (exponent - bits)).clamp(min=LEAST[p.dtype]) / 256
    return p.double() + (e.double() - ZERO[e.dtype]) * unit


def every_number(dtype, largest):
    found = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    return found[found.isfinite() & (found.abs() < largest)]


def error_step(u, p, e):
    updates, state = fo.error_bits().step(u, {"error_bits": e}, p)
    return updates, state["error_bits"]


# --- Error bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW)
def test_the_spacing_of_every_number(dtype):
    p = every_number(dtype, 1e30 if dtype == torch.bfloat16 else 3e4).float()
    following = torch.nextafter(p.abs().to(dtype), torch.tensor(torch.inf, dtype=dtype)).float()
    # At a power of 2 it is the larger one, of the numbers above it.
    assert torch.equal(spacing(p, dtype), (following - p.abs()).clamp(min=LEAST[dtype]))


@pytest.mark.parametrize("dtype", LOW)
def test_every_number_with_every_kind_of_error_stays_where_it_is(dtype):
    p = every_number(dtype, 1e38 if dtype == torch.bfloat16 else 6e4)
    # Nearer to 0 the codes of bfloat16 reach beyond its next number, and no step makes such.
    p = p[p.abs() > (256 * LEAST[dtype] if dtype == torch.bfloat16 else 0)]
    for code in (-127, -100, -1, 0, 1, 77, 127):
        e = torch.full(p.shape, code + ZERO[STORED[dtype]], dtype=STORED[dtype])
        q, f = error_step(torch.zeros_like(p), p, e)
        # Below a power of 2 numbers lie closer, and some have two names; what they stand for is kept to the last bit.
        assert torch.equal(decoded(q, f), decoded(p, e))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("size", [2.0**-16, 2.0**-9, 2.0**-4, 0.24])
def test_a_step_from_every_number_is_float64s_to_a_unit(dtype, size):
    p = every_number(dtype, 1e30 if dtype == torch.bfloat16 else 3e4)
    e = torch.full(p.shape, ZERO[STORED[dtype]], dtype=STORED[dtype])
    u = (p.float() * size * noise(p.shape, 0).clamp(-2, 2)).to(torch.float32)
    q, f = error_step(u, p, e)
    exact = p.double() + u.double()
    unit = spacing(q.float(), dtype).double() / 256
    off = (decoded(q, f) - exact).abs() / unit
    # Half a unit, and a whole one at the ends of the byte; and float32 rounds the sum.
    assert off.max() <= 1 + 2**-6 and (off > 0.5 + 2**-6).double().mean() < 0.02
    assert ((q.double() - exact).abs() <= 0.5001 * unit * 256).all()


def test_a_large_update_arrives_with_the_bits_of_the_dtype():
    p, u = torch.tensor([1.5, 3.0], dtype=torch.bfloat16), torch.tensor([-1.4, -2.9983])
    q, e = error_step(u, p, torch.zeros(2, dtype=torch.int8))
    assert (decoded(q, e) - (p.double() + u)).abs().max() <= 2.0**-8 * 3


def test_what_is_not_finite_stays_so():
    p, e = torch.ones(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.int8)
    q, _ = error_step(torch.tensor([torch.inf, -torch.inf, torch.nan]), p, e)
    assert q[2].isnan() and not q[:2].isfinite().any()


# --- Stochastic rounding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("start, u", [(1.0, 2.0**-12), (1.0, -(2.0**-13)), (-3.0, 0.003), (0.25, 1e-5)])
def test_the_mean_is_right_within_three_standard_errors(dtype, start, u):
    n = 1 << 16
    p, tx = torch.full((n,), start, dtype=dtype), fo.stochastic_rounding(seed=3)
    state, moved = tx.init_state(p), torch.zeros(n, dtype=torch.float64)
    for _ in range(4):
        q, state = tx.step(torch.full((n,), u), state, p)
        moved += q.double() - p.double()
        assert len(q.unique()) <= 2
    error = moved.std() / n**0.5 / 4
    assert error > 0 and (moved.mean() / 4 - u).abs() < 3 * error


def test_the_same_bits_for_any_number_of_threads_and_others_for_another_step_or_seed():
    p, u = noise((1000, 300), 0).bfloat16(), 1e-3 * noise((1000, 300), 1)

    def stepped(seed, steps=1):
        tx, q = fo.stochastic_rounding(seed=seed), p
        state = tx.init_state(q)
        for _ in range(steps):
            previous, (q, state) = q, tx.step(u, state, q)
        return q.float() - previous.float()

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = stepped(0)
        torch.set_num_threads(4)
        assert torch.equal(stepped(0), one)
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(stepped(1), one) and not torch.equal(stepped(0, steps=2), one)


def test_it_is_vmapped_over_seeds():
    p, u = torch.ones(50, dtype=torch.bfloat16), torch.full((50,), 2.0**-10)

    def stepped(seed):
        tx = fo.stochastic_rounding()
        return tx.step(u, tx.init_state(p), p, {"seed": seed})[0]

    together = torch.vmap(stepped)(torch.arange(4))
    assert all(torch.equal(together[i], stepped(i)) for i in range(4)) and len({tuple(x.tolist()) for x in together}) == 4


def test_every_tensor_has_numbers_of_its_own_and_the_same_in_every_engine():
    """Of one shape, in two groups, among others of float32, some without a gradient at the last step."""
    # The updates are sums of powers of 2, so that engines agree on them to the last bit.
    tx = fo.chain(fo.scale_by_learning_rate(2.0**-10), fo.stochastic_rounding())
    dtypes = [torch.float32 if i % 5 == 3 else torch.bfloat16 for i in range(14)]
    absent = {3: {0, 4, 13}}  # Later an optimizer's counts, and its numbers, are other ones than the pure function's.
    start = [torch.ones(64 if i % 2 else 30, dtype=dtype) for i, dtype in enumerate(dtypes)]

    def grads(step):
        return [None if i in absent.get(step, ()) else -torch.ones_like(p) for i, p in enumerate(start)]

    def purely(tx):
        params, state = start, tx.init_state(start)
        for step in range(4):
            params, state = tx.step(grads(step), state, params)
        return params

    def by_optimizer(fused):
        params = [nn.Parameter(p.clone()) for p in start]
        optimizer = OptimizerAdapter([{"params": params[:11]}, {"params": params[11:], "seed": 0}], tx, fused=fused)
        for step in range(4):
            for p, grad in zip(params, grads(step), strict=True):
                p.grad = grad
            optimizer.step()
        return [p.detach() for p in params]

    rows = purely(tx)
    low = [tuple(p.tolist()) for p, dtype in zip(rows, dtypes, strict=True) if dtype == torch.bfloat16]
    assert len(set(low)) == len(low)
    for others in (purely(fo.fused(tx)), by_optimizer(None), by_optimizer(True)):
        assert [torch.equal(*pair) for pair in zip(others, rows, strict=True)] == [True] * 14


def test_places_of_tensors_under_vmap():
    """A batch of trees gets for each tensor what one tree gets."""
    params = {"a": torch.ones(3, 40, dtype=torch.bfloat16), "b": torch.ones(3, 40, dtype=torch.bfloat16)}
    tx, u = fo.stochastic_rounding(), {name: torch.full((40,), 2.0**-9) for name in params}
    batch = torch.vmap(lambda p: tx.step(u, tx.init_state(p), p)[0])(params)
    first = {name: p[0] for name, p in params.items()}
    one = tx.step(u, tx.init_state(first), first)[0]
    assert all(torch.equal(batch[name][i], one[name]) for name in params for i in range(3))
    assert not torch.equal(one["a"], one["b"])


# --- All of them --------------------------------------------------------------------------------------------------------


# How far they end from float64, as a share of the way that it went; a single rounding of its end is 0.09 of that.
SHORT = (0.08, 0.093)
OFF = {
    "nearest": (0.9, 1.0),
    "stochastic": (0.2, 0.6),
    "error_bits": (0.08, 0.1),
    "kahan": (0.08, 0.095),
    "master_copy": (0.08, 0.093),
}


def test_beside_float64():
    p, drift = noise(500, 0).bfloat16(), noise(500, 1)
    gradients = [(drift + noise(500, 2 + step)).bfloat16() for step in range(300)]

    def end(tx, q):
        state = tx.init_state(q)
        for g in gradients:
            q, state = tx.step(g.to(q.dtype), state, q)
        return q.double()

    exact = end(fo.adamw(1e-4, state_dtype=torch.float64), p.double())
    for way, (least, most) in OFF.items():
        off = (end(fo.with_rounding(fo.adamw(1e-4, state_dtype=torch.float32), way), p) - exact).norm()
        assert least < off / (exact - p.double()).norm() < most, way


SHAPES = [(30, 7), (5,), (), (0, 3), (200, 1000)]


def parameters(dtypes):
    return [nn.Parameter(noise(shape, i).to(dtype)) for i, (shape, dtype) in enumerate((s, d) for d in dtypes for s in SHAPES)]


def every_way():
    """Kernels take seconds to compile: those of one way are in the ordinary run."""
    for way in [way for way in WAYS if way != "nearest"]:
        yield pytest.param(way, False, id=f"{way}-eager")
        yield pytest.param(way, True, id=f"{way}-fused", marks=[] if way == "error_bits" else [pytest.mark.full])


@pytest.mark.parametrize("way, fused", list(every_way()))
def test_an_optimizer_has_the_pure_functions_numbers(way, fused):
    """Several dtypes beside each other, and some without gradients; a checkpoint in between changes nothing."""
    own = parameters([torch.bfloat16] if fused else [torch.bfloat16, torch.float16, torch.float32])
    tx = fo.sgd(1e-3, momentum=0.9) if fused else fo.adamw(1e-3, state_dtype=torch.float32)
    make = functools.partial(OptimizerAdapter, transform=tx, rounding=way, fused=fused)
    tx = fo.with_rounding(tx, way)
    optimizer = make(own)
    params = {str(i): p.detach().clone() for i, p in enumerate(own)}
    state = tx.init_state(params)
    for step in range(6):
        for i, p in enumerate(own):
            p.grad = None if step and i == 1 else noise(p.shape, 100 * step + i).to(p.dtype)
        params, state = tx.step({str(i): p.grad for i, p in enumerate(own)}, state, params)
        optimizer.step()
        if step == 3:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = make(own)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
    for i, p in enumerate(own):
        if i == 1:
            continue  # Its count stands still here, and is everybody's in the pure function.
        near = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 1e-6}[p.dtype]
        torch.testing.assert_close(p.detach(), params[str(i)], rtol=near, atol=1e-6)
        # Engines divide otherwise, so a number may fall to the other side of a tie, seldom.
        assert p.dtype == torch.float32 or (p != params[str(i)]).float().mean().nan_to_num() < (0.02 if fused else 1e-4)


CLASSES = [cls for name in adapters.__all__ if inspect.isclass(cls := getattr(adapters, name)) and hasattr(cls, "rounded")]


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if "rounding" in inspect.signature(cls).parameters])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "nearest"])
def test_torchs_classes_take_the_word(cls, way):
    """Steps far below the last digit of a parameter: to nearest it stands still; and a checkpoint goes on from there."""
    lr = 2.0**-12 if cls is not fo.adapters.Adadelta else 1.0
    p = nn.Parameter(torch.full((64, 64), 1.0, dtype=torch.bfloat16))
    optimizer = cls([p], lr=lr, rounding=way)
    for step in range(40):
        p.grad = torch.full_like(p, 1.0)
        if step == 20:
            state, optimizer = optimizer.state_dict(), cls([p], lr=lr, rounding=way)
            optimizer.load_state_dict(state)
        optimizer.step()
        moved = (1 - p.double().mean()).item()
    if cls in (fo.adapters.SGD, fo.adapters.AdamW, fo.adapters.Adam, fo.adapters.RAdam):
        assert moved == pytest.approx(40 * lr, rel=0.2) if cls is not fo.adapters.RAdam else moved > 0
    assert any(name in key for key in optimizer.state[p] for name in ("rounded_to", "error_bits", "kahan_comp", "fp32_copy"))


def test_an_unknown_word_is_an_error():
    with pytest.raises(ValueError, match="rounding = 'up' of AdamW: expected one of 'nearest', 'stochastic'"):
        fo.adapters.AdamW([nn.Parameter(torch.ones(2))], rounding="up")
    with pytest.raises(ValueError, match="rounding = 'up' of with_rounding: expected one of"):
        OptimizerAdapter([nn.Parameter(torch.ones(2))], fo.sgd(), rounding="up")


@pytest.mark.parametrize("way", [way for way in WAYS if way != "nearest"])
def test_a_second_way_is_an_error_and_nearest_is_none(way):
    name = {"master_copy": "with_master_copy", "kahan": "kahan_sum", "stochastic": "stochastic_rounding"}.get(way, way)
    tx = fo.chain(fo.clip_by_global_norm(), fo.with_rounding(fo.sgd(), way))
    for other in WAYS:
        if other != "nearest":
            with pytest.raises(ValueError, match=f"by {name} already. Give one way"):
                OptimizerAdapter([nn.Parameter(torch.ones(2))], tx, rounding=other)
    # The transform as it is, with its own repr.
    assert fo.with_rounding(tx, "nearest") is tx
    assert OptimizerAdapter([nn.Parameter(torch.ones(2))], tx).transform is tx


@pytest.mark.parametrize("way", ["nearest", "master_copy"])
def test_where_the_transform_itself_is_called_parameters_are_those_of_step(way):
    """A capturable step, on the host: an update that were rounded before it is added would be a spacing off here and there."""
    tx = fo.with_rounding(fo.adamw(1e-2, state_dtype=torch.float32), way)
    params = {"w": noise(5000, 0).bfloat16()}
    own, state = nn.Parameter(params["w"].clone()), tx.init_state(params)
    optimizer = OptimizerAdapter([{"params": [own], "capturable": True}], tx)
    for step in range(3):
        own.grad = noise(5000, 1 + step).bfloat16()
        params, state = tx.step({"w": own.grad}, state, params)
        optimizer.step()
        assert torch.equal(own.detach(), params["w"])


# --- Bytes --------------------------------------------------------------------------------------------------------------


def stored(tensors):
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors if x is not None}.values())


def test_bytes_of_everything_for_each_parameter():
    """bfloat16 weight and gradient, error bits, and AdamW's averages in 8 bits: 7.3 bytes, or 5.3 where backward steps."""
    model = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(12))).bfloat16()
    count = sum(p.numel() for p in model.parameters())

    def make(named):
        return OptimizerAdapter(named, fo.quantized(fo.adamw()), rounding="error_bits")

    def held(*optimizers):
        slots = [x for optimizer in optimizers for state in optimizer.state.values() for x in state.values()]
        return stored([*model.parameters(), *(p.grad for p in model.parameters()), *slots]) / count

    optimizer = make(model.named_parameters())
    model(torch.randn(4, 256).bfloat16()).square().mean().backward()
    optimizer.step()
    assert 7.0 < held(optimizer) <= 7.3
    optimizer.zero_grad()
    steps, found = step_in_backward(model, make), []
    for p in model.parameters():
        p.register_hook(lambda _: found.append(held(*steps.optimizers.values())))
    for _ in range(2):
        model(torch.randn(4, 256).bfloat16()).square().mean().backward()
    # At no time is there more than the gradient of a layer, here a twelfth, beside them.
    assert 5.0 < max(found[12:]) <= 5.3
