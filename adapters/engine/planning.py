"""How trees of tensors are stepped: the plan of a step into new ones."""

from collections.abc import Mapping, Sequence

from functional_optim import trees
from functional_optim.combinators.innermost import Placed, innermost
from functional_optim.form import Path
from functional_optim.hparams import HParams
from functional_optim.numbered import Numbered
from functional_optim.trees import Tree

from ..state.layout import Key
from .anatomy import Anatomy
from .buckets import Leaf, Way, parts_of
from .fresh import FreshPlan, Leaves
from .memory import on_host
from .route import Link, names_of, routes_of
from .stages import passage_of
from .ways import Ways
from .work import Refused


def planned(
    anatomy: Anatomy,
    given: Leaves,
    groups: Sequence[int],
    hparams: Mapping[int, HParams],
    gates: Mapping[Path, bool],
    reasons: dict[str, None],
    *,
    gives: bool,
    steps: bool,
) -> FreshPlan:
    """The plan of one step.

    Args:
        anatomy: of what is given.
        given: the leaves, with what is like its gradient for each that may have one; nothing of them is kept.
        groups: of each leaf, by its number.
        hparams: of each group.
        gates: how they stand.
        reasons: why something is not run as kernels; some may be added.
        gives: whether something is given beside gradients, state, parameters and hyper-parameters.
        steps: whether parameters are asked for, and not updates.

    Raises:
        Refused: nothing would be gained, or something would come out otherwise.
    """
    placed = innermost(anatomy.transform, anatomy.sketches, gates, copies=False)
    shares = {_link(anatomy, each): each.params for each in placed}
    links = list(shares)
    called = [link for link in links if link.rule is None]
    for link in called:
        if gives and not anatomy.is_whole(shares[link]):
            raise Refused(f"{link} sees some of the parameters only, and may ask for more than their gradients")
    if called and len(called) == len(links):
        raise Refused(f"{', '.join(names_of(links))} can only be called as a whole")
    # On other devices a call costs more than a kernel saves: lists go through all tensors at once.
    is_here = all(on_host(p) for p, g in zip(given.params, given.grads, strict=True) if g is not None)
    if not is_here and any(isinstance(link.rule, Numbered) and link.rule.shared for link in links):
        raise Refused("the numbers that leaves share would have to be read")
    ways = Ways(reasons, fused=is_here, fresh=True)
    ways.look_at(links)
    slots = _leaves(anatomy, given, groups, shares, steps=steps)
    for leaf in slots:
        leaf.go(ways.best(leaf, hparams[leaf.group]))
    loose = set(filter(_is_loose, slots))
    parts = parts_of(list(slots))
    plan = FreshPlan(
        parts,
        links,
        ways.backends,
        slots,
        loose,
        {link: anatomy.place(link.path, shares[link]) for link in called},
        _shared(anatomy, links),
        {(*link.path, name): anatomy.each((*link.path, name), shares[link]) for link in links for name in _own(link)},
        *_advancing(anatomy, links, called, gates),
        steps,
    )
    for part in parts:
        part.forget()
    return plan


def _leaves(
    anatomy: Anatomy, given: Leaves, groups: Sequence[int], shares: Mapping[Link, Tree], *, steps: bool
) -> dict[Leaf, list[int]]:
    """The parameters with a gradient, each with the places of its slots among the leaves of the state."""
    present = [key for key, g in zip(anatomy.keys, given.grads, strict=True) if g is not None]
    cells = {(link, name): anatomy.each((*link.path, name), own) for link, own in shares.items() for name in link.slots}
    routes = routes_of(list(shares), present)
    passages = {route: passage_of(route, _named, steps=steps) for route in routes}
    slots: dict[Leaf, list[int]] = {}
    for key, route in zip(present, routes, strict=True):
        i = key.number
        passage, own = passages[route], [cells[link, slot][key] for link in route for slot in link.slots]
        state = dict(zip(passage.slots, (given.state[cell] for cell in own), strict=True))
        slots[Leaf(i, key, groups[i], passage, given.params[i], given.grads[i], state)] = own
    return slots


def _is_loose(leaf: Leaf) -> bool:
    """Whether a kernel can't read some of its tensors as they lie."""
    return not leaf.in_place or (leaf.way is Way.COMPILED and not all(map(leaf.fits, leaf.values())))


def _link(anatomy: Anatomy, placed: Placed) -> Link:
    pairs = zip(anatomy.keys_of(placed.params), trees.leaves(placed.params), strict=True)
    members = frozenset(key for key, p in pairs if key and placed.transform.form.concerns(p))
    return Link(placed.transform, placed.path, placed.hparams, members, placed.asks, placed.is_still, placed.mark)


def _named(path: Path, slots: Sequence[str]) -> list[str]:
    return [".".join((*path, slot)) for slot in slots]


def _own(link: Link) -> Sequence[str]:
    return tuple(link.form.own) if isinstance(link.rule, Numbered) else ()


def _shared(anatomy: Anatomy, links: Sequence[Link]) -> dict[Path, int]:
    """The places of clocks, and of what rules keep for all leaves."""
    names = [(*link.path, name) for link in links if isinstance(link.rule, Numbered) for name in link.rule.shared_names]
    return {path: anatomy.one(path) for path in (*anatomy.clocks, *names)}


def _advancing(
    anatomy: Anatomy, links: Sequence[Link], called: Sequence[Link], gates: Mapping[Path, bool]
) -> tuple[list[int], list[Mapping[Key, int]]]:
    """The counts of the rules that are run, and the clocks of what is around them; but for those of gates."""
    steps = {link.step for link in links if link.rule and link.rule.own_counts}
    for path in anatomy.clocks:
        own = path[:-1]
        around = any(link.path[: len(own)] == own for link in links)
        inside = any(own[: len(link.path)] == link.path for link in called)
        if around and not inside and own not in gates:
            steps.add(path)
    found = [anatomy.counts[path] for path in steps]
    return [x for x in found if isinstance(x, int)], [x for x in found if not isinstance(x, int)]
