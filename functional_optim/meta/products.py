"""Products of small matrices as kernels of the program, made for the sizes at hand.

    c[m, n] = Σₖ a[m, k] b[k, n]        for each matrix of a batch

A library takes half of the time of such a product to find out what it is asked for. Here sizes are constants of the code: a few
rows by a few vectors of c stay in registers while k runs, over a b that stays in the processor's first cache. There, it is turned
first if it lies by columns.

Goto & van de Geijn 2008, Anatomy of High-Performance Matrix Multiplication, https://doi.org/10.1145/1356052.1356053
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from functional_optim import torch_internals

aten = torch.ops.aten

# Up to so many multiplications, and elements of b, it is faster than a library (measured with MKL, AVX-512, one thread).
MOST_MULTIPLICATIONS, MOST_ELEMENTS = 2**18, 2**13
# From so many multiplications of a batch on, it pays to wake the other threads.
MANY = 2**20

TYPES = {torch.float32: "float", torch.float64: "double"}

# The compiler finds on disk what it has made of a graph by what the graph says: so it says by which text products are written.
torch.library.define(
    "functional_optim::product",
    "(Tensor a, Tensor b, str text, bool joins=False) -> Tensor",
    tags=(torch.Tag.flexible_layout,),
)
PRODUCT = torch.ops.functional_optim.product.default


@torch.library.impl("functional_optim::product", "CompositeExplicitAutograd")
def _product(a: Tensor, b: Tensor, text: str, joins: bool = False) -> Tensor:
    return (a @ b).flatten(-2) if joins else a @ b


def take_small_products(graph: fx.GraphModule) -> None:
    """Have the products of small matrices in a graph compiled here."""
    if not _is_known_to_compiler():
        return
    for target in (aten.mm.default, aten.bmm.default):
        for node in graph.graph.find_nodes(op="call_function", target=target):
            a, b = (x.meta["val"] if isinstance(x, fx.Node) else None for x in node.args)
            if a is not None and b is not None and _is_small(a, b):
                node.target, node.args = PRODUCT, (*node.args, _digest(_CODE))


def join_rows(graph: fx.GraphModule, product: fx.Node) -> fx.Node | None:
    """A product of small matrices whose rows are one behind the other in a single dimension; None of another product."""
    a, b = product.all_input_nodes[0], product.all_input_nodes[-1]
    if not (_is_known_to_compiler() and _is_small(a.meta["val"], b.meta["val"])):
        return None
    node = graph.graph.call_function(PRODUCT, (a, b, _digest(_CODE), True))
    node.meta["val"] = product.meta["val"].flatten(-2)
    return node


@functools.cache
def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_small(a: Tensor, b: Tensor) -> bool:
    (m, k), n = a.shape[-2:], b.shape[-1]
    is_product = min(m, n, k) > 1  # others are sums, which the compiler writes by itself
    fits = m * n * k <= MOST_MULTIPLICATIONS and k * n <= MOST_ELEMENTS and a.numel() > 0
    return is_product and fits and a.device.type == "cpu" and a.dtype == b.dtype and a.dtype in TYPES


@functools.cache
def _is_known_to_compiler() -> bool:
    """Tell the compiler what becomes of `PRODUCT`, once; whether it could be told."""
    lowering, ir = map(torch_internals.get, ("inductor_lowering", "inductor_ir"))
    if lowering is None or ir is None:
        return False

    class Product(ir.ExternKernelOut):
        """A product in the compiler's program."""

        def codegen(self, wrapper: Any) -> None:
            """Write the kernel, unless the program has it, and its call."""
            a, b = self.inputs
            dtype = self.get_dtype()
            *batch, m, k = map(int, a.get_size())
            n = int(b.get_size()[-1])
            strides = [list(map(int, x.get_stride())) for x in (a, b, self)]
            if len(strides[2]) < len(strides[0]):  # its rows are one behind the other
                strides[2][-1:] = n, 1
            code = source(TYPES[dtype], [*batch, m, n], k, *strides)
            name = wrapper.src_to_kernel.get(code)
            if name is None:
                name = f"cpp_product_{wrapper.next_kernel_suffix()}"
                wrapper.src_to_kernel[code] = name
                types = [*(f"{kind}{TYPES[dtype]}*" for kind in ("const ", "const ", "")), *["const int64_t"] * 5]
                wrapper.define_kernel(name, f"async_compile.cpp_pybinding({types!r}, r'''{code}''')", gpu=False)
            places = [_place(ir, x) for x in (a, b)]
            steps = [stride[0] if batch else 0 for stride in strides]
            given = [*(name for name, _ in places), self.codegen_reference(), *(offset for _, offset in places), *steps]
            wrapper.writeline(f"{name}({', '.join(map(str, given))})")

    def lowered(a: Any, b: Any, text: str, joins: bool = False) -> Any:
        *batch, m, n = [*a.get_size()[:-1], b.get_size()[-1]]
        size = [*batch, m * n] if joins else [*batch, m, n]
        layout = ir.FlexibleLayout(device=a.get_device(), dtype=a.get_dtype(), size=size)
        return ir.TensorBox.create(Product(layout=layout, inputs=[ir.ExternKernel.realize_input(x) for x in (a, b)]))

    lowering.register_lowering(PRODUCT, type_promotion_kind=None)(lowered)
    return True


def _place(ir: Any, x: Any) -> tuple[str, int]:
    """The name of the tensor in whose memory an argument lies, and where its first element is there."""
    if isinstance(x, ir.ReinterpretView):
        return x.get_name(), int(x.get_layout().offset)
    return x.codegen_reference(), 0


def source(kind: str, size: Sequence[int], k: int, a: Sequence[int], b: Sequence[int], c: Sequence[int]) -> str:
    """C++ for a product of such a size (batch, m, n), or (m, n), with these strides."""
    count, threads = math.prod(size[:-2]), torch.get_num_threads()
    wakes = threads > 1 and count > 1 and count * size[-2] * size[-1] * k >= MANY
    sizes = {"M": size[-2], "N": size[-1], "K": k, "AM": a[-2], "AK": a[-1], "BK": b[-2], "BN": b[-1], "CM": c[-2]}
    constants = ", ".join(f"{name} = {value}" for name, value in sizes.items())
    parallel = f"#pragma omp parallel for num_threads({threads})" if wakes else ""
    code = _CODE.replace("/*constants*/", f"constexpr int64_t COUNT = {count}, {constants};")
    return code.replace("KIND", kind).replace("/*parallel*/", parallel)


_CODE = r"""
#include <torch/csrc/inductor/cpp_prefix.h>

using T = KIND;
using Vector = at::vec::Vectorized<T>;
constexpr int WIDTH = Vector::size();
/*constants*/

inline void clear(Vector& x) { x = Vector(0); }
inline void add(Vector& sum, const Vector& a, const Vector& b) { sum = at::vec::fmadd(a, b, sum); }
inline void store(const Vector& x, T* c, int count) { x.store(c, count); }

#ifdef CPU_CAPABILITY_AVX512
// Vectors are loaded in part without a copy. And half a vector takes some processors half the time.
constexpr bool MASKS = true;
using Half = std::conditional_t<sizeof(T) == 4, __m256, __m256d>;
inline __m256 half(__m512 x) { return _mm512_castps512_ps256(x); }
inline __m256d half(__m512d x) { return _mm512_castpd512_pd256(x); }
inline __m512 whole(__m256 x) { return _mm512_castps256_ps512(x); }
inline __m512d whole(__m256d x) { return _mm512_castpd256_pd512(x); }
inline __m256 fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
inline __m256d fma(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
inline void clear(Half& x) { x = Half{}; }
inline void add(Half& sum, const Vector& a, const Vector& b) { sum = fma(half(a), half(b), sum); }
inline void store(const Half& x, T* c, int count) { Vector(whole(x)).store(c, count); }
#else
constexpr bool MASKS = false;
using Half = Vector;
#endif

// Of the processor's 32 or 16 registers, so many hold sums, and the rest what they are made of.
constexpr int SUMS = WIDTH * sizeof(T) == 64 ? 24 : 12;
constexpr int64_t VECTORS = (N + WIDTH - 1) / WIDTH, ACROSS = VECTORS < 4 ? VECTORS : 4;
// What is left of a row where whole vectors end.
constexpr int64_t END = N % (ACROSS * WIDTH);
constexpr int64_t BLOCKS = (M * ACROSS + SUMS - 1) / SUMS, DOWN = (M + BLOCKS - 1) / BLOCKS;
constexpr bool TURNS = BN != 1, PACKS = TURNS || (N % WIDTH != 0 && !MASKS);
constexpr int64_t LINE = PACKS ? VECTORS * WIDTH : BK;

// R rows by V vectors of c, the last of them with LAST elements.
template <int R, int V, int LAST>
inline void tile(const T* a, const T* b, T* c) {
    Vector sums[R][V];
    std::conditional_t<LAST <= WIDTH / 2, Half, Vector> ends[R];
    #pragma GCC unroll 32
    for (int r = 0; r < R; r++) {
        #pragma GCC unroll 4
        for (int v = 0; v < V - 1; v++) clear(sums[r][v]);
        clear(ends[r]);
    }
    for (int64_t k = 0; k < K; k++) {
        Vector row[V];
        #pragma GCC unroll 4
        for (int v = 0; v < V; v++) row[v] = Vector::loadu(b + k * LINE + v * WIDTH, PACKS || v < V - 1 ? WIDTH : LAST);
        #pragma GCC unroll 32
        for (int r = 0; r < R; r++) {
            const Vector factor(a[r * AM + k * AK]);
            #pragma GCC unroll 4
            for (int v = 0; v < V - 1; v++) add(sums[r][v], factor, row[v]);
            add(ends[r], factor, row[V - 1]);
        }
    }
    #pragma GCC unroll 32
    for (int r = 0; r < R; r++) {
        #pragma GCC unroll 4
        for (int v = 0; v < V - 1; v++) store(sums[r][v], c + r * CM + v * WIDTH, WIDTH);
        store(ends[r], c + r * CM + (V - 1) * WIDTH, LAST);
    }
}

template <int R>
inline void rows(const T* a, const T* b, T* c) {
    for (int64_t n = 0; n < N - END; n += ACROSS * WIDTH) tile<R, ACROSS, WIDTH>(a, b + n, c + n);
    if constexpr (END > 0) tile<R, (END + WIDTH - 1) / WIDTH, (END - 1) % WIDTH + 1>(a, b + N - END, c + N - END);
}

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

#ifdef SHUFFLES
typedef T Line __attribute__((vector_size(WIDTH * sizeof(T)), aligned(alignof(T)), may_alias));

// Of each pair of neighbours of S elements, in two lines, the second of one line and the first of the other change places.
template <int S, int... J>
inline __attribute__((always_inline)) void exchange(Line& a, Line& b, std::integer_sequence<int, J...>) {
    const Line first = __builtin_shufflevector(a, b, (J & S ? WIDTH + J - S : J)...);
    b = __builtin_shufflevector(a, b, (J & S ? WIDTH + J : J + S)...);
    a = first;
}

template <int S>
inline __attribute__((always_inline)) void turn(Line (&lines)[WIDTH]) {
    if constexpr (S < WIDTH) {
        #pragma GCC unroll 16
        for (int i = 0; i < WIDTH; i++)
            if (!(i & S)) exchange<S>(lines[i], lines[i + S], std::make_integer_sequence<int, WIDTH>{});
        turn<2 * S>(lines);
    }
}

// A square of b, of which there are so many rows and columns, in registers.
template <int ROWS, int COLUMNS>
inline void square(const T* b, T* packed) {
    Line lines[WIDTH];
    #pragma GCC unroll 16
    for (int n = 0; n < WIDTH; n++) {
        lines[n] = Line{};
        if (n < ROWS && COLUMNS == WIDTH) lines[n] = *reinterpret_cast<const Line*>(b + n * BN);
        if (n < ROWS && COLUMNS < WIDTH) Vector::loadu(b + n * BN, COLUMNS).store(reinterpret_cast<T*>(&lines[n]));
    }
    turn<1>(lines);
    #pragma GCC unroll 16
    for (int k = 0; k < COLUMNS; k++) *reinterpret_cast<Line*>(packed + k * LINE) = lines[k];
}

template <int ROWS>
inline void squares(const T* b, T* packed) {
    int64_t k = 0;
    for (; k + WIDTH <= K; k += WIDTH) square<ROWS, WIDTH>(b + k, packed + k * LINE);
    if constexpr (K % WIDTH != 0) square<ROWS, K % WIDTH>(b + k, packed + k * LINE);
}
#endif

inline void pack(const T* b, T* packed) {
#ifdef SHUFFLES
    if constexpr (TURNS && BK == 1) {
        int64_t n = 0;
        for (; n + WIDTH <= N; n += WIDTH) squares<WIDTH>(b + n * BN, packed + n);
        if constexpr (N % WIDTH != 0) squares<N % WIDTH>(b + n * BN, packed + n);
        return;
    }
#endif
    if constexpr (TURNS) {
        for (int64_t k = 0; k < K; k++)
            for (int64_t n = 0; n < N; n++) packed[k * LINE + n] = b[k * BK + n * BN];
    } else {
        for (int64_t k = 0; k < K; k++) {
            int64_t n = 0;
            for (; n + WIDTH <= N; n += WIDTH) Vector::loadu(b + k * BK + n).store(packed + k * LINE + n);
            Vector::loadu(b + k * BK + n, N - n).store(packed + k * LINE + n);
        }
    }
}

inline void product(const T* a, const T* b, T* c) {
    alignas(64) T packed[PACKS ? K * LINE : 1];
    if constexpr (PACKS) {
        pack(b, packed);
        b = packed;
    }
    int64_t m = 0;
    for (; m + DOWN <= M; m += DOWN) rows<DOWN>(a + m * AM, b, c + m * CM);
    if constexpr (M % DOWN != 0) rows<M % DOWN>(a + m * AM, b, c + m * CM);
}

extern "C" void kernel(
    const T* a, const T* b, T* c,
    const int64_t a_first, const int64_t b_first, const int64_t a_next, const int64_t b_next, const int64_t c_next)
{
    /*parallel*/
    for (int64_t i = 0; i < COUNT; i++) product(a + a_first + i * a_next, b + b_first + i * b_next, c + i * c_next);
}
"""
