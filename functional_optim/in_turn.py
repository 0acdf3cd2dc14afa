"""Rules as one, of which engines run each by itself: what treats every element alike, before what needs a tensor's shape."""

from dataclasses import dataclass
from typing import Any

from functional_optim.codecs import Codec
from functional_optim.coding import with_codec
from functional_optim.hparams import HParams
from functional_optim.lifting import Leafwise, Rule
from functional_optim.transform import Transform


def in_turn(first: Transform, *others: Transform, name: str, codec: Codec | None = None) -> Transform:
    """Rules, one after another, as one rule with the first one's state.

    A `chain` of them has a state for each link. This is for what people know as one rule, and engines had better see as several:
    elements of many tensors go through the first together, in place; of a sharded tensor each process runs it on its own
    elements, and only what comes out is gathered.

    Args:
        first: a rule that treats every element alike, without whole-tree quantities; it has all the slots.
        others: batched rules for one tensor, without slots and step.
        name: what errors and the states of chains call them.
        codec: stores the slots that may be coded; None for none.
    """
    before = _leafwise(first)
    form = Leafwise(
        name=name,
        scalars=_InTurn((first, *others)),
        slots=before.slots,
        counts=before.counts,
        elementwise=False,
        state_dtype=before.state_dtype,
        coded=before.coded,
        batched=True,
        least_dims=max(_leafwise(rule).least_dims for rule in others),
        in_turn=(first, *others),
    )
    declared = {key: hparam for rule in (first, *others) for key, hparam in rule.declared.items()}
    return Transform.of(form if codec is None else with_codec(form, codec), declared, name)


def _leafwise(rule: Transform) -> Leafwise:
    assert isinstance(rule.form, Leafwise)
    return rule.form


@dataclass(frozen=True)
class _InTurn:
    """The function of the scalars of all of them."""

    rules: tuple[Transform, ...]

    def __call__(self, hp: HParams, t: Any = None) -> Rule:
        first, *others = [_leafwise(rule).rule(rule.select(hp), t, None) for rule in self.rules]

        def rule(g: Any, p: Any, *slots: Any) -> Any:
            u, *new = first(g, p, *slots)
            for other in others:
                u = other(u, p)
            return (u, *new)

        return rule
