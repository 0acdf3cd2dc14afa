"""How a transform works inside: what engines, layouts, laws and people may ask of it, whatever it is made of."""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from torch import Tensor

from functional_optim import trees
from functional_optim.hparams import HParams
from functional_optim.trees import Tree

if TYPE_CHECKING:
    from functional_optim.combinators.origin import Handed, Origin
    from functional_optim.transform import Transform

# The keys to a part's state in the state of the whole.
Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Needs:
    """The names of what `update` has to be given by keyword.

    Attributes:
        numbers: numbers or () tensors, such as the loss `value`.
        trees: trees like the parameters, such as `hessian_diag`.
        functions: functions of the parameters, such as `evaluate`.
    """

    numbers: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()


class Engine(Protocol):
    """Another way to run an update of plain tensors, to the same end."""

    def __call__(
        self, grads: Tree, state: Tree, params: Tree, hparams: HParams, extra: Mapping[str, Any], *, steps: bool
    ) -> tuple[Tree, Tree] | None:
        """The updates, or if `steps` the new parameters, and the next state; None where the rules are to be run."""
        ...


class Form(ABC):
    """How a transform works: its two functions, and what may be asked about them.

    The answers given here are those of a transform of which nothing is known but the two functions.
    """

    options: Mapping[str, Any] = {}
    """Static choices that were made when it was built."""
    constants: tuple[str, ...] = ()
    """The keys of its state that derivatives take for constants, though they change with what came before."""

    @abstractmethod
    def init(self, params: Tree, hp: HParams) -> Tree:
        """The state before the first update."""

    @abstractmethod
    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The new updates, and the next state."""

    @property
    def engine(self) -> Engine | None:
        """Another way to run an update of plain tensors."""
        return None

    @property
    def needs(self) -> Needs:
        """What `update` has to be given beside the gradients, by this form itself."""
        return Needs()

    @property
    def provides(self) -> tuple[str, ...]:
        """The names of what it gives its parts of that by itself."""
        return ()

    @property
    def own_counts(self) -> tuple[str, ...]:
        """The keys of its state that hold a count which may differ between leaves: of a leaf's own updates."""
        return ()

    @property
    def clocks(self) -> tuple[str, ...]:
        """The keys of its state that hold a count which is one for all leaves: of all updates, whoever had a gradient."""
        return ()

    @property
    def seeds(self) -> tuple[str, ...]:
        """The keys of its state that hold a seed of random numbers."""
        return ()

    def logs(self, state: Tree) -> Mapping[str, Tensor]:
        """The numbers that it keeps for all leaves and that a person may want to follow, () tensors, by the keys of its state;
        parts are asked for themselves."""
        return {name: state[name] for name in self.clocks}

    def remarks(self, state: Tree) -> Sequence[str]:
        """What has gone wrong so far, by what it has counted, for `explain`; parts are asked for themselves."""
        return ()

    def evaluated(self, state: Tree, params: Tree) -> Tree:
        """Where the parameters are to be evaluated, a tree like them; None for a leaf that is evaluated where it is trained.

        Of several parts that tell, the last one does.
        """
        found = trees.map_leaves(lambda _: None, params)
        for keys, part in self.parts.items():
            own = part.form.evaluated(part_at(state, keys), params)
            found = latter(found, own)
        return found

    @property
    def mixes_leaves(self) -> bool:
        """Whether what becomes of a leaf may depend on other leaves, or on what it is called; parts are asked for themselves."""
        return True

    @property
    def sees_shapes(self) -> bool:
        """Whether one vector made of all leaves might fare otherwise than the leaves; parts are asked for themselves."""
        return True

    def takes_each(self, name: str) -> bool:
        """Whether this hyper-parameter may have one value per leaf."""
        del name
        return False

    def concerns(self, p: Tensor) -> bool:
        """Whether it may do anything for this parameter, of those that it sees."""
        del p
        return True

    @property
    def parts(self) -> Mapping[Path, Transform]:
        """The transforms inside, each by the keys to its state; none for a rule."""
        return {}

    def shares(self, params: Tree) -> Mapping[Path, Tree]:
        """What each part sees of a tree of parameters."""
        return dict.fromkeys(self.parts, params)

    def handed(self, keys: Path, hp: HParams, state: Tree) -> dict[str, Any]:
        """The hyper-parameters that a part gets, of its own and the state before the update."""
        del state
        return self.parts[keys].select(hp)

    def outer_name(self, keys: Path, name: str) -> str:
        """What a hyper-parameter of a part is called outside."""
        del keys
        return name

    def origins(self, path: Path, outer: Mapping[str, Origin]) -> Handed | None:
        """Where the hyper-parameters of each part come from, if all that this form does is to run its parts, in order, each on
        what it sees; else None, and no engine looks inside.

        Args:
            path: the keys to its own state.
            outer: where its own hyper-parameters come from.
        """
        del path, outer
        return None

    @property
    def after(self) -> Transform | None:
        """A rule of this form's own that is run when its parts have been, of which `origins` tells; with the state that is not
        theirs. What had arrived at the parts it may ask for, under the name of `arrived`."""
        return None

    @property
    def copy(self) -> str | None:
        """The key of its state to what its parts take for the parameters, and move; which are this, rounded, after each step."""
        return None

    def check(self, params: Tree) -> None:
        """Raise where these parameters, all of them, don't suit; called once, by `init_state`."""
        for keys, share in self.shares(params).items():
            self.parts[keys].form.check(share)

    def check_each(self, params: Tree) -> None:
        """Raise where one of these parameters doesn't suit, whatever others there are: `params` may be some of them only."""
        for keys, share in self.shares(params).items():
            self.parts[keys].form.check_each(share)


@dataclass(frozen=True, eq=False)
class ByHand(Form):
    """The form of a transform of which only the two functions are given."""

    init_fn: Callable[[Tree, HParams], Tree]
    update_fn: Callable[..., tuple[Tree, Tree]]

    def init(self, params: Tree, hp: HParams) -> Tree:
        """As the function given."""
        return self.init_fn(params, hp)

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """As the function given."""
        return self.update_fn(updates, state, params, hp, **extra)

    def logs(self, state: Tree) -> Mapping[str, Tensor]:
        """The () tensors among the entries of its state, if it has entries."""
        entries = state.items() if isinstance(state, Mapping) else ()
        return {name: value for name, value in entries if isinstance(value, Tensor) and value.ndim == 0}


def latter(tree: Tree, other: Tree) -> Tree:
    """The leaves of `other`, and where these are None, those of `tree`."""
    leaves, spec = trees.flatten(tree)
    return trees.unflatten(spec, [a if b is None else b for a, b in zip(leaves, trees.leaves(other), strict=True)])


def needed(transform: Transform) -> Needs:
    """What a transform has to be given beside the gradients: what it needs itself, and what its parts do."""
    every = [transform.form.needs, *map(needed, transform.form.parts.values())]

    def names(kind: str) -> tuple[str, ...]:
        found = dict.fromkeys(name for needs in every for name in getattr(needs, kind))
        return tuple(name for name in found if name not in transform.form.provides)

    return Needs(names("numbers"), names("trees"), names("functions"))


def part_at(state: Tree, path: Path) -> Any:
    """What a state has under these keys, one inside the other."""
    return functools.reduce(operator.getitem, path, state)


def with_part(state: Tree, path: Path, change: Callable[[Any], Any]) -> Tree:
    """The state with what it has under these keys changed."""
    return {**state, path[0]: with_part(state[path[0]], path[1:], change)} if path else change(state)


def nested(transform: Transform, path: Path = ()) -> Iterator[tuple[Path, Form]]:
    """The keys to the state, and the form, of a transform and of all inside it, outermost first."""
    yield path, transform.form
    for keys, part in transform.form.parts.items():
        yield from nested(part, (*path, *keys))
