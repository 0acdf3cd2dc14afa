"""`chain`: one transform after another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from functional_optim.checks import require_state_per_part
from functional_optim.combinators.combined import Transparent
from functional_optim.combinators.origin import Handed, Origin
from functional_optim.form import Path
from functional_optim.hparams import HParams, merge
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class Chained(Transparent):
    """The form of a chain: its links by name, in order."""

    links: Mapping[str, Transform]

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {(name,): link for name, link in self.links.items()}

    def origins(self, path: Path, outer: Mapping[str, Origin]) -> Handed:
        """Each link's names are the chain's."""
        return {(name,): {own: outer[own] for own in link.declared} for name, link in self.links.items()}

    def init(self, params: Tree, hp: HParams) -> Tree:
        """Each link's state under its name."""
        return {name: link.init_fn(params, link.select(hp)) for name, link in self.links.items()}

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """Each link in turn on what the one before it returned."""
        require_state_per_part(state, self.links, "chain", "link")
        new_state = {}
        for name, link in self.links.items():
            updates, new_state[name] = link.update_fn(updates, state[name], params, link.select(hp), **extra)
        return updates, new_state


@recorded
def chain(*transforms: Transform, name: str = "chain") -> Transform:
    """One transform after another: each gets the updates that the one before it returned.

    The hyper-parameters of the links are merged into one flat mapping; links that share a name (`lr`) share its value. The
    state is a dict keyed by the links' names, a second `scale_by_adam` being `"scale_by_adam_1"`. `chain()` is the
    identity.

    Args:
        transforms: the links, first to last.
        name: what errors, and the state of a chain around this one, call it.

    Raises:
        TypeError: a link is not a `Transform` (often a constructor that was not called), or `name` is no text.
        ValueError: two links give one hyper-parameter different defaults; tell them apart with `rename_hparams`.

    >>> from functional_optim import clip_by_global_norm, scale_by_learning_rate
    >>> chain(clip_by_global_norm(max_norm=0.5), scale_by_learning_rate())
    chain(clip_by_global_norm(max_norm=0.5), scale_by_learning_rate(lr=0.001))

    As `optax.chain`, whose state is a tuple.
    """
    if not isinstance(name, str):
        raise TypeError(f"name = {name!r} of chain: expected a text.")
    links: dict[str, Transform] = {}
    for i, transform in enumerate(transforms):
        if isinstance(transform, list | tuple):
            raise TypeError(f"link {i} of {name} is a {type(transform).__name__}: give the links one by one, chain(*links).")
        require_transform(transform, f"link {i} of {name}")
        links[_free_name(transform.name, links)] = transform
    form = Chained(links)
    return Transform.of(form, merge({key: link.declared for key, link in links.items()}), name)


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    candidates = (name if i == 0 else f"{name}_{i}" for i in range(len(taken) + 1))
    return next(candidate for candidate in candidates if candidate not in taken)
