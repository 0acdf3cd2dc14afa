"""Re-materialisation: forget what a function computed on the way, and compute it again when a derivative asks for it.

    forward:    y ← f(x)                     keep x
    backward:   x̄ ← (∂f/∂x)ᵀ ȳ               with f run again from x

K steps in ⌈√K⌉ segments of ⌈√K⌉ steps each: the states between segments are kept, and the inside of one segment at a time.

Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, https://arxiv.org/abs/1604.06174
Griewank & Walther 2000, Algorithm 799: revolve, https://doi.org/10.1145/347837.347846

`torch.utils.checkpoint` saves through hooks that `torch.func.grad` does not call; a `torch.autograd.Function` with its own rules
for both modes works there, under `vmap`, and differentiates again.
"""

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from functional_optim import torch_internals
from functional_optim.meta.packing import is_smooth, pack
from functional_optim.torch_internals import is_traced
from functional_optim.trees import Tree

Tensors: TypeAlias = tuple[Any, ...]
# What holds no tensors, or is no tree of them.
NO_TREES = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type, int, float, str)
# Of a function whose signature is kept.
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def remat(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function, whose derivatives remember its arguments alone and run it again.

    Memory for what happens inside is taken for one call at a time, while that call is differentiated, at the price of a second
    forward pass. Works under `torch.func.grad`, `jvp`, `vmap`, their nests, and `backward`, for derivatives of any order.

    Args:
        function: of trees of tensors and numbers to a tree of tensors. What is to be differentiated must be an argument;
            constants may be closed over. It must compute the same when it runs again: no random numbers. It runs under the
            `torch.autocast` of the call.

    Raises:
        TypeError: `function` is none.
        ValueError: the function draws random numbers, or closes over a tensor that is being differentiated (its closure and
            globals are searched, and those of functions that it calls from the same file; no attributes of objects or modules).
        RuntimeError: forward mode has been opened by torch.autograd.forward_ad; torch.func.jvp nests.

    Source: Chen et al. 2016, https://arxiv.org/abs/1604.06174. As `jax.checkpoint`; `torch.utils.checkpoint` does not compose
    with `torch.func`. Within `torch.compile` it is the function itself: there the compiler decides what to keep.

    >>> cube = remat(lambda x: x * x * x)
    >>> torch.func.grad(cube)(torch.tensor(2.0))
    tensor(12.)
    """
    require_function(function, "remat")
    called: Callable[..., Any] = function

    @functools.wraps(function)
    def rematerialised(*args: Any, **kwargs: Any) -> Any:
        if is_traced():
            return called(*args, **kwargs)
        tensors, rebuild = pack((args, kwargs))
        rebuild_outputs: list[Callable[[Sequence[Tensor]], Tree]] = []

        in_precision = under_autocast_of_now(called, tensors)

        def run(*tensors: Tensor) -> Tensors:
            args, kwargs = rebuild(tensors)
            outputs, rebuild_output = pack(in_precision(*args, **kwargs))
            rebuild_outputs.append(rebuild_output)
            return tuple(outputs)

        require_constant_closure(function)
        before = torch.get_rng_state()
        outputs = _Rematerialised.apply(run, *tensors)
        if not torch.equal(before, torch.get_rng_state()):
            raise ValueError(
                f"{getattr(function, '__name__', 'the function')} draws random numbers, and would draw others when it is run "
                "again for its derivative. Draw them before, and pass them as an argument (of `unroll`, as `batches`)."
            )
        return rebuild_outputs[0](outputs)

    return rematerialised


def require_function(function: Any, name: str) -> None:
    """Raise TypeError where this is no function: its result, say."""
    if not callable(function):
        raise TypeError(f"{name} got a {type(function).__name__}: expected a function, as in {name}(function)(*arguments).")


def under_autocast_of_now(function: Callable[..., Any], tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """The function under the present `torch.autocast`, on these tensors' devices, also when it is called after that has ended."""
    kinds = {x.device.type for x in tensors}
    now = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)]

    def within(*args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for kind, dtype in now:
                stack.enter_context(torch.autocast(kind, dtype))
            return function(*args, **kwargs)

    return within if now else function


def require_constant_closure(function: Callable[..., Any], *, batched: bool = True) -> None:
    """Raise ValueError where a function closes over a tensor that is being differentiated: its derivative would be lost.

    Unless it may be `batched`, also over one that a `vmap` around the function batches.
    """
    is_watched = torch_internals.is_observed()  # else nobody batches or takes forward derivatives, which takes longer to tell
    for where, value in closed_over(function, set()):
        if isinstance(value, NO_TREES):
            continue
        for x in pack(value)[0]:
            if x.requires_grad or is_watched and forward_ad.unpack_dual(x).tangent is not None:
                raise ValueError(f"{where}, which is being differentiated: pass it as an argument, or detach it.")
            if is_watched and not batched and torch_internals.is_batchedtensor(x):
                raise ValueError(f"{where}, which is being batched: pass it as an argument.")


def closed_over(function: Any, seen: set[Any]) -> Iterator[tuple[str, Any]]:
    """What a function closes over, and those that it calls: the functions in its closure, and in the same file.

    What `functools.wraps`, as `torch.func.grad` does, and `functools.partial` hide is looked into; objects are not.
    """
    function = inspect.unwrap(function)
    if isinstance(function, functools.partial):
        bound = [*enumerate(function.args), *function.keywords.items()]
        yield from ((f"a functools.partial binds its argument {name!r}", value) for name, value in bound)
        yield from closed_over(function.func, seen)
    elif inspect.ismethod(function):
        yield from closed_over(function.__func__, seen)
    elif inspect.isfunction(function) and function not in seen:
        seen.add(function)
        # as `inspect.getclosurevars`, which takes four times as long to tell builtins from names that nobody has
        code, around = function.__code__, function.__globals__
        found = [(name, around[name], False) for name in code.co_names if name in around]
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                found.append((name, cell.cell_contents, True))
        for name, value, is_inside in found:
            yield f"{function.__name__} closes over {name!r}", value
            if callable(value) and (is_inside or getattr(value, "__module__", None) == function.__module__):
                yield from closed_over(value, seen)


class _Rematerialised(torch.autograd.Function):
    """`run` on tensors, with derivatives that run it again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(run: Callable[..., Tensors], *tensors: Tensor) -> Tensors:
        outputs = run(*tensors)
        # autograd takes a saved input that is returned as it is for a mistake
        return tuple(x.view_as(x) if any(x is given for given in tensors) else x for x in outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.run, tensors = inputs[0], inputs[1:]
        ctx.smooth = [is_smooth(x) for x in output]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.mark_non_differentiable(*(x for x in output if not is_smooth(x)))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensors:
        tensors, run = ctx.saved_tensors, ctx.run
        moving = [i for i, x in enumerate(tensors) if is_smooth(x) and ctx.needs_input_grad[i + 1]]
        # `torch.func.grad` records the backward pass too, for a derivative of it: that must not keep the inside either
        slopes = back(run, tensors, moving, list(filter(is_smooth, cotangents)))
        found = dict(zip(moving, slopes, strict=True))
        return None, *(found.get(i) for i in range(len(tensors)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensors:
        moving = [i for i, tangent in enumerate(tangents[1:]) if tangent is not None]
        rest = iter(along(ctx.run, ctx.saved_tensors, moving, [tangents[i + 1] for i in moving]))
        return tuple(next(rest) if smooth else None for smooth in ctx.smooth)


def back(run: Callable[..., Tensors], tensors: Sequence[Tensor], moving: Sequence[int], cotangents: Sequence[Tensor]) -> Tensors:
    """The slopes of some arguments of `run`, from the cotangents of those of its outputs that have derivatives.

    For the `backward` of a function of autograd's: it runs again as another such function, without which torch mistakes the level
    of what is differentiated inside and out.
    """
    count = len(tensors)

    def pulled(*inputs: Tensor) -> Tensors:
        tensors, cotangents = inputs[:count], inputs[count:]
        return torch.func.vjp(in_some(run, tensors, moving), *(tensors[i] for i in moving))[1](cotangents)

    return _Rematerialised.apply(pulled, *tensors, *cotangents)


def along(run: Callable[..., Tensors], tensors: Sequence[Tensor], moving: Sequence[int], directions: Sequence[Tensor]) -> Tensors:
    """How those outputs of `run` that have derivatives change as some of its arguments move in these directions.

    For the `jvp` of a function of autograd's: there, torch takes no forward derivative of ordinary operations, so that one over
    forward mode would be 0 without a word; of another such function it does.
    """
    count = len(tensors)

    def pushed(*inputs: Tensor) -> Tensors:
        given = [x.contiguous() for x in inputs]  # Forward mode writes into what it is given: no expanded tensors.
        primals = tuple(given[i] for i in moving)
        with advising():
            return torch.func.jvp(in_some(run, given[:count], moving), primals, tuple(given[count:]))[1]

    return _Rematerialised.apply(pushed, *tensors, *directions)


@contextlib.contextmanager
def advising() -> Iterator[None]:
    """Have torch say what to do where somebody has opened forward mode by hand, within which it opens no other."""
    try:
        yield
    except RuntimeError as error:
        if "Nested forward mode" not in str(error):
            raise
        raise RuntimeError(
            "the derivative of this function opens forward mode, which torch does once: not within torch.autograd.forward_ad. "
            "Take torch.func.jvp(function, primals, tangents), which nests."
        ) from error


def in_some(run: Callable[..., Tensors], tensors: Sequence[Tensor], moving: Sequence[int]) -> Callable[..., Tensors]:
    """`run` as a function of some of its arguments, to those of its outputs that have derivatives."""

    def restricted(*some: Tensor) -> Tensors:
        changed = dict(zip(moving, some, strict=True))
        return tuple(filter(is_smooth, run(*(changed.get(i, x) for i, x in enumerate(tensors)))))

    return restricted
