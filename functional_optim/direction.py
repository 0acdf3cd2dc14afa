"""Which way the updates of a transform point: against the gradient, as they must to descend, or uphill by a mistake.

Updates are added to the parameters, so one link of a chain, or an odd number, turns the sign, and weight decay comes before it.
Nobody declares that of a rule, since people write rules of their own, with a minus or without. So each rule is run on a small
tensor. Where its update points against what it got, it turns the sign; where it moves a parameter although it got zeros, it
pulls. Whatever can't be told so (a zero update, an error, noise, what only a run has) is taken to be right, and so are
transforms written by hand, which are not called: they may write a log, or count.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.chain import Chained
from functional_optim.combinators.conditionally import Conditional
from functional_optim.combinators.partition import Partitioned
from functional_optim.combinators.rename import Renamed
from functional_optim.combinators.scheduled import Scheduled
from functional_optim.form import ByHand
from functional_optim.hparams import HParams
from functional_optim.intervals import contains
from functional_optim.transform import Transform
from functional_optim.trees import Tree
from functional_optim.trials import Trial


class UphillWarning(UserWarning):
    """An optimizer was made of a transform whose updates point uphill, or whose weight decay makes weights grow."""


@dataclass(frozen=True)
class Link:
    """What a rule does to a gradient that goes through it.

    Attributes:
        name: the names of the links that lead to it, joined by dots.
        turn: −1 if it turns the sign, 1 if it keeps it, 0 if that can't be told.
        pull: 1 if it adds to the parameters something along themselves, −1 if against, 0 if nothing, or if that can't be told.
        only_turns: whether the sign is all that it is there for.
    """

    name: str
    turn: int
    pull: int
    only_turns: bool = False


@dataclass(frozen=True)
class Way:
    """The links that gradients go through, and what the parameters are called whose gradients these are; None for all."""

    links: tuple[Link, ...] = ()
    keys: frozenset[Any] | None = None


def warn_if_uphill(transform: Transform, params: Tree, hparams: HParams, *, stacklevel: int) -> None:
    """Warn, once, where the updates of some parameters point uphill, or their weight decay does."""
    if torch.compiler.is_compiling():
        return
    for way in ways(transform, params, hparams):
        complaint = _of_the_sign(way) or _of_the_decay(way)
        if complaint:
            example = next((key for key in trees.keys(params) if key in way.keys), None) if way.keys else None
            some = "" if example is None else f" (for {str(example)!r} and whatever is routed like it)"
            warnings.warn(f"{transform.name}{some}: {complaint}", UphillWarning, stacklevel=stacklevel + 1)
            return


def ways(transform: Transform, params: Tree, hparams: HParams) -> list[Way]:
    """The ways that gradients of these parameters go."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return list(_ways(transform, params, transform.complete(hparams), ()))


def _ways(transform: Transform, params: Tree, hp: HParams, path: tuple[str, ...]) -> Iterator[Way]:
    match transform.form:
        case Chained(links=links):
            found = [Way()]
            for name, link in links.items():
                found = list(_joined(found, _ways(link, params, link.select(hp), (*path, name))))
            yield from found
        case Partitioned() as form:
            for (label,), share in form.shares(params).items():
                keys = frozenset(key for key, p in share.items() if p is not None)
                branch = form.branches[label]
                inside = _ways(branch, share, form.branch_hparams(label, hp), (*path, label)) if keys else ()
                yield from (Way(way.links, keys if way.keys is None else way.keys) for way in inside)
        case Conditional() as form:
            for part in (form.inner, form.otherwise):
                yield from _ways(part, params, part.select(hp), path)
        case Renamed() as form:
            yield from _ways(form.inner, params, form.inner_hparams(hp), path)
        case Scheduled() as form:
            given = {name: hp[name] for name in form.inner.declared if name in hp}
            unseen = {name: 0.0 for name in form.schedules if _may_turn(form.inner, name)}
            yield from _ways(form.inner, params, form.inner.complete({**given, **unseen}), path)
        case form if len(form.parts) == 1:  # Of other wrappers the updates point where those inside do.
            (part,) = form.parts.values()
            yield from _ways(part, params, part.select(hp), path)
        case ByHand():
            yield Way((Link(".".join(path) or transform.name, 0, 0),))
        case _:
            yield Way((_link(transform, hp, ".".join(path) or transform.name),))


def _joined(former: Iterable[Way], latter: Iterable[Way]) -> Iterator[Way]:
    """One way after another, for the parameters that go both; where none does, there is none."""
    for one, other in itertools.product(former, latter):
        keys = one.keys if other.keys is None else other.keys if one.keys is None else one.keys & other.keys
        if keys is None or keys:
            yield Way(one.links + other.links, keys)


def _link(transform: Transform, hp: HParams, name: str) -> Link:
    # Tensors are not read. A number of 0 hides where things point; but what may be negative is not to be guessed.
    plain = {key: 0.0 if isinstance(value, Tensor) and value.ndim == 0 else value for key, value in hp.items()}
    numbers = {key: value for key, value in plain.items() if not any(isinstance(x, Tensor) for x in trees.leaves(value))}
    seen = {key: value for key, value in numbers.items() if value != 0 or _may_turn(transform, key)}

    def turned(sign: int) -> Tensor:
        return _update(transform, seen, sign * GRADIENT, PARAMETER)

    def pulled(sign: int) -> Tensor:
        return _update(transform, numbers, torch.zeros_like(GRADIENT), sign * PARAMETER)

    return Link(name, _sign(turned, GRADIENT), _sign(pulled, PARAMETER), only_turns=transform.name in ("negate", "scale"))


def _may_turn(transform: Transform, name: str) -> bool:
    return any(contains(interval, -1.0) for interval in transform.declared[name].ranges)


# Neither alike, nor near 0; and a matrix, for the rules that ask for one.
GRADIENT = torch.tensor([[1.5, -0.7, 0.9], [-1.1, 0.6, 1.3], [0.8, -1.4, -1.0]], dtype=torch.float64, device="cpu")
PARAMETER = torch.tensor([[2.0, 3.0, 2.5], [3.5, 2.2, 2.8], [3.1, 2.6, 3.3]], dtype=torch.float64, device="cpu")

# A schedule may begin at 0.
AGES = (0, 10, 1000)


def _update(transform: Transform, hp: HParams, gradient: Tensor, parameter: Tensor) -> Tensor:
    """The first update that is not 0, or 0."""
    trial = Trial(transform, {"probe": parameter})
    state = transform.init_state(trial.params, hp)
    ages = AGES if "step" in state else AGES[:1]
    states = ({**state, "step": state["step"] + age} if age else state for age in ages)
    updates = (trial.update({"probe": gradient}, aged, trial.params, hp)[0]["probe"] for aged in states)
    return next((update for update in updates if update.any()), torch.zeros_like(gradient))


def _sign(update: Callable[[int], Tensor], along: Tensor) -> int:
    """Whether an update points along a tensor, 1, or against it, −1, and turns when that does; 0 where it is not so clear."""

    def side(sign: int) -> int:
        cosine = float(torch.cosine_similarity(update(sign).flatten(), along.flatten(), dim=0))
        return 1 if cosine > 0.5 else -1 if cosine < -0.5 else 0

    try:
        found = side(1)
        return found if found and side(-1) == -found else 0
    except Exception:  # It may be anybody's code, and made for tensors of another kind.
        return 0


def _of_the_sign(way: Way) -> str:
    turning = [link.name for link in way.links if link.turn < 0]
    if not all(link.turn for link in way.links) or len(turning) % 2:
        return ""
    if not way.links:
        return (
            "gradients pass unchanged, as do those that masked leaves out, and are added to the parameters, which climb. "
            "To keep these as they are, take partition, with freeze() for them."
        )
    if not turning:
        return (
            "no link turns the sign, so that updates, which are added to the parameters, climb. "
            "End with scale_by_learning_rate(), which multiplies them by −lr."
        )
    if way.links[0].turn < 0 and way.links[0].only_turns:
        return ""  # Whoever begins with negate() wants to climb.
    return (
        f"{' and '.join(turning)} turn the sign one after another, so that updates, which are added to the parameters, climb. "
        "Keep one of them: a whole optimizer such as adamw() has its learning rate already, and scale_by_adam() has none."
    )


def _of_the_decay(way: Way) -> str:
    for i, link in enumerate(way.links):
        behind = [other.turn for other in way.links[i + 1 :]]
        if link.pull and all(behind) and link.pull * (-1) ** behind.count(-1) > 0:
            return (
                f"{link.name} makes weights grow, since what it adds is not turned any more. Put it before the learning rate, as "
                "in chain(scale_by_adam(), add_decayed_weights(), scale_by_learning_rate()), or take subtract_decayed_weights()."
                if link.pull > 0
                else f"{link.name} makes weights grow, since what it takes from them is turned into its opposite. Put it behind "
                "the learning rate."
            )
    return ""
