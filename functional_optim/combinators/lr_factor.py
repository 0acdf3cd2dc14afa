"""`with_lr_factor`: a factor beside learning rates that a transform has several of, or makes itself by a schedule."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from functional_optim.combinators.combined import Around
from functional_optim.combinators.conditionally import Conditional
from functional_optim.combinators.origin import Handed, Origin, times
from functional_optim.combinators.partition import Partitioned
from functional_optim.form import Path
from functional_optim.hparams import NON_NEGATIVE, Hparam, HParams
from functional_optim.lifting import Lifted
from functional_optim.numerics import Scalar, double
from functional_optim.recipe import recorded
from functional_optim.rules.scale import negate, scale, scale_by_schedule
from functional_optim.rules.trivial import freeze
from functional_optim.transform import Transform, elementwise, require_transform

# Of the parts of such a form a parameter goes through one; of other forms' through all.
SIDE_BY_SIDE = (Partitioned, Conditional)

LR_FACTOR = "lr_factor"
FACTOR = Hparam(1.0, NON_NEGATIVE)


@dataclass(frozen=True, eq=False)
class Factored(Around):
    """The form of a transform one of whose hyper-parameters, its rate, is multiplied by another, the factor.

    A rate that is not given from outside has its default.
    """

    rate: str
    factor: str

    def takes_each(self, name: str) -> bool:
        """The factor may have a value per leaf where the rate may."""
        return self.inner.form.takes_each(self.rate if name == self.factor else name)

    def inner_hparams(self, hp: HParams) -> dict[str, Any]:
        """The rate times the factor, and the rest."""
        given = {**self.inner.hparams, **self.inner.select(hp)}
        return {**given, self.rate: times(given[self.rate], hp[self.factor])}

    def origins(self, path: Path, outer: Mapping[str, Origin]) -> Handed:
        """The rate's, with the factor's."""
        default = self.inner.hparams[self.rate]
        rate = outer.get(self.rate, Origin(otherwise=lambda _: default)).times(outer[self.factor])
        return {(): {name: rate if name == self.rate else outer[name] for name in self.inner.declared}}


@recorded
def with_lr_factor(transform: Transform, *, name: str = LR_FACTOR) -> Transform:
    """The same transform with a hyper-parameter `lr_factor`, 1 by default: a factor of every learning rate in it.

    For transforms whose learning rate can't be given from outside: a schedule gives it, or branches have their own.
    The factor enters where a rate does, so that everything which depends on the rate sees the product: weight decay, averages,
    the copies of `with_master_copy`. That is at the rules with a hyper-parameter `lr`; if there is none on a parameter's way, at
    `scale_by_schedule`; else where the sign turns, at `scale` by a negative number and at `negate`. A branch without any of these
    is left as it is.

    Args:
        transform: any transform.
        name: what the factor is called: a transform may be given several, which multiply.

    State: the transform's.

    Raises:
        ValueError: there is none of these in it, or something in it has a hyper-parameter of this name.

    optax has nothing like it. Behind an optimizer `group["lr"]` is such a factor where the chain has no single learning rate, and
    `group["lr_factor"]` is one that you have given the chain yourself.

    >>> import torch
    >>> from functional_optim import linear, scheduled, sgd
    >>> tx = with_lr_factor(scheduled(sgd(), lr=linear(0.5, 0.25, steps=2)))
    >>> tx.update(torch.tensor(1.0), tx.init_state(torch.zeros(())), None, {"lr_factor": 0.1})[0]
    tensor(-0.0500)
    """
    require_transform(transform, "with_lr_factor")
    if is_used(name, transform):
        raise ValueError(f"something in {transform!r} has a hyper-parameter {name!r}: call the factor otherwise, name=....")
    factored = _factored(transform, name)
    if factored is None:
        raise ValueError(f"{transform!r} has no learning rate that a factor could multiply.")
    return factored


def is_used(name: str, transform: Transform) -> bool:
    """Whether a hyper-parameter is called so, here or somewhere inside."""
    return name in transform.declared or any(is_used(name, part) for part in transform.form.parts.values())


def has_rates(transform: Transform) -> bool:
    """Whether there is something in it that `with_lr_factor` could multiply."""
    return _factored(transform, LR_FACTOR) is not None


def has_own_schedule(transform: Transform) -> bool:
    """Whether a learning rate somewhere in it follows a schedule."""
    scheduled = (name.split(".")[-1] for name in getattr(transform.form, "schedules", ()))
    return (
        "lr" in scheduled
        or _is_made_by(transform, scale_by_schedule, _scale_by_schedule)
        or any(map(has_own_schedule, transform.form.parts.values()))
    )


# Each makes of a rule that a rate enters, in its own way, the one with a factor of this name; of another, None.
Entry = Callable[[Transform, str], Transform | None]


def _rate(rule: Transform, name: str) -> Transform | None:
    return _multiplied(rule, "lr", name) if "lr" in rule.declared else None


def _schedule(rule: Transform, name: str) -> Transform | None:
    if _is_made_by(rule, scale_by_schedule):
        return _multiplied(_scale_by_schedule(schedule=rule.form.options["schedule"]), "factor", name, hidden=True)
    return _multiplied(rule, "factor", name) if _is_made_by(rule, _scale_by_schedule) else None


def _turn(rule: Transform, name: str) -> Transform | None:
    if _is_made_by(rule, negate):
        return _multiplied(scale(-1.0), "factor", name, hidden=True)
    return _multiplied(rule, "factor", name) if _is_made_by(rule, scale) and rule.hparams["factor"] < 0 else None


def _factored(transform: Transform, name: str) -> Transform | None:
    """The transform with the factor where a rate enters, each way through it having one; None if it enters nowhere."""
    for entry in (_rate, _schedule, _turn):
        if _covers(transform, entry):
            return _entered(transform, entry, name)
    parts, every = transform.form.parts, isinstance(transform.form, SIDE_BY_SIDE)
    found: dict[Path, Transform] = {}
    for keys, part in reversed([*parts.items()]):
        factored = _factored(part, name)
        if factored is not None and (every or not found):
            found[keys] = factored
    return _rebuilt(transform, {**parts, **found}, name) if found else None


def _covers(transform: Transform, entry: Entry) -> bool:
    """Whether every way through a transform leads through such a rule; what stays as it is needs none."""
    form = transform.form
    if not form.parts:
        return _is_made_by(transform, freeze) or entry(transform, LR_FACTOR) is not None
    every = all if isinstance(form, SIDE_BY_SIDE) else any
    return every(_covers(part, entry) for part in form.parts.values())


def _entered(transform: Transform, entry: Entry, name: str) -> Transform:
    """The transform with the factor at all such rules."""
    parts = transform.form.parts
    if not parts:
        return entry(transform, name) or transform
    return _rebuilt(transform, {keys: _entered(part, entry, name) for keys, part in parts.items()}, name)


def _rebuilt(transform: Transform, parts: Mapping[Path, Transform], name: str) -> Transform:
    """The same transform made of other parts."""
    replaced = {id(part): parts[keys] for keys, part in transform.form.parts.items()}

    def changed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: changed(each) for key, each in value.items()}
        return replaced.get(id(value), value) if isinstance(value, Transform) else value

    old: Any = transform.form  # A dataclass, which holds its parts in fields, or in mappings.
    form = dataclasses.replace(old, **{each.name: changed(getattr(old, each.name)) for each in dataclasses.fields(old)})
    return Transform.of(form, {**transform.declared, name: FACTOR}, transform.name)


def _multiplied(rule: Transform, rate: str, name: str, *, hidden: bool = False) -> Transform:
    """A rule with a factor of one of its hyper-parameters, which is given from outside unless it is hidden."""
    given = {key: hparam for key, hparam in rule.declared.items() if not hidden or key != rate}
    return Transform.of(Factored(rule, rate, name), {**given, name: FACTOR}, rule.name)


def _is_made_by(transform: Transform, *constructors: Callable[..., Transform]) -> bool:
    """Whether it is the rule of one of these, under whatever defaults."""
    return isinstance(transform.form, Lifted) and transform.form.scalars in map(inspect.unwrap, constructors)


@elementwise(hparams={"factor": 1.0}, name="scale_by_schedule")
def _scale_by_schedule(hp, t, *, schedule: Callable[[Scalar], Scalar]):
    factor = hp["factor"] * schedule(double(t - 1))

    def rule(u, p):
        return factor * u

    return rule
