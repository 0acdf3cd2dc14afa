"""Many kernels in one C++ file: the headers, which take longer to read than a dozen kernels to translate, are read once.

Inductor writes a file for each kernel, and has each translated by itself. Here the kernels of a program come into a few files, in
a namespace each, with the bindings that torch writes; each is a module of its own in the library that becomes of the file.

Where a kernel has summed doubles in a vector, it adds up the vector by halves (see `_BY_HALVES`).
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from functional_optim import torch_internals

# Then the processor's other cores have something to do, and the headers are a small part.
KERNELS_OF_A_FILE = 16

_INCLUDE = re.compile(r"^\s*#include.*$", re.MULTILINE)

# The sum of a vector, or its maximum. ATen does this for float; of double it takes number after number, by way of memory, which
# takes longer than a sum over a hundred.
_BY_HALVES = """
template <int N, typename Combine>
inline double by_halves(const Combine& combine, const at::vec::VectorizedN<double, N>& all) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  at::vec::Vectorized<double> x = all[0], y;
  for (int i = 1; i < N; i++) y = all[i], x = combine(x, y);
#if defined(CPU_CAPABILITY_AVX512)
  y = _mm512_shuffle_f64x2(x, x, 0x4E), x = combine(x, y);
  y = _mm512_shuffle_f64x2(x, x, 0xB1), x = combine(x, y);
  y = _mm512_permute_pd(x, 0x55), x = combine(x, y);
  return _mm512_cvtsd_f64(x);
#else
  y = _mm256_permute2f128_pd(x, x, 0x01), x = combine(x, y);
  y = _mm256_permute_pd(x, 0x5), x = combine(x, y);
  return _mm256_cvtsd_f64(x);
#endif
#else
  return at::vec::vec_reduce_all<double, N>(combine, all);
#endif
}
"""
_ONE_BY_ONE = "at::vec::vec_reduce_all<double, "


@contextmanager
def few_files() -> Iterator[None]:
    """Kernels that the compiler makes meanwhile, in this thread, share files. Where torch is another, each has its own.

    They are there at the end. Within such a context, another shares the files of the first.
    """
    compiler = torch_internals.get("AsyncCompile")
    names = "CppPythonBindingsCodeCache", "LambdaFuture"
    # with one thread nobody waits for what is under way: there a kernel is compiled when it is met
    if compiler is None or not all(map(torch_internals.get, names)) or torch_internals.get_compile_threads() <= 1 or _open.files:
        yield
        return
    one_file, wait = compiler.cpp_pybinding, compiler.wait
    files, waiting = _Files(compiler.submit), []

    def cpp_pybinding(self: Any, argtypes: Sequence[str], source_code: str) -> Any:
        return files.added(argtypes, source_code) if _open.files is files else one_file(self, argtypes, source_code)

    def later(self: Any, scope: dict[str, Any]) -> None:
        """A program has its kernels when those of all have been met."""
        if _open.files is files:
            waiting.append((self, scope))
        else:
            wait(self, scope)

    compiler.cpp_pybinding, compiler.wait, _open.files = cpp_pybinding, later, files
    try:
        yield
        for program, scope in waiting:
            wait(program, scope)
    finally:
        compiler.cpp_pybinding, compiler.wait, _open.files = one_file, wait, None


class _Open(threading.local):
    """The files that kernels of this thread come into now."""

    files: "_Files | None" = None


_open = _Open()


def shares_files() -> bool:
    """Whether this thread is within `few_files`, and they are shared."""
    return _open.files is not None


class _Files:
    """The kernels of some programs, translated when the first of them is asked for."""

    def __init__(self, submit: Callable[..., Any]) -> None:
        self.submit = submit
        self.known: dict[Any, Any] = {}
        self.codes: list[str] = []
        self.kinds: list[Any] = []
        self.modules: list[Any] | None = None

    def added(self, argtypes: Sequence[str], source: str) -> Any:
        """What becomes of a kernel, to wait for; programs that have the same one share it."""
        key = source, tuple(argtypes)
        if key not in self.known:
            self.known[key] = self._added(argtypes, source)
        return self.known[key]

    def _added(self, argtypes: Sequence[str], source: str) -> Any:
        i = len(self.kinds)
        entry = f"kernel_{i}"
        files, base = self, torch_internals.CppPythonBindingsCodeCache

        class One(base):
            """The bindings of this kernel, of which torch writes the code."""

            cache: dict[str, Any] = {}
            entry_function = entry
            call_entry_function = base.call_entry_function.replace("kernel(", f"{entry}(")

            @classmethod
            def load_async(cls, main_code: str, *args: Any, **options: Any) -> Callable[[], Any]:
                files.codes.append(main_code)
                return lambda: files.module(i)

        self.kinds.append(One)
        source = re.sub(r"\bkernel\(", f"{entry}(", source).replace(_ONE_BY_ONE, "by_halves<")
        loaded = One.load_pybinding_async(argtypes, source)
        return torch_internals.LambdaFuture(loaded)

    def module(self, i: int) -> Any:
        """The module of a kernel, after all have been translated."""
        if self.modules is None:
            starts = range(0, len(self.kinds), KERNELS_OF_A_FILE)
            under_way = [self._translated(slice(start, start + KERNELS_OF_A_FILE)) for start in starts]
            self.modules = [module for library in under_way for module in library().modules]
        return self.modules[i]

    def _translated(self, some: slice) -> Callable[[], Any]:
        """Begin to translate some kernels; a function that waits for the library."""
        kinds, codes, base = self.kinds[some], self.codes[some], torch_internals.CppPythonBindingsCodeCache
        includes = dict.fromkeys(line.strip() for code in codes for line in _INCLUDE.findall(code))
        bodies = [f"namespace of_kernel_{i} {{\n{_INCLUDE.sub('', code)}\n}}" for i, code in enumerate(codes)]

        class Library(base):
            """A file with these kernels."""

            cache: dict[str, Any] = {}

            @classmethod
            def _load_library_inner(cls, path: str, key: str) -> Any:
                return SimpleNamespace(modules=[kind._load_library_inner(path, key) for kind in kinds])

        return Library.load_async("\n".join(["#define PY_SSIZE_T_CLEAN", *includes, _BY_HALVES, *bodies]), submit_fn=self.submit)
