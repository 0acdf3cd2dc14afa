"""Labels: which branch of a `partition` a parameter belongs to, by its name, its dimensions or the module that holds it.

A parameter's name is the path to it, joined by dots: `layers.0.weight` for `params["layers"][0]["weight"]`, as for a module's
parameter. Behind the adapter it is the name that the optimizer was given, as in `OptimizerAdapter(model.named_parameters(), tx)`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from functional_optim import trees
from functional_optim.trees import Tree

Labels: TypeAlias = Tree | Callable[[str, Tensor], Any]


@dataclass(frozen=True)
class ByName:
    """What `by_name` returns: a value, so that it prints as it was written, and pickles."""

    patterns: Mapping[str, str]

    def __repr__(self) -> str:
        return f"by_name({self.patterns!r})"

    def __call__(self, name: str, leaf: Tensor) -> str | None:
        """The label of the first pattern found in the name; None where there is none."""
        return next((label for pattern, label in self.patterns.items() if re.search(pattern, name)), None)

    def is_reserve(self, label: str, names: Sequence[str]) -> bool:
        """Whether a pattern of this label fits some name, though others may come before it: `r".*"` for what is left."""
        patterns = [pattern for pattern, own in self.patterns.items() if own == label]
        return any(re.search(pattern, name) for pattern in patterns for name in names)


@dataclass(frozen=True)
class ByNdim:
    """What `by_ndim` returns."""

    labels: Mapping[int, str]
    otherwise: str | None = None

    def __repr__(self) -> str:
        return f"by_ndim({self.labels!r}{f', {self.otherwise!r}' if self.otherwise is not None else ''})"

    def __call__(self, name: str, leaf: Tensor) -> str | None:
        """The label for this number of dimensions."""
        return self.labels.get(leaf.ndim, self.otherwise)

    def is_reserve(self, label: str, names: Sequence[str]) -> bool:
        """Whether this is the label of what is left."""
        return label == self.otherwise


def by_name(patterns: Mapping[str, str]) -> ByName:
    r"""Label a parameter by the first regular expression that is found anywhere in its name.

    Args:
        patterns: expression to label, tried in order: `{r"\.weight$": "decay", r".*": "plain"}`.

    >>> by_name({r"norm": "plain", r"\.weight$": "decay"})("layers.0.norm.weight", None)
    'plain'
    """
    for pattern in patterns:
        re.compile(pattern)
    return ByName(dict(patterns))


def by_ndim(labels: Mapping[int, str], otherwise: str | None = None) -> ByNdim:
    """Label a parameter by its number of dimensions: `by_ndim({2: "matrix"}, otherwise="rest")`.

    Args:
        labels: number of dimensions to label.
        otherwise: the label of all other parameters; None for an error.
    """
    return ByNdim(dict(labels), otherwise)


def by_module(model: nn.Module, labels: Mapping[type[nn.Module], str], otherwise: str | None = None) -> dict[str, str]:
    """Label a module's parameters by the type of the submodule that holds them.

    Args:
        model: its parameters' names are those of `model.named_parameters()`: a weight that two submodules share is counted once,
            where it appears first.
        labels: type to label; the first that fits, subclasses included.
        otherwise: the label of the rest; None leaves them without one.

    Returns:
        Name to label, as `partition` takes it.

    >>> model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 1))
    >>> by_module(model, {nn.Linear: "decay"}, otherwise="plain")
    {'0.weight': 'plain', '1.weight': 'decay', '1.bias': 'decay'}
    """
    modules = dict(model.named_modules())
    found = {}
    for name, _ in model.named_parameters():
        holder = modules[name.rpartition(".")[0]]
        label = next((label for kind, label in labels.items() if isinstance(holder, kind)), otherwise)
        if label is not None:
            found[name] = label
    return found


def labels_of(labels: Labels, tree: Tree) -> list[Any]:
    """The label of every leaf of a tree of parameters, in order."""
    names = trees.names(tree)
    if not callable(labels):
        table = dict(zip(trees.names(labels), trees.leaves(labels), strict=True))
        return [table.get(name) for name in names]
    return [_label(labels, name, leaf) for name, leaf in zip(names, trees.leaves(tree), strict=True)]


def _label(labels: Callable[[str, Tensor], Any], name: str, leaf: Tensor) -> Any:
    try:
        return labels(name, leaf)
    except AttributeError as error:
        if leaf is not None:
            raise
        raise ValueError(
            f"the label of {name!r} depends on more than its name, but it has no gradient here. Pass the parameters: "
            "update(grads, state, params)."
        ) from error
