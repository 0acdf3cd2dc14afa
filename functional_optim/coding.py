"""A rule whose slots are stored by a codec: each is decoded before the rule, and encoded after it; the rule is as it was."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.codecs import Codec
from functional_optim.hparams import HParams
from functional_optim.lifting import Leafwise, Lifted, SlotInit, WholeTree, places_of, widened, zeros
from functional_optim.numbered import Numbered
from functional_optim.numerics import real
from functional_optim.reductions import SumOver
from functional_optim.sharded import cuts_of, elements_before, is_sharded, local, of_pieces, placed_as, spread_as, whole
from functional_optim.trees import Tree

if TYPE_CHECKING:
    from functional_optim.transform import Transform

# How a rule says which of its slots may be coded.
EXAMPLE = "coded={'exp_avg': 'signed', 'exp_avg_sq': 'positive'}, beside slots="

# Which parameters' slots are coded, by name and tensor.
Chosen = Callable[[str, Tensor], Any]


@dataclass(frozen=True, eq=False)
class Coding:
    """How the slots of a rule are stored.

    Attributes:
        inner: the rule that sees them decoded.
        codec: what stores those that are `inner.coded`.
        only: which parameters are concerned; None for all that the codec takes.
        before: how many elements of a tensor come before those that the rule is run on, where these are a process's own.
    """

    inner: Lifted
    codec: Codec
    only: Chosen | None = None
    before: int = 0

    @property
    def slots(self) -> list[tuple[str, str | None, int]]:
        """Each slot of the rule: its name, the kind of codes if it is coded, and in how many parts it is stored."""
        coded = self.inner.coded
        return [(name, coded.get(name), len(self.codec.parts) if name in coded else 1) for name in self.inner.slots]

    def chosen(self, params: Tree) -> list[bool]:
        """Whether each leaf's slots are coded."""
        leaves = trees.leaves(params)
        if self.only is None:
            return [p is not None and self.takes(p) for p in leaves]
        named = zip(trees.names(params), leaves, strict=True)
        return [p is not None and self.takes(p) and bool(self.only(name, p)) for name, p in named]

    def takes(self, p: Tensor) -> bool:
        """Of a sharded tensor, if the codes are the same however many shards there are."""
        if not is_sharded(p):
            return self.codec.takes(p)
        cuts, shape = cuts_of(p), reals_of(p)
        return self.codec.takes(p) and cuts is not None and all(self.codec.may_be_cut(shape, *cut) for cut in cuts.items())

    def is_coded(self, kind: str | None, stored: Tensor) -> TypeGuard[str]:
        """Whether a slot of this kind is in codes, of which this is the first part; a leaf may be left out."""
        return kind is not None and stored.dtype in self.codec.dtypes

    def require_own(self, parts: Mapping[str, Sequence[Any]], updates: Tree) -> None:
        """Raise ValueError where what is stored of a leaf is not what this codec makes of one like it.

        Args:
            parts: what is stored of each leaf, by name.
            updates: the leaves.
        """
        for name, kind in self.inner.coded.items():
            columns = [parts[name + ending] for ending in self.codec.parts]
            for i, (u, *own) in enumerate(zip(trees.leaves(updates), *columns, strict=True)):
                if u is None or own[0] is None or not self.is_coded(kind, own[0]):
                    continue
                if not self.codec.may_have_made(own, reals_of(u)):
                    found, expected = tuple(tuple(x.shape) for x in own), self.codec.shapes(reals_of(u))
                    which = f"the shapes {found}" if found != expected else "codes of other bits"
                    raise ValueError(
                        f"{trees.paths(updates, f'state[{name!r}]')[i]} is stored in {which}, but {self.codec!r} makes "
                        f"{expected} of a tensor of {tuple(u.shape)}: another codec made this state. Use that one, or pass what "
                        "init_state of this very transform returned."
                    )

    def decoded(self, stored: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
        """A leaf's slots as the rule sees them, of all that is stored of it; coded ones in this dtype."""
        parts, slots = iter(stored), []
        for _, kind, count in self.slots:
            own = [next(parts) for _ in range(count)]
            is_coded = self.is_coded(kind, own[0])
            slots.append(decoded_by(self.codec, own, kind, shape).to(dtype) if is_coded else widened(own[0]))
        return slots

    def encoded(self, new: Sequence[Tensor], stored: Sequence[Tensor], t: Any, place: int) -> list[Tensor]:
        """New slots of a leaf, which has this place among those of its shape, in the way in which the old ones are stored."""
        parts, found = iter(stored), []
        for number, (slot, (_, kind, count)) in enumerate(zip(new, self.slots, strict=True)):
            own = [next(parts) for _ in range(count)]
            if self.is_coded(kind, own[0]):
                found += encoded_by(self.codec, slot, kind, t, number, like=own[0], before=self.before, place=place)
            else:
                found += slot, *own[1:]
        return found

    def starts(self) -> dict[str, SlotInit]:
        """How each part of what is stored starts."""
        starts: dict[str, SlotInit] = {}
        for number, (name, kind, _) in enumerate(self.slots):
            own = self.inner.slots[name]
            if kind is None:
                starts[name] = own
            else:
                for i, ending in enumerate(self.codec.parts):
                    starts[name + ending] = CodedStart(own, self.codec, kind, number, i)
        return starts


@dataclass(frozen=True, eq=False)
class CodedStart:
    """How one part of a coded slot starts."""

    start: SlotInit
    codec: Codec
    kind: str
    number: int
    part: int

    def __call__(self, p: Tensor, hp: HParams) -> Tensor:
        """Of a parameter whose slots are coded."""
        if self.start is not zeros:
            slot = placed_as(self.start(whole(p), hp), p)
            return encoded_by(self.codec, real(slot), self.kind, 0, self.number, like=p)[self.part]
        part = self.codec.zeros(reals_of(local(p)), self.kind, p.device)[self.part]
        return of_pieces(part, self.codec.shapes(reals_of(p))[self.part], p) if is_sharded(p) else part

    def plain(self, p: Tensor, hp: HParams) -> Tensor:
        """Of another one: at least float32, and no further parts."""
        if self.part:
            return self.codec.empty(p.device)[self.part - 1]
        slot = self.start(p, hp)
        return slot.to(torch.promote_types(slot.dtype, torch.float32))


def reals_of(p: Tensor) -> tuple[int, ...]:
    """The shape of a tensor, complex ones as pairs of reals."""
    return (*p.shape, 2) if p.is_complex() else tuple(p.shape)


def decoded_by(codec: Codec, stored: Sequence[Tensor], kind: str, shape: Sequence[int]) -> Tensor:
    """What is stored of a real tensor of this shape, which may be spread over processes, in float32."""
    first = stored[0]
    if not is_sharded(first):
        return codec.decode(stored, kind, shape)
    mine, dims = [local(part) for part in stored], list(shape)
    for dim in cuts_of(first) or ():  # Of 4 bits a dimension has so many scales, in the place of elements.
        dims[dim] = shape[dim] * mine[-1].shape[dim] // stored[-1].shape[dim]
    return of_pieces(codec.decode(mine, kind, dims), shape, first)


def encoded_by(
    codec: Codec, x: Tensor, kind: str, t: Any, number: int, *, like: Tensor, before: int = 0, place: int = 0
) -> tuple[Tensor, ...]:
    """What is to be stored of a real tensor, spread over processes as another one is; or not at all."""
    if not is_sharded(like):
        return codec.encode(x, kind, t, number, before, place)
    placed: Any = spread_as(x, like)
    before = elements_before(placed.shape, placed.device_mesh, placed.placements)
    parts = codec.encode(local(placed), kind, t, number, before, place)
    return tuple(of_pieces(part, shape, like) for part, shape in zip(parts, codec.shapes(placed.shape), strict=True))


def counted_from(form: Lifted, before: int) -> Lifted:
    """The same rule for what comes behind so many elements of a tensor: codes are rounded as in the whole one."""
    coding = form.coding
    return _stored_by(dataclasses.replace(coding, before=before)) if coding and before else form


def with_codec(form: Lifted, codec: Codec, only: Chosen | None = None) -> Lifted:
    """The same rule with its slots stored by a codec, those that it says may be. It counts updates, for the codec's sake.

    Raises:
        ValueError: there are none, or they are stored by one already.
    """
    if form.coding is not None:
        raise ValueError(f"the slots of {form.name} are stored by {form.coding.codec!r} already.")
    if not form.coded:
        raise ValueError(
            f"{form.name} has no slot that may be coded, of {tuple(form.slots)}. A rule says which may be: {EXAMPLE}."
        )
    return _stored_by(Coding(form, codec, only))


def _stored_by(coding: Coding) -> Lifted:
    """A rule with its slots stored so."""
    form, starts = coding.inner, coding.starts()
    how: dict[str, Any] = {
        "scalars": _scalars_of(form, coding),
        "slots": starts,
        "counts": True,
        "coding": coding,
        "constants": (*form.constants, *(name + ending for name in form.coded for ending in coding.codec.parts)),
    }
    if isinstance(form, Leafwise):
        how["evaluated_at"] = form.evaluated_at and _evaluation(form.evaluated_at, coding)
        how["reduce"] = form.reduce and _reduction(form.reduce, coding, tuple(starts))
        how["places"] = form.places or coding.codec.by_place
        how["in_turn"] = tuple(_also_stored_by(coding, rule) for rule in form.in_turn)
    return dataclasses.replace(form, **how)


def _also_stored_by(coding: Coding, rule: "Transform") -> "Transform":
    """One of the rules that a rule is, if it has slots."""
    form = rule.form
    if not (isinstance(form, Lifted) and form.coded):
        return rule
    return type(rule).of(_stored_by(dataclasses.replace(coding, inner=form)), rule.declared, rule.name)


def require_plain(form: Any, where: str, *, codable: bool = True) -> None:
    """Raise ValueError where a rule's slots are stored by a codec, and `where` wants to see them.

    `codable` says whether a codec may store what it makes of them.
    """
    if isinstance(form, Lifted) and form.coding is not None:
        around = f" quantized({where}(...)) codes what of it may be coded, if anything." if codable else ""
        raise ValueError(
            f"{where} works on the slots of {form.name}, which a codec stores: give that rule no codec, but a dtype, such as "
            f"state_dtype=torch.bfloat16.{around}"
        )


def _scalars_of(form: Lifted, coding: Coding) -> Callable[..., Any]:
    maker = _NumberedScalars if isinstance(form, Numbered) else _WholeScalars if isinstance(form, WholeTree) else _Scalars
    return maker(coding)


@dataclass(frozen=True, eq=False)
class _Scalars:
    """The scalars of a rule for one tensor, whose slots are coded."""

    coding: Coding

    def __post_init__(self) -> None:
        # What is told of the rule is what it is without codes.
        object.__setattr__(self, "__doc__", self.coding.inner.scalars.__doc__)

    def __call__(self, hp: HParams, t: Any, *found: Any, **options: Any) -> Any:
        form = self.coding.inner
        assert isinstance(form, Leafwise)
        return _around(self.coding, form.rule(hp, t, *(found or (None,))), t, hp.get("place", 0), batched=form.batched)


class _NumberedScalars(_Scalars):
    """Those of a rule with numbers."""

    def __call__(self, hp: HParams, t: Any, *found: Any, **options: Any) -> Any:
        form, count = self.coding.inner, _stored(self.coding)
        assert isinstance(form, Numbered)
        terms, finish, rule = form.parts_of(hp, t, *found)

        def coded_terms(g: Tensor, p: Tensor, *stored: Any) -> Any:
            assert terms is not None
            return terms(g, p, *self.coding.decoded(stored[:count], g.shape, g.dtype), *stored[count:])

        def coded_rule(new: Any, g: Tensor, p: Tensor, *stored: Any) -> Any:
            return _around(self.coding, lambda *row: rule(new, *row), t, hp.get("place", 0))(g, p, *stored)

        return terms and coded_terms, finish, coded_rule


class _WholeScalars(_Scalars):
    """Those of a rule for all tensors."""

    def __call__(self, hp: HParams, t: Any, *found: Any, **options: Any) -> Any:
        coding, form = self.coding, self.coding.inner
        rule, count = form.scalars(hp, *([t] if form.counts else []), **form.options), _stored(coding)

        def coded_rule(gs: Sequence[Tensor], ps: Sequence[Any], shared: Mapping[str, Any], *columns: Sequence[Any]) -> Any:
            stored = [list(row) for row in zip(*columns[:count], strict=True)]
            decoded = [coding.decoded(row, g.shape, g.dtype) for row, g in zip(stored, gs, strict=True)]
            slots = [[row[i] for row in decoded] for i in range(len(form.slots))]
            updates, shared, *new = rule(gs, ps, shared, *slots, *columns[count:])
            places = places_of({i: g.shape for i, g in enumerate(gs)})
            rows = enumerate(zip(zip(*new, strict=True), stored, strict=True))
            encoded = [coding.encoded(row, old, t, places[i]) for i, (row, old) in rows]
            return updates, shared, *([row[i] for row in encoded] for i in range(count))

        return coded_rule


def _around(coding: Coding, rule: Callable[..., Any], t: Any, place: int, *, batched: bool = False) -> Callable[..., Any]:
    """A rule for one tensor of decoded slots, as one of coded ones; or for a stack of tensors."""
    count = _stored(coding)

    def coded_rule(g: Tensor, p: Tensor, *stored: Any) -> Any:
        parts, further = stored[:count], stored[count:]
        if not batched:
            u, *new = rule(g, p, *coding.decoded(parts, g.shape, g.dtype), *further)
            return u, *coding.encoded(new, parts, t, place)
        rows = list(zip(*(x.unbind() for x in parts), strict=True))
        decoded = [coding.decoded(row, g.shape[1:], g.dtype) for row in rows]
        u, *new = rule(g, p, *(torch.stack(column) for column in zip(*decoded, strict=True)), *further)
        encoded = [
            coding.encoded(own, row, t, place)
            for own, row in zip(zip(*(x.unbind() for x in new), strict=True), rows, strict=True)
        ]
        return u, *(torch.stack(column) for column in zip(*encoded, strict=True))

    return coded_rule


def _reduction(reduce: Callable[..., Any], coding: Coding, names: Sequence[str]) -> Callable[..., Any]:
    """What a rule asks of all leaves, which sees their slots decoded."""

    def opened(u: Tensor, slots: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(coding.inner.slots, coding.decoded([slots[name] for name in names], u.shape, u.dtype), strict=True))

    if isinstance(reduce, SumOver):
        return SumOver(lambda u, p, **slots: reduce.term(u, p, **opened(u, slots)), reduce.finish)

    def reduced(updates: Sequence[Tensor], params: Sequence[Any], **slots: Sequence[Tensor]) -> Any:
        rows = [opened(u, {name: slots[name][i] for name in slots}) for i, u in enumerate(updates)]
        return reduce(updates, params, **{name: [row[name] for row in rows] for name in coding.inner.slots})

    return reduced


def _evaluation(at: Callable[..., Tensor], coding: Coding) -> Callable[..., Tensor]:
    count = _stored(coding)
    return lambda p, *stored: at(p, *coding.decoded(stored[:count], p.shape, p.dtype), *stored[count:])


def _stored(coding: Coding) -> int:
    return sum(count for _, _, count in coding.slots)
