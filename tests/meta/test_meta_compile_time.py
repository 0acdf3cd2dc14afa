"""What compiling costs: kernels share files, and what one process compiled, another finds on disk, whatever the values are."""

import logging
import os
import re
import subprocess
import sys

import pytest
import sympy
import torch
from meta_helpers import close
from torch._higher_order_ops.utils import registered_hop_fake_fns
from torch._inductor import config
from torch._inductor.codecache import CppPythonBindingsCodeCache
from torch._inductor.graph import GraphLowering

import functional_optim as fo
from functional_optim import inductor, torch_internals

# Two kernels at least: a product lies between what comes before and after it.
PROGRAM = """
import os
import resource
import sys
import torch
import torch._inductor.compile_fx
import functional_optim as fo
from torch._dynamo.utils import counters

def run(lr, seed, steps):
    torch.manual_seed(seed)
    held = torch.tensor(2.0)

    def loss(p, x):
        return ((torch.tanh(x @ p) @ p).exp() * held).mean()

    def outer(compile):
        inner = fo.meta.unroll(loss, fo.sgd(), steps, compile=compile)

        def total(p, lr, x):
            trained = inner(p, {"lr": lr}, (x,))
            return loss(trained.params, x) + trained.logs["loss"].sum()

        return torch.func.grad(total, (0, 1))

    given = torch.eye(3) / 2, torch.tensor(lr), torch.randn(4, 3)
    for found, expected in zip(fo.meta.compiled(outer(True))(*given), outer(False)(*given)):
        torch.testing.assert_close(found, expected)
    print({name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss", "bypass")}, flush=True)

    # After a loop the process keeps what is freed: 10 MB a time are written to pages that it has. Now and then a tensor, of some
    # 300 pages, finds no room among them; if all were given back, ten times would be 23,000 faults.
    x, faults = [torch.ones(300_000) for _ in range(8)], []
    for _ in range(20):
        x = [y + 1 for y in x]
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    assert sys.platform != "linux" or faults[-1] - faults[9] < 5000, faults

# Each in a process of its own. None has compiled anything, this one neither: it has what all of them import.
for lr, seed, steps in ((0.1, 0, 3), (0.03, 1, 3), (0.1, 0, 4)):
    if not os.fork():
        run(lr, seed, steps)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(1)
"""


def test_another_process_with_other_numbers_compiles_nothing(tmp_path):
    """Nor does it compile the step again for another number of steps, whose losses the program around it adds."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    # the step, its transpose, and what is around them
    assert ran.stdout.splitlines() == [str({"hit": hit, "miss": 3 - hit, "bypass": 0}) for hit in (0, 3, 2)]


def test_a_constant_is_part_of_what_is_on_disk():
    for value in (2.0, 3.0):
        held = torch.tensor(value)
        assert fo.meta.compiled(lambda x, held=held: (x * held).exp().log())(torch.ones(2)).tolist() == pytest.approx([value] * 2)


@pytest.fixture
def files(monkeypatch):
    """The C++ files that reach the compiler."""
    codes, original = [], CppPythonBindingsCodeCache.load_async.__func__

    def load_async(cls, main_code, *args, **kwargs):
        codes.append(main_code)
        return original(cls, main_code, *args, **kwargs)

    monkeypatch.setattr(CppPythonBindingsCodeCache, "load_async", classmethod(load_async))
    return codes


def many(x):
    """Two kernels, one not like the other, with a product between them: of the size of another behind, so one more kernel."""
    for function in (torch.tanh, torch.sin):
        x = function(x) @ x
    return x


@pytest.mark.parametrize(("kernels", "expected"), [pytest.param(16, [3], marks=pytest.mark.full), (2, [2, 1])])
def test_kernels_share_files(monkeypatch, files, kernels, expected):
    monkeypatch.setattr("functional_optim.kernel_files.KERNELS_OF_A_FILE", kernels)
    x = torch.eye(3) / kernels
    with config.patch(force_disable_caches=True, compile_threads=2):
        close(fo.meta.compiled(many)(x), many(x), rtol=1e-5, atol=1e-6)
    assert [len(re.findall(r"PyInit_kernel_\d+\(", code)) for code in files] == expected


@pytest.mark.parametrize("how", [pytest.param("one thread", marks=pytest.mark.full), "another torch"])
def test_where_they_cannot_they_do_not(monkeypatch, files, how):
    if how == "another torch":
        monkeypatch.setitem(torch_internals.NAMES, "LambdaFuture", torch_internals.Name("torch._gone", "nothing"))
        torch_internals.get.cache_clear()
    x = torch.eye(3)
    try:
        with config.patch(force_disable_caches=True, compile_threads=1 if how == "one thread" else 2):
            close(fo.meta.compiled(many)(x), many(x), rtol=1e-5, atol=1e-6)
    finally:
        torch_internals.get.cache_clear()
    assert len(files) > 1 and not any("kernel_1" in code for code in files)


def test_a_stride_without_sympys_help_is_torchs():
    from torch._inductor.codegen.cpp import stride_at_vec_range
    from torch.utils._sympy.functions import FloorDiv, ModularIndexing

    x, y, s = sympy.symbols("x y s", integer=True, nonnegative=True)
    indices = [x, 3 * x + 8 * y + 2, s * x + y, x * y, sympy.Integer(4), x * x, 2 * x + FloorDiv(y, 4), ModularIndexing(x, 1, 16)]
    for index in indices:
        for var in (x, y):
            for vector in (16, None):
                own = inductor.stride(stride_at_vec_range, index, var, vector)
                assert own == stride_at_vec_range(index, var, vector), (index, var)
    assert inductor.stride(None, indices[1], x) == 3  # without the other's help


def test_the_compiler_runs_no_part_to_see_what_it_returns(monkeypatch):
    """It asks at each call, of which there may be many, and after each of its passes."""
    asked, call = [], torch.ops.higher_order.invoke_subgraph
    original = registered_hop_fake_fns[call]
    monkeypatch.setitem(registered_hop_fake_fns, call, lambda *given: asked.append(given) or original(*given))

    decay = fo.meta.compiled(lambda x, rate: x - rate * x.sin())

    def decayed(x, rate):
        for _ in range(9):
            x = decay(x, rate)
        return x

    with config.patch(force_disable_caches=True):
        fo.meta.compiled(decayed)(torch.ones(3), torch.tensor(0.1))
    assert not asked


def test_no_tensor_is_turned_for_convolutions_that_are_derived(monkeypatch):
    """By channels, as Inductor has them, what lies between them and their derivatives is copied."""

    def loss(kernels, x):
        for kernel in kernels:
            x = torch.tanh(torch.nn.functional.conv2d(x, kernel, padding=1))
        return x.square().mean()

    programs = []
    monkeypatch.setattr(GraphLowering, "save_output_code", programs.append)
    given = [torch.randn(8, 8, 3, 3), torch.randn(8, 8, 3, 3)], torch.randn(4, 8, 8, 8)
    with config.patch(fx_graph_cache=False):
        for function in (loss, torch.func.grad(loss)):
            close(fo.meta.compiled(function)(*given), function(*given), rtol=1e-4, atol=1e-6)  # Sums of 576.
    by_channels = [len(re.findall(r"empty_strided_cpu\(\(\d+, \d+, \d+, \d+\), \(\d+, 1, ", text)) for text in programs]
    # The images and the first kernels; the others are written so where they are made.
    assert by_channels == [2, 0]
    assert [text.count(" = extern_kernels.convolution(") for text in programs] == [2, 2]


def test_on_request_it_says_what_it_compiles(caplog):
    def doubled(x):
        return 2 * x

    caplog.set_level(logging.INFO, "functional_optim.meta")
    function = fo.meta.compiled(doubled)
    for _ in range(2):
        function(torch.ones(2))
    said = [record.getMessage() for record in caplog.records]
    name = re.escape(doubled.__qualname__)
    expected = [
        f"tracing {name}",
        rf"traced {name} in \d+\.\d s",
        rf"compiling {name}: \d+ operations",
        rf"compiled {name} in .* s",
    ]
    assert len(said) == 4
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(expected, said, strict=True))
