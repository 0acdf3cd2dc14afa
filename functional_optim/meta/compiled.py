"""Compiled functions that can still be differentiated and batched from outside.

A compiled function is a loop of one step (see `compiled_loop`), whose graph is made in `tracing` and compiled in `parts`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.meta.compiled_loop import run_loop
from functional_optim.meta.layers import composing
from functional_optim.meta.packing import pack
from functional_optim.meta.remat import Arguments, Result, require_constant_closure, require_function
from functional_optim.torch_internals import is_of_compiler
from functional_optim.trees import Tree, distinct


def compiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function as machine code, made at its first call with tensors of such shapes.

    Put it around the outermost function: one program then does everything inside, derivatives and batches included.

        meta_gradient = fo.meta.compiled(torch.func.grad(lambda p: torch.vmap(task_loss, (None, 0))(p, tasks).mean()))

    There, `loop` and `unroll(..., compile=True)` are loops: the program holds one step and its transpose, however many steps are
    taken. A function that is `compiled` itself is in the program once, however often it is called.
    Without `compile=True`, every step is written out, and compiling takes the longer. Of a loop with `remat`, the insides of a
    segment are in memory at a time, of second derivatives also what is carried at every step; elsewhere `remat` has no say, as in
    `torch.compile`.

    Other values of the tensors are no other program: another learning rate, seed or data set compiles nothing, and another
    process finds what was compiled in the compiler's cache on disk. `logging.getLogger("functional_optim.meta")` says at the
    level INFO what is traced and compiled, and how long that takes.

    What `torch.compile` returns can't be called under `torch.func.grad` or `torch.vmap`; this can, at the price of their own work
    in Python. First derivatives in reverse mode are compiled too; forward mode and second derivatives work, at the speed of the
    function itself. (Within a compiled program, all of them are compiled.)

    Args:
        function: of trees of tensors and numbers to a tree of tensors. What is to be differentiated or batched outside must be an
            argument; tensors and numbers that it closes over, as those of functions that it calls and of steps of loops in it,
            are constants of the compiled code, with the values they had at the first call. Numbers among its arguments are
            constants too, each with code of its own. What changes from call to call is to be an argument, and a number a ()
            tensor: `program(params, torch.tensor(lr))`. Keep what this returns: it holds the compiled code.

    Raises:
        TypeError: `function` is none, or is what `torch.compile` returned; or an argument holds what is neither a tensor nor a
            constant.
        ValueError: the function draws random numbers or asks for the value of a tensor (`if x > 0`, `x[x > 0]`); or it, or one
            that is compiled inside, closes over a tensor that is being differentiated, batched or computed around it.
        RuntimeError: forward mode has been opened by torch.autograd.forward_ad; torch.func.jvp nests.

    The numbers agree with the function's to rounding: the compiler contracts multiplications and additions, and multiplies by
    the reciprocal of what several elements are divided by.

    Plays the part of `jax.jit`, with `unroll` for `lax.scan`.

    >>> square = compiled(lambda x: x * x)  # compiles when called
    """
    require_function(function, "compiled")
    if is_of_compiler(function):
        raise TypeError("compiled got what torch.compile returned, which can't be part of a program: give the function itself.")
    cache: dict[Any, Any] = {}
    called: Callable[..., Any] = function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return called(*args, **kwargs)
        require_constant_closure(function, batched=False)
        given = args, kwargs
        tensors, rebuild = pack(given)
        structure: list[Callable[[Sequence[Tensor]], Tree]] = []

        def step(carry: Any, constants: Sequence[Tensor], entries: Any) -> tuple[Any, Sequence[Tensor]]:
            args, kwargs = rebuild(constants)
            outputs, rebuild_outputs = pack(composing(called)(*args, **kwargs))
            structure.append(rebuild_outputs)
            return (), outputs

        name, key = getattr(function, "__qualname__", "a function"), structure_key(given)
        _, outputs, restore = run_loop(step, (), tensors, (), steps=1, cache=cache, key=key, structure=structure, name=name)
        return restore([x[0] for x in outputs])

    return call


def structure_key(tree: Tree) -> Any:
    """Equal for trees that differ in the values and shapes of their tensors alone."""
    leaves, spec = trees.flatten(tree)
    for x in leaves:
        if not isinstance(x, Tensor) and x.__hash__ is None:
            raise TypeError(
                f"an argument holds a {type(x).__name__}, which may change: it can't be a constant of compiled code. Make it a "
                "tensor."
            )
    return spec, tuple("tensor" if isinstance(x, Tensor) else distinct(x) for x in leaves)
