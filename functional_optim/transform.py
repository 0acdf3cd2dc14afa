"""The interface: `Transform`, and the decorators that make one of a rule for one tensor, or for all of them."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from functional_optim import trees
from functional_optim.apply import applied, warn_of_a_graph
from functional_optim.checks import check_gradients, check_params, misfit, pair_advice
from functional_optim.codecs import POSITIVE, SIGNED, Codec
from functional_optim.coding import with_codec
from functional_optim.form import ByHand, Form, Needs, Path, needed, nested
from functional_optim.hints import MEANT, hint
from functional_optim.hparams import Hparam, HParams, PerLeaf, complete, declare, unknown, validate
from functional_optim.lifting import Leafwise, Lifted, Reduction, SlotInit, WholeTree, widened, zeros
from functional_optim.numbered import Numbered
from functional_optim.philox import seed_apart
from functional_optim.recipe import Recipe, recorded
from functional_optim.trees import Tree

# What a Transform has for its users.
PUBLIC = ("init_state", "update", "step", "hparams", "declared", "name", "form", "complete", "select")


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Transform:
    """A gradient transform: two pure functions and the hyper-parameters they take.

        state          = transform.init_state(params, hparams)
        updates, state = transform.update(grads, state, params, hparams)
        params         = apply_updates(params, updates)

    or, the last two in one, `params, state = transform.step(grads, state, params, hparams)`.

    `params`, `grads` and the slots of the state are trees of tensors: dicts, lists, tuples, classes registered with torch's own
    pytrees or optree, nested at will; `None` stands for a missing gradient. Hyper-parameters are an argument of every call, so
    they can be swept with `torch.vmap`, differentiated with `torch.func.grad` and scheduled without recompiling. Nothing is
    written to: every call returns new tensors.

    Most transforms are made by `elementwise`, `per_tensor`, `whole_tree` or `chain`. By hand, give

    Args:
        init_fn: `(params, hparams) -> state`.
        update_fn: `(updates, state, params, hparams, **extra) -> (updates, state)`; both get every hyper-parameter.
        declared: name to default, or to `Hparam(default, range)`.
        name: what errors, reprs and the states of chains call it.
        form: how it works inside, which engines look at; `Transform.of` makes a transform of one. None for one made by hand.

    Differs from `optax.GradientTransformation` in taking hyper-parameters per call instead of closing over them.
    """

    init_fn: Callable[[Tree, HParams], Tree]
    update_fn: Callable[..., tuple[Tree, Tree]]
    declared: Mapping[str, Hparam]
    name: str
    form: Form
    recipe: Recipe | None = field(init=False, default=None)

    def __init__(
        self,
        init_fn: Callable[[Tree, HParams], Tree],
        update_fn: Callable[..., tuple[Tree, Tree]],
        declared: HParams | None = None,
        name: str = "transform",
        form: Form | None = None,
    ) -> None:
        fields = {"init_fn": init_fn, "update_fn": update_fn, "declared": declare(declared or {}), "name": name}
        for key, value in {**fields, "form": form or ByHand(init_fn, update_fn)}.items():
            object.__setattr__(self, key, value)

    @classmethod
    def of(cls, form: Form, declared: HParams, name: str) -> "Transform":
        """The transform that works like this form."""
        return cls(form.init, form.update, declared, name, form)

    @property
    def hparams(self) -> dict[str, Any]:
        """Name to default of every hyper-parameter that has one, in the order of the links: torch's names, flat."""
        return {name: hparam.default for name, hparam in self.declared.items() if not hparam.optional}

    @property
    def needs(self) -> Needs:
        """The names of what `update` has to be given by keyword beside the gradients.

        >>> from functional_optim import polyak_sgd, sam
        >>> sam(polyak_sgd()).needs
        Needs(numbers=('value',), trees=(), functions=('evaluate',))
        """
        return needed(self)

    def init_state(self, params: Tree, hparams: HParams | None = None) -> Tree:
        """The state before the first update: plain dicts of trees like `params` and of () tensors.

        Raises:
            TypeError: a leaf of `params` is not a tensor.
            ValueError: a hyper-parameter is unknown or out of range.
        """
        check_params(params)
        self.form.check(params)
        self.form.check_each(params)
        return self.first_state(params, self.complete(hparams))

    def first_state(self, params: Tree, hparams: HParams) -> Tree:
        """`init_state` of a complete mapping and of parameters that are taken as they come: these may be some of them only.

        Rules that draw random numbers are numbered in the order of the parts and have seeds apart, whatever parts are called.
        """
        state = self.init_fn(params, self.select(hparams))
        seeds = [(*path, name) for path, form in nested(self) for name in form.seeds]
        for number, path in enumerate(seeds[1:], 1):
            state = _changed(state, path, lambda seed, number=number: seed_apart(seed, number))
        return state

    def update(
        self, grads: Tree, state: Tree, params: Tree = None, hparams: HParams | None = None, **extra: Any
    ) -> tuple[Tree, Tree]:
        """One step: what to add to `params`, and the next state.

        Args:
            grads: a tree of dense tensors, real or complex; None for "no gradient": its update is None, its slots stay,
                and so does its count, where a rule's `step` is a `PerLeaf` of counts.
            state: what `init_state` or the previous `update` returned.
            params: needed by rules that read the parameter, such as weight decay.
            hparams: some or all of `self.hparams`, as Python numbers or () tensors; the rest keep their defaults.
            extra: what some rules need and others ignore: `value` (the loss), ...

        Returns:
            Updates, in the structure, shapes and dtypes of `grads`, and the new state; computed in at least float32.

        Raises:
            TypeError: a gradient is not a tensor, is of an integer dtype, or is sparse; a hyper-parameter is not a number, or
                is passed as a keyword.
            ValueError: trees or shapes disagree, parameters are missing, a hyper-parameter is unknown or out of range.
        """
        found = self._by_engine(grads, state, params, hparams, extra, steps=False)
        if found is not None:
            return found
        updates, state = self._by_rules(grads, state, params, hparams, extra)
        return trees.map_leaves(lambda u, g: u.to(g.dtype), updates, grads), state

    def step(self, grads: Tree, state: Tree, params: Tree, hparams: HParams | None = None, **extra: Any) -> tuple[Tree, Tree]:
        """`update` and `apply_updates` in one: the new parameters, and the next state.

        A parameter without a gradient stays the same tensor. In low precision the update is not rounded before it is added. With
        a transform that is `fused`, the updates are never stored.

        Args:
            grads, state, params, hparams, extra: as for `update`; parameters have to be given.

        Raises:
            TypeError, ValueError: as `update` and `apply_updates`.

        As `apply_updates`, it warns of an `nn.Parameter` that requires a gradient while autograd is on.

        >>> from functional_optim import sgd
        >>> tx, params = sgd(lr=0.5), {"w": torch.ones(2)}
        >>> tx.step({"w": torch.ones(2)}, tx.init_state(params), params)[0]
        {'w': tensor([0.5000, 0.5000])}
        """
        if isinstance(grads, Callable | None):
            raise TypeError(
                f"step(grads, state, params) got grads = {grads!r}: this is a transform, whose step returns new parameters and a "
                "new state. fo.adapters.OptimizerAdapter(params, transform) is an optimizer."
            )
        if params is None:
            raise TypeError("step needs the parameters, which it returns anew: step(grads, state, params, hparams).")
        found = self._by_engine(grads, state, params, hparams, extra, steps=True)
        if found is not None:
            return found
        updates, state = self._by_rules(grads, state, params, hparams, extra)
        new = applied(params, updates)
        warn_of_a_graph(params)
        return new, state

    def _by_engine(
        self, grads: Tree, state: Tree, params: Tree, hparams: HParams | None, extra: Mapping[str, Any], *, steps: bool
    ) -> tuple[Tree, Tree] | None:
        """What an engine computes, where there is one for these."""
        if torch.compiler.is_compiling() or self.form.engine is None or params is None:
            return None
        return self.form.engine(grads, state, params, self._numbers(hparams, extra), extra, steps=steps)

    def _numbers(self, hparams: HParams | None, extra: Mapping[str, Any]) -> HParams:
        """The complete hyper-parameters, none of which is among the rest."""
        hp = self.select(self.complete(hparams))
        for name in extra:
            if self.is_hyper_parameter(name):
                raise TypeError(
                    f"update got an unexpected keyword {name!r}. Hyper-parameters go into the mapping hparams={{...}}."
                )
        return hp

    def _by_rules(
        self, grads: Tree, state: Tree, params: Tree, hparams: HParams | None, extra: Mapping[str, Any]
    ) -> tuple[Tree, Tree]:
        """The updates in at least float32, and the next state."""
        try:
            check_gradients(grads, params)
        except (TypeError, ValueError) as error:
            if self._is_state(grads):
                raise TypeError("grads is a state: the order is update(grads, state, params, hparams).") from error
            if isinstance(params, Mapping) and params and set(params) <= set(self.declared):
                raise TypeError("params has hyper-parameters: the order is update(grads, state, params, hparams).") from error
            raise type(error)(f"{error}{pair_advice(grads)}") from None
        hp = self._numbers(hparams, extra)
        wide = trees.map_leaves(widened, grads), None if params is None else trees.map_leaves(widened, params)
        return self.update_fn(wide[0], state, wide[1], hp, **extra)

    def complete(self, hparams: HParams | None) -> dict[str, Any]:
        """These hyper-parameters, validated, and the defaults of the rest.

        Raises:
            TypeError: `hparams` is no mapping, or a value is neither a number nor a tensor.
            ValueError: an unknown name, or a Python number out of its range.
        """
        return complete(self.declared, hparams, self.refusal)

    def refusal(self, name: str) -> str:
        """The message for the name of a hyper-parameter that this transform does not have."""
        if name in _scheduled(self):
            return (
                f"{name!r} of {self.name} is given by a schedule, so it can't be given here. Change the schedule instead: "
                f"scheduled(transform, {name}=...)."
            )
        message, recipe = unknown(name, self.declared, self.name), self.recipe
        if recipe and name in recipe.bound.signature.parameters:
            message += f" It is an argument of the constructor, {recipe.constructor.__name__}({name}=...)."
        return message

    def select(self, hparams: HParams) -> dict[str, Any]:
        """Of a complete mapping, the part that this transform takes.

        Raises:
            ValueError: one value per leaf, for a transform made by hand.
        """
        for name in self.declared:
            if isinstance(hparams.get(name), PerLeaf) and not self.form.takes_each(name):
                raise ValueError(f"{self.name} takes one {name!r} for all parameters, but got one per parameter or group.")
        return {name: hparams[name] for name in self.declared if name in hparams}

    def is_hyper_parameter(self, name: str) -> bool:
        """Whether this is the name, here or elsewhere, of what `hparams` is for."""
        meant = {name, *MEANT.get(name, ())}
        return bool(meant & (self.declared.keys() | _scheduled(self))) or name in ("hparam", "hyperparams", "hyper_params")

    def _is_state(self, tree: Any) -> bool:
        """Whether this has the entries that a state of this transform has."""
        parts = self.form.parts
        if () in parts:
            return parts[()]._is_state(tree)
        names = {keys[0] for keys in parts} or set(getattr(self.form, "state_names", ()))
        return bool(names) and isinstance(tree, Mapping) and names <= set(tree)

    if not TYPE_CHECKING:  # Type checkers tell what a class has not, and would take this for a promise that it has everything.

        def __getattr__(self, name: str) -> Any:
            known = name in vars(self).get("declared", ())
            advice = (
                f" Its default is transform.hparams[{name!r}]; set_defaults gives it another." if known else hint(name, PUBLIC)
            )
            raise AttributeError(f"a Transform has no attribute {name!r}.{advice}")

    def __repr__(self) -> str:
        if self.recipe is not None:
            return self.recipe.text(shown=self.declared)
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.hparams.items())})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return super().__reduce_ex__(protocol) if self.recipe is None else self.recipe.reduced()


def _changed(state: Tree, path: Path, change: Callable[[Any], Any]) -> Tree:
    return {**state, path[0]: _changed(state[path[0]], path[1:], change)} if path else change(state)


def _scheduled(transform: Transform) -> set[str]:
    """The names that schedules give, here or further inside."""
    form = transform.form
    return set(getattr(form, "schedules", ())).union(*map(_scheduled, form.parts.values()))


def require_transform(transform: Any, where: str) -> None:
    """Raise TypeError, with advice, unless this is a `Transform`."""
    if not isinstance(transform, Transform):
        found, advice = f"{transform!r}", ""
        if inspect.isfunction(transform) and transform.__module__.startswith("torch."):
            meant = MEANT.get(transform.__name__)
            found, advice = f"torch's {transform.__name__}", f" Did you mean fo.{meant[0]}()?" if meant else ""
        elif inspect.isfunction(transform) and transform.__name__.isidentifier():
            advice = f" Did you mean to call it, {transform.__name__}()?"
        elif isinstance(transform, torch.optim.Optimizer):
            found = f"an optimizer, {type(transform).__name__},"
            advice = " fo.adapters.transform_of(optimizer) is what one of this library steps with."
        elif isinstance(transform, type | str):
            advice = " The optimizers of this library are functions: fo.adamw(), fo.sgd(momentum=0.9), ..."
        elif isinstance(transform, Mapping | list | tuple):
            found = f"a {type(transform).__name__}"
            if not isinstance(transform, Mapping) and transform and all(isinstance(link, Transform) for link in transform):
                advice = " One after another they are fo.chain(*links)."
        raise TypeError(f"{where}: {found} is not a Transform.{advice}")


def elementwise(
    slots: Sequence[str] | Mapping[str, SlotInit] = (),
    hparams: HParams | None = None,
    *,
    reduce: Reduction | None = None,
    extra: Sequence[str] = (),
    leaf_extra: Sequence[str] = (),
    evaluated_at: Callable[..., torch.Tensor] | None = None,
    as_stored: Sequence[str] = (),
    dtypes: Sequence[torch.dtype] = (),
    coded: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Transform]]:
    """Make the constructor of a transform from its rule for one tensor that treats every element alike.

    The decorated function takes the scalars and returns the rule:

    >>> @elementwise(slots=("exp_avg",), hparams={"lr": Hparam(1e-3, "[0, inf)"), "beta": Hparam(0.9, "[0, 1)")})
    ... def sign_momentum(hp, t):
    ...     def rule(g, p, m):
    ...         m = hp["beta"] * m + (1 - hp["beta"]) * g
    ...         return -hp["lr"] * m.sign(), m
    ...     return rule
    >>> sign_momentum(beta=0.95)
    sign_momentum(lr=0.001, beta=0.95)

    - `hp` is the complete mapping of hyper-parameters: Python numbers or () tensors.
    - `t`, where the function asks for it, counts updates from 1: a Python number or a () tensor. Combine scalars with
      operators and with `functional_optim.numerics`; never branch on them in Python.
    - `reduce(updates, params, **slots)`, where given, gets lists of all leaves and returns whole-tree quantities; the
      function takes them as its last positional argument.
    - Keyword-only arguments are static choices of the constructor (`nesterov=False`); they may pick a rule.
    - `rule(g, p, *slots)` returns the update and the new slots, or the bare update where there are none. It sees real tensors
      of at least float32 and writes to none. `p` is None where the caller gave no parameters.
    - What the function or its rule finds outside, a variable or an attribute of its object, is a constant of the code that
      engines make. Another number or tensor there is noticed, and the rule written down and compiled anew: a number that changes
      often belongs into `hparams`. Attributes of attributes, and what is changed within a tensor, are not looked at.

    Args:
        slots: names of the per-leaf state, each starting as zeros like the parameter; or name to `(p, hp) -> first value`.
        hparams: name to default, or to `Hparam(default, range)`.
        reduce: whole-tree quantities, computed over all leaves before any rule runs. Of a sharded model it gets `DTensor`s, as
            the rule does, and what it returns is brought together from all processes.
        extra: names of further numbers that `update` has to be given, such as the loss `value`; found in `hp`.
        leaf_extra: names of trees like the parameters that `update` has to be given, such as `hessian_diag`; the rule gets its
            leaf of each after the slots, and None where the tree or the leaf is None.
        as_stored: names of slots that the rule sees in the dtype in which they are stored, which may tell it the parameter's.
        dtypes: those of the parameters that the rule concerns, if not all: of others it leaves updates and slots as they are.
        coded: of the slots that a codec may keep in fewer bits, name to `"signed"` or, for what is never negative and whose root
            the update is divided by, `"positive"`: averages, and no counts, step sizes or copies of the parameter.
        evaluated_at: `(p, *slots) -> x`, of a rule that keeps better parameters than those it trains, such as an average: what
            `evaluated`, and `eval_params` of an optimizer, put in the place of p. It treats every element alike, as the rule.
        name: of the transform; the function's own name by default.

    Returns:
        A decorator. The constructor it makes takes a new default for each hyper-parameter, the static choices, and, where there
        are slots, `state_dtype`, their dtype (the parameter's by default), or a codec, such as `Blockwise(bits=8)`, for those
        that may be coded.
    """
    lift = functools.partial(
        Leafwise,
        elementwise=True,
        reduce=reduce,
        extra=tuple(extra),
        leaf_extra=tuple(leaf_extra),
        as_stored=tuple(as_stored),
        dtypes=tuple(dtypes),
        coded=_kinds(slots, coded or {}),
        evaluated_at=evaluated_at,
    )
    return _decorator(lift, slots, hparams, reduces=reduce is not None, name=name)


def per_tensor(
    slots: Sequence[str] | Mapping[str, SlotInit] = (),
    hparams: HParams | None = None,
    *,
    reduce: Reduction | None = None,
    extra: Sequence[str] = (),
    leaf_extra: Sequence[str] = (),
    batched: bool = False,
    places: bool = False,
    least_dims: int = 0,
    as_stored: Sequence[str] = (),
    dtypes: Sequence[torch.dtype] = (),
    coded: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Transform]]:
    """Like `elementwise`, for a rule that needs the tensor's true shape: norms, rows and columns, matrix products.

    No engine flattens or packs its tensors, and complex parameters raise TypeError. Of a sharded model (`DTensor`) the rule gets
    whole tensors all the same, on every process: each is gathered for it with its slots, one after another, and what it returns
    is spread again. A slot of another shape than its parameter's stays whole everywhere.

    Args:
        slots, hparams, reduce, extra, leaf_extra, as_stored, dtypes, coded, name: as for `elementwise`.
        batched: give the rule all tensors of one shape at once, as one tensor with a first dimension more, and the slots alike:
            one product of n matrices for n products. `p` and the results have that dimension, too.
        places: give the rule `hp["place"]`, a whole number: how many leaves of the tensor's shape that have a gradient come
            before it. Random numbers that depend on it differ from tensor to tensor.
        least_dims: how many dimensions a parameter has at least, 2 for a rule of matrices: `init_state`, and an optimizer when it
            is made, name one that has fewer; an optimizer one that is frozen, only when it is to be stepped.
    """
    lift = functools.partial(
        Leafwise,
        elementwise=False,
        reduce=reduce,
        extra=tuple(extra),
        leaf_extra=tuple(leaf_extra),
        as_stored=tuple(as_stored),
        dtypes=tuple(dtypes),
        coded=_kinds(slots, coded or {}),
        batched=batched,
        places=places,
        least_dims=least_dims,
    )
    return _decorator(lift, slots, hparams, reduces=reduce is not None, name=name)


def whole_tree(
    slots: Sequence[str] | Mapping[str, SlotInit] = (),
    hparams: HParams | None = None,
    *,
    shared: Mapping[str, Any] | None = None,
    each: Sequence[str] = (),
    extra: Sequence[str] = (),
    leaf_extra: Sequence[str] = (),
    coded: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Transform]]:
    """Like `elementwise`, for a rule that needs all tensors at once and may keep values that they share.

    The function takes `(hp[, t], *, static options)` and returns the rule. `rule(gs, ps, shared, *slots)` gets lists with an
    entry for each leaf that has a gradient (they may be empty), and the shared values by name; it returns the updates, the new
    shared values by name, and the new slots, in the same form. A hyper-parameter has one value for all, unless it is in `each`.

    >>> @whole_tree(shared={"largest": 0.0})
    ... def divide_by_largest_sum(hp):
    ...     def rule(gs, ps, shared):
    ...         largest = torch.stack([shared["largest"], *(g.abs().sum() for g in gs)]).max()
    ...         return [g / largest for g in gs], {"largest": largest}
    ...     return rule
    >>> tx = divide_by_largest_sum()
    >>> tx.update([torch.tensor(3.0), torch.tensor(-6.0)], tx.init_state([torch.tensor(0.0), torch.tensor(0.0)]))[0]
    [tensor(0.5000), tensor(-1.)]

    Args:
        slots, hparams, extra, leaf_extra, coded, name: as for `elementwise`.
        shared: name to first value, a number or `hp -> number`. They are kept as () tensors of float64; behind an optimizer,
            every parameter holds a copy.
        each: names of hyper-parameters that may differ between leaves; in `hp` they are lists, with a value per entry of `gs`.

    No engine fuses it. Of a sharded model it gets `DTensor`s on one mesh; `numerics.global_norm` and `inner_product` sum over the
    processes, too.
    """
    lift = functools.partial(
        WholeTree,
        elementwise=True,
        shared=dict(shared or {}),
        each=tuple(each),
        extra=tuple(extra),
        leaf_extra=tuple(leaf_extra),
        coded=_kinds(slots, coded or {}),
    )
    return _decorator(lift, slots, hparams, reduces=False, name=name)


def numbered(
    slots: Sequence[str] | Mapping[str, SlotInit] = (),
    hparams: HParams | None = None,
    *,
    own: Mapping[str, SlotInit] | None = None,
    shared: Mapping[str, Any] | None = None,
    each: Sequence[str] | None = None,
    over_all: bool = False,
    agree: Callable[[Sequence[HParams]], None] | None = None,
    extra: Sequence[str] = (),
    leaf_extra: Sequence[str] = (),
    evaluated_at: Callable[..., torch.Tensor] | None = None,
    coded: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Transform]]:
    """Like `elementwise`, for a rule that asks for sums, of a leaf or of all, and may keep numbers; engines run it as one.

    The function takes `(hp[, t], numbers, *, static options)`, the numbers by name as they are before the step, and returns three
    functions:

    - `terms(g, p, *slots)`, what is to be summed over the elements, one or several tensors; or None.
    - `finish(sums)`, of `Sums`, the numbers: new ones of those that it keeps, and whatever else the update takes. They are ()
      tensors; an engine may compute those of many leaves at once, so this takes operators and functions, and asks for no value.
    - `rule(numbers, g, p, *slots)`, the update and the new slots.

    >>> @numbered(shared={"largest": 0.0})
    ... def divide_by_largest_norm(hp, numbers):
    ...     def terms(g, p):
    ...         return g * g
    ...     def finish(sums):
    ...         return {"largest": torch.maximum(numbers["largest"], sums.all[0].sqrt())}
    ...     def rule(new, g, p):
    ...         return g / new["largest"]
    ...     return terms, finish, rule
    >>> tx = divide_by_largest_norm()
    >>> tx.update([torch.tensor(3.0), torch.tensor(-4.0)], tx.init_state([torch.tensor(0.0), torch.tensor(0.0)]))[0]
    [tensor(0.6000), tensor(-0.8000)]

    Args:
        slots, hparams, extra, leaf_extra, coded, name: as for `elementwise`.
        own: name to `(p, hp) -> first value`, of a number that each leaf keeps for itself.
        shared: name to first value, a number or `hp -> number`, of one that all leaves share: kept as a () tensor of float64.
            The step is shared then, too.
        each: names of hyper-parameters that may differ between leaves; all by default.
        over_all: whether `finish` takes sums over all leaves; where there are shared numbers, it does.
        agree: gets the hyper-parameters of every leaf, and raises ValueError where they don't go together.
        evaluated_at: as for `elementwise`, `(p, *slots, *own) -> x`.
    """
    lift = functools.partial(
        Numbered,
        elementwise=True,
        own=dict(own or {}),
        shared=dict(shared or {}),
        each=None if each is None else tuple(each),
        over_all=over_all or bool(shared),
        agree=agree,
        extra=tuple(extra),
        leaf_extra=tuple(leaf_extra),
        coded=_kinds(slots, coded or {}),
        evaluated_at=evaluated_at,
    )
    return _decorator(lift, slots, hparams, reduces=True, name=name)


def _decorator(
    lift: Callable[..., Lifted], slots: Any, hparams: HParams | None, *, reduces: bool, name: str | None
) -> Callable[[Callable[..., Any]], Callable[..., Transform]]:
    if callable(slots):
        raise TypeError(
            f"slots is a function, {getattr(slots, '__name__', slots)}: a decorator of rules is called first, as in "
            "@elementwise() or @elementwise(slots=('exp_avg',), hparams={'lr': 1e-3})."
        )
    return functools.partial(_constructor, lift=lift, slots=slots, hparams=hparams or {}, reduces=reduces, name=name)


def _constructor(
    scalars: Callable[..., Any],
    *,
    lift: Callable[..., Lifted],
    slots: Sequence[str] | Mapping[str, SlotInit],
    hparams: HParams,
    reduces: bool,
    name: str | None,
) -> Callable[..., Transform]:
    name = name or scalars.__name__
    _require_names(name, slots)
    declared = declare(hparams)
    starts = dict(slots) if isinstance(slots, Mapping) else dict.fromkeys(slots, zeros)
    takes = list(inspect.signature(scalars).parameters.values())
    options = [parameter for parameter in takes if parameter.kind is parameter.KEYWORD_ONLY]
    counts = any(parameter.name == "t" for parameter in takes)
    if len(takes) - len(options) != 1 + counts + reduces:
        raise TypeError(
            f"{name} takes {', '.join(parameter.name for parameter in takes) or 'nothing'}: expected (hp), then t if the rule "
            "counts updates, then one argument for what `reduce` returns if that is given; static choices are keyword-only."
        )
    signature = _signature(declared, options, _storage(lift, starts))

    @functools.wraps(scalars)
    def construct(*args: Any, **kwargs: Any) -> Transform:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = bound.arguments
        stored = values.get("state_dtype")
        _require_dtype(name, stored)
        form = lift(
            name=name,
            scalars=scalars,
            slots=starts,
            counts=counts,
            options={option.name: values[option.name] for option in options},
            state_dtype=None if isinstance(stored, Codec) else stored,
        )
        form = with_codec(form, stored) if isinstance(stored, Codec) else form
        for key, hparam in declared.items():
            validate(key, values[key], hparam)
        defaults = {key: Hparam(values[key], hparam.range) for key, hparam in declared.items()}
        return Transform.of(form, defaults, name)

    vars(construct).update(__signature__=signature, __name__=name)
    return recorded(construct)


def _require_names(name: str, slots: Any) -> None:
    if callable(slots):
        raise TypeError(f"the decorator of {name} needs parentheses: @elementwise() or @elementwise(slots=..., hparams=...).")
    if isinstance(slots, str):
        raise TypeError(f"slots = {slots!r} of {name} is a string: expected a tuple of names, ({slots!r},).")
    for slot, start in slots.items() if isinstance(slots, Mapping) else ():
        problem = misfit(start, None, None) if callable(start) else f"{start!r}, no function"
        if problem:
            raise TypeError(
                f"slots[{slot!r}] of {name} is called with a parameter and the hyper-parameters, (p, hp): it is {problem}."
            )
    if "step" in slots or len(set(slots)) != len(slots):
        raise ValueError(f"slots = {tuple(slots)} of {name}: the names must differ, and `step` is the count of updates.")


def _kinds(slots: Any, coded: Mapping[str, str]) -> dict[str, str]:
    for slot, kind in coded.items():
        if slot not in slots:
            raise ValueError(f"coded = {dict(coded)}: there is no slot {slot!r} among {tuple(slots)}.")
        if kind not in (SIGNED, POSITIVE):
            raise ValueError(f"coded[{slot!r}] = {kind!r}: expected {SIGNED!r} or {POSITIVE!r}.")
    return dict(coded)


def _require_dtype(name: str, dtype: Any) -> None:
    is_dtype = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    if not (dtype is None or is_dtype or isinstance(dtype, Codec)):
        raise TypeError(
            f"state_dtype = {dtype!r} of {name}: expected a real floating dtype, such as torch.bfloat16, a codec, such as "
            "fo.Blockwise(bits=8), or None."
        )


def _storage(lift: Any, starts: Mapping[str, Any]) -> Any:
    """What a constructor's `state_dtype` may be; None where there is nothing to choose."""
    if not set(starts) - {*lift.keywords.get("as_stored", ())}:
        return None
    return torch.dtype | Codec | None if lift.keywords["coded"] else torch.dtype | None


def _signature(declared: Mapping[str, Hparam], options: Sequence[inspect.Parameter], storage: Any) -> inspect.Signature:
    """What the constructor takes: required options, hyper-parameters, other options, and how slots are stored."""
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    required = [option.replace(kind=either) for option in options if option.default is option.empty]
    optional = [option for option in options if option.default is not option.empty]
    numbers = [
        inspect.Parameter(name, either, default=hparam.default, annotation=_number_type(hparam.default))
        for name, hparam in declared.items()
    ]
    if storage is not None:
        optional.append(inspect.Parameter("state_dtype", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=storage))
    return inspect.Signature([*required, *numbers, *optional], return_annotation=Transform)


def _number_type(default: Any) -> Any:
    """What a new default has to be: a number, or a tuple of as many."""
    return tuple[(float,) * len(default)] if isinstance(default, tuple) else float
