"""Constructors of transforms: what a decorator of rules makes of one, with its signature and the checks of its arguments."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from functional_optim.checks import misfit
from functional_optim.codecs import POSITIVE, SIGNED, Codec
from functional_optim.coding import with_codec
from functional_optim.hparams import Hparam, HParams, declare, validate
from functional_optim.lifting import Lifted, SlotInit, zeros
from functional_optim.recipe import recorded
from functional_optim.transform.interface import Transform


def decorator(
    lift: Callable[..., Lifted], slots: Any, hparams: HParams | None, *, reduces: bool, name: str | None
) -> Callable[[Callable[..., Any]], Callable[..., Transform]]:
    """What a decorator of rules that are lifted like this is, called with its arguments; see `elementwise`."""
    if callable(slots):
        raise TypeError(
            f"slots is a function, {getattr(slots, '__name__', slots)}: a decorator of rules is called first, as in "
            "@elementwise() or @elementwise(slots=('exp_avg',), hparams={'lr': 1e-3})."
        )
    return functools.partial(_constructor, lift=lift, slots=slots, hparams=hparams or {}, reduces=reduces, name=name)


def _constructor(
    scalars: Callable[..., Any],
    *,
    lift: Callable[..., Lifted],
    slots: Sequence[str] | Mapping[str, SlotInit],
    hparams: HParams,
    reduces: bool,
    name: str | None,
) -> Callable[..., Transform]:
    name = name or scalars.__name__
    _require_names(name, slots)
    declared = declare(hparams)
    starts = dict(slots) if isinstance(slots, Mapping) else dict.fromkeys(slots, zeros)
    takes = list(inspect.signature(scalars).parameters.values())
    options = [parameter for parameter in takes if parameter.kind is parameter.KEYWORD_ONLY]
    counts = any(parameter.name == "t" for parameter in takes)
    if len(takes) - len(options) != 1 + counts + reduces:
        raise TypeError(
            f"{name} takes {', '.join(parameter.name for parameter in takes) or 'nothing'}: expected (hp), then t if the rule "
            "counts updates, then one argument for what `reduce` returns if that is given; static choices are keyword-only."
        )
    signature = _signature(declared, options, _storage(lift, starts))

    @functools.wraps(scalars)
    def construct(*args: Any, **kwargs: Any) -> Transform:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = bound.arguments
        stored = values.get("state_dtype")
        _require_dtype(name, stored)
        form = lift(
            name=name,
            scalars=scalars,
            slots=starts,
            counts=counts,
            options={option.name: values[option.name] for option in options},
            state_dtype=None if isinstance(stored, Codec) else stored,
        )
        form = with_codec(form, stored) if isinstance(stored, Codec) else form
        for key, hparam in declared.items():
            validate(key, values[key], hparam)
        defaults = {key: Hparam(values[key], hparam.range) for key, hparam in declared.items()}
        return Transform.of(form, defaults, name)

    vars(construct).update(__signature__=signature, __name__=name)
    return recorded(construct)


def _require_names(name: str, slots: Any) -> None:
    if callable(slots):
        raise TypeError(f"the decorator of {name} needs parentheses: @elementwise() or @elementwise(slots=..., hparams=...).")
    if isinstance(slots, str):
        raise TypeError(f"slots = {slots!r} of {name} is a string: expected a tuple of names, ({slots!r},).")
    for slot, start in slots.items() if isinstance(slots, Mapping) else ():
        problem = misfit(start, None, None) if callable(start) else f"{start!r}, no function"
        if problem:
            raise TypeError(
                f"slots[{slot!r}] of {name} is called with a parameter and the hyper-parameters, (p, hp): it is {problem}."
            )
    if "step" in slots or len(set(slots)) != len(slots):
        raise ValueError(f"slots = {tuple(slots)} of {name}: the names must differ, and `step` is the count of updates.")


def kinds_of(slots: Any, coded: Mapping[str, str]) -> dict[str, str]:
    """Of the slots that may be coded, which kind each is; raise ValueError where one of them is none."""
    for slot, kind in coded.items():
        if slot not in slots:
            raise ValueError(f"coded = {dict(coded)}: there is no slot {slot!r} among {tuple(slots)}.")
        if kind not in (SIGNED, POSITIVE):
            raise ValueError(f"coded[{slot!r}] = {kind!r}: expected {SIGNED!r} or {POSITIVE!r}.")
    return dict(coded)


def _require_dtype(name: str, dtype: Any) -> None:
    is_dtype = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    if not (dtype is None or is_dtype or isinstance(dtype, Codec)):
        raise TypeError(
            f"state_dtype = {dtype!r} of {name}: expected a real floating dtype, such as torch.bfloat16, a codec, such as "
            "fo.Blockwise(bits=8), or None."
        )


def _storage(lift: Any, starts: Mapping[str, Any]) -> Any:
    """What a constructor's `state_dtype` may be; None where there is nothing to choose."""
    if not set(starts) - {*lift.keywords.get("as_stored", ())}:
        return None
    return torch.dtype | Codec | None if lift.keywords["coded"] else torch.dtype | None


def _signature(declared: Mapping[str, Hparam], options: Sequence[inspect.Parameter], storage: Any) -> inspect.Signature:
    """What the constructor takes: required options, hyper-parameters, other options, and how slots are stored."""
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    required = [option.replace(kind=either) for option in options if option.default is option.empty]
    optional = [option for option in options if option.default is not option.empty]
    numbers = [
        inspect.Parameter(name, either, default=hparam.default, annotation=_number_type(hparam.default))
        for name, hparam in declared.items()
    ]
    if storage is not None:
        optional.append(inspect.Parameter("state_dtype", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=storage))
    return inspect.Signature([*required, *numbers, *optional], return_annotation=Transform)


def _number_type(default: Any) -> Any:
    """What a new default has to be: a number, or a tuple of as many."""
    return tuple[(float,) * len(default)] if isinstance(default, tuple) else float
