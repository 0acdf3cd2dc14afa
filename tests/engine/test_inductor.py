"""The first kernels are compiled without the compiler's preparations, and with them where that fails."""

import itertools
import threading

import pytest
import sympy
import torch
from precompiled import quick_start
from torch._inductor import config, cpp_builder, cpu_vec_isa

import functional_optim as fo
from functional_optim import inductor, kernel_files, torch_internals
from functional_optim.adapters import OptimizerAdapter
from functional_optim.adapters.engine.backends import kernels

REPORTED = {"AVX512": 512, "AVX2": 256}.get(torch.backends.cpu.get_cpu_capability())
needs_x86 = pytest.mark.skipif(REPORTED is None, reason="on other processors Inductor chooses the vector instructions")


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    monkeypatch.setattr(inductor, "quick_start", quick_start)


@pytest.fixture
def tried(monkeypatch):
    """How often Inductor wanted to try all vector instructions; it gets what the processor reports, or none."""
    calls = []
    believed = inductor._reported_isa()

    def try_all():
        calls.append(threading.get_ident())
        return [believed] if believed else []

    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", try_all)
    monkeypatch.setattr(kernels, "_kernels", {})
    return calls


@pytest.fixture
def believing(monkeypatch):
    """Have the quick start take this for the processor's instructions."""

    def believe(isa):
        monkeypatch.setattr(inductor, "_reported_isa", lambda: isa)

    return believe


def stepped(fused):
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(1003))
    optimizer = OptimizerAdapter([param], fo.chain(fo.clip_by_global_norm(), fo.adamw()), fused=fused)
    for _ in range(2):
        param.grad = torch.randn(1003)
        optimizer.step()
    return param.detach()


def assert_like_eager():
    # To rounding: the two sum the norm in different orders.
    torch.testing.assert_close(stepped(True), stepped(None), rtol=1e-6, atol=1e-7)


def current_settings():
    return config.cpp.simdlen, config.cpp_cache_precompile_headers, cpu_vec_isa.valid_vec_isa_list


@needs_x86
def test_nothing_is_tried_and_nothing_stays(tried):
    before = current_settings()
    assert_like_eager()
    assert not tried
    assert current_settings() == before


@needs_x86
def test_kernels_get_the_widest_vectors_and_other_threads_what_they_had(tried):
    widths = []

    def elsewhere():
        assert cpu_vec_isa.pick_vec_isa()
        widths.append(config.cpp.simdlen)

    with inductor.quick_start(with_header=False):
        picked = cpu_vec_isa.pick_vec_isa()
        assert picked and picked.bit_width() == REPORTED
        assert not tried
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert widths == [None] and len(tried) == 1


@pytest.mark.parametrize(
    ("kernels", "is_kernel", "header", "graphs"),
    [(0, True, False, False), (3, True, False, False), (4, True, None, True), (4, False, False, True)],
)
def test_the_header_is_precompiled_for_many_files_and_few_graphs_are_kept(monkeypatch, kernels, is_kernel, header, graphs):
    seen = []
    monkeypatch.setattr(inductor, "_files", itertools.count(kernels))

    def trace():
        seen.append((config.cpp_cache_precompile_headers, config.fx_graph_cache))
        raise ZeroDivisionError

    with config.patch(fx_graph_cache=True), pytest.raises(ZeroDivisionError):
        inductor.lowered(trace, {}, is_kernel=is_kernel)
    usual = config.cpp_cache_precompile_headers
    assert seen == [(usual if header is None else header, graphs), (usual, True)]


def test_a_version_has_graphs_of_its_own_in_the_cache(monkeypatch):
    compiler = torch_internals.compiler_config
    with compiler.patch(cache_key_tag="a user's"):
        tags = [compiler.cache_key_tag]
        for digest in (inductor._own_digest(), "another"):
            monkeypatch.setattr(inductor, "_own_digest", lambda digest=digest: digest)
            with inductor.quick_start(with_header=False):
                tags.append(compiler.cache_key_tag)
        assert compiler.cache_key_tag == tags[0]
    assert all(tag.startswith("a user's") for tag in tags) and len({*tags}) == 3


@pytest.mark.skipif(torch._inductor.config.compile_threads <= 1, reason="with one thread nobody waits")
def test_the_kernels_of_a_step_are_one_file_and_read_ahead(monkeypatch):
    files, translated = [], kernel_files._Files._translated
    monkeypatch.setattr(kernels, "_kernels", {})
    monkeypatch.setattr(
        kernel_files._Files, "_translated", lambda self, some: files.append(self.codes[some]) or translated(self, some)
    )
    with config.patch(force_disable_caches=True):
        assert_like_eager()
    assert len(kernels._kernels) == 2 and len(files) == 1
    assert ["__builtin_prefetch" in code for code in files[0]] == [True, True]


@pytest.mark.skipif(torch._inductor.config.compile_threads <= 1, reason="with one thread nobody waits")
def test_a_vector_of_doubles_is_added_up_by_halves(monkeypatch):
    """Each of its places counts once: any sum of powers of 2 is exact and says of which it is; and a maximum in each place."""
    codes, translated = [], kernel_files._Files._translated
    monkeypatch.setattr(
        kernel_files._Files, "_translated", lambda self, some: codes.extend(self.codes[some]) or translated(self, some)
    )
    powers = 2.0 ** torch.arange(50, dtype=torch.float64)
    with config.patch(force_disable_caches=True):
        sums, most = fo.meta.compiled(lambda x: (x.sum(-1), x.amax(-1)))(powers + torch.diag(2 * powers))
    torch.testing.assert_close(sums, 2.0**50 - 1 + 2 * powers, rtol=0, atol=0)
    torch.testing.assert_close(most, torch.maximum(3 * powers, powers[-1]), rtol=0, atol=0)
    assert any("by_halves<" in code for code in codes)


def test_an_index_grows_by_its_coefficient():
    """What a variable isn't in is no reason to ask sympy, which would import its units of physics."""
    x, n = sympy.symbols("x n", integer=True)

    def ask(index, var, vector):
        return f"asked about {index}"

    assert inductor.stride(ask, 3 * x + n * x + 5 + n // 2, x) == 3 + n
    assert inductor.stride(ask, n // 2, x) == 0
    assert inductor.stride(ask, x // 2 + n, x).startswith("asked")
    assert inductor.stride(ask, x * x, x).startswith("asked")


@needs_x86
def test_instructions_that_the_compiler_does_not_know(tried, believing):
    flags = {"build_arch_flags": lambda self: "-mavx8192", "__bool__": lambda self: True, "__hash__": object.__hash__}
    newer = type("Newer", (cpu_vec_isa.VecAVX512,), flags)
    believing(newer())
    before = current_settings()
    assert_like_eager()
    assert tried, "the usual way, after the quick one has failed"
    assert current_settings() == before


def test_another_torch_without_these_settings(tried, monkeypatch):
    monkeypatch.delattr(cpu_vec_isa, "x86_isa_checker")
    assert_like_eager()
    assert tried


def test_what_a_user_has_chosen_stays(tried, monkeypatch):
    with config.patch({"cpp.simdlen": 256}), inductor.quick_start(with_header=False):
        assert config.cpp.simdlen == 256
        cpu_vec_isa.pick_vec_isa()
    with config.patch({"cpp.vec_isa_ok": False}), inductor.quick_start(with_header=False):
        cpu_vec_isa.pick_vec_isa()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    with inductor.quick_start(with_header=False):
        assert cpu_vec_isa.pick_vec_isa() is cpu_vec_isa.invalid_vec_isa
    assert len(tried) == 3


def test_without_a_compiler_there_is_no_quick_start(monkeypatch):
    def missing():
        raise RuntimeError("no compiler")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    before = current_settings()
    with pytest.raises(RuntimeError, match="no compiler"), inductor.quick_start(with_header=False):
        pytest.fail("Inductor logs a page when it finds out later")
    assert current_settings() == before


def test_what_is_read_by_a_division_is_whole_where_the_divisor_does_not_divide():
    """Of 300 elements, torch's compiler alone writes 256."""

    def scaled(x, scales):
        place = torch.arange(len(x))
        return x * scales[place // 128], x * scales.unsqueeze(1).expand(3, 128).reshape(-1)[: len(x)]

    x, scales = torch.linspace(1, 2, 300), torch.tensor([1.0, 2.0, 3.0])
    for found, expected in zip(fo.meta.compiled(scaled)(x, scales), scaled(x, scales), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
