"""Formulas that lose digits or derivatives when written the obvious way, each with its reason.

Scalars (hyper-parameters, the step) are Python numbers or () tensors: eager host code computes with the first,
`vmap`, autograd and the compiler with the second. These functions take both.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.sharded import total
from functional_optim.torch_internals import in_forward_mode, is_at_hand, is_observed
from functional_optim.trees import Tree

Scalar: TypeAlias = float | Tensor

# What a rule of one's own may use; the rest is between the modules of this library.
__all__ = [
    "Scalar",
    "atan2",
    "bias_correction",
    "cbrt",
    "cond",
    "cos",
    "double",
    "either",
    "floor",
    "global_norm",
    "inner_product",
    "log",
    "norm",
    "power",
    "root",
    "root_mean_square",
    "round_stochastically",
    "sqrt",
    "where",
]


WITHOUT_FLOAT64 = ("mps",)

# The dtypes of 16 bits: rules compute in more.
LOW = (torch.bfloat16, torch.float16)


@overload
def real(x: Tensor) -> Tensor: ...
@overload
def real(x: None) -> None: ...
def real(x: Tensor | None) -> Tensor | None:
    """A complex tensor as pairs of reals, on the same memory unless it is conjugate there; anything else as it is."""
    return torch.view_as_real(x.resolve_conj()) if isinstance(x, Tensor) and x.is_complex() else x


@overload
def double(x: Tensor, device: torch.device | None = None) -> Tensor: ...
@overload
def double(x: Scalar, device: torch.device) -> Tensor: ...
@overload
def double(x: Scalar, device: None = None) -> Scalar: ...
def double(x: Scalar, device: torch.device | None = None) -> Scalar:
    """A scalar in float64, so that arithmetic with the step loses no digits; a Python number is that already.

    With a `device`, a Python number becomes a tensor there.
    """
    device = x.device if isinstance(x, Tensor) else device
    if device is None:
        return x
    dtype = dtype_of_scalars(device)
    return x.to(dtype) if isinstance(x, Tensor) else torch.tensor(x, dtype=dtype, device=device)


def dtype_of_scalars(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no other."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def bias_correction(beta: Scalar, t: Scalar) -> Scalar:
    """`1 - beta**t`, the share of its weight that a moving average started at 0 has gathered after `t ≥ 1` steps.

    In float64, whatever comes in: in float32 the difference loses four digits at beta = 0.999, t = 1
    (1.3e-5 relative). The derivative in `beta` is finite at beta = 0 as well, which `-expm1(t·log(beta))` would not give.
    """
    return 1 - double(beta) ** double(t)


def sqrt(x: Tensor) -> Tensor:
    """√x with slope 0 at 0.

    The true slope is infinite there, and any chain rule through a zero gradient would give 0·∞ = NaN. A moment that is
    exactly 0 has seen only zero gradients; its update is 0 and stays 0 to first order, so the slope 0 is the useful one.
    """
    if not _differentiating():
        return x.sqrt()
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())


def root(x: Tensor, eps: Scalar, *, eps_in_sqrt: bool) -> Tensor:
    """`√(x + ε)` or `√x + ε`: the two places where papers and libraries keep a denominator from being 0."""
    return sqrt(x + eps) if eps_in_sqrt else sqrt(x) + eps


def cbrt(x: Tensor) -> Tensor:
    """∛x of numbers that are not negative, with slope 0 at 0, for the reason that `sqrt` has it."""
    if not _differentiating():
        return x ** (1 / 3)
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x) ** (1 / 3))


def atan2(y: Tensor, x: Tensor) -> Tensor:
    """The angle of the point (x, y), in radians; 0 at the origin, and with slope 0 there, where torch's is NaN."""
    if not _differentiating():
        return torch.atan2(y, x)
    origin = (x == 0) & (y == 0)
    return torch.where(origin, 0.0, torch.atan2(y, torch.where(origin, 1.0, x)))


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of one tensor, a () tensor; its slope at 0 is 0."""
    return sqrt((x * x).sum())


def root_mean_square(x: Tensor) -> Tensor:
    """√ of the mean square of one tensor's elements, a () tensor; its slope at 0 is 0."""
    return sqrt((x * x).mean())


def global_norm(tensors: Iterable[Tensor | None]) -> Tensor:
    """The Euclidean norm of all elements of several tensors together, a () tensor; its slope at 0 is 0. None counts as 0."""
    present = [x for x in tensors if x is not None]
    if not present:
        return torch.zeros((), device="cpu")
    return sqrt(total([(x * x).sum() for x in present]))


def inner_product(xs: Iterable[Tensor], ys: Iterable[Tensor], weights: Iterable[Scalar] | None = None) -> Tensor:
    """Σ x·y over all elements of several pairs of tensors, a () tensor; of none, 0. Each pair may have a weight."""
    sums = [(x * y).sum() for x, y in zip(xs, ys, strict=True)]
    if weights is not None:
        sums = [w * x for w, x in zip(weights, sums, strict=True)]
    if not sums:
        return torch.zeros((), device="cpu")
    return total(sums)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Σ x·y of two vectors, to the last digit the same under `vmap`, where `torch.dot` adds in another order."""
    return (x * y).sum()


def where(condition: Any, a: Scalar, b: Scalar) -> Scalar:
    """`a` if the condition holds, else `b`, for scalars: `torch.where` as soon as the condition is a tensor."""
    if isinstance(condition, Tensor):
        return torch.where(condition, double(a, condition.device), double(b, condition.device))
    return (a if condition else b) if isinstance(condition, bool) else torch.where(condition, a, b)


def either(condition: Any, a: Tensor, b: Tensor) -> Tensor:
    """`a` if the condition holds, else `b`, for tensors: `torch.where` as soon as the condition is a tensor."""
    return (a if condition else b) if isinstance(condition, bool) else torch.where(condition, a, b)


def cond(condition: Any, then: Callable[[], Tree], otherwise: Callable[[], Tree]) -> Tree:
    """One of two trees of tensors of equal shapes, for what is done now and then: `cond(t % 10 == 0, new, lambda: old)`.

    Where the condition is known on the host, the other function is not called: behind an optimizer, where the step is a number,
    and in an ordinary loop on the CPU. Where it is batched, traced or on another device, nobody waits for it: both are called,
    and leaf by leaf `torch.where` chooses. Then what is not chosen should have finite values and derivatives, too.

    Args:
        condition: a bool or a () tensor.
        then: what is called where it holds.
        otherwise: what is called where it does not.
    """
    if not isinstance(condition, Tensor):
        return then() if condition else otherwise()
    if is_at_hand(condition):
        return then() if bool(condition) else otherwise()
    return trees.map_leaves(lambda a, b: a if a is b else torch.where(condition, a, b), then(), otherwise())


def is_due(t: Any, every: int, offset: Any = 0) -> Any:
    """Whether what is done every so many steps is due at step t; with an offset, rounded, that much earlier: for `cond`."""
    return ahead(t, offset) % every == 0


def ahead(t: Any, offset: Any) -> Any:
    """The step whose work is done at step t, where it is done so many steps earlier, rounded to a whole number."""
    return t + floor(offset + 0.5)


def log(x: Scalar) -> Scalar:
    """Natural logarithm of a scalar that is not negative; −∞ at 0."""
    if not isinstance(x, int | float):
        return x.log()
    return math.log(x) if x > 0 else -math.inf


def cos(x: Scalar) -> Scalar:
    """cos x of a scalar, in radians."""
    return math.cos(x) if isinstance(x, int | float) else x.cos()


def round_stochastically(
    x: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None, *, noise: Tensor | None = None
) -> Tensor:
    """x in bfloat16 or float16: one of its two neighbours there, each with the probability that makes the mean x.

    The noise is torch's, unless it is given: whole numbers that are random in their last 16 bits.

    Their numbers are float32's with fewer bits, so adding noise to the bits that go and then dropping them carries over as often
    as it should. Below its least normal number, float16 is a grid of even spacing. NaN and infinity stay. The derivative is 1.
    """
    x = x.float()
    bits, dropped = x.detach().contiguous().view(torch.int32), 16 if dtype == torch.bfloat16 else 13
    if noise is None:
        noise = torch.randint(1 << dropped, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    else:
        noise = (noise & ((1 << dropped) - 1)).to(torch.int32)
    rounded = ((bits + noise) & -(1 << dropped)).view(torch.float32)
    if dtype == torch.float16:
        on_grid = (x.detach() * 2.0**24 + noise / 2.0**dropped).floor() * 2.0**-24
        rounded = torch.where(x.detach().abs() < 2.0**-14, on_grid, rounded)
    # x + (rounded - x) is exactly `rounded`, by which it lets derivatives through.
    return torch.where(x.detach().isfinite(), x + (rounded - x.detach()), x).to(dtype)


def floor(x: Scalar) -> Scalar:
    """The largest whole number up to x, of x's type; its slope is 0."""
    return float(math.floor(x)) if isinstance(x, int | float) else x.floor()


def power(x: Scalar, exponent: Scalar) -> Scalar:
    """`x**exponent` of scalars x ≥ 0 and, where x may be 0, exponent > 0; with slope 0 at x = 0, in both arguments.

    For exponents below 1 the true slope is infinite there, and a chain rule through a constant 0 would give 0·∞ = NaN. Beyond
    the largest double the result is infinite, where Python's operator would raise OverflowError.
    """
    positive = x > 0
    try:
        return where(positive, where(positive, x, 1.0) ** exponent, 0.0)
    except OverflowError:
        return math.inf


def mixed(x: Tensor, y: Tensor, weight: Scalar) -> Tensor:
    """`(1 − weight) x + weight y`, in one call where the weight is a number and nobody watches."""
    if not isinstance(x, Tensor):  # An engine writes down what is to be called.
        return torch.lerp(x, y, weight)
    if isinstance(weight, int | float) and x.dtype == y.dtype and not is_watched(x, y):
        return x.lerp(y, weight)
    return (1 - weight) * x + weight * y


def added_product(x: Tensor, y: Tensor, z: Tensor, a: Any, b: Any) -> Tensor:
    """`a x + b y z` of matrices or stacks of them, rounded once; for numbers, and only where nobody watches: see `is_watched`.

    torch's compiler may drop the second factor, and its forward mode crashes on it.
    """
    call = torch.addmm if x.ndim == 2 else torch.baddbmm
    return call(x, y, z, beta=a, alpha=b)


def plus_product(x: Tensor, y: Tensor, z: Tensor, a: Scalar, b: Scalar) -> Tensor:
    """`a x + b y z` of stacks of matrices, in one call where a and b are numbers and nobody watches."""
    is_plain = isinstance(a, int | float) and isinstance(b, int | float) and x.dtype == y.dtype == z.dtype
    if is_plain and not is_watched(x, y, z):
        return added_product(x, y, z, a, b)
    return a * x + b * (y @ z)


def is_watched(*tensors: Tensor) -> bool:
    """Whether what is computed of these may be batched, differentiated or traced; where nobody can tell: as if it were."""
    return is_observed() or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))


def _differentiating() -> bool:
    """Whether a derivative may be taken of what is computed now: in reverse mode, or in forward mode, which no_grad allows."""
    return torch.is_grad_enabled() or in_forward_mode()
