"""Steps of rules whose slots are in codes: block by block, and what the pure function computes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import functional_optim as fo
from functional_optim.adapters.engine.backends import coded
from functional_optim.codecs import PERIOD


class Sizes(TorchDispatchMode):
    """How many bytes the largest tensor holds that an operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                given = {y.untyped_storage().data_ptr() for y in args if isinstance(y, torch.Tensor)}
                if x.untyped_storage().data_ptr() not in given:
                    self.largest = max(self.largest, x.numel() * x.element_size())
        return result


def noise(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def params():
    generator = torch.Generator().manual_seed(0)
    # Two stretches and a bit, a channels-last one, a small one that stays float32, and one without elements.
    shapes = {"large": (2 * PERIOD * 16 + 40, 1), "image": (8, 4, 3, 3), "small": (5,), "none": (0, 3)}
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**found, "image": found["image"].contiguous(memory_format=torch.channels_last)}


CHAINS = {
    "clip, adamw": lambda: fo.chain(fo.clip_by_global_norm(), fo.adamw(lr=0.1)),
    "adam, clip": lambda: fo.chain(fo.scale_by_adam(), fo.clip_by_global_norm(), fo.scale_by_learning_rate(0.1)),
    "cautious lion": lambda: fo.chain(fo.cautious(fo.scale_by_lion()), fo.scale_by_learning_rate(0.1)),
    "gate": lambda: fo.accumulate(fo.sgd(lr=0.1, momentum=0.9), every=2),
    "master copy": lambda: fo.with_master_copy(fo.adam(lr=0.1)),
}


CODECS = [fo.Blockwise(8, 16, 10), fo.Blockwise(4, 16, 10), fo.Stochastic()]


def every_way():
    """A kernel takes seconds to compile: one is in the ordinary run."""
    for codec in CODECS:
        for chain in CHAINS:
            for fused in (False, True):
                full = fused and (chain, codec) != ("clip, adamw", CODECS[0])
                yield pytest.param(chain, codec, fused, marks=[pytest.mark.full] if full else [])


@pytest.mark.parametrize("chain, codec, fused", list(every_way()))
def test_an_optimizer_has_the_pure_functions_numbers(chain, codec, fused):
    tx = fo.quantized(CHAINS[chain](), codec=codec)
    pure, state = params(), None
    own = {name: torch.nn.Parameter(p.clone()) for name, p in pure.items()}
    optimizer = fo.adapters.OptimizerAdapter(list(own.items()), tx, fused=fused)
    state = tx.init_state(pure)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        grads = {name: torch.randn(p.shape, generator=generator).as_strided(p.shape, p.stride()) for name, p in pure.items()}
        for name, p in own.items():
            p.grad = grads[name].clone()
        optimizer.step()
        pure, state = tx.step(grads, state, pure)
        # The norm is summed in another order; a code that another rounding gives is seen below.
        for name, p in own.items():
            torch.testing.assert_close(p.detach(), pure[name], rtol=1e-5, atol=2e-3)
        far = sum(int(((p.detach() - pure[name]).abs() > 1e-5).sum()) for name, p in own.items())
        assert far <= 1e-3 * sum(p.numel() for p in own.values())


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=pytest.mark.full)])
def test_no_more_of_a_slot_is_in_float32_than_a_block(fused):
    count = 5 * PERIOD * 16
    p = torch.nn.Parameter(torch.randn(count))
    tx = fo.quantized(fo.chain(fo.clip_by_global_norm(), fo.adamw()), block=16)
    optimizer = fo.adapters.OptimizerAdapter([p], tx, fused=fused)
    p.grad = torch.randn(count)
    optimizer.step()
    with Sizes() as sizes:
        optimizer.step()
    # The norm's terms come in blocks of their own.
    assert 0 < sizes.largest <= max(4 * PERIOD * 16, 4 << 17) < 4 * count


@fo.whole_tree(slots=("m",), coded={"m": "signed"})
def all_at_once(hp):
    def rule(gs, ps, shared, ms):
        new = [0.875 * m + g for g, m in zip(gs, ms, strict=True)]
        return [-m / 1024 for m in new], shared, new

    return rule


# A run of elementwise rules; one that keeps numbers; one that takes tensors together, and one that takes all.
ROUNDED = {
    "sgd": lambda: fo.sgd(lr=2.0**-10, momentum=0.875),
    "prodigy": lambda: fo.prodigy(),
    "muon": lambda: fo.chain(fo.scale_by_muon(momentum=0.875), fo.scale_by_learning_rate(0.1)),
    "all at once": all_at_once,
}


@pytest.mark.filterwarnings("ignore:.* is no rule for one tensor")
@pytest.mark.parametrize("chain", ROUNDED)
def test_equal_tensors_are_rounded_at_random_with_numbers_of_their_own(chain):
    """The same in every engine, and after a resume; in two groups, one without a gradient at the last step."""
    tx, shapes = fo.quantized(ROUNDED[chain](), codec=fo.Stochastic()), [(6, 8)] * 3 + [(5, 4)] * 2
    start, absent = [torch.ones(shape) for shape in shapes], {3: 0}

    def grads(step):
        return [None if i == absent.get(step) else noise(shape, step) for i, shape in enumerate(shapes)]

    def purely(tx):
        params, state = start, tx.init_state(start)
        for step in range(4):
            params, state = tx.step(grads(step), state, params)
        return params

    def optimizer_of(fused):
        params = [torch.nn.Parameter(p.clone()) for p in start]
        return params, fo.adapters.OptimizerAdapter([{"params": params[:2]}, {"params": params[2:]}], tx, fused=fused)

    def by_optimizer(fused, resumed=4):
        params, optimizer = optimizer_of(fused)
        for step in range(4):
            if step == resumed:
                old, saved = params, optimizer.state_dict()
                params, optimizer = optimizer_of(fused)
                optimizer.load_state_dict(saved)
                with torch.no_grad():
                    torch._foreach_copy_(params, old)
            for p, grad in zip(params, grads(step), strict=True):
                p.grad = grad
            optimizer.step()
        return [p.detach() for p in params]

    rows = purely(tx)
    # Their gradients are the same, but for the first one's last.
    assert len({tuple(p.flatten().tolist()) for p in rows}) == len(rows)
    for others in (purely(fo.fused(tx)), by_optimizer(None), by_optimizer(True), by_optimizer(None, resumed=2)):
        assert [torch.equal(*pair) for pair in zip(others, rows, strict=True)] == [True] * len(rows)


WAYS = [(way, bits) for way in ("error_bits", "kahan", "master_copy") for bits in (8, 4)]


@pytest.mark.parametrize("way, bits", [pytest.param(*each, marks=[pytest.mark.full] if i else []) for i, each in enumerate(WAYS)])
def test_kernels_step_codes_and_what_keeps_bfloat16_parameters(way, bits, monkeypatch):
    """Whole blocks and a part of one, and slots too small for codes; beside what the rules themselves make of it, in the same
    state."""
    tx = fo.with_rounding(fo.quantized(fo.adamw(lr=1e-3), bits, block=16), way)
    params = [[torch.nn.Parameter(noise(shape, seed=0).bfloat16()) for shape in ((23, 17), (11,))] for _ in range(2)]
    optimizers = [fo.adapters.OptimizerAdapter(own, tx, fused=fused) for own, fused in zip(params, (False, True), strict=True)]
    for step in range(4):
        for own, optimizer in zip(params, optimizers, strict=True):
            for p in own:
                p.grad = noise(p.shape, seed=step + 1).bfloat16()
            with monkeypatch.context() as patch:
                if optimizer.fused:  # It calls no rule.
                    patch.setattr(coded, "run_links", None)
                optimizer.step()
    for p, q in zip(*params, strict=True):
        eager, fused = optimizers[0].state[p], optimizers[1].state[q]
        assert {name: (x.dtype, x.shape) for name, x in fused.items()} == {name: (x.dtype, x.shape) for name, x in eager.items()}
        assert (p != q).sum() <= 1
        for name, x in fused.items():
            if not x.is_floating_point():  # A product and a sum may be rounded once.
                assert (x != eager[name]).sum() <= 2, name
            elif p.ndim == 1:
                torch.testing.assert_close(x, eager[name], rtol=1e-5, atol=1e-8)


@fo.elementwise(slots=("m", "v"), coded={"m": "signed", "v": "positive"}, hparams={"beta": 0.9})
def directions(hp, t):
    """What it makes of zeros is no number, and more than what it makes of others."""
    beta = hp["beta"]

    def rule(g, p, m, v):
        m = beta * m + (1 - beta) * g / g.abs()
        v = beta * v + (1 - beta) * (2 - g.abs().clamp(max=1))
        return m * v, m, v

    return rule


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.full)])
def test_what_fills_up_the_last_block_of_a_kernel_is_stored_as_zeros(bits, monkeypatch):
    """Beside what the codec makes of the numbers alone; the scale of the last block is their own."""
    tx = fo.quantized(fo.chain(directions(), fo.scale_by_learning_rate(0.1)), bits)
    params = [torch.nn.Parameter(noise((300,), seed=0)) for _ in range(2)]
    optimizers = [fo.adapters.OptimizerAdapter([p], tx, fused=fused) for p, fused in zip(params, (False, True), strict=True)]
    for step in range(3):
        for p, optimizer in zip(params, optimizers, strict=True):
            p.grad = noise(p.shape, seed=step + 1)
            with monkeypatch.context() as patch:
                if optimizer.fused:  # It calls no rule.
                    patch.setattr(coded, "run_links", None)
                optimizer.step()
    eager, fused = (optimizer.state[p] for p, optimizer in zip(params, optimizers, strict=True))
    torch.testing.assert_close(*params, rtol=1e-5, atol=1e-6)
    for name in ("m", "v"):
        torch.testing.assert_close(eager[name + ".scale"], fused[name + ".scale"], rtol=1e-6, atol=0)
        assert (eager[name] != fused[name]).sum() <= 2
        if bits == 4:  # Two of 64 lie in a byte: 44 are the parameter's.
            assert not (fused[name][-1, 44:]).any() and not (fused[name][-1] & -16).any()


@pytest.mark.full
def test_kernels_of_the_pure_function_write_new_tensors():
    tx, params = fo.quantized(fo.adamw(lr=0.1), block=16, min_size=10), {"w": torch.randn(1000), "b": torch.randn(5)}
    grads, state = {name: torch.randn_like(p) for name, p in params.items()}, tx.init_state(params)
    before = state["scale_by_adam"]["exp_avg"]["w"].clone()
    for fast in (fo.fused(tx), fo.quantized(fo.fused(fo.adamw(lr=0.1)), block=16, min_size=10)):
        found, expected = fast.step(grads, state, params), tx.step(grads, state, params)
        torch.testing.assert_close(found[0], expected[0])
        codes, others = (each[1]["scale_by_adam"]["exp_avg"]["w"] for each in (found, expected))
        assert (codes != others).sum() <= 1 and torch.equal(state["scale_by_adam"]["exp_avg"]["w"], before)


def test_a_state_of_another_codec_is_refused():
    """Also where it is as many codes: half a block of 4 bits, two in a byte and filled up, beside as many of 8 bits."""
    own = fo.quantized(fo.adamw(), min_size=16)
    for other, count in (({"block": 64}, 1000), ({"bits": 4}, 1000), ({"bits": 4, "min_size": 16}, 64)):
        params = {"w": torch.ones(count)}
        with pytest.raises(ValueError, match=r"state\['exp_avg'\]\['w'\] is stored in .* another codec made this state"):
            own.update(params, fo.quantized(fo.adamw(), **other).init_state(params), params)


@pytest.mark.parametrize("bits, others", [(8, 4), (4, 8)])
def test_a_state_of_other_bits_is_refused_where_its_shapes_are_the_same(bits, others):
    """Half a block in the shape (1, n), by its values; but not zeros, which are the same in both."""
    params, (tx, other) = {"w": torch.ones(1, 64)}, (fo.quantized(fo.adamw(), n, min_size=16) for n in (bits, others))
    start = other.init_state(params)
    assert torch.equal(tx.update(params, start, params)[0]["w"], tx.update(params, tx.init_state(params), params)[0]["w"])
    _, state = other.update(params, start, params)
    with pytest.raises(
        ValueError, match=r"state\['exp_avg'\]\['w'\] is stored in codes of other bits, .* another codec made this"
    ):
        tx.update(params, state, params)
    _, state = tx.update(params, tx.init_state(params), params)
    tx.update(params, state, params)


@pytest.mark.parametrize(
    "dtype, lr",
    [
        pytest.param(dtype, lr, marks=[] if (dtype, lr) == (torch.bfloat16, 1.0) else [pytest.mark.full])
        for dtype in (torch.bfloat16, torch.float16)
        for lr in (0.0, 1.0, 1e4)
    ],
)
def test_kernels_read_and_write_every_number_of_16_bits(dtype, lr):
    """Against torch's own conversions, which the pure function takes; what is not finite and what is subnormal, too."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    g = torch.randn(len(every), generator=torch.Generator().manual_seed(0)).to(dtype)
    tx, p = fo.quantized(fo.sgd(lr=lr, momentum=0.9)), torch.nn.Parameter(every.clone())
    p.grad = g.clone()
    fo.adapters.OptimizerAdapter([p], tx, fused=True).step()
    expected, _ = tx.step(g, tx.init_state(every), every)
    is_same = p.detach().view(torch.int16) == expected.view(torch.int16)
    assert (is_same | (p.detach().isnan() & expected.isnan())).all()
