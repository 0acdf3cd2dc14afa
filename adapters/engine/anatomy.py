"""Where everything is in the trees that `update` is given: what each part of a transform sees of them, and keeps in the state."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.gate import Gated
from functional_optim.combinators.origin import Origin
from functional_optim.form import Form, Path, part_at
from functional_optim.hparams import HParams, PerLeaf
from functional_optim.numerics import double
from functional_optim.transform import Transform
from functional_optim.trees import Tree

from ..state.layout import Key
from .buckets import Leaf
from .fresh import Leaves, Place
from .given import CountTable
from .memory import on_host
from .work import Refused

# A place among the leaves of a state, or one for each parameter.
Cells: TypeAlias = int | Mapping[Key, int]


class TensorCounts(CountTable):
    """Counts that are the same for all leaves, as tensors."""

    def of(self, row: int) -> dict[Path, Any]:
        """By their paths."""
        return dict(zip(self.paths, self.rows[row], strict=True))

    def column(self, path: Path, leaves: Sequence[Leaf]) -> list[Any]:
        """One of them, of some leaves."""
        return [self.rows[0][self.paths.index(path)]] * len(leaves)


class Anatomy:
    """Of trees of one structure.

    Args:
        transform: whose they are.
        given: their leaves.
        spec: the structure of the parameters, and of the gradients.
        state_spec: that of the state.

    Attributes:
        sketches: a tree of parameters without memory, from which parts of the transform choose their own.
        keys: what the parameters are called, in order.
        counts: the places of the counts of rules and the clocks of wrappers, by path.
        clocks: the paths of the latter.
    """

    def __init__(self, transform: Transform, given: Leaves, spec: trees.Spec, state_spec: trees.Spec) -> None:
        self.transform, self._spec = transform, spec
        sketches = [torch.empty_like(p, device="meta") if isinstance(p, Tensor) else p for p in given.params]
        self.sketches = trees.unflatten(spec, sketches)
        self.keys = [Key(0, i, name) for i, name in enumerate(trees.names(self.sketches))]
        self._known = {id(x): key for x, key in zip(sketches, self.keys, strict=True) if x is not None}
        self._cells = trees.unflatten(state_spec, list(range(len(given.state))))
        self.counts: dict[Path, Cells] = {}
        self.clocks: list[Path] = []
        for path, form, share in self._holders(transform, (), self.sketches):
            self.clocks += [(*path, name) for name in form.clocks]
            for name in (*form.own_counts, *form.clocks):
                self.counts[(*path, name)] = self.values((*path, name), share)
        self._single = {path: cell for path, cell in self.counts.items() if isinstance(cell, int)}

    def keys_of(self, share: Tree) -> list[Key | None]:
        """The parameters in a tree of some sketches; None where there is none."""
        return [self._known.get(id(x)) for x in trees.leaves(share)]

    def one(self, path: Path) -> int:
        """The place of the only value at this path of the state.

        Raises:
            Refused: there is none, or there are several.
        """
        (cell,) = self._under(path)[0] or (None,)
        if cell is None:
            raise Refused(f"the state has no value {'.'.join(path)!r}")
        return cell

    def each(self, path: Path, share: Tree) -> dict[Key, int]:
        """The places of the values at this path, which are a tree like the parameters in `share`.

        Raises:
            Refused: they are none.
        """
        cells, keys = self._under(path)[0], self.keys_of(share)
        if len(cells) != len(keys):
            raise Refused(f"the state holds no tree like the parameters at {'.'.join(path)!r}")
        return {key: cell for key, cell in zip(keys, cells, strict=True) if key}

    def values(self, path: Path, share: Tree) -> Cells:
        """The place of a count, or those of one for each parameter."""
        return self.each(path, share) if isinstance(self._at(path), PerLeaf) else self.one(path)

    def place(self, path: Path, share: Tree) -> Place:
        """What is called at this path sees of the parameters, and keeps."""
        cells, state_spec = self._under(path)
        return Place(self.keys_of(share), trees.flatten(share)[1], cells, state_spec)

    def is_whole(self, share: Tree) -> bool:
        """Whether these are all parameters, as they were given."""
        return trees.flatten(share)[1] == self._spec

    def groups(self, hparams: HParams) -> tuple[tuple[int, ...], Mapping[int, HParams]]:
        """The group of each leaf, of those that take the same hyper-parameters; and these, of each group."""
        per_leaf = {name: value.values(self._spec, name) for name, value in hparams.items() if isinstance(value, PerLeaf)}
        if not per_leaf:
            return (0,) * len(self.keys), {0: hparams}
        groups: dict[Any, int] = {}
        for i in range(len(self.keys)):
            groups.setdefault(tuple(_known_by(column[i]) for column in per_leaf.values()), len(groups))
        found = tuple(groups[tuple(_known_by(column[i]) for column in per_leaf.values())] for i in range(len(self.keys)))
        each = {group: i for i, group in reversed([*enumerate(found)])}
        return found, {group: {**hparams, **{name: column[i] for name, column in per_leaf.items()}} for group, i in each.items()}

    def table(self, given: Leaves) -> CountTable:
        """The counts before the step; where it would take long to read them, they stay tensors.

        Raises:
            Refused: leaves have counts of their own, which would have to be read.
        """
        common = {path: given.state[cell] for path, cell in self._single.items()}
        if not all(map(on_host, common.values())):
            if len(common) < len(self.counts):
                raise Refused("leaves have counts of their own on another device")
            return TensorCounts(list(common), [list[Any](map(double, common.values()))] * len(self.keys))
        row = list(map(int, common.values()))
        own = [cells for cells in self.counts.values() if not isinstance(cells, int)]
        if not own:
            return CountTable(list(common), [row] * len(self.keys))
        paths = [*common, *(path for path in self.counts if path not in common)]
        rows = [[*row, *(int(given.state[cells[key]]) if key in cells else 0 for cells in own)] for key in self.keys]
        return CountTable(paths, rows)

    def _holders(self, transform: Transform, path: Path, share: Tree) -> Iterator[tuple[Path, Form, Tree]]:
        """The keys to the state, the form, and what it sees, of a transform and of all inside it that engines look into."""
        form = transform.form
        yield path, form, share
        given = {name: Origin((name,)) for name in transform.declared}
        if isinstance(form, Gated) or form.origins(path, given) is not None:
            shares = form.shares(share)
            for keys, part in form.parts.items():
                yield from self._holders(part, (*path, *keys), shares[keys])

    def _at(self, path: Path) -> Tree:
        try:
            return part_at(self._cells, path)
        except (KeyError, TypeError) as error:
            raise Refused(f"the state has nothing at {'.'.join(path)!r}") from error

    def _under(self, path: Path) -> tuple[list[int], trees.Spec]:
        return trees.flatten(self._at(path))


def _known_by(value: Any) -> Any:
    """Equal for equal numbers, and for the same tensors."""
    if isinstance(value, tuple | list):
        return tuple(map(_known_by, value))
    return id(value) if isinstance(value, Tensor) else trees.distinct(value)
