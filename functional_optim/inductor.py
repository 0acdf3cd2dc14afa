"""The door to torch's compiler below `torch.compile`, without preparations that take twice as long as two kernels do.

On a new machine Inductor first compiles a test program for each of the processor's vector instruction sets (up to 6 s), and a
header, precompiled (6 s), which then saves each file 1.5 of its 2.3 s.

A few files need neither, and a program's kernels become a few (see `kernel_files`). Which instructions there are, the processor
says. The test programs are compiled and loaded but not run; what they can find out, the first kernel finds out as well, by
failing. It is then compiled with all preparations.

The bits of floats as whole numbers, and back, Inductor takes one at a time, by way of memory; here they stay where they are.

For each index of each kernel Inductor has sympy simplify how far it moves with a loop: a fifth of the time that a program of
convolutions takes. Of a sum of multiples that is a coefficient (see `stride`).

A kernel that goes once through long tensors waits for memory; it asks ahead for what it is about to read (see `reading_ahead`).

Of a loop that reads at x // 128 Inductor writes whole blocks only; here it leaves such a loop in one (see `splitting_evenly`).
"""

import functools
import hashlib
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, fx

from functional_optim import torch_internals
from functional_optim.kernel_files import few_files, shares_files

# A graph, its inputs or some like them, and the mode that these were made in.
Traced: TypeAlias = tuple[fx.GraphModule, Sequence[Tensor | torch.SymInt], Any]

T = TypeVar("T")

# So many bytes ahead of what it reads a kernel asks for more, by lines of a cache of this length.
AHEAD, LINE = 2048, 64

# How many files of kernels are compiled without the precompiled header: as many as take the time that it takes. Nor are their
# graphs kept from run to run: to begin with that takes as long as to lower them again. What becomes of their C++ is, elsewhere.
FEW = 4

lock = threading.RLock()  # The compiler's settings are patched meanwhile, and they are the process's.
_files = itertools.count()


def lowered(trace: Callable[[], Traced], settings: dict[str, Any], *, is_kernel: bool = False, is_backward: bool = False) -> Any:
    """What Inductor makes of a graph: a function of a list of inputs, which it empties, to a sequence of tensors.

    Args:
        trace: makes the graph, anew each time, since the compiler changes it.
        settings: of the compiler, for this graph.
        is_kernel: whether it becomes a single kernel, rather than a dozen.
        is_backward: whether it is a transpose.
    """
    config, compile_fx_inner = torch_internals.inductor_config, torch_internals.compile_fx_inner

    def compiled() -> Any:
        graph, inputs, mode = trace()
        with torch_internals.tracing(torch_internals.TracingContext(mode)), torch_internals.patched(config, settings):
            return compile_fx_inner(graph, inputs, is_backward=is_backward)

    (made,) = together([compiled], are_kernels=is_kernel)
    return made


def together(tasks: Sequence[Callable[[], T]], *, are_kernels: bool = False) -> list[T]:
    """What these return, each of which lowers programs; all share files of kernels, and run when all have been lowered.

    Args:
        tasks: called in order; again, where something fails.
        are_kernels: whether each becomes a single kernel.
    """
    with lock, nullcontext() if shares_files() else splitting_evenly():
        if shares_files():  # These are among others.
            return [task() for task in tasks]
        try:
            is_few = are_kernels and next(_files) < FEW
            quick = quick_start(with_header=are_kernels and not is_few, with_graphs=not is_few)
            with quick, reading_ahead() if are_kernels else nullcontext(), few_files():
                return [task() for task in tasks]
        except Exception:  # An older C++ compiler than processor, a library that lacks what the instructions need, another torch.
            return [task() for task in tasks]


def function(source: str, argtypes: Sequence[Any], flags: Sequence[str]) -> Any:
    """The function `kernel` of a file of C++, which returns nothing, compiled as Inductor compiles its own files.

    Args:
        source: the text.
        argtypes: of the function, in ctypes.
        flags: of the compiler, further ones.
    """
    cache = torch_internals.CppCodeCache
    with lock:
        try:
            with quick_start(with_header=False):
                library = cache.load(source, extra_flags=tuple(flags))
        except Exception:  # As above.
            library = cache.load(source, extra_flags=tuple(flags))
    found = library.kernel
    found.argtypes, found.restype = list(argtypes), None
    return found


@contextmanager
def quick_start(with_header: bool, with_graphs: bool = True) -> Iterator[None]:
    """Settings of the compiler, in this thread, where preparations don't pay.

    What is compiled under them may fail where it would not without; these are settings and insides of the compiler.
    """
    config = torch_internals.inductor_config
    torch_internals.cpp_builder.get_cpp_compiler()  # Or raise. Where Inductor finds no compiler only later, it logs a page.
    settings: dict[str, Any] = {} if with_header else {"cpp_cache_precompile_headers": False}
    if not with_graphs:
        settings["fx_graph_cache"] = False
    isa = _reported_isa()
    if isa is not None:
        # Part of the key of the compiler's cache. What a failed quick start has left there, for narrower vectors, is not taken.
        settings["cpp.simdlen"] = isa.bit_width()
    thread, module, kernels = threading.get_ident(), torch_internals.cpu_vec_isa, torch_internals.cpp_kernels
    try_all, simplified = module.valid_vec_isa_list, kernels.stride_at_vec_range
    overrides, one_by_one = kernels.CppVecOverrides, kernels.CppVecOverrides.to_dtype_bitcast
    module.valid_vec_isa_list = lambda: try_all() if isa is None or threading.get_ident() != thread else [isa]
    kernels.stride_at_vec_range = functools.partial(stride, simplified)
    overrides.to_dtype_bitcast = staticmethod(functools.wraps(one_by_one)(functools.partial(_bitcast, kernels, one_by_one)))
    try:
        with config.patch(settings), tagged("quick"):
            yield
    finally:
        module.valid_vec_isa_list, kernels.stride_at_vec_range = try_all, simplified
        overrides.to_dtype_bitcast = staticmethod(one_by_one)


@contextmanager
def tagged(name: str) -> Iterator[None]:
    """Changes to the compiler, of which the key of its cache of graphs would know nothing, nor of another version of them."""
    tag = f"{torch_internals.compiler_config.cache_key_tag} {name} {_own_digest()}"
    with torch_internals.compiler_config.patch(cache_key_tag=tag):
        yield


@contextmanager
def splitting_evenly() -> Iterator[None]:
    """A loop over x that reads at x // d becomes two, over x // d and x % d, only where d divides its length.

    Inductor makes two of others, too, and never writes what is behind the last whole d (seen in torch 2.13).
    """
    scheduling = getattr(torch_internals.get("cpp_kernels"), "CppScheduling", None)
    split = getattr(scheduling, "try_loop_split", None)
    if scheduling is None or split is None:
        yield
        return
    scheduling.try_loop_split = lambda self, nodes: split(self, nodes) if all(map(_splits_evenly, nodes)) else nodes
    try:
        with tagged("even") if torch_internals.get("compiler_config") else nullcontext():
            yield
    finally:
        scheduling.try_loop_split = split


def _splits_evenly(node: Any) -> bool:
    """Whether all divisors of a loop's variables, in the places that a node reads and writes, divide its length."""
    kernels = torch_internals.cpp_kernels
    if not isinstance(node.node, kernels.ir.ComputedBuffer):
        return True
    _, body, _ = node.node.get_default_sizes_body()
    places = [place for place in body.indexing_exprs.values() if isinstance(place, kernels.sympy.Expr)]
    divisions = [division.args for place in places for division in place.find(kernels.FloorDiv)]
    return all(body.var_ranges[x] % d == 0 for x, d in divisions if x in body.var_ranges)


@contextmanager
def reading_ahead() -> Iterator[None]:
    """What kernels that are compiled meanwhile read, they ask for some time before.

    A processor looks ahead by itself, but not past the end of a page: without this, steps take a sixth longer. To ask for what
    lies behind a tensor does nothing.
    """
    kernel = torch_internals.cpp_kernels.CppVecKernel
    read = kernel._get_vec_load_line

    def read_ahead(self: Any, var: str, index: Any, dtype: torch.dtype, *args: Any, **options: Any) -> str:
        start = f"(const char*)({var} + {torch_internals.cpp_kernels.cexpr_index(index)})"
        places = range(AHEAD, AHEAD + self.tiling_factor * dtype.itemsize, LINE)
        asked = "".join(f"__builtin_prefetch({start} + {place}), " for place in places)
        return f"({asked}{read(self, var, index, dtype, *args, **options)})"

    kernel._get_vec_load_line = read_ahead
    try:
        yield
    finally:
        kernel._get_vec_load_line = read


def stride(otherwise: Callable[..., Any], index: Any, var: Any, vector: int | None = None) -> Any:
    """By how much an index, an expression of sympy's, grows with a variable: its coefficient, in a sum of multiples.

    `otherwise` says it where it is within other terms, divisions say, and gets the length of a vector.
    """
    coefficient = var - var
    for term in index.args if index.is_Add else (index,):
        factors = term.args if term.is_Mul else (term,)
        is_multiple = all(x.is_Symbol or x.is_Integer for x in factors) and factors.count(var) <= 1
        if not is_multiple and var in term.free_symbols:
            return otherwise(index, var, vector)
        if var in factors:
            coefficient += term / var
    return coefficient


def _bitcast(kernels: Any, otherwise: Callable[..., Any], x: Any, dtype: torch.dtype, source: torch.dtype) -> Any:
    """C++ for the bits of a vector as numbers of another type, where these are as long."""
    if dtype.itemsize != source.itemsize:
        return otherwise(x, dtype, source)
    count, name = kernels.V.kernel._get_num_vectors(dtype), kernels.DTYPE_TO_CPP[dtype]
    if count == 1:
        return f"at::vec::cast<{name}>({x})"
    each = f"for (int i = 0; i < {count}; i++) found[i] = at::vec::cast<{name}>({x}[i]);"
    return f"[&]() {{ at::vec::VectorizedN<{name}, {count}> found; {each} return found; }}()"


@functools.cache
def _own_digest() -> str:
    """What differs between versions of this file."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _reported_isa() -> Any:
    """The widest vector instructions that this x86 processor reports; None for others, or where a user has chosen."""
    config, cpu_vec_isa = torch_internals.inductor_config, torch_internals.cpu_vec_isa
    chosen = config.cpp.simdlen is not None or config.cpp.vec_isa_ok is not None or "ATEN_CPU_CAPABILITY" in os.environ
    if chosen or sys.platform != "linux":
        return None
    reported = cpu_vec_isa.x86_isa_checker()
    for isa in (cpu_vec_isa.VecAVX512, cpu_vec_isa.VecAVX2):
        if str(isa()) in reported:
            # The truth value of Inductor's own is what became of the test program.
            return type(isa.__name__, (isa,), {"__bool__": lambda self: True, "__hash__": isa.__hash__})()
    return None
