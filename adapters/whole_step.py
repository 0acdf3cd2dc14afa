"""The step that calls the transform itself: what every engine is compared with, and what runs where none does."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from functional_optim.hparams import PerLeaf
from functional_optim.transform import Transform

from .extra import extra_of
from .leaves import Numbered, full_gradient, leaves_of, multiplied
from .state.layout import Key, detached_from

if TYPE_CHECKING:
    from .stepping import Stepping


def whole_step(
    optimizer: "Stepping",
    transform: Transform,
    groups: list[Numbered],
    closure: Callable[[], Any] | None,
    extra: Mapping[str, Any],
    factor: float = 1.0,
) -> Callable[[], None]:
    """The step of one transform, computed; what is returned writes it down.

    It sees all parameters that have a state, for a wrapper may have something to do for those without a gradient, too.
    Gradients are multiplied by the factor.
    """
    leaves = leaves_of(groups)
    if not leaves:  # As any step: nothing has a gradient, and perhaps nothing has a state yet.
        return lambda: None
    on_host = not torch.compiler.is_compiling() and not any(leaf.group.get("capturable") for leaf in leaves)
    hparams = optimizer.hparams_of_leaves(transform, leaves)
    layout, states = optimizer.started(transform, groups, leaves, on_host)
    involved = [leaf for leaf in leaves_of(groups, states) if layout.is_complete(leaf.key, states[leaf.key])]
    keys, apart = [leaf.key for leaf in involved], len(involved) > len(leaves)

    params = {leaf.key: leaf.param for leaf in involved}
    grads = {leaf.key: multiplied(full_gradient(leaf.param), factor) for leaf in involved}
    old = layout.read(keys, states, on_host, apart)
    # Nothing is written to what has no gradient, unless a wrapper has made something new of it.
    written = [leaf.key for leaf in leaves]
    owned = [*(params[key] for key in written), *(x for key in written for x in states[key].values())]
    computed = transform.update(grads, old, params, _for_all(hparams, keys), **extra_of(involved, closure, extra))
    updates, nested = detached_from(owned, computed)

    def write() -> None:
        layout.write(nested, keys, states)
        for leaf in leaves:
            leaf.param.add_(updates[leaf.key])
        optimizer.store(groups, states)

    return write


def _for_all(hparams: Mapping[str, Any], keys: Sequence[Key]) -> dict[str, Any]:
    """Hyper-parameters of some of these leaves, with values for the others too, which have no gradient and so no use for them."""
    return {name: _for_each(value.tree, keys) if isinstance(value, PerLeaf) else value for name, value in hparams.items()}


def _for_each(values: Mapping[Key, Any], keys: Sequence[Key]) -> PerLeaf:
    of_group = {key.group: value for key, value in values.items()}
    any_value = next(iter(values.values()))
    return PerLeaf({key: values.get(key, of_group.get(key.group, any_value)) for key in keys})
