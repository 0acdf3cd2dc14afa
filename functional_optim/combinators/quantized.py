"""`quantized`: every rule inside a transform keeps its averages in 8 or 4 bits an element.

It is the transform with other rules, each what it was between a decoder and an encoder (`coding`), so whatever looks into a chain
looks into this one, and checkpoints have the same names.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from functional_optim import trees
from functional_optim.checks import misfit
from functional_optim.codecs import Blockwise, Codec
from functional_optim.coding import EXAMPLE, Chosen, with_codec
from functional_optim.combinators.combined import Around
from functional_optim.combinators.labels import Labels
from functional_optim.combinators.origin import Handed, Origin
from functional_optim.form import Path, nested
from functional_optim.lifting import Lifted
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@recorded
def quantized(
    transform: Transform,
    bits: int = 8,
    *,
    block: int = 128,
    min_size: int = 256,
    only: str | Labels | None = None,
    codec: Codec | None = None,
) -> Transform:
    """The same transform with the averages of its rules in 8 or 4 bits an element: two bytes a parameter for AdamW, or one.

        tx = quantized(chain(clip_by_global_norm(), adamw()), bits=8)
        tx = quantized(soap(), only=r"weight$")

    Each rule says which of its slots are coded: averages of gradients and of their squares. Counts, numbers, step sizes, factors,
    copies of parameters or gradients, and whatever is inside `blocked` stay as they are. The catalogue lists both. `Blockwise`
    says what is stored, and how it is rounded; `state_dtype=Blockwise(bits=8)` is the same for a single rule.

    Of a parameter that is spread over processes (`DTensor`) slots are in codes where cuts fall between blocks however many
    processes there are: cut along its first dimension, as by FSDP2, if what lies behind one index of that is a multiple of
    `block`, so in matrices with rows of 128, 256, …; a smaller `block` fits more. Along another dimension, if that holds of it;
    or if all pieces are equal, and whole blocks in each index of the dimension before. Else they stay in at least float32, as in
    vectors, also where so many processes happen to cut between blocks. Codes and scales are cut as the parameter is: steps are
    those of a whole tensor, and `torch.distributed.checkpoint` brings what two processes saved to three, four, or, where no slot
    is in float32 for being cut, to one that has all, bit for bit. (There it refuses other slots for their sizes; a state dict
    made with `full_state_dict=True` goes from any to any.) Cut along other dimensions, coded slots are rounded otherwise than
    those of a whole tensor, and a checkpoint wants cuts between blocks again.

    Derivatives of an update are those of the rules at the decoded state; from one step to the next none go through the codes.

    Args:
        transform: anything that is made of rules.
        bits, block, min_size: as for `Blockwise`.
        only: which parameters' slots are coded; the others' stay float32. A regular expression that is searched for in the name,
            a function `(name, parameter) -> bool`, or a mapping of names to bools.
        codec: another codec, `Stochastic()`, in the place of these numbers.

    State: the transform's, where coded slots have two entries, `exp_avg` and `exp_avg.scale`; see `Blockwise`. Every rule with
    coded slots has a `step`.

    Raises:
        TypeError: this is no transform, or `only` is none of these.
        ValueError: no rule in it has a slot that may be coded; or one keeps its slots in codes already. From `init_state`, or
            when an optimizer is made: `only` fits none of several parameters.

    Source: Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, https://arxiv.org/abs/2110.02861, whose codes are
    others. Neither torch nor optax has a counterpart.

    >>> import torch
    >>> from functional_optim import adamw
    >>> state = quantized(adamw()).init_state({"w": torch.zeros(32, 32)})
    >>> slots = state["scale_by_adam"]
    >>> {name: (slots[name]["w"].dtype, tuple(slots[name]["w"].shape)) for name in ("exp_avg", "exp_avg.scale")}
    {'exp_avg': (torch.int8, (32, 32)), 'exp_avg.scale': (torch.float32, (8,))}
    """
    require_transform(transform, "quantized")
    if codec is not None and not isinstance(codec, Codec):
        raise TypeError(f"codec = {codec!r} of quantized: expected a codec, such as Blockwise(bits=4) or Stochastic().")
    codec, chosen = codec or Blockwise(bits, block, min_size), _chosen(only)
    if not any(isinstance(form, Lifted) and form.coded for _, form in nested(transform)):
        raise ValueError(
            f"{transform.name} has no slot that may be coded. A rule of your own says which may be: {EXAMPLE}. Inside "
            "blocked(...) none may be: give the rule there a dtype, such as scale_by_adam(state_dtype=torch.bfloat16)."
        )
    coded = _rebuilt(transform, codec, chosen)
    return coded if chosen is None else Transform.of(OnlySome(coded, chosen, repr(only)), coded.declared, coded.name)


@dataclass(frozen=True, eq=False)
class OnlySome(Around):
    """The form of a transform that keeps slots of some parameters in codes, of which there have to be any."""

    only: Chosen
    text: str

    def origins(self, path: Path, outer: Mapping[str, Origin]) -> Handed:
        """By the same names."""
        return {(): {name: outer[name] for name in self.inner.declared}}

    def check(self, params: Tree) -> None:
        """Raise ValueError where none of several parameters is meant; a single one may be one of a model's."""
        super().check(params)
        named = [(name, p) for name, p in zip(trees.names(params), trees.leaves(params), strict=True) if p is not None]
        if len(named) > 1 and not any(self.only(name, p) for name, p in named):
            shown = ", ".join(repr(name) for name, _ in named[:5]) + (", ..." if len(named) > 5 else "")
            raise ValueError(f"only = {self.text} of quantized fits none of the {len(named)} parameters: {shown}.")


def _rebuilt(transform: Transform, codec: Codec, only: Chosen | None) -> Transform:
    """The transform with other rules."""
    form: Any = transform.form
    if isinstance(form, Lifted):
        is_concerned = form.coded or form.coding is not None
        return Transform.of(with_codec(form, codec, only), transform.declared, transform.name) if is_concerned else transform
    if not form.parts:
        return transform

    def inside(value: Any) -> Any:
        if isinstance(value, Transform):
            return _rebuilt(value, codec, only)
        if isinstance(value, dict):
            return {key: inside(each) for key, each in value.items()}
        return tuple(map(inside, value)) if type(value) is tuple else list(map(inside, value)) if type(value) is list else value

    changed = {each.name: inside(getattr(form, each.name)) for each in dataclasses.fields(form) if each.init}
    return Transform.of(dataclasses.replace(form, **changed), transform.declared, transform.name)


@dataclass(frozen=True)
class _Named:
    """Parameters in whose names an expression is found."""

    pattern: str

    def __call__(self, name: str, leaf: Tensor) -> bool:
        return re.search(self.pattern, name) is not None


@dataclass(frozen=True)
class _Listed:
    """Parameters that are listed."""

    table: Mapping[str, Any]

    def __call__(self, name: str, leaf: Tensor) -> bool:
        return bool(self.table.get(name, False))


def _chosen(only: Any) -> Chosen | None:
    if isinstance(only, str):
        try:
            return _Named(re.compile(only).pattern)
        except re.error as error:
            raise ValueError(f"only = {only!r} of quantized is no regular expression: {error}.") from None
    if isinstance(only, Mapping):
        return _Listed(dict(only))
    if only is None:
        return None
    problem = f"takes {misfit(only, '', None)}" if callable(only) else f"is {only!r}"
    if not callable(only) or misfit(only, "", None):
        raise TypeError(
            f"only of quantized {problem}: expected a regular expression for names, a mapping of names to bools, or a function "
            "of the name and the parameter, lambda name, leaf: ..."
        )
    return only
