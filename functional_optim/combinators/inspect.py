"""Looking into a state by name, and at the hyper-parameters in force."""

from collections.abc import Iterator, Mapping
from typing import Any

from functional_optim.form import Path, part_at, with_part
from functional_optim.hints import hint
from functional_optim.hparams import HParams
from functional_optim.recipe import answering
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@answering
def state_get(state: Tree, name: str) -> Any:
    """The entry of a state with this name, at whatever depth.

    Args:
        state: of any transform.
        name: the entry's key, `"exp_avg"`; where several have it, as much of the path as tells them apart, joined by dots:
            `"scale_by_adam_1.exp_avg"`.

    Of a slot in codes, as `quantized` keeps them, these are the codes: `codec.decode((codes, scales), kind, p.shape)` of its
    `Blockwise`, with `state_get(state, "exp_avg.scale")` and the kind `"signed"`, or `"positive"` for averages of squares.

    Raises:
        KeyError: no entry, or several, have that name; the message lists them.

    As `optax.tree_utils.tree_get`.

    >>> import torch
    >>> from functional_optim import adamw
    >>> state_get(adamw().init_state(torch.zeros(2)), "exp_avg")
    tensor([0., 0.])
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            f"state is a {type(state).__name__}: expected the state of a transform. "
            f"Of an optimizer, optimizer.state[parameter] has the slots, {name!r} among them."
        )
    return part_at(state, _path_of(state, name))


@answering
def state_set(state: Tree, name: str, value: Any) -> Tree:
    """The same state with another value for the entry of this name; see `state_get`. The given state is left alone.

    >>> import torch
    >>> from functional_optim import scale_by_adam
    >>> state = scale_by_adam().init_state(torch.zeros(2))
    >>> state_set(state, "step", torch.tensor(100))["step"]
    tensor(100)
    """
    return with_part(state, _path_of(state, name), lambda old: value)


@answering
def hparams_at(transform: Transform, state: Tree, hparams: HParams | None = None) -> dict[str, Any]:
    """The values of all hyper-parameters, scheduled ones included, that the next update from this state uses.

    Args:
        transform: the one that the state belongs to.
        state: what `init_state` or the last `update` returned.
        hparams: what will be given to `update`.

    Returns:
        Name to value. Inside a `partition`, `label.name` tells what each branch uses.

    >>> import torch
    >>> from functional_optim import scheduled, sgd
    >>> tx = scheduled(sgd(), lr=lambda step: 0.5 ** (step + 1))
    >>> hparams_at(tx, tx.init_state(torch.zeros(2)))
    {'lr': tensor(0.5000, dtype=torch.float64)}
    """
    require_transform(transform, "hparams_at(transform, state)")
    complete = transform.select(transform.complete(hparams))
    try:
        return _in_force(transform, state, complete)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the state is not one of {transform.name}, which has an entry {error}: pass what init_state or the last update "
            "of this very transform returned."
        ) from error


def _in_force(transform: Transform, state: Tree, hp: HParams) -> dict[str, Any]:
    found, form = dict(hp), transform.form
    for keys, part in form.parts.items():
        inner = _in_force(part, part_at(state, keys), form.handed(keys, hp, state))
        found |= {form.outer_name(keys, name): value for name, value in inner.items()}
    return found


def _path_of(state: Tree, name: str) -> Path:
    every = list(_paths(state))
    found = [path for path in every if name in (".".join(path[i:]) for i in range(len(path)))]
    # A whole path is as much as can be given, though a parameter may be called like a slot.
    whole = [path for path in found if ".".join(path) == name]
    if len(whole) == 1 or len(found) == 1:
        return (whole or found)[0]
    if found:
        raise KeyError(f"several entries are called {name!r}: {', '.join(map('.'.join, found))}. Give more of the path.")
    names = list(dict.fromkeys(path[-1] for path in every))
    raise KeyError(f"the state has no entry {name!r}; it has: {', '.join(names)}.{hint(name, names)}")


def _paths(state: Tree, path: Path = ()) -> Iterator[Path]:
    if isinstance(state, Mapping):
        for key, entry in state.items():
            if isinstance(key, str):
                yield (*path, key)
                yield from _paths(entry, (*path, key))
