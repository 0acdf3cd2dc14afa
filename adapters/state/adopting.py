"""What a parameter takes over from a checkpoint: which of the names found there are which slots here, rule by rule.

A rule goes on with all its slots and its count, or starts afresh with none of them. The names are those of this very chain, of
torch's classes, or of a chain with a link or branch more or less, where a name may have other keys in front.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from functional_optim.form import Path

from .layout import Key, Layout, Value

Rule: TypeAlias = list[Value]

T = TypeVar("T")

# What values of the state are called in a checkpoint.
Found: TypeAlias = dict[Path, str]


@dataclass(frozen=True)
class Adopted:
    """What becomes of the slots that a checkpoint holds for one parameter.

    Attributes:
        names: what is taken over: name here to name in the checkpoint.
        going_on: the rules that go on.
        afresh: the other rules, each with the names of what was missing where something was there.
        strange: names in the checkpoint that belong to no rule.
    """

    names: Mapping[str, str]
    going_on: Sequence[str]
    afresh: Mapping[str, Sequence[str]]
    strange: Sequence[str]


def adopted(layout: Layout, key: Key, saved: Collection[str], unused: Collection[str]) -> Adopted:
    """What a parameter takes over of values with these names; `unused` are those that it has no use for, in its shape."""
    names, rules, others = layout.names(key), layout.rules_of(key), layout.kept_for_others(key)
    values = [value for rule in [*rules, others] for value in rule if value.kind != "count"]
    found = _equal(values, names, saved)
    needed = [[value for value in _slots(rule) if names[value.path] not in unused] for rule in rules]
    found = _whole_first(needed, found, saved)
    found |= _alike_alone(values, found, saved)

    def lacking(rule: Rule) -> list[str]:
        missing = [value for value in rule if value.path not in found and names[value.path] not in unused]
        return [names[value.path] for value in _slots(missing) or missing if _is_needed(value, rule)]

    whole = [rule for rule in rules if _slots(rule) and not lacking(_slots(rule))]
    found |= _counts(layout, rules, whole, found, names, saved)
    going_on = [rule for rule in rules if not lacking(rule)]
    afresh = {
        layout.called(rule): lacking(rule) if any(value.path in found for value in rule if value.kind != "count") else []
        for rule in rules
        if lacking(rule)
    }
    taken = [value for rule in [*going_on, others] for value in rule if value.path in found]
    strange = [name for name in saved if name not in found.values()]
    return Adopted({names[value.path]: found[value.path] for value in taken}, [*map(layout.called, going_on)], afresh, strange)


def _is_needed(value: Value, rule: Rule) -> bool:
    """Whether a rule can't go on without this. What all share, other parameters may have; momentum can do without a count."""
    slots = len(_slots(rule))
    return not (value.is_common and slots) and not (value.kind == "count" and slots == 1)


def _equal(values: Sequence[Value], names: Mapping[Path, str], saved: Collection[str]) -> Found:
    """Of values whose whole path is in the checkpoint, or whose name here, that."""
    found: Found = {}
    for called in (lambda value: ".".join(value.path), lambda value: names[value.path]):
        for value in values:
            if value.path not in found and called(value) in saved and called(value) not in found.values():
                found[value.path] = called(value)
    return found


def _alike_alone(values: Sequence[Value], found: Found, saved: Collection[str], least: int = 1) -> Found:
    """Of the other values, names that end alike, each the other's only match."""
    left = [value for value in values if value.path not in found]
    free = [name for name in saved if name not in found.values()]
    new: Found = {}
    for value in left:
        name = _only_best(free, lambda name, value=value: _alike(value.path, name, least))
        if name and _only_best(left, lambda other, name=name: _alike(other.path, name, least)) is value:
            new[value.path] = name
    return new


def _whole_first(rules: Sequence[Rule], known: Found, saved: Collection[str]) -> Found:
    """The slots of rules that can have all of theirs, large rules first; of two that want the same ones, neither gets them."""
    found = dict(known)
    for size in sorted({len(rule) for rule in rules}, reverse=True):
        free = [name for name in saved if name not in found.values()]
        wanted: list[Found] = []
        for rule in (rule for rule in rules if len(rule) == size):
            lacking = [value for value in rule if value.path not in found]
            names = {value.path: _only_best(free, lambda name, value=value: _alike(value.path, name, 1)) for value in lacking}
            if lacking and all(names.values()):
                wanted.append({path: name for path, name in names.items() if name})
        names = [name for each in wanted for name in each.values()]
        for each in wanted:
            if all(names.count(name) == 1 for name in each.values()):
                found |= each
    return found


def _counts(
    layout: Layout, rules: Sequence[Rule], whole: Sequence[Rule], found: Found, names: Mapping[Path, str], saved: Collection[str]
) -> Found:
    """What the counts are called: as the slots of their rules are, or `step`, of which torch keeps one for a whole optimizer."""
    counts = {value.path: rule for rule in rules for value in rule if value.kind == "count"}
    dotted = [name for name in saved if "." in name]
    values = [value for rule in rules for value in rule if value.kind == "count"]
    own = _equal(values, names, dotted)
    own |= _alike_alone(values, own, dotted, least=2)
    for path, rule in counts.items():
        beside = {".".join([*found[value.path].split(".")[:-1], path[-1]]) for value in rule if value.path in found}
        if path not in own and len(beside) == 1 and beside <= set(dotted):
            own[path] = beside.pop()
    left = [path for path in counts if path not in own] if "step" in saved else []
    # It is the count of a rule that goes on; else that of one without slots, if that one would call it so.
    claims = [path for path in left if counts[path] in whole] or [
        path for path in left if not _slots(counts[path]) and names[path] == "step"
    ]
    return own | {path: "step" for path in left if claims and (path == claims[0] or layout.count_together(path, claims[0]))}


def _slots(rule: Rule) -> Rule:
    return [value for value in rule if value.kind == "slot"]


def _alike(path: Path, name: str, least: int) -> int:
    """With how many keys both end; 0 unless these are all that one of them has, or two."""
    keys = name.split(".")
    ends = [a == b for a, b in zip(reversed(path), reversed(keys), strict=False)]
    alike = ends.index(False) if False in ends else len(ends)
    return alike if alike >= least and (alike == len(ends) or alike >= 2) else 0


def _only_best(items: Iterable[T], score: Callable[[T], int]) -> T | None:
    """The item with the highest score above 0; None where several have it."""
    scores = [(score(item), item) for item in items]
    highest = max((value for value, _ in scores), default=0)
    best = [item for value, item in scores if value == highest]
    return best[0] if highest and len(best) == 1 else None
