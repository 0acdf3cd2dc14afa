"""`rename_hparams`, `set_defaults`: the same transform with other names, or other defaults, for its hyper-parameters."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from functional_optim.combinators.combined import Around
from functional_optim.combinators.origin import Handed, Origin
from functional_optim.form import Path
from functional_optim.hparams import Hparam, HParams, validate
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, require_transform


@dataclass(frozen=True, eq=False)
class Renamed(Around):
    """The form of a renamed transform: what is inside, and outer name by inner name."""

    outer: Mapping[str, str]

    def outer_name(self, keys: Path, name: str) -> str:
        """The outer name, where it has one."""
        return self.outer.get(name, name)

    def inner_hparams(self, hp: HParams) -> dict[str, Any]:
        """The hyper-parameters under the names that the inner transform knows."""
        names = {name: self.outer.get(name, name) for name in self.inner.declared}
        return self.inner.select({name: hp[outer] for name, outer in names.items() if outer in hp})

    def origins(self, path: Path, outer: Mapping[str, Origin]) -> Handed:
        """Under the outer names."""
        return {(): {name: outer[self.outer.get(name, name)] for name in self.inner.declared}}


@recorded
def rename_hparams(transform: Transform, **names: str) -> Transform:
    """The same transform with some of its hyper-parameters called otherwise: `rename_hparams(link, eps="clip_eps")`.

    Raises:
        TypeError: this is no transform (often a constructor that was not called).
        ValueError: the transform has no such hyper-parameter, or two would get one name.

    >>> from functional_optim import scale_by_adam
    >>> rename_hparams(scale_by_adam(), eps="adam_eps").hparams
    {'betas': (0.9, 0.999), 'adam_eps': 1e-08}
    """
    require_transform(transform, "rename_hparams")
    for name in names:
        if name not in transform.declared:
            order = f" The name it has comes first: {names[name]}={name!r}." if names[name] in transform.declared else ""
            raise ValueError(f"{transform.refusal(name)}{order}")
    declared = {names.get(name, name): hparam for name, hparam in transform.declared.items()}
    if len(declared) != len(transform.declared):
        raise ValueError(f"renaming {names} gives two hyper-parameters of {transform.name} the same name.")
    form = Renamed(transform, names)
    return Transform.of(form, declared, transform.name)


@recorded
def set_defaults(transform: Transform, **defaults: Any) -> Transform:
    """The same transform with other defaults for some of its hyper-parameters: `set_defaults(chain(...), lr=3e-4)`.

    Raises:
        TypeError, ValueError: the transform has no such hyper-parameter, or the value is unfit.

    >>> from functional_optim import adamw
    >>> set_defaults(adamw(), lr=0.1).hparams["lr"]
    0.1
    """
    require_transform(transform, "set_defaults")
    for name in defaults:
        if name not in transform.declared:
            raise ValueError(transform.refusal(name))
        validate(name, defaults[name], transform.declared[name])
    declared = {
        name: Hparam(defaults[name], hparam.range) if name in defaults else hparam for name, hparam in transform.declared.items()
    }
    return dataclasses.replace(transform, declared=declared)
