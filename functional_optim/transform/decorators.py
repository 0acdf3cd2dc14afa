"""The decorators that make a constructor of transforms of a rule for one tensor, or for all of them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from functional_optim.hparams import HParams
from functional_optim.lifting import Leafwise, Reduction, SlotInit, WholeTree
from functional_optim.numbered import Numbered
from functional_optim.transform.constructors import decorator, kinds_of
from functional_optim.transform.interface import Transform


def elementwise(
    slots: Sequence[str] | Mapping[str, SlotInit] = (),
    hparams: HParams | None = None,
    *,
    reduce: Reduction | None = None,
    extra: Sequence[str] = (),
    leaf_extra: Sequence[str] = (),
    evaluated_at: Callable[..., torch.Tensor] | None = None,
    as_stored: Sequence[str] = (),
    dtypes: Sequence[torch.dtype] = (),
    coded: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Transform]]:
    """Make the constructor of a transform from its rule for one tensor that treats every element alike.

    The decorated function takes the scalars and returns the rule:

    >>> from functional_optim import Hparam
    >>> @elementwise(slots=("exp_avg",), hparams={"lr": Hparam(1e-3, "[0, inf)"), "beta": Hparam(0.9, "[0, 1)")})
    ... def sign_momentum(hp, t):
    ...     def rule(g, p, m):
    ...         m = hp["beta"] * m + (1 - hp["beta"]) * g
    ...         return -hp["lr"] * m.sign(), m
    ...     return rule
    >>> sign_momentum(beta=0.95)
    sign_momentum(lr=0.001, beta=0.95)

    - `hp` is the complete mapping of hyper-parameters: Python numbers or () tensors.
    - `t`, where the function asks for it, counts updates from 1: a Python number or a () tensor. Combine scalars with
      operators and with `functional_optim.numerics`; never branch on them in Python.
    - `reduce(updates, params, **slots)`, where given, gets lists of all leaves and returns whole-tree quantities; the
      function takes them as its last positional argument.
    - Keyword-only arguments are static choices of the constructor (`nesterov=False`); they may pick a rule.
    - `rule(g, p, *slots)` returns the update and the new slots, or the bare update where there are none. It sees real tensors
      of at least float32 and writes to none. `p` is None where the caller gave no parameters.
    - What the function or its rule finds outside, a variable or an attribute of its object, is a constant of the code that
      engines make. Another number or tensor there is noticed, and the rule written down and compiled anew: a number that changes
      often belongs into `hparams`. Attributes of attributes, and what is changed within a tensor, are not looked at.

    Args:
        slots: names of the per-leaf state, each starting as zeros like the parameter; or name to `(p, hp) -> first value`.
        hparams: name to default, or to `Hparam(default, range)`.
        reduce: whole-tree quantities, computed over all leaves before any rule runs. Of a sharded model it gets `DTensor`s, as
            the rule does, and what it returns is brought together from all processes.
        extra: names of further numbers that `update` has to be given, such as the loss `value`; found in `hp`.
        leaf_extra: names of trees like the parameters that `update` has to be given, such as `hessian_diag`; the rule gets its
            leaf of each after the slots, and None where the tree or the leaf is None.
        as_stored: names of slots that the rule sees in the dtype in which they are stored, which may tell it the parameter's.
        dtypes: those of the parameters that the rule concerns, if not all: of others it leaves updates and slots as they are.
        coded: of the slots that a codec may keep in fewer bits, name to `"signed"` or, for what is never negative and whose root
            the update is divided by, `"positive"`: averages, and no counts, step sizes or copies of the parameter.
        evaluated_at: `(p, *slots) -> x`, of a rule that keeps better parameters than those it trains, such as an average: what
            `evaluated`, and `eval_params` of an optimizer, put in the place of p. It treats every element alike, as the rule.
        name: of the transform; the function's own name by default.

    Returns:
        A decorator. The constructor it makes takes a new default for each hyper-parameter, the static choices, and, where there
        are slots, `state_dtype`, their dtype (the parameter's by default), or a codec, such as `Blockwise(bits=8)`, for those
        that may be coded.
    """
    lift = functools.partial(
        Leafwise,
        elementwise=True,
        reduce=reduce,
        extra=tuple(extra),
        leaf_extra=tuple(leaf_extra),
        as_stored=tuple(as_stored),
        dtypes=tuple(dtypes),
        coded=kinds_of(slots, coded or {}),
        evaluated_at=evaluated_at,
    )
    return decorator(lift, slots, hparams, reduces=reduce is not None, name=name)


def per_tensor(
    slots: Sequence[str] | Mapping[str, SlotInit] = (),
    hparams: HParams | None = None,
    *,
    reduce: Reduction | None = None,
    extra: Sequence[str] = (),
    leaf_extra: Sequence[str] = (),
    batched: bool = False,
    places: bool = False,
    least_dims: int = 0,
    as_stored: Sequence[str] = (),
    dtypes: Sequence[torch.dtype] = (),
    coded: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Transform]]:
    """Like `elementwise`, for a rule that needs the tensor's true shape: norms, rows and columns, matrix products.

    No engine flattens or packs its tensors, and complex parameters raise TypeError. Of a sharded model (`DTensor`) the rule gets
    whole tensors all the same, on every process: each is gathered for it with its slots, one after another, and what it returns
    is spread again. A slot of another shape than its parameter's stays whole everywhere.

    Args:
        slots, hparams, reduce, extra, leaf_extra, as_stored, dtypes, coded, name: as for `elementwise`.
        batched: give the rule all tensors of one shape at once, as one tensor with a first dimension more, and the slots alike:
            one product of n matrices for n products. `p` and the results have that dimension, too.
        places: give the rule `hp["place"]`, a whole number: how many leaves of the tensor's shape that have a gradient come
            before it. Random numbers that depend on it differ from tensor to tensor.
        least_dims: how many dimensions a parameter has at least, 2 for a rule of matrices: `init_state`, and an optimizer when it
            is made, name one that has fewer; an optimizer one that is frozen, only when it is to be stepped.
    """
    lift = functools.partial(
        Leafwise,
        elementwise=False,
        reduce=reduce,
        extra=tuple(extra),
        leaf_extra=tuple(leaf_extra),
        as_stored=tuple(as_stored),
        dtypes=tuple(dtypes),
        coded=kinds_of(slots, coded or {}),
        batched=batched,
        places=places,
        least_dims=least_dims,
    )
    return decorator(lift, slots, hparams, reduces=reduce is not None, name=name)


def whole_tree(
    slots: Sequence[str] | Mapping[str, SlotInit] = (),
    hparams: HParams | None = None,
    *,
    shared: Mapping[str, Any] | None = None,
    each: Sequence[str] = (),
    extra: Sequence[str] = (),
    leaf_extra: Sequence[str] = (),
    coded: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Transform]]:
    """Like `elementwise`, for a rule that needs all tensors at once and may keep values that they share.

    The function takes `(hp[, t], *, static options)` and returns the rule. `rule(gs, ps, shared, *slots)` gets lists with an
    entry for each leaf that has a gradient (they may be empty), and the shared values by name; it returns the updates, the new
    shared values by name, and the new slots, in the same form. A hyper-parameter has one value for all, unless it is in `each`.

    >>> @whole_tree(shared={"largest": 0.0})
    ... def divide_by_largest_sum(hp):
    ...     def rule(gs, ps, shared):
    ...         largest = torch.stack([shared["largest"], *(g.abs().sum() for g in gs)]).max()
    ...         return [g / largest for g in gs], {"largest": largest}
    ...     return rule
    >>> tx = divide_by_largest_sum()
    >>> tx.update([torch.tensor(3.0), torch.tensor(-6.0)], tx.init_state([torch.tensor(0.0), torch.tensor(0.0)]))[0]
    [tensor(0.5000), tensor(-1.)]

    Args:
        slots, hparams, extra, leaf_extra, coded, name: as for `elementwise`.
        shared: name to first value, a number or `hp -> number`. They are kept as () tensors of float64; behind an optimizer,
            every parameter holds a copy.
        each: names of hyper-parameters that may differ between leaves; in `hp` they are lists, with a value per entry of `gs`.

    No engine fuses it. Of a sharded model it gets `DTensor`s on one mesh; `numerics.global_norm` and `inner_product` sum over the
    processes, too.
    """
    lift = functools.partial(
        WholeTree,
        elementwise=True,
        shared=dict(shared or {}),
        each=tuple(each),
        extra=tuple(extra),
        leaf_extra=tuple(leaf_extra),
        coded=kinds_of(slots, coded or {}),
    )
    return decorator(lift, slots, hparams, reduces=False, name=name)


def numbered(
    slots: Sequence[str] | Mapping[str, SlotInit] = (),
    hparams: HParams | None = None,
    *,
    own: Mapping[str, SlotInit] | None = None,
    shared: Mapping[str, Any] | None = None,
    each: Sequence[str] | None = None,
    over_all: bool = False,
    agree: Callable[[Sequence[HParams]], None] | None = None,
    extra: Sequence[str] = (),
    leaf_extra: Sequence[str] = (),
    evaluated_at: Callable[..., torch.Tensor] | None = None,
    coded: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Transform]]:
    """Like `elementwise`, for a rule that asks for sums, of a leaf or of all, and may keep numbers; engines run it as one.

    The function takes `(hp[, t], numbers, *, static options)`, the numbers by name as they are before the step, and returns three
    functions:

    - `terms(g, p, *slots)`, what is to be summed over the elements, one or several tensors; or None.
    - `finish(sums)`, of `Sums`, the numbers: new ones of those that it keeps, and whatever else the update takes. They are ()
      tensors; an engine may compute those of many leaves at once, so this takes operators and functions, and asks for no value.
    - `rule(numbers, g, p, *slots)`, the update and the new slots.

    >>> @numbered(shared={"largest": 0.0})
    ... def divide_by_largest_norm(hp, numbers):
    ...     def terms(g, p):
    ...         return g * g
    ...     def finish(sums):
    ...         return {"largest": torch.maximum(numbers["largest"], sums.all[0].sqrt())}
    ...     def rule(new, g, p):
    ...         return g / new["largest"]
    ...     return terms, finish, rule
    >>> tx = divide_by_largest_norm()
    >>> tx.update([torch.tensor(3.0), torch.tensor(-4.0)], tx.init_state([torch.tensor(0.0), torch.tensor(0.0)]))[0]
    [tensor(0.6000), tensor(-0.8000)]

    Args:
        slots, hparams, extra, leaf_extra, coded, name: as for `elementwise`.
        own: name to `(p, hp) -> first value`, of a number that each leaf keeps for itself.
        shared: name to first value, a number or `hp -> number`, of one that all leaves share: kept as a () tensor of float64.
            The step is shared then, too.
        each: names of hyper-parameters that may differ between leaves; all by default.
        over_all: whether `finish` takes sums over all leaves; where there are shared numbers, it does.
        agree: gets the hyper-parameters of every leaf, and raises ValueError where they don't go together.
        evaluated_at: as for `elementwise`, `(p, *slots, *own) -> x`.
    """
    lift = functools.partial(
        Numbered,
        elementwise=True,
        own=dict(own or {}),
        shared=dict(shared or {}),
        each=None if each is None else tuple(each),
        over_all=over_all or bool(shared),
        agree=agree,
        extra=tuple(extra),
        leaf_extra=tuple(leaf_extra),
        coded=kinds_of(slots, coded or {}),
        evaluated_at=evaluated_at,
    )
    return decorator(lift, slots, hparams, reduces=True, name=name)
