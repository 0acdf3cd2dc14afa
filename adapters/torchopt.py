"""TorchOpt's functional API over this library: `import functional_optim.adapters.torchopt as torchopt`, and the program goes on.

Its optimizers, links, schedules and `FuncOptimizer`, with its arguments and defaults (those of release 0.7.3; Ren et al. 2022,
https://arxiv.org/abs/2211.06934). `inplace=True` overwrites the state, its counts too, and in `apply_updates` the parameters; not
the state under `torch.func`, nor where a derivative goes through it. `moment_requires_grad` and `use_accelerated_op` change
nothing; `eps_root` and `initial_scale` have to be 0. `adamw(mask=...)` does what it says, where TorchOpt decays all.
"""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

import functional_optim as fo
from functional_optim import trees
from functional_optim.torch_internals import is_observed
from functional_optim.trees import Tree


class GradientTransformation(NamedTuple):
    """A pair of functions, `init(params) -> state` and `update(updates, state, *, params, inplace) -> (updates, state)`."""

    init: Callable[[Tree], Tree]
    update: Callable[..., tuple[Tree, Tree]]

    def chain(self, next: "GradientTransformation") -> "GradientTransformation":
        """This one, then the next."""
        return chain(self, next)


def as_torchopt(transform: fo.Transform, **hparams: Any) -> GradientTransformation:
    """A transform of this library as TorchOpt has them, with these hyper-parameters, which may be tensors."""

    def update(updates: Tree, state: Tree, *, params: Tree = None, inplace: bool = True) -> tuple[Tree, Tree]:
        found, new = transform.update(_with_tuples(updates), state, _with_tuples(params), hparams)
        updates = trees.unflatten(trees.flatten(updates)[1], trees.leaves(found))
        return updates, _overwritten(state, new) if inplace else new

    return GradientTransformation(lambda params: transform.init_state(_with_tuples(params), hparams), update)


def _with_tuples(tree: Tree) -> Tree:
    """The tree with tuples for lists: programs mix the two, gradients in the one and parameters in the other."""
    if isinstance(tree, list) or type(tree) is tuple:
        return tuple(map(_with_tuples, tree))
    return {key: _with_tuples(value) for key, value in tree.items()} if type(tree) is dict else tree


def _overwritten(state: Tree, new: Tree) -> Tree:
    """The state with the new values in it; the new one where a derivative or a batch may go through it."""
    if is_observed() or any(x.requires_grad for x in trees.leaves(new) if x is not None):
        return new
    for old, x in zip(trees.leaves(state), trees.leaves(new), strict=True):
        if x is not None:
            old.copy_(x)
    return state


def chain(*transformations: GradientTransformation) -> GradientTransformation:
    """One after another; the state is a tuple."""

    def update(updates: Tree, state: Tree, *, params: Tree = None, inplace: bool = True) -> tuple[Tree, Tree]:
        states = []
        for each, old in zip(transformations, state, strict=True):
            updates, new = each.update(updates, old, params=params, inplace=inplace)
            states.append(new)
        return updates, tuple(states)

    return GradientTransformation(lambda params: tuple(each.init(params) for each in transformations), update)


def masked(inner: GradientTransformation, mask: Any) -> GradientTransformation:
    """The inner one where the mask, a tree of bools or a function from parameters to it, is true; the rest passes unchanged."""

    def of(tree: Tree, params: Tree) -> Tree:
        kept = mask(params) if callable(mask) else mask
        return None if tree is None else trees.map_leaves(lambda x, keep: x if keep else None, tree, kept)

    def update(updates: Tree, state: Tree, *, params: Tree = None, inplace: bool = True) -> tuple[Tree, Tree]:
        like = updates if params is None else params
        found, state = inner.update(of(updates, like), state, params=of(params, like), inplace=inplace)
        leaves, spec = trees.flatten(updates)
        return trees.unflatten(spec, [a if b is None else b for a, b in zip(leaves, trees.leaves(found), strict=True)]), state

    return GradientTransformation(lambda params: inner.init(of(params, params)), update)


def apply_updates(params: Tree, updates: Tree, *, inplace: bool = True) -> Tree:
    """`params + updates`; written into the parameters, unless `inplace` is False."""
    leaves, spec = trees.flatten(params)
    if not inplace:
        return trees.unflatten(spec, [p if u is None else p + u for p, u in zip(leaves, trees.leaves(updates), strict=True)])
    for p, u in zip(leaves, trees.leaves(updates), strict=True):
        if u is not None:
            p.data.add_(u)
    return params


class FuncOptimizer:
    """A transformation with its state: `params = optimizer.step(loss, params)`, differentiably."""

    def __init__(self, impl: GradientTransformation, *, inplace: bool = False) -> None:
        self.impl, self.inplace, self.optim_state = impl, inplace, None

    def step(self, loss: torch.Tensor, params: Tree, inplace: bool | None = None) -> Tree:
        """The parameters after a step down the gradient of the loss, which is a function of them."""
        leaves, spec = trees.flatten(params)
        grads = trees.unflatten(spec, list(torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)))
        state = self.impl.init(params) if self.optim_state is None else self.optim_state
        updates, self.optim_state = self.impl.update(grads, state, params=params, inplace=False)
        return apply_updates(params, updates, inplace=self.inplace if inplace is None else inplace)


def _named(constructor: Callable[..., fo.Transform], **defaults: Any) -> Callable[..., GradientTransformation]:
    """A function with TorchOpt's arguments, which have these defaults; numbers may be tensors, or schedules."""
    optional = {name for name, given in inspect.signature(constructor).parameters.items() if given.default is None}

    def make(*args: Any, maximize: bool = False, **given: Any) -> GradientTransformation:
        if any(given.pop(name, 0.0) != 0.0 for name in ("eps_root", "initial_scale")):
            raise ValueError("eps_root and initial_scale have to be 0 here; derivatives are finite at a gradient of 0 without.")
        given = {name: x for name, x in given.items() if name not in ("moment_requires_grad", "use_accelerated_op")}
        unknown = given.keys() - defaults.keys()
        if unknown or len(args) > len(defaults):
            raise TypeError(f"expected {', '.join(defaults)}; got {sorted(unknown) or args!r}.")
        numbers = defaults | dict(zip(defaults, args, strict=False)) | given
        tensors = {name: x for name, x in numbers.items() if isinstance(x, torch.Tensor)}
        schedules: dict[str, Any] = {name: x for name, x in numbers.items() if callable(x) and name not in tensors}
        # What is 0 by TorchOpt's default is None here, and without a slot.
        plain = {name: x for name, x in numbers.items() if name not in tensors | schedules and not (name in optional and x == 0)}
        made = constructor(**plain, **dict.fromkeys(tensors, 0.0))
        made = fo.scheduled(made, **schedules) if schedules else made
        return as_torchopt(fo.chain(fo.negate(), made) if maximize else made, **tensors)

    return make


def adamw(lr: Any = 1e-3, betas: Any = (0.9, 0.999), eps: Any = 1e-8, weight_decay: Any = 1e-2, *, mask: Any = None, **rest: Any):
    """AdamW; with a mask, it decays what that says."""
    step, decay = _named(fo.scale_by_adam, betas=betas, eps=eps)(**rest), add_decayed_weights(weight_decay, mask)
    return chain(step, decay, _named(fo.scale_by_learning_rate, lr=lr)())


def add_decayed_weights(weight_decay: Any = 0.0, mask: Any = None) -> GradientTransformation:
    """`u + λ p`, where the mask is true."""
    decay = _named(fo.add_decayed_weights, weight_decay=weight_decay)()
    return masked(decay, mask) if mask is not None else decay


def clip_grad_norm(max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> GradientTransformation:
    """All gradients together, to this norm."""
    if norm_type != 2.0 or error_if_nonfinite:
        raise ValueError("clip_grad_norm has the 2-norm here, and no error for what is not finite: fo.apply_if_finite skips it.")
    return as_torchopt(fo.clip_by_global_norm(max_norm))


def polynomial_schedule(init_value: Any, end_value: Any, power: Any, transition_steps: int, transition_begin: int = 0) -> Any:
    """From one value to another, after so many steps, in so many."""
    return _from(transition_begin, init_value, fo.polynomial(init_value, end_value, transition_steps, power))


def exponential_decay(
    init_value: Any,
    decay_rate: Any,
    transition_begin: int = 0,
    transition_steps: int = 1,
    staircase: bool = False,
    end_value=None,
) -> Any:
    """Multiplied by `decay_rate` every so many steps."""
    later = fo.exponential(init_value, decay_rate, transition_steps, end_value, staircase=staircase)
    return _from(transition_begin, init_value, later)


def _from(begin: int, value: Any, later: Any) -> Any:
    return fo.join([fo.constant(value), later], [begin]) if begin > 0 else later


MOMENTS = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
adam = _named(fo.adam, lr=1e-3, **MOMENTS)
adamax = _named(fo.adamax, lr=1e-3, **MOMENTS | {"eps": 1e-6})
radam = _named(fo.radam, lr=1e-3, **MOMENTS | {"eps": 1e-6})
adadelta = _named(fo.adadelta, lr=1e-3, rho=0.9, eps=1e-6, weight_decay=0.0)
adagrad = _named(fo.adagrad, lr=1e-2, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10)
sgd = _named(fo.sgd, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False)
rmsprop = _named(fo.rmsprop, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False)

base = SimpleNamespace(GradientTransformation=GradientTransformation)
typing = SimpleNamespace(OptState=Tree, Params=Tree, Updates=Tree)
schedule = SimpleNamespace(
    polynomial_schedule=polynomial_schedule,
    exponential_decay=exponential_decay,
    linear_schedule=lambda init_value, end_value, transition_steps, transition_begin=0: polynomial_schedule(
        init_value, end_value, 1, transition_steps, transition_begin
    ),
)
transform = SimpleNamespace(
    add_decayed_weights=add_decayed_weights,
    masked=masked,
    scale=lambda step_size: as_torchopt(fo.scale(step_size)),
    scale_by_schedule=lambda step_size_fn: as_torchopt(fo.scale_by_schedule(step_size_fn)),
    scale_by_adam=lambda b1=0.9, b2=0.999, eps=1e-8, **rest: _named(fo.scale_by_adam, betas=(b1, b2), eps=eps)(**rest),
    scale_by_rms=_named(fo.scale_by_rms, alpha=0.9, eps=1e-8),
    trace=_named(fo.trace, momentum=0.9, dampening=0.0, nesterov=False),
)
