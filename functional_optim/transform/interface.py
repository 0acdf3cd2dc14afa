"""The interface of gradient transforms: two pure functions, and the hyper-parameters that they take."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from functional_optim import trees
from functional_optim.apply import applied, warn_of_a_graph
from functional_optim.checks import check_gradients, check_params, pair_advice
from functional_optim.form import ByHand, Form, Needs, needed, nested, with_part
from functional_optim.hints import MEANT, hint
from functional_optim.hparams import Hparam, HParams, PerLeaf, complete, declare, unknown
from functional_optim.lifting import widened
from functional_optim.philox import seed_apart
from functional_optim.recipe import Recipe
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

        Args:
            params: a tree of tensors, and of None for what is not trained; it may be empty. None alone is no tree: as in
                `update`, it stands for parameters that are not given.
            hparams: as in `update`.

        Raises:
            TypeError: a leaf of `params` is not a tensor, or they are not given.
            ValueError: a hyper-parameter is unknown or out of range.
        """
        if params is None:
            raise TypeError("params is None: init_state(params, hparams) takes the tensors that are trained, or a tree of them.")
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
            state = with_part(state, path, lambda seed, number=number: seed_apart(seed, number))
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
