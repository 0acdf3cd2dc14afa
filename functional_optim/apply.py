"""The last line of every step: parameters plus updates."""

from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.checks import check_gradients
from functional_optim.numerics import round_stochastically
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

    >>> apply_updates({"w": torch.ones(2)}, {"w": torch.full((2,), -0.5)})
    {'w': tensor([0.5000, 0.5000])}

    As `optax.apply_updates`; torch has no counterpart.
    """
    check_gradients(updates, params, "updates")
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"rounding = {rounding!r}: expected 'nearest' or 'stochastic'.")
    if generator is not None and rounding == "nearest":
        raise ValueError("a generator was given, but rounding='nearest' needs none: did you mean rounding='stochastic'?")

    def add(p: Any, u: Tensor | None) -> Any:
        if u is None:
            return p
        if rounding == "stochastic" and p.dtype in (torch.bfloat16, torch.float16):
            return round_stochastically(p.float() + u, p.dtype, generator)
        return (p + u).to(p.dtype)

    return trees.map_leaves(add, params, updates)
