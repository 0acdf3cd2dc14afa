"""Random numbers as a function of a key that is an argument: dropout and augmentation in functions that are batched or compiled.

    n-th draw of the function        Philox of (key, n), see `philox`

torch's own generators keep their state outside of all tensors: `vmap` and the compiler can't tell what they draw, and it is
something else at the next call.
"""

import functools
import math
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from functional_optim.hparams import require_count
from functional_optim.meta.recurrence import CELLS, whole_sequence
from functional_optim.meta.remat import require_function
from functional_optim.numerics import double
from functional_optim.philox import WORD, normal, words
from functional_optim.recipe import answering

Result = TypeVar("Result")

# What SELU tends to on the left, −λα: where alpha dropout puts what it drops.
DROPPED = -1.7580993408473766


@answering
def keys(key: int | Tensor, count: int) -> Tensor:
    """So many keys, made of one: whole numbers below 2⁶³, a tensor of int64 of shape (count,).

    A key for each step of a loop, for each task, or for each seed: `xs=keys(0, steps)` of `loop`, or `batches=(keys(0, steps),)`
    of `unroll`. Of other keys they are others; of the same, the same.

    Args:
        key: a whole number below 2⁶³, or a () tensor of one; `vmap` may batch it.
        count: how many.

    Plays the part of `jax.random.split`.

    >>> keys(0, 2)
    tensor([4466764287004480965, 1413733826258630410])
    """
    count = require_count("count", count, 1)
    # of a step in which nothing else is drawn
    high, low = words((2, count), key, WORD, 0, key.device if isinstance(key, Tensor) else None)
    return (high >> 1 << 32) | low


def keyed(function: Callable[..., Result]) -> Callable[..., Result]:
    """The same function with a key behind its other arguments, of which all random numbers in it are made.

        loss, params = fo.meta.from_module(net, cross_entropy)  # with dropout in it
        inner = fo.meta.unroll(fo.meta.keyed(loss), fo.adam(), steps=5)
        trained = inner(params, {"lr": 0.01}, (x, y), batches=(fo.meta.keys(seed, 5),)).params

    So it is pure: batched, differentiated, compiled and run again, it draws what it draws by itself. Under `vmap`, keys that are
    batched give each entry masks of its own, and a key that is not batched gives all the same.

    It has torch's dropouts (of layers, of attention and between recurrent layers too), `rand`, `randn` and their `_like`,
    `randint`, `bernoulli`, `normal`, `multinomial` and `randperm`, and so what `torch.distributions` draws by these, as in
    `Categorical.sample` and `Normal.sample`. What takes a `generator`, writes to a tensor (`x.normal_()`), or is none of these,
    draws from torch as ever, which `vmap` and `compiled` refuse.

    Args:
        function: of any arguments. What it draws is told apart by the order of the draws.

    Returns:
        A function of these arguments and of one more behind them: a whole number below 2⁶³, or a () tensor of one.

    Raises:
        TypeError: `function` is none; or, when called, the last argument is no whole number.

    Source: Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405. Other numbers than torch's generators draw.

    >>> x = torch.ones(4)
    >>> dropped = keyed(torch.nn.functional.dropout)
    >>> dropped(x, 7), dropped(x, 7)
    (tensor([2., 2., 0., 0.]), tensor([2., 2., 0., 0.]))
    """

    require_function(function, "keyed")

    @functools.wraps(function)
    def with_key(*args: Any, **kwargs: Any) -> Result:
        *rest, key = args or (None,)
        if key is None or not _is_key(key):
            found = f"tensor of shape {tuple(key.shape)}, {key.dtype}" if isinstance(key, Tensor) else type(key).__name__
            raise TypeError(f"the last argument is the key: expected a whole number or a () tensor of one, not a {found}.")
        with _Keyed(key):
            return function(*rest, **kwargs)

    return with_key


def _is_key(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.ndim == 0 and not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
    return isinstance(x, int) and not isinstance(x, bool)


class _Keyed(TorchFunctionMode):
    """What is random in torch goes to `_OWN`, with a stream for each draw."""

    def __init__(self, key: int | Tensor) -> None:
        super().__init__()
        self.key, self.drawn = key, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own, options = _OWN.get(func), kwargs or {}
        if own is None or options.get("generator") is not None:
            return func(*args, **options)
        return own(self, *args, **options)

    def uniform(self, shape: Sequence[int], like: Tensor | None = None, device: Any = None) -> Tensor:
        """Numbers in [0, 1), in float64: the next draw."""
        self.drawn += 1
        return double(words(tuple(shape), self.key, 0, self.drawn - 1, device if like is None else like.device)) / 2**32

    def normal(self, shape: Sequence[int], like: Tensor | None = None, device: Any = None) -> Tensor:
        self.drawn += 1
        return normal(tuple(shape), self.key, 0, self.drawn - 1, device if like is None else like.device)

    def kept(self, x: Tensor, shape: Sequence[int], p: float) -> Tensor:
        """Which of so many elements a dropout keeps."""
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        return self.uniform(shape, x) >= p


# --- Dropouts --------------------------------------------------------------------------------------------------------------


def _dropout(of: Callable[[Tensor], Sequence[int]]) -> Callable[..., Tensor]:
    """A dropout whose mask has such a shape."""

    def dropout(mode: _Keyed, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        del inplace  # its result is what a module goes on with
        if not training or p == 0:
            return input
        return torch.where(mode.kept(input, of(input), p), input / (1 - p) if p < 1 else 0.0 * input, 0.0)

    return dropout


def _alpha_dropout(of: Callable[[Tensor], Sequence[int]]) -> Callable[..., Tensor]:
    """Klambauer et al. 2017, https://arxiv.org/abs/1706.02515: dropout that keeps the mean 0 and the variance 1."""

    def dropout(mode: _Keyed, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
        del inplace
        if not training or p == 0:
            return input
        scale = ((1 - p) * (1 + p * DROPPED**2)) ** -0.5 if p < 1 else 0.0
        return scale * torch.where(mode.kept(input, of(input), p), input, DROPPED) - scale * DROPPED * p

    return dropout


def _elements(x: Tensor) -> Sequence[int]:
    return x.shape


def _features(dimensions: int | None = None) -> Callable[[Tensor], Sequence[int]]:
    """One for each feature of each example; an input with so many dimensions is a single example."""

    def shape(x: Tensor) -> Sequence[int]:
        lead = 1 if x.ndim == dimensions else 2
        return (*x.shape[:lead], *(1,) * (x.ndim - lead))

    return shape


def _attention(
    mode: _Keyed,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q kᵀ/√d + mask), dropped, times v; without dropout, torch's."""
    if dropout_p == 0:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        logits = torch.where(attn_mask, logits, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    return _dropout(_elements)(mode, logits.softmax(-1), dropout_p) @ value


# The body of torch's function, without the look at the modes, which would lead here again: what it calls is seen by this mode.
_ATTENTION_OF_HEADS = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda tensors: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


def _attention_of_heads(mode: _Keyed, *args: Any, **kwargs: Any) -> Any:
    with mode:
        return _ATTENTION_OF_HEADS(*args, **kwargs)


def _recurrent(own: Any, cell: Any) -> Callable[..., Any]:
    def run(mode: _Keyed, *args: Any) -> Any:
        packed = not isinstance(args[3], bool)
        layers, dropout, train = args[4 + packed : 7 + packed]
        if not (dropout and train and layers > 1):
            return own(*args)
        with mode:
            return whole_sequence(cell)(*args)  # which refuses what is packed

    return run


# --- Draws -----------------------------------------------------------------------------------------------------------------


def _random(
    draw: Callable[..., Tensor], mode: _Keyed, *size: Any, dtype: Any = None, device: Any = None, **options: Any
) -> Tensor:
    """`rand(*size)` or `randn(*size)`."""
    shape = options["size"] if "size" in options else size[0] if size and not isinstance(size[0], int) else size
    return _rounded(draw(mode, shape, device=device), dtype or torch.get_default_dtype())


def _like(draw: Callable[..., Tensor], mode: _Keyed, input: Tensor, *, dtype: Any = None, **options: Any) -> Tensor:
    return _rounded(draw(mode, input.shape, input), dtype or input.dtype)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In another dtype; what was less than 1 stays so."""
    below = 1 - torch.finfo(dtype).eps / 2
    return torch.where(x < 1, x.to(dtype).clamp(max=below), x.to(dtype))


def _integers(mode: _Keyed, *bounds: Any, size: Any = None, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
    """`randint(low, high, size)`, of which `low` may be left out, and each may be named."""
    given = list(bounds)
    size = given.pop() if size is None else size
    low, high = options.get("low", given[0] if len(given) > 1 else 0), options["high"] if "high" in options else given[-1]
    return (low + (mode.uniform(size, device=device) * (high - low)).floor()).to(dtype or torch.int64)


def _bernoulli(mode: _Keyed, input: Tensor, p: float | None = None, **options: Any) -> Tensor:
    return (mode.uniform(input.shape, input) < (input if p is None else p)).to(input.dtype)


def _normal(
    mode: _Keyed, mean: Any = 0.0, std: Any = 1.0, size: Any = None, *, dtype: Any = None, device: Any = None, **options: Any
) -> Tensor:
    """`normal(mean, std)`, of which one may be a tensor or both; or `normal(mean, std, size)`."""
    given = [x for x in (mean, std) if isinstance(x, Tensor)]
    shape = size if size is not None else torch.broadcast_shapes(*(x.shape for x in given))
    like = given[0] if given else None
    dtype = dtype or (torch.get_default_dtype() if like is None else like.dtype)
    return mean + std * mode.normal(shape, like, device).to(dtype)


def _chosen(mode: _Keyed, input: Tensor, num_samples: int, replacement: bool = False, **options: Any) -> Tensor:
    """`multinomial(weights, count)`: which of exponential clocks, as fast as their weights, ring first."""
    if not (replacement or num_samples <= input.shape[-1]):
        raise ValueError(f"num_samples = {num_samples}: without replacement, expected at most {input.shape[-1]}.")
    shape = (*input.shape[:-1], num_samples, input.shape[-1]) if replacement else input.shape
    weights = double(input).unsqueeze(-2) if replacement else double(input)
    times = torch.where(weights > 0, -(1 - mode.uniform(shape, input)).log() / weights, math.inf)
    return times.argmin(-1) if replacement else times.argsort(-1)[..., :num_samples]


def _permutation(mode: _Keyed, n: int, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
    return mode.uniform((n,), device=device).argsort().to(dtype or torch.int64)


_OWN: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((F.dropout, torch.dropout), _dropout(_elements)),
    F.dropout1d: _dropout(_features(2)),
    F.dropout2d: _dropout(_features()),
    F.dropout3d: _dropout(_features(4)),
    **dict.fromkeys((F.alpha_dropout, torch.alpha_dropout), _alpha_dropout(_elements)),
    F.feature_alpha_dropout: _alpha_dropout(_features()),
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _attention_of_heads,
    **{own: _recurrent(own, cell) for own, cell in ((getattr(torch, name), cell) for name, cell in CELLS.items())},
    torch.rand: functools.partial(_random, _Keyed.uniform),
    torch.randn: functools.partial(_random, _Keyed.normal),
    torch.rand_like: functools.partial(_like, _Keyed.uniform),
    torch.randn_like: functools.partial(_like, _Keyed.normal),
    torch.randint: _integers,
    **dict.fromkeys((torch.bernoulli, Tensor.bernoulli), _bernoulli),
    torch.normal: _normal,
    **dict.fromkeys((torch.multinomial, Tensor.multinomial), _chosen),
    torch.randperm: _permutation,
}
