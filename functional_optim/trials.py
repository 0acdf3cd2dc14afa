"""What the laws try a transform on, and how they compare: `Trial`, and checks that say where something differs."""

import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.apply import apply_updates
from functional_optim.evaluate import LossAt
from functional_optim.form import nested
from functional_optim.intervals import contains
from functional_optim.transform import Transform
from functional_optim.trees import Tree

# Both sides of a comparison do the same float64 arithmetic; only the order of a sum may differ.
ROUNDING = 1e-10


class LawBrokenError(AssertionError):
    """A transform broke a law; the message says which, and where."""


@dataclass(frozen=True)
class Trial:
    """A transform, and parameters to try it on.

    Attributes:
        transform: the transform on trial.
        params: float64 tensors, one of them () so that dtype promotion shows.
    """

    transform: Transform
    params: dict[str, Tensor]

    def sample(self, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Random values like the parameters, of size about 1 and none near 0, where many rules have a kink."""
        generator = torch.Generator("cpu").manual_seed(seed)
        normal = {name: torch.randn(p.shape, generator=generator, device="cpu") for name, p in self.params.items()}
        return {name: away_from_zero(x).to(dtype) for name, x in normal.items()}

    def values(self, name: str) -> list[Any]:
        """Three different values of a hyper-parameter, as () tensors: the default, and two within the range."""
        hparam = self.transform.declared[name]
        if isinstance(hparam.default, tuple):
            each = [three_values(x, interval) for x, interval in zip(hparam.default, hparam.ranges, strict=True)]
            return [tuple(values) for values in zip(*each, strict=True)]
        return three_values(hparam.default, hparam.ranges[0])

    def hparams(self, i: int = 0) -> dict[str, Any]:
        """Every hyper-parameter at the i-th of its values."""
        return {name: self.values(name)[i] for name in self.transform.hparams}

    @property
    def update(self) -> Callable[..., tuple[Tree, Tree]]:
        """The transform's `update`, given what else it asks for."""
        return functools.partial(self.transform.update, **self.extra())

    def extra(self, build: Callable[[dict[str, Tensor]], Any] = lambda tree: tree) -> dict[str, Any]:
        """What the transform asks for by keyword: numbers, trees of positive values in the form that `build` gives them, the
        loss ½|p|² by its `evaluate`."""
        extra: dict[str, Any] = {}
        for _, form in nested(self.transform):
            extra |= dict.fromkeys(form.needs.functions, evaluated_half_square) | dict.fromkeys(form.needs.numbers, 1.5)
            positive = {name: p.abs() + 0.1 for name, p in self.params.items()}
            extra |= {name: build(positive) for name in form.needs.trees}
        if {"value", "evaluate"} <= extra.keys():  # What looks elsewhere compares.
            extra["value"] = float(half_square(self.params))
        return extra

    def run(self, steps: int, hparams: Mapping[str, Any] | None = None) -> tuple[Tree, Tree]:
        """Parameters and state after some steps."""
        params, state = self.params, self.transform.init_state(self.params, hparams)
        for step in range(steps):
            updates, state = self.update(self.sample(step), state, params, hparams)
            params = apply_updates(params, updates)
        return params, state


def half_square(params: Tree) -> Tensor:
    return torch.stack([(p * p).sum() / 2 for p in trees.leaves(params) if p is not None]).sum()


def evaluated_half_square(params: Tree) -> LossAt:
    """`evaluate` of ½|p|², whose gradient is p."""
    return LossAt(half_square(params), params, None)


def default_params() -> dict[str, Tensor]:
    """A matrix, a vector and a () tensor."""
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = {"matrix": (2, 2), "vector": (2,), "scalar": ()}
    options: Any = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    return {name: away_from_zero(torch.randn(shape, **options)) for name, shape in shapes.items()}


def require(holds: bool, complaint: str) -> None:
    if not holds:
        raise LawBrokenError(complaint)


def tensors(tree: Tree, root: str) -> Iterator[tuple[str, Tensor]]:
    for path, leaf in zip(trees.paths(tree, root), trees.leaves(tree), strict=True):
        if isinstance(leaf, Tensor):
            yield path, leaf


def require_alike(tree: Tree, reference: Tree, what: str) -> None:
    require(trees.flatten(tree)[1] == trees.flatten(reference)[1], f"the {what} changed their structure")
    for (path, x), (_, y) in zip(tensors(tree, ""), tensors(reference, ""), strict=True):
        described = f"{x.dtype} of shape {tuple(x.shape)}", f"{y.dtype} of shape {tuple(y.shape)}"
        require(described[0] == described[1], f"the {what} at {path or 'the root'} are {described[0]}, not {described[1]}")


def require_close(tree: Tree, reference: Tree, what: str, *, root: str | None = None, tolerance: float = ROUNDING) -> None:
    found, expected = dict(tensors(tree, "")), dict(tensors(reference, ""))
    require(found.keys() == expected.keys(), f"{what} has the leaves {list(found)}, not {list(expected)}")
    for path, x in found.items():
        y = expected[path]
        where = f"{what}{path if root is None else f' at {path}'}"
        require(x.shape == y.shape, f"{where} has shape {tuple(x.shape)}, not {tuple(y.shape)}")
        if not torch.allclose(x.double(), y.double(), rtol=tolerance, atol=tolerance, equal_nan=False):
            raise LawBrokenError(f"{where} is off by {(x.double() - y.double()).abs().max().item():.3g}: {x} instead of {y}")


def away_from_zero(x: Tensor) -> Tensor:
    return x + 0.3 * torch.where(x < 0, -1.0, 1.0)


def three_values(default: float, interval: str) -> list[Tensor]:
    """The default and two nearby values inside the interval."""
    x = float(default)
    candidates = (0.8 * x, 0.6 * x, x + 0.1, x + 0.2, x - 0.1, x - 0.2, x + 1, x + 2)
    nearby = [y for y in candidates if contains(interval, y)]
    different = [y for y in nearby if y != x][:2]
    return [torch.tensor(y, dtype=torch.float64, device="cpu") for y in (x, *different, x, x)][:3]


def flattened(tree: Tree) -> Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in trees.leaves(tree)])


def zeros_like(tree: Tree) -> Tree:
    return trees.map_leaves(torch.zeros_like, tree)


def cast(tree: Tree, dtype: torch.dtype) -> Tree:
    return trees.map_leaves(lambda x: x.to(dtype), tree)


def widened(tree: Tree, dtype: torch.dtype) -> Tree:
    return trees.map_leaves(lambda x: x.float() if x.dtype == dtype else x, tree)


def stacked(several: Sequence[Tree]) -> Tree:
    return trees.map_leaves(lambda *leaves: torch.stack(leaves), *several)


def dot(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(xs, ys, strict=True)]).sum()


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
