"""The last line of every step: parameters plus updates."""

import warnings
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.checks import check_gradients, pair_advice
from functional_optim.numerics import LOW, round_stochastically
from functional_optim.trees import Tree


def apply_updates(params: Tree, updates: Tree, *, rounding: str = "nearest", generator: torch.Generator | None = None) -> Tree:
    """`params + updates`, leaf by leaf, in the dtypes of `params`; a leaf whose update is None stays the same tensor.

    A bfloat16 parameter has 8 bits, and rounded to nearest it loses every update below 1/512 of itself. With
    `rounding="stochastic"` the float32 sum goes to one of its two neighbours with such probabilities that its mean is the sum:
    small updates arrive on average. (`kahan_sum` makes them arrive exactly, for a slot of the parameter's size.)

    Args:
        params: the parameters.
        updates: what `update` returned.
        rounding: `"nearest"`, or `"stochastic"` for leaves of bfloat16 and float16; wider ones are rounded to nearest in
            any case.
        generator: the source of randomness, on the parameters' device; torch's default one if None. Under `torch.vmap` pass
            none, and `randomness="different"` to `vmap`.

    Raises:
        TypeError: an update is not a dense floating-point or complex tensor.
        ValueError: the trees or shapes disagree; the message names the leaf. Or `rounding` is neither of the two.

    It warns of an `nn.Parameter` that requires a gradient while autograd is on: a loop of such steps keeps the graph of them all.

    >>> apply_updates({"w": torch.ones(2)}, {"w": torch.full((2,), -0.5)})
    {'w': tensor([0.5000, 0.5000])}

    As `optax.apply_updates`; torch has no counterpart.
    """
    new = applied(params, updates, rounding=rounding, generator=generator)
    warn_of_a_graph(params)
    return new


def applied(params: Tree, updates: Tree, *, rounding: str = "nearest", generator: torch.Generator | None = None) -> Tree:
    """`apply_updates` for those who mean to differentiate through it."""
    try:
        check_gradients(updates, params, "updates")
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error}{pair_advice(updates)}") from None
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"rounding = {rounding!r}: expected 'nearest' or 'stochastic'.")
    if generator is not None and rounding == "nearest":
        raise ValueError("a generator was given, but rounding='nearest' needs none: did you mean rounding='stochastic'?")

    def add(p: Any, u: Tensor | None) -> Any:
        if u is None:
            return p
        if rounding == "stochastic" and p.dtype in LOW:
            return round_stochastically(p.float() + u, p.dtype, generator)
        return (p + u).to(p.dtype)

    return trees.map_leaves(add, params, updates)


def warn_of_a_graph(params: Tree) -> None:
    """Warn where autograd records the step though nobody may have asked for it: these are a module's own parameters."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    for i, p in enumerate(trees.leaves(params)):
        if isinstance(p, torch.nn.Parameter) and p.requires_grad:
            warnings.warn(
                f"{trees.paths(params, 'params')[i]} is an nn.Parameter, so autograd records this step and those that follow, in "
                "a graph that grows with each. Start from {name: p.detach() for name, p in model.named_parameters()}. To "
                "differentiate through the steps on purpose, start from p.clone(), or use torch.func.grad.",
                stacklevel=3,
            )
            return
