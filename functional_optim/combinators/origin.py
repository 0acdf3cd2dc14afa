"""Where a hyper-parameter of a transform inside another comes from, for engines that run the inner one by itself."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from functional_optim import trees
from functional_optim.hparams import HParams, PerLeaf

# Counts, by the keys to them in the state of the outermost transform.
Counts: TypeAlias = Mapping[tuple[str, ...], Any]


@dataclass(frozen=True)
class Origin:
    """The first of these names that the outermost transform is given a value for, or else a function of its counts, or a value.

    Of an optional hyper-parameter, which may be given by none of its names, `otherwise` and `fixed` are None. A `factor`
    multiplies the value.
    """

    names: tuple[str, ...] = ()
    otherwise: Callable[[Counts], Any] | None = None
    factor: "Origin | None" = None
    fixed: Any = None

    def value(self, hp: HParams, counts: Counts) -> Any:
        """The value, of the outermost transform's hyper-parameters and counts."""
        value = self._given(hp, counts)
        return value if self.factor is None else times(value, self.factor.value(hp, counts))

    def _given(self, hp: HParams, counts: Counts) -> Any:
        for name in self.names:
            if name in hp:
                return hp[name]
        return self.fixed if self.otherwise is None else self.otherwise(counts)

    def has_value(self, hp: HParams) -> bool:
        """Whether there is one: an optional hyper-parameter may be given by none of its names."""
        return self.has_last or any(name in hp for name in self.names)

    @property
    def has_last(self) -> bool:
        """Whether there is a value even if no name has one."""
        return self.otherwise is not None or self.fixed is not None

    @property
    def counts(self) -> bool:
        """Whether the value may depend on the counts."""
        return self.otherwise is not None or (self.factor is not None and self.factor.counts)

    def times(self, factor: "Origin") -> "Origin":
        """This one, multiplied once more."""
        return dataclasses.replace(self, factor=factor if self.factor is None else self.factor.times(factor))

    def or_else(self, other: "Origin") -> "Origin":
        """This one, and where it has no value, another; neither has a factor, which only rules are handed, of no parts."""
        return self if self.has_last else Origin((*self.names, *other.names), other.otherwise, fixed=other.fixed)


# To each part of a transform, by the keys to its state, where its hyper-parameters come from.
Handed: TypeAlias = Mapping[tuple[str, ...], Mapping[str, Origin]]


def times(value: Any, factor: Any) -> Any:
    """The product of two numbers, either of which may be one per leaf."""
    if isinstance(value, PerLeaf) and isinstance(factor, PerLeaf):
        return trees.map_leaves(lambda x, y: x * y, value, factor)
    each, other = (value, factor) if isinstance(value, PerLeaf) else (factor, value)
    return trees.map_leaves(lambda x: x * other, each)
