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
from functional_optim.checks import misfit
from functional_optim.hparams import require_count
from functional_optim.recipe import answering
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
        """Whether a pattern of this label catches whatever is left, such as `r".*"`."""
        return any(own == label and self._catches_all(pattern, names) for pattern, own in self.patterns.items())

    def check(self, names: Sequence[str]) -> None:
        """Raise ValueError for a pattern that fits some names, of which others before it leave it none."""
        caught: dict[str, str] = {}
        for pattern in self.patterns:
            for name in names:
                if re.search(pattern, name):
                    caught.setdefault(name, pattern)
        rest = next((pattern for pattern in self.patterns if self._catches_all(pattern, names)), None)
        for pattern, label in self.patterns.items():
            winners = {name: caught[name] for name in names if re.search(pattern, name)}
            if pattern == rest or not winners or any(self.patterns[first] == label for first in winners.values()):
                continue
            name, winner = next(iter(winners.items()))
            raise ValueError(
                f"the pattern {pattern!r} of by_name, for {label!r}, is left nothing to catch: the first pattern found in a name "
                f"wins, and {winner!r}, for {self.patterns[winner]!r}, comes before it, as for {name!r}. "
                "Put special patterns first, and what catches the rest last."
            )

    def _catches_all(self, pattern: str, names: Sequence[str]) -> bool:
        """Whether a pattern is found in all of these names, and in one that no parameter has."""
        return all(re.search(pattern, name) for name in (*names, "\0"))


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


@answering
def by_name(patterns: Mapping[str, str]) -> ByName:
    r"""Label a parameter by the first regular expression that is found anywhere in its name.

    Args:
        patterns: expression to label, tried in order: `{r"\.weight$": "decay", r".*": "plain"}`.

    Raises:
        TypeError: `patterns` is no mapping.
        ValueError: a pattern is no regular expression; or, from the `init_state` of what is labelled so, it fits some names, but
            patterns before it catch all of these. A last pattern for the rest may find nothing.

    >>> by_name({r"norm": "plain", r"\.weight$": "decay"})("layers.0.norm.weight", None)
    'plain'
    """
    if not isinstance(patterns, Mapping):
        raise TypeError(f"patterns is a {type(patterns).__name__}: expected a mapping of regular expressions to labels.")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{pattern!r} is no regular expression: {error}. It is searched for anywhere in a name, and '.*' is what '*' is "
                r"to a shell: r'\.weight$' for '*.weight'; re.escape(text) finds a text as it stands."
            ) from None
    return ByName(dict(patterns))


@answering
def by_ndim(labels: Mapping[int, str], otherwise: str | None = None) -> ByNdim:
    """Label a parameter by its number of dimensions: `by_ndim({2: "matrix"}, otherwise="rest")`.

    Args:
        labels: number of dimensions to label.
        otherwise: the label of all other parameters; None for an error.

    Raises:
        TypeError: `labels` is no mapping, or a key no whole number.
        ValueError: a key is less than 0.
    """
    if not isinstance(labels, Mapping):
        raise TypeError(f"labels is a {type(labels).__name__}: expected a mapping of numbers of dimensions to labels.")
    counts = {require_count("a number of dimensions in labels", ndim, 0): label for ndim, label in labels.items()}
    return ByNdim(counts, otherwise)


@answering
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
    if not isinstance(model, nn.Module) or not isinstance(labels, Mapping):
        raise TypeError(
            f"by_module(model, labels) got a {type(model).__name__} and a {type(labels).__name__}: expected a module, "
            "and a mapping of types of modules to labels."
        )
    modules = dict(model.named_modules())
    found = {}
    for name, _ in model.named_parameters():
        holder = modules[name.rpartition(".")[0]]
        label = next((label for kind, label in labels.items() if isinstance(holder, kind)), otherwise)
        if label is not None:
            found[name] = label
    return found


def require_labels(labels: Any, where: str, returns: str) -> None:
    """Raise TypeError for a function that does not take what a function of labels gets."""
    problem = misfit(labels, "", None) if callable(labels) else ""
    if problem:
        raise TypeError(
            f"{where}, a function, is called with the name and the tensor of one parameter, lambda name, leaf: ..., and returns "
            f"{returns}; but this one takes {problem}. Where it takes the whole tree of parameters, as optax's does, "
            "call it and give what it returns."
        )


def labels_of(labels: Labels, tree: Tree, *, of_params: bool) -> list[Any]:
    """The label of every leaf of a tree, in order, None where there is none; `of_params` tells it from a tree of gradients."""
    names = trees.names(tree)
    if not callable(labels):
        table = trees.by_name(labels)
        return [table.get(name) for name in names]
    return [_label(labels, name, leaf, of_params) for name, leaf in zip(names, trees.leaves(tree), strict=True)]


def _label(labels: Callable[[str, Tensor], Any], name: str, leaf: Tensor, of_params: bool) -> Any:
    try:
        return labels(name, leaf)
    except AttributeError as error:
        if leaf is not None:
            raise
        if of_params:
            return None  # What is no parameter needs no label.
        raise ValueError(
            f"the label of {name!r} depends on more than its name, but it has no gradient here. Pass the parameters: "
            "update(grads, state, params)."
        ) from error
