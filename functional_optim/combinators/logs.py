"""`log_values`: what a run is worth watching for, as numbers by name."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.inspect import hparams_at
from functional_optim.form import Path, part_at
from functional_optim.hparams import HParams, PerLeaf
from functional_optim.recipe import answering
from functional_optim.transform import Transform
from functional_optim.trees import Tree


@answering
def log_values(transform: Transform, state: Tree, hparams: HParams | None = None) -> dict[str, Tensor]:
    """The hyper-parameters in force and the numbers that a state holds for all parameters together, by flat names.

    Nothing is read or copied: ask for a value, `float(values["lr"])`, when you want it.

    Args:
        transform: the one that the state belongs to.
        state: what `init_state` or the last `update` returned.
        hparams: what is given to `update`.

    Returns:
        Name to () tensor:

        - every hyper-parameter, as `hparams_at` tells it for the next update: `lr`; of a pair `betas.0` and `betas.1`; with one
          value per leaf `lr.layers.0.weight`; inside a `partition` `label.lr`;
        - the norms of `monitor` and `log_norms` over all parameters, `grad_norm`;
        - what gates and schedules count, `micro_step`, `skipped`, `schedule_step`;
        - what else a rule keeps for all, such as the scale of `reduce_on_plateau` or the distance of `prodigy`.

        A number of the state is called by the last key to it, and where several are called so, or a hyper-parameter is, by as
        many keys as tell it apart. These are the tensors of the state themselves.

    Raises:
        ValueError: the state is not one of this transform.

    Behind an optimizer it is `fo.adapters.log_values(optimizer)`. optax has nothing like it.

    >>> from functional_optim import chain, monitor, scheduled, sgd
    >>> tx = scheduled(chain(monitor("grad"), sgd()), lr=lambda step: 0.5 ** (step + 1))
    >>> w = torch.tensor([3.0, 4.0])
    >>> _, state = tx.update(w, tx.init_state(w), w)
    >>> {name: float(value) for name, value in log_values(tx, state).items()}
    {'lr': 0.25, 'schedule_step': 1.0, 'grad_norm': 5.0}
    """
    numbers = _without_repeats(hparams_at(transform, state, hparams))
    given = {name: _tensor(value) for key, number in numbers.items() for name, value in _each(key, number)}
    kept = dict(_logged(transform, state, ()))
    return {**given, **{_short(path, kept, given): value for path, value in kept.items()}}


def _without_repeats(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters without those of a branch, `label.lr`, that are the `lr` of all."""
    return {name: value for name, value in numbers.items() if "." not in name or numbers.get(name.split(".")[-1]) is not value}


def _each(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The numbers that a hyper-parameter is made of, by name."""
    if isinstance(value, PerLeaf):
        for leaf, each in trees.by_name(value.tree).items():
            yield f"{name}.{leaf}" if leaf else name, each
    elif isinstance(value, tuple | list):
        for i, each in enumerate(value):
            yield from _each(f"{name}.{i}", each)
    elif isinstance(value, Tensor) and value.ndim:
        yield from _each(name, value.unbind())
    else:
        yield name, value


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")


def _logged(transform: Transform, state: Tree, path: Path) -> Iterator[tuple[Path, Tensor]]:
    """What this transform, and all inside it, keep for all leaves, by the keys to it."""
    for name, value in transform.form.logs(state).items():
        yield (*path, name), value
    for keys, part in transform.form.parts.items():
        yield from _logged(part, part_at(state, keys), (*path, *keys))


def _short(path: Path, others: Mapping[Path, Any], taken: Mapping[str, Any]) -> str:
    """The shortest ending of the path that nothing else is called by."""
    for i in range(len(path) - 1, 0, -1):
        endings = Counter(other[i - len(path) :] for other in others)
        if endings[path[i:]] == 1 and ".".join(path[i:]) not in taken:
            return ".".join(path[i:])
    return ".".join(path)
