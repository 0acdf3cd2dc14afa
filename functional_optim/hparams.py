"""Hyper-parameters: flat mappings of names to numbers; declared, merged, renamed and validated here.

A value is a Python number, a () tensor, or a pair of those (`betas`). Python numbers are checked against the declared
range; tensors are never read, so they can be batched, differentiated and traced.
"""

import numbers
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from functional_optim import trees
from functional_optim.hints import hint, parameters_advice
from functional_optim.intervals import WHOLE, bounds, contains, intersection, is_interval
from functional_optim.recipe import is_bool
from functional_optim.trees import IsLeaf, Spec, Tree

HParams: TypeAlias = Mapping[str, Any]

ANY = "(-inf, inf)"
NON_NEGATIVE = "[0, inf)"
POSITIVE = "(0, inf]"
FRACTION = "[0, 1)"


@dataclass(frozen=True)
class Hparam:
    """A declared hyper-parameter: its default and the interval its Python values must lie in.

    Args:
        default: a number, or a tuple of numbers.
        range: an interval as a mathematician writes it, `"[0, 1)"`, `"(0, inf]"`; for a tuple, each entry's, or a tuple of them.
            `"[0, 9] whole"` for whole numbers only.
        optional: whether it has a value only where one is given; the default then shows what kind of value that is.

    >>> Hparam(0.9, "[0, 1)")
    Hparam(default=0.9, range='[0, 1)')
    """

    default: Any
    range: str | tuple[str, ...] = ANY
    optional: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        for interval in (self.range,) if isinstance(self.range, str) else self.range:
            if not is_interval(interval):
                raise ValueError(f"range = {interval!r} is not an interval such as '[0, 1)' or '(0, inf]'.")
        object.__setattr__(self, "default", plain(self.default))
        if not isinstance(self.range, str) and (not isinstance(self.default, tuple) or len(self.default) != len(self.range)):
            raise ValueError(f"range = {self.range!r} has {len(self.range)} intervals, the default {self.default!r} has not.")

    @property
    def ranges(self) -> tuple[str, ...]:
        """The interval of each number."""
        count = len(self.default) if isinstance(self.default, tuple) else 1
        return (self.range,) * count if isinstance(self.range, str) else self.range


@dataclass(frozen=True)
class PerLeaf:
    """One value of a hyper-parameter for each leaf, in a tree with the structure of the parameters.

    `{"lr": PerLeaf({"w": 0.1, "b": 0.01})}` gives each parameter a learning rate of its own; a pair such as `betas`
    is itself the leaf: `PerLeaf({"w": (0.9, 0.999), "b": (0.8, 0.99)})`. Parameter groups behind the adapter are this.
    """

    tree: Tree

    def values(self, spec: Spec, name: str) -> list[Any]:
        """The value of each leaf, in the order of `spec`; `name` is what an error calls it."""
        try:
            return spec.flatten_up_to(self.tree)
        except ValueError as error:
            raise ValueError(f"the PerLeaf of {name!r} does not have the structure of the parameters: {error}") from None


trees.register_box(PerLeaf, "tree")


def declare(hparams: HParams) -> dict[str, Hparam]:
    """Declared hyper-parameters from a mapping whose values are `Hparam`s or bare defaults."""
    require_mapping(hparams)
    declared = {name: value if isinstance(value, Hparam) else Hparam(value) for name, value in hparams.items()}
    for name, hparam in declared.items():
        if name == "step":
            raise ValueError("a hyper-parameter can't be called 'step': that is the count of updates, kept in the state.")
        if not hparam.optional:  # There it only shows the kind of value; of branches that share a name, the first one's.
            validate(name, hparam.default, hparam)
    return declared


def read_if(is_read: bool, **hparams: Hparam) -> dict[str, Hparam]:
    """Hyper-parameters of one mode alone: in another there are none, but what is given for them is checked there, too."""
    declared = declare(hparams)
    return declared if is_read else {}


def complete(declared: Mapping[str, Hparam], given: HParams | None, refusal: Callable[[str], str]) -> dict[str, Any]:
    """The given values, validated, and the defaults of the rest; `refusal` is the message for an unknown name.

    Raises:
        ValueError: an unknown name, or a Python number out of its range.
        TypeError: `given` is no mapping, or a value is neither a number nor a tensor.
    """
    given = {} if given is None else given
    require_mapping(given)
    for name in given:
        if name not in declared:
            raise ValueError(refusal(name))
        validate(name, given[name], declared[name])
    return {
        name: _prepared(given.get(name, hparam.default), hparam)
        for name, hparam in declared.items()
        if name in given or not hparam.optional
    }


def require_mapping(given: Any, advice: str = "", name: str = "hparams") -> None:
    """Raise TypeError unless these are hyper-parameters by name."""
    if not isinstance(given, Mapping):
        expected = "expected a mapping of names to numbers, such as {'lr': 1e-3}"
        raise TypeError(f"{name} is a {type(given).__name__}: {expected}.{advice}")


def unknown(name: str, accepted: Mapping[str, Any], owner: str) -> str:
    """The message for a name that `owner` does not know."""
    names = ", ".join(map(repr, accepted)) if accepted else "none"
    return f"{owner} has no hyper-parameter {name!r}; it accepts: {names}.{hint(name, accepted)}"


def merge(named: Mapping[str, Mapping[str, Hparam]]) -> dict[str, Hparam]:
    """The union of several links' declarations; a name they share must have one default."""
    merged: dict[str, Hparam] = {}
    owner: dict[str, str] = {}
    for link, declared in named.items():
        for name, hparam in declared.items():
            if name in merged and _identity(merged[name].default) != _identity(hparam.default):
                raise ValueError(
                    f"{owner[name]} and {link} both have a hyper-parameter {name!r}, with different defaults "
                    f"({merged[name].default} and {hparam.default}). Give them one default, or tell them apart with "
                    f'rename_hparams({link}, {name}="{link}_{name}").'
                )
            known = merged.get(name, hparam)
            merged[name] = Hparam(hparam.default, _common_range(known, hparam), known.optional and hparam.optional)
            owner.setdefault(name, link)
    return merged


def shared_names(named: Mapping[str, Mapping[str, Hparam]]) -> dict[str, Hparam]:
    """The union of several declarations; a name with different defaults becomes optional, and each keeps its own until then."""
    union: dict[str, Hparam] = {}
    for declared in named.values():
        for name, hparam in declared.items():
            known = union.get(name, hparam)
            differs = _identity(known.default) != _identity(hparam.default)
            optional = known.optional or hparam.optional or differs
            union[name] = Hparam(known.default, _common_range(known, hparam), optional)
    return union


class Scalars(NamedTuple):
    """The hyper-parameters and the step that hold for some leaves, and the number of this set of values among all."""

    hp: HParams
    t: Any
    number: int


def spread(hp: HParams, t: Any, spec: Spec) -> list[Scalars]:
    """The hyper-parameters and the step that hold for each leaf; leaves with the same values share them."""
    scalars = {"step": t, **hp}
    per_leaf = {name: value.values(spec, name) for name, value in scalars.items() if isinstance(value, PerLeaf)}
    if not per_leaf:
        return [Scalars(hp, t, 0)] * spec.num_leaves
    distinct: dict[tuple[Any, ...], Scalars] = {}
    found = []
    for values in zip(*per_leaf.values(), strict=True):
        own = {**scalars, **dict(zip(per_leaf, values, strict=True))}
        new = Scalars({name: own[name] for name in hp}, own["step"], len(distinct))
        found.append(distinct.setdefault(tuple(map(_identity, values)), new))
    return found


def one_or_each(values: Mapping[Any, Any]) -> Any:
    """The value itself where all leaves have the same one, else a `PerLeaf`: the reverse of `spread`."""
    distinct = {_identity(value) for value in values.values()}
    return next(iter(values.values())) if len(distinct) == 1 else PerLeaf(dict(values))


def together(each: Mapping[Any, HParams]) -> dict[str, Any]:
    """The hyper-parameters of several leaves, of names that all of them have, as one mapping; see `one_or_each`."""
    first, *others = each.values()
    names = [name for name in first if all(name in own for own in others)]
    return {name: one_or_each({key: own[name] for key, own in each.items()}) for name in names}


def _identity(value: Any) -> Any:
    if isinstance(value, int | float):
        return value
    if isinstance(value, Tensor):
        return id(value)
    return tuple(map(_identity, value)) if _is_sequence(value) else value


def validate(name: str, value: Any, hparam: Hparam) -> None:
    """Raise unless this can be the value of a hyper-parameter so declared.

    Raises:
        TypeError: not the kind of value that the default is.
        ValueError: a number outside the range.
    """
    is_pair = isinstance(hparam.default, tuple)
    for where, each in _values(name, value, is_several if is_pair else None):
        if not is_pair:
            validate_number(where, each, hparam.ranges[0])
        elif not is_several(each) or len(each) != len(hparam.default):
            raise TypeError(
                f"{where} = {each!r}: expected {len(hparam.default)} values, as in {hparam.default}.{_advice(where, each)}"
            )
        else:
            for i in range(len(each)):
                validate_number(f"{where}[{i}]", each[i], hparam.ranges[i])


def _values(name: str, value: Any, is_leaf: IsLeaf | None) -> Iterable[tuple[str, Any]]:
    """The value itself, or each of a `PerLeaf`'s with the path to it."""
    if not isinstance(value, PerLeaf):
        return [(name, value)]
    return zip(trees.paths(value.tree, name, is_leaf), trees.leaves(value.tree, is_leaf), strict=True)


def is_several(value: Any) -> bool:
    """Whether this is a sequence of numbers or () tensors, whatever its class, or a tensor that can be unpacked into such."""
    if isinstance(value, Tensor):
        return value.ndim == 1
    return _is_sequence(value) and all(isinstance(entry, numbers.Real | Tensor) for entry in value)


def _is_sequence(value: Any) -> bool:
    if isinstance(value, Sequence):
        return not isinstance(value, str | bytes)
    # NumPy's arrays are none by their class.
    return hasattr(value, "__array__") and not isinstance(value, Tensor) and getattr(value, "ndim", 0) == 1


def validate_number(where: str, value: Any, interval: str) -> None:
    """Raise unless the value is a () tensor or a number in the interval; `where` is what an error calls it.

    Raises:
        TypeError: neither a number nor a () tensor.
        ValueError: a number outside the interval.
    """
    if isinstance(value, Tensor):
        if value.ndim != 0:
            raise TypeError(
                f"{where} is a tensor of shape {tuple(value.shape)}: a hyper-parameter is a number or a () tensor. {SEVERAL}"
            )
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        found = f"{value!r} is a {type(value).__name__}"
        raise TypeError(f"{where} = {found}: expected a number or a () tensor.{_advice(where, value)}")
    elif not contains(interval, float(value)):
        bare = interval.removesuffix(WHOLE)
        is_inside = bare != interval and contains(bare, float(value))
        raise ValueError(
            f"{where} = {value} is {'no whole number' if is_inside else f'outside {bare}'}.{_modulo(value, interval)}"
        )


def _modulo(value: numbers.Real, interval: str) -> str:
    """Advice for one who gives a whole number beyond those of float64, such as `torch.initial_seed()`; or nothing."""
    is_too_large = isinstance(value, numbers.Integral) and int(value) > 2**53 == bounds(interval.removesuffix(WHOLE))[1]
    return " Give value % 2**53: larger whole numbers are not exact in float64." if is_too_large else ""


SEVERAL = (
    "To try several values at once, map over them with torch.vmap; for one value per parameter, use PerLeaf. Values per element "
    "want a rule that takes a tree of them, @elementwise(leaf_extra=('rates',)), which is given as update(..., rates=tree)."
)


def _advice(where: str, value: Any) -> str:
    """Advice for one who took something else for a number: a sentence after a space, or nothing."""
    if parameters_advice(value):
        return parameters_advice(value)
    if isinstance(value, Mapping):
        return " For one value per parameter, wrap the tree of them, fo.PerLeaf({...})."
    if _is_sequence(value) or getattr(value, "ndim", 0):
        return f" {SEVERAL}"
    if callable(value):
        return f" A function of the step goes around a transform: fo.scheduled(transform, {where}=...)."
    if isinstance(value, str) and _is_number(value):
        return f" Write float({value!r}); YAML takes 1e-3 for text, and 1.0e-3 for a number."
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def require_count(name: str, value: Any, least: int) -> int:
    """A static choice that is a whole number of at least so much: Python's, numpy's, or a () tensor of one; but no bool.

    Raises:
        TypeError: no whole number.
        ValueError: less.
    """
    try:
        if is_bool(value) or getattr(value, "ndim", 0):
            raise TypeError
        count = operator.index(value)
    except (TypeError, RuntimeError):  # The second of a tensor that is batched or traced.
        raise TypeError(f"{name} = {value!r}: expected a whole number of at least {least}.") from None
    if count < least:
        raise ValueError(f"{name} = {count}: expected a whole number of at least {least}.")
    return count


def _prepared(value: Any, hparam: Hparam) -> Any:
    """A value, or each of a `PerLeaf`'s, in the form that rules get."""
    if not isinstance(value, PerLeaf):
        return plain(value)
    leaves, spec = trees.flatten(value.tree, is_several if isinstance(hparam.default, tuple) else None)
    return PerLeaf(trees.unflatten(spec, [plain(each) for each in leaves]))


def plain(value: Any) -> Any:
    """NumPy's and other numbers as Python's, which keep their precision in arithmetic with the step; sequences as tuples."""
    if isinstance(value, int | float | Tensor):
        return value
    if isinstance(value, numbers.Real):
        return float(value)
    return tuple(map(plain, value)) if _is_sequence(value) else value


def _common_range(a: Hparam, b: Hparam) -> str | tuple[str, ...]:
    """What both allow: one interval for all entries where that says it."""
    both = tuple(intersection(*pair) for pair in zip(a.ranges, b.ranges, strict=False))
    return both[0] if len(set(both)) == 1 else both
