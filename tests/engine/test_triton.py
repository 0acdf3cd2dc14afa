"""Kernels for GPUs: their numbers in Triton's interpreter, how many are launched, and what they compile to."""

import copy
import functools

import numpy as np
import pytest
import torch
from engines import (
    ELEMENTWISE,
    TRANSFORMS,
    Plain,
    assert_close,
    assert_same_progress,
    parameters,
    params_of,
    run,
    set_gradients,
    ways,
)
from interpreted import Launches, backend, compiled, interpret

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter
from functional_optim.adapters.engine.buckets import Way
from functional_optim.adapters.engine.stand_ins import ELEMENTWISE as OPERATIONS

# A whole block and a rest; less than that; nothing. The interpreter takes a millisecond for a few operations on a block.
SHAPES = [(40, 30), (3, 4), (), (0,), (7,)]

# One of each structure; `make test-all` takes the whole table.
FEW = ("adamw-1", "chain-0", "cautious-0", "prodigy-0", "partition-0")
ALL = [pytest.param(*x.values, id=x.id, marks=[] if x.id in FEW else [pytest.mark.full]) for x in ELEMENTWISE]


@pytest.fixture(autouse=True)
def as_if_on_a_gpu(monkeypatch):
    interpret(monkeypatch)
    with np.errstate(all="ignore"):  # It says of infinities what a GPU would not.
        yield


def fused_adapter(params, transform, **hparams):
    return OptimizerAdapter(params, transform, fused=True, **hparams)


def pair(transform, dtype=torch.float32, **hparams):
    """The same parameters behind a plain and a fused optimizer."""
    own = parameters(SHAPES, dtype)
    return Plain(copy.deepcopy(own), transform, **hparams), fused_adapter(own, transform, **hparams)


def kernels_of(optimizer):
    """Those of its last step."""
    (step,) = optimizer._steps.values()
    return [
        kernel for own in step.plan.backends[Way.COMPILED].kernels.values() for kernel in [*own.quantities.values(), own.step]
    ]


def assert_interpreted(optimizer):
    assert ways(optimizer) == {"COMPILED"}
    assert all(isinstance(kernel, backend.Kernel) for kernel in kernels_of(optimizer) if kernel is not None)


@pytest.mark.parametrize("transform", ALL)
def test_it_is_every_elementwise_transform_of_the_table(transform):
    plain, fused = pair(transform)
    run(plain, fused, steps=2)
    assert_same_progress(plain, fused)
    assert_interpreted(fused)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_precisions(dtype):
    plain, fused = pair(TRANSFORMS["clip later"](), dtype=dtype)
    run(plain, fused, steps=2)
    assert_same_progress(plain, fused, torch.bfloat16 if dtype == torch.float16 else dtype)
    assert_interpreted(fused)


def test_float32_slots_of_bfloat16_parameters_keep_their_digits():
    plain, fused = pair(fo.sgd(momentum=0.9, state_dtype=torch.float32), dtype=torch.bfloat16)
    run(plain, fused, steps=2)
    for p, q in zip(params_of(plain), params_of(fused), strict=True):
        assert_close([fused.state[q]["momentum_buffer"]], [plain.state[p]["momentum_buffer"]])
    assert_interpreted(fused)


def test_any_layout_and_mixed_dtypes():
    """Complex numbers are pairs; a parameter that is not dense, or a gradient laid out otherwise, is copied."""

    def odd():
        make = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
        tensors = [
            make(5, 9, dtype=torch.complex64),
            make(3, dtype=torch.complex64).conj(),
            make(9, 8).t(),
            make(9, 8)[:, ::2],
            make(6, dtype=torch.float64),
        ]
        return list(map(torch.nn.Parameter, tensors))

    plain, fused = Plain(odd(), fo.adamw()), fused_adapter(odd(), fo.adamw())
    for step in range(2):
        set_gradients(step, params_of(plain), params_of(fused))
        params_of(fused)[0].grad = params_of(fused)[0].grad.t().contiguous().t()
        plain.step()
        fused.step()
    assert_same_progress(plain, fused)
    assert_interpreted(fused)


@pytest.mark.parametrize("shift", [0, 1])
def test_addresses_need_not_be_multiples_of_anything(shift):
    """And a tensor may be longer than what one program takes."""
    own = [torch.nn.Parameter(torch.randn(10_011, generator=torch.Generator().manual_seed(0))[shift:]) for _ in range(2)]
    plain, fused = Plain(own[:1], fo.adamw()), fused_adapter(own[1:], fo.adamw())
    run(plain, fused, steps=1)
    assert_same_progress(plain, fused)


def test_groups_keep_their_numbers_and_share_the_norm():
    transform = fo.chain(fo.clip_by_global_norm(), fo.adamw())
    sets = [parameters(SHAPES), parameters(SHAPES)]
    groups = ([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "betas": (0.5, 0.6)}] for p in sets)
    plain, fused = Plain(next(groups), transform), fused_adapter(next(groups), transform)
    run(plain, fused, steps=2)
    assert_same_progress(plain, fused)
    assert_interpreted(fused)


def test_what_has_moved_is_seen():
    """Also where the memory from before is still there."""
    plain, fused = pair(fo.adamw())
    run(plain, fused, steps=1)
    kept = []
    for optimizer in (plain, fused):
        p = params_of(optimizer)[0]
        for x in (p, optimizer.state[p]["exp_avg"]):
            kept.append(x.data)
            x.data = x.detach().clone()
    for _ in range(2):
        for optimizer in (plain, fused):
            optimizer.step()
    assert_same_progress(plain, fused)
    assert len(kept) == 4


def test_the_pure_function():
    tx = fo.chain(fo.clip_by_global_norm(), fo.adamw())
    params = {str(i): p.detach() for i, p in enumerate(parameters(SHAPES))}
    grads, before = {name: p.cos() for name, p in params.items()}, copy.deepcopy(params)
    ours, theirs = fo.fused(tx), tx
    state = tx.init_state(params)
    found, wanted = ours.step(grads, state, params, {}), theirs.step(grads, state, params, {})
    for x, y in zip(torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(wanted), strict=True):
        assert_close([x], [y])
    assert_close(params.values(), before.values(), torch.float64)


# Launches.


@pytest.mark.parametrize(
    ("transform", "launches"),
    [
        (fo.adamw(), 1),
        (fo.chain(fo.cautious(fo.scale_by_lion()), fo.scale_by_learning_rate()), 2),
        (fo.chain(fo.clip_by_global_norm(), fo.adamw()), 2),
        (fo.scheduled(fo.accumulate(fo.adamw(), every=2), lr=fo.cosine(1e-3, 0.0, 100)), 1),
    ],
    ids=["adamw", "cautious", "clip", "accumulate"],
)
def test_one_launch_for_all_tensors_and_one_more_for_sums(transform, launches, monkeypatch):
    optimizer = fused_adapter(parameters(SHAPES), transform)
    run(optimizer, steps=2)
    counted = Launches(monkeypatch)
    run(optimizer, steps=1, first=2)
    assert counted.count == launches


def test_a_launch_for_each_signature(monkeypatch):
    params = [p for dtype in (torch.float32, torch.bfloat16) for p in parameters(SHAPES, dtype)]
    optimizer = fused_adapter(params, fo.chain(fo.clip_by_global_norm(), fo.adamw()))
    run(optimizer, steps=1)
    counted = Launches(monkeypatch)
    run(optimizer, steps=1, first=1)
    assert counted.count == 4


# What they compile to.


def texts_of(monkeypatch, transform, dtype):
    """The texts of its kernels; nothing is run."""
    texts = []

    def kept(text):
        texts.append(text)
        return text

    with monkeypatch.context() as patch:
        patch.setattr(backend, "function_of", kept)
        patch.setattr(backend, "try_out", lambda *args: None)
        patch.setattr(backend, "_kernels", {})
        params = parameters(SHAPES, dtype)
        optimizer = fused_adapter(params, transform)
        with pytest.raises(TypeError):  # No text can be launched.
            run(optimizer, steps=1)
    return texts


def test_all_of_a_whole_block_is_read_and_written_in_vectors(monkeypatch, tmp_path):
    """Of 16 bytes, the widest that there are: 8 numbers a thread are two of them in float32, one in bfloat16. And no spills."""
    programs = [(TRANSFORMS["clip first"](), torch.float32), (fo.adamw(), torch.bfloat16), (fo.lion(), torch.float32)]
    texts = [text for transform, dtype in programs for text in texts_of(monkeypatch, transform, dtype)]
    vectors = [(2, 0), (8, 6), (4, 3), (6, 4)]  # The norm reads gradients, AdamW four columns, Lion three.
    assert len(texts) == len(vectors)
    for own, (reads, writes) in zip(compiled(texts, tmp_path), vectors, strict=True):
        for on_gpu in own:
            accesses = on_gpu["accesses"]
            assert (accesses.get("ld.global.v4.b32", 0), accesses.get("st.global.v4.b32", 0)) == (reads, writes), accesses
            assert not on_gpu["spilled"]


@pytest.mark.full
def test_the_whole_table_compiles_without_a_spill(monkeypatch, tmp_path):
    texts = [text for x in ELEMENTWISE for text in texts_of(monkeypatch, *x.values, torch.float32)]
    assert len(texts) >= len(ELEMENTWISE)
    for text, own in zip(texts, compiled(texts, tmp_path), strict=True):
        assert not any(on_gpu["spilled"] for on_gpu in own), text.source


@fo.elementwise()
def one_operation(hp, *, name):
    """A rule that is one of torch's functions."""

    def rule(g, p):
        return getattr(torch, name)(g) + 0.0 * p

    return rule


def test_operations_that_no_kernel_knows_are_said():
    optimizer = fused_adapter(parameters(SHAPES), fo.chain(one_operation(name="digamma"), fo.scale_by_learning_rate()))
    set_gradients(0, params_of(optimizer))
    with pytest.warns(UserWarning, match="'digamma', which kernels for GPUs don't know"):
        optimizer.step()
    assert ways(optimizer) == {"LISTED"}
    assert "digamma" in OPERATIONS
