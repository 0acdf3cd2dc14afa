"""`partition`: one transform for these parameters, another for those; `masked`: one for some of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from functional_optim import trees
from functional_optim.checks import require_state_per_part
from functional_optim.combinators.chain import chain
from functional_optim.combinators.combined import Combined
from functional_optim.combinators.labels import ByName, ByNdim, Labels, labels_of, require_labels
from functional_optim.combinators.origin import Handed, Origin
from functional_optim.evaluate import LossAt, evaluated_at
from functional_optim.form import Path, nested
from functional_optim.hparams import Hparam, HParams, PerLeaf, shared_names
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class Partitioned(Combined):
    """The form of a partition: its branches by label, and how parameters are labelled."""

    branches: Mapping[str, Transform]
    labels: Labels
    all_used: bool

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {(label,): branch for label, branch in self.branches.items()}

    def shares(self, params: Tree) -> Mapping[Path, Tree]:
        """What each branch sees of a tree of parameters: a flat dict of its own, by name."""
        return {(label,): share.of(params) for label, share in self._shares(params).items()}

    def origins(self, path: Path, outer: Mapping[str, Origin]) -> Handed:
        """As `branch_hparams`."""
        return {
            (label,): {
                name: outer.get(f"{label}.{name}", Origin()).or_else(outer[name]).or_else(_default(hparam))
                for name, hparam in branch.declared.items()
            }
            for label, branch in self.branches.items()
        }

    def handed(self, keys: Path, hp: HParams, state: Tree) -> dict[str, Any]:
        """As `branch_hparams`."""
        return self.branch_hparams(keys[0], hp)

    def outer_name(self, keys: Path, name: str) -> str:
        """With the branch's label."""
        return f"{keys[0]}.{name}"

    def evaluated(self, state: Tree, params: Tree) -> Tree:
        """As each branch tells of its own leaves."""
        found, spec = trees.flatten(trees.map_leaves(lambda _: None, params))
        for label, share in self._shares(params).items():
            own = self.branches[label].form.evaluated(state[label], share.of(params))
            for key, i in share.places.items():
                found[i] = own[key]
        return trees.unflatten(spec, found)

    def check(self, params: Tree) -> None:
        """Raise ValueError for a label that no parameter has, unless it is that of the rest: most often a pattern is misspelt."""
        names = trees.names(params)
        if isinstance(self.labels, _Mask | ByName):
            self.labels.check(names)
        is_reserve = getattr(self.labels, "is_reserve", lambda label, names: False)
        for label, share in self._shares(params).items():
            if self.all_used and not share.places and not is_reserve(label, names):
                raise ValueError(f"no parameter is labelled {label!r}; there are: {_listed(names)}.")
            self.branches[label].form.check(share.of(params))

    def init(self, params: Tree, hp: HParams) -> Tree:
        """Each branch's state under its label, over a flat dict of its own parameters."""
        spec = trees.flatten(params)[1]
        return {
            label: self.branches[label].init_fn(share.of(params), share.of_each(self.branch_hparams(label, hp), spec))
            for label, share in self._shares(params).items()
        }

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """Each branch on its own leaves."""
        require_state_per_part(state, self.branches, "partition", "branch")
        leaves, spec = trees.flatten(updates)
        new_state = {}
        shares = self._shares(updates, of_params=False) if params is None else self._shares(params)
        for label, share in shares.items():
            own = share.of(updates), state[label], None if params is None else share.of(params)
            given = {
                name: share.of(value) if name in _leaf_extra(self.branches[label]) else value
                for name, value in (extra | share.of_functions(extra, params)).items()
            }
            hparams = share.of_each(self.branch_hparams(label, hp), spec)
            result, new_state[label] = self.branches[label].update_fn(*own, hparams, **given)
            for key, i in share.places.items():
                leaves[i] = result[key]
        return trees.unflatten(spec, leaves), new_state

    def branch_hparams(self, label: str, hp: HParams) -> dict[str, Any]:
        """What one branch gets: its own value of a name, or else the one that all get, or else its default."""
        branch = self.branches[label]
        chosen = {
            name: hp.get(f"{label}.{name}", hp.get(name, hparam.default))
            for name, hparam in branch.declared.items()
            if not hparam.optional or f"{label}.{name}" in hp or name in hp
        }
        return branch.select(chosen)

    def _shares(self, tree: Tree, *, of_params: bool = True) -> dict[str, "_Share"]:
        labels = labels_of(self.labels, tree, of_params=of_params)
        places: dict[str, dict[Any, int]] = {label: {} for label in self.branches}
        for i, (label, key, leaf) in enumerate(zip(labels, trees.keys(tree), trees.leaves(tree), strict=True)):
            if label is None and leaf is None and of_params:
                continue
            if label not in [*self.branches]:  # A dict would ask for a label that has a hash.
                found = "no label" if label is None else f"the label {label!r}"
                raise ValueError(
                    f"the parameter {str(key)!r} got {found}: expected one of {_listed(self.branches)}. {_way_out(self.labels)}"
                )
            places[label][key] = i
        return {label: _Share(own) for label, own in places.items()}


@dataclass(frozen=True)
class _Share:
    """Some of a tree's leaves: what each is called, and its number among all."""

    places: Mapping[Any, int]

    def of(self, tree: Tree) -> Tree:
        """The leaves, by what they are called."""
        leaves = trees.leaves(tree)
        return {key: leaves[i] for key, i in self.places.items()}

    def of_functions(self, extra: Mapping[str, Any], params: Tree) -> dict[str, Any]:
        """Loss and gradient, by whatever name, as functions of these leaves; the others stay where they are."""
        if params is None:
            return {}
        around, spec = trees.flatten(params)

        def whole(own: Tree) -> Tree:
            moved = {i: own[key] for key, i in self.places.items()}
            return trees.unflatten(spec, [moved.get(i, x) for i, x in enumerate(around)])

        own: dict[str, Any] = {}
        if "evaluate" in extra:
            own["evaluate"] = lambda tree: self.of_evaluation(evaluated_at(extra["evaluate"], whole(tree)))
        if "value_fn" in extra:
            own["value_fn"] = lambda tree: extra["value_fn"](whole(tree))
        if "grad_fn" in extra:
            own["grad_fn"] = lambda tree: self.of(extra["grad_fn"](whole(tree)))
        return own

    def of_evaluation(self, found: LossAt) -> LossAt:
        """The loss, and its gradients in these leaves."""
        return found._replace(grads=self.of(found.grads))

    def of_each(self, hp: HParams, spec: trees.Spec) -> dict[str, Any]:
        """Hyper-parameters, with their values for these leaves where they have one per leaf."""
        return {
            name: PerLeaf(self._values(value, spec, name)) if isinstance(value, PerLeaf) else value for name, value in hp.items()
        }

    def _values(self, value: PerLeaf, spec: trees.Spec, name: str) -> dict[Any, Any]:
        values = value.values(spec, name)
        return {key: values[i] for key, i in self.places.items()}


def _way_out(labels: Labels) -> str:
    """What to do about a parameter that has no label of a branch."""
    match labels:
        case ByName():
            return 'Give a last pattern that catches the rest, such as r".*".'
        case ByNdim():
            return "Give otherwise=..., the label of all other parameters."
        case function if callable(function):
            return "The function of labels returns the name of a branch for every parameter."
    return (
        "The tree of labels has to give the name of a branch for every parameter. Other words, such as those of by_role, are "
        "translated: {name: branch_of[word] for name, word in labels.items()}."
    )


def _default(hparam: Hparam) -> Origin:
    return Origin() if hparam.optional else Origin(fixed=hparam.default)


def _leaf_extra(transform: Transform) -> set[str]:
    return {name for _, form in nested(transform) for name in form.needs.trees}


@recorded
def partition(branches: Mapping[str, Transform], labels: Labels) -> Transform:
    r"""A transform for each part of the parameters.

    Args:
        branches: label to transform; `freeze()` for parameters that stay as they are.
        labels: `(name, leaf) -> label`, such as `by_name` and `by_ndim` make; or a tree of labels, such as `by_module` makes:
            labels by name, nested like the parameters or flat with dotted names. They may depend on names and shapes alone.

    Hyper-parameters: a bare name (`lr`) reaches every branch that has it, and `label.lr` one of them. Where branches have
    different defaults for a name, each keeps its own until it is given. Behind the adapter, `group["lr"]` is then a factor of the
    branches' rates (see `with_lr_factor`), unless you give one rate for all, `OptimizerAdapter(params, tx, lr=0.1)`.

    State: each branch's under its label, with a flat dict of its own parameters, by name, for each slot. A whole-tree quantity
    (`clip_by_global_norm`) in a branch spans its leaves; in a chain around the partition, all.

    Raises:
        TypeError: the branches are no mapping of transforms, or a function of labels does not take (name, leaf).
        ValueError: from `init_state` and from the constructor of an optimizer, for a label that no parameter has, unless it is
            that of whatever is left (`r".*"`); from these and from `update`, for a parameter without a label of a branch. The
            message lists names.

    As `optax.partition`, whose branches close over their hyper-parameters.

    >>> import torch
    >>> from functional_optim import adamw, by_name, freeze, sgd
    >>> tx = partition({"decay": adamw(), "plain": sgd()}, by_name({r"weight$": "decay", r".*": "plain"}))
    >>> params = {"weight": torch.ones(2), "bias": torch.ones(1)}
    >>> grads = {"weight": torch.ones(2), "bias": torch.ones(1)}
    >>> tx.update(grads, tx.init_state(params), params, {"lr": 0.5, "decay.lr": 0.1, "weight_decay": 0.0})[0]
    {'weight': tensor([-0.1000, -0.1000]), 'bias': tensor([-0.5000])}
    """
    if not isinstance(branches, Mapping):
        raise TypeError(f"branches is a {type(branches).__name__}: expected a mapping of labels to transforms.")
    for label, branch in branches.items():
        require_transform(branch, f"branch {label!r} of partition")
    require_labels(labels, "labels of partition", "a label")
    return _routed(branches, labels, all_used=True, name="partition")


@recorded
def masked(transform: Transform, mask: Tree | Callable[[str, Tensor], bool]) -> Transform:
    """A transform for some of the parameters; the updates of the rest pass unchanged.

    Args:
        transform: what runs where the mask is true.
        mask: `(name, leaf) -> bool`, or a tree of bools by name; a parameter that it does not name is False.

    Raises:
        TypeError: a function does not take (name, leaf), or a tree holds text.
        ValueError: from `init_state` and from the constructor of an optimizer, where a tree of bools names none of the
            parameters.

    Hyper-parameters are the transform's. State: the transform's under `"masked"`, over a flat dict of the parameters by name.

    As `optax.masked`.

    >>> import torch
    >>> from functional_optim import add_decayed_weights
    >>> tx = masked(add_decayed_weights(0.5), lambda name, leaf: leaf.ndim > 0)
    >>> params = [torch.ones(2), torch.ones(())]
    >>> tx.update([torch.zeros(2), torch.zeros(())], tx.init_state(params), params)[0]
    [tensor([0.5000, 0.5000]), tensor(0.)]
    """
    require_transform(transform, "masked")
    require_labels(mask, "mask of masked", "whether it is chosen")
    for leaf in () if callable(mask) else trees.leaves(mask):
        if isinstance(leaf, str):
            raise TypeError(
                f"the mask has the text {leaf!r} where it should be true or false: {{{leaf!r}: True}}, or a function, "
                "lambda name, leaf: ..."
            )
    by_name: Any = mask if callable(mask) else trees.by_name(mask)
    return _routed({"masked": transform, "rest": chain()}, _Mask(by_name), all_used=False, name="masked")


@dataclass(frozen=True, eq=False)
class _Mask:
    """A mask as labels: a function, or bools by name."""

    mask: Callable[..., Any] | Mapping[str, bool]

    def __call__(self, name: str, leaf: Tensor) -> str:
        chosen = self.mask.get(name, False) if isinstance(self.mask, Mapping) else self.mask(name, leaf)
        return "masked" if chosen else "rest"

    def check(self, names: list[str]) -> None:
        """Raise where the names have nothing in common with those that it gives: a branch may see a part of them."""
        if isinstance(self.mask, Mapping) and names and self.mask and not set(names) & set(self.mask):
            given = "a single bool, and no name" if set(self.mask) == {""} else _listed(self.mask)
            raise ValueError(f"the mask names no parameter: it has {given}; there are: {_listed(names)}.")


def _routed(branches: Mapping[str, Transform], labels: Labels, *, all_used: bool, name: str) -> Transform:
    form = Partitioned(dict(branches), labels, all_used)
    declared = shared_names({label: branch.declared for label, branch in branches.items()})
    for label, branch in branches.items():
        for own, hparam in branch.declared.items():
            declared[f"{label}.{own}"] = Hparam(hparam.default, hparam.range, optional=True)
    return Transform.of(form, declared, name)


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"
