"""Unrolling: a training loop as a pure function of everything that goes into it, to be differentiated, batched and compiled.

    for k = 0 … K − 1:
        gₖ ← ∂L(pₖ; batchₖ)/∂p
        uₖ, sₖ₊₁ ← transform(gₖ, sₖ, pₖ, hparamsₖ)
        pₖ₊₁ ← pₖ + uₖ

Finn, Abbeel & Levine 2017, Model-Agnostic Meta-Learning, https://arxiv.org/abs/1703.03400: the loop differentiated in p₀, and its
    first-order form, where gₖ is a constant
Maclaurin, Duvenaud & Adams 2015, Gradient-based Hyperparameter Optimization through Reversible Learning,
    https://arxiv.org/abs/1502.03492; Franceschi et al. 2017, Forward and Reverse Gradient-Based Hyperparameter Optimization,
    https://arxiv.org/abs/1703.01785: the loop differentiated in the hyper-parameters, in reverse and in forward mode
Shaban et al. 2019, Truncated Back-propagation for Bilevel Optimization, https://arxiv.org/abs/1810.10667
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.apply import applied
from functional_optim.checks import check_params, misfit
from functional_optim.evaluate import LossAt
from functional_optim.hparams import HParams, require_mapping
from functional_optim.meta import loops
from functional_optim.meta.flat import Flat, flattening
from functional_optim.meta.layers import composing
from functional_optim.meta.packing import detached, is_smooth, map_tensors, pack
from functional_optim.meta.remat import require_constant_closure
from functional_optim.numerics import double
from functional_optim.recipe import answering
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


class Unrolled(NamedTuple):
    """What an unrolled loop returns.

    Attributes:
        params: the parameters after the last step.
        state: the transform's state after the last step; pass it as `state=` to go on.
        logs: `"loss"`, of shape (steps,): the loss before each step. With `has_aux`, `"aux"`: what the loss returned beside it,
            stacked along a new first axis. With `has_carry`, `"carry"`: what the loss carried, after the last step.
    """

    params: Tree
    state: Tree
    logs: dict[str, Tree]

    @property
    def carry(self) -> Tree:
        """What the loss carried, after the last step; None without `has_carry`."""
        return self.logs.get("carry")


@dataclass(frozen=True, eq=False)
class Unroll:
    """What `unroll` returns: call it to train. The attributes are `unroll`'s arguments."""

    loss_fn: Callable[..., Any]
    transform: Transform
    steps: int
    truncate: int | None = None
    first_order: bool = False
    remat: bool | int = False
    has_aux: bool = False
    extra_fn: Callable[..., Mapping[str, Any]] | None = None
    compile: bool = False
    has_carry: bool = False
    _cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __reduce__(self) -> Any:
        # Compiled code can't be pickled, and is made again.
        return Unroll, tuple(getattr(self, x.name) for x in fields(self) if x.init)

    def __call__(
        self,
        params: Tree,
        hparams: HParams | None = None,
        batch: tuple[Any, ...] = (),
        *,
        batches: tuple[Any, ...] = (),
        schedule: HParams | None = None,
        state: Tree = None,
        carry: Tree = None,
    ) -> Unrolled:
        """Train for `steps` steps from these parameters.

        Args:
            params: a tree of tensors. Integer tensors and None in it are left as they are.
            hparams: some or all of the transform's hyper-parameters, as numbers or () tensors.
            batch: what the loss gets after the parameters at every step, a tuple.
            batches: what it gets after that, one entry per step: a tuple of trees whose tensors have a first axis of length
                `steps`, of which step k sees the k-th entry.
            schedule: hyper-parameters that change from step to step: name to a tensor of shape (steps,), or a tuple or `PerLeaf`
                of such. They take precedence over `hparams`.
            state: where to go on from, as a former call returned it; by default the transform's first state.
            carry: with `has_carry`, what the loss gets after the parameters at the first step; at the next, what it returned.

        Raises:
            TypeError: `batch` or `batches` is not a tuple or no fit for the loss, `hparams` no mapping, a leaf of `params` is no
                tensor, or there is a `carry` without `has_carry`.
            ValueError: a per-step tensor has another first axis, the loss is not a () tensor, the carry that it returns has
                another structure, shape or dtype than the one it got, or the transform objects.
        """
        self._check(params, hparams, batch, batches, schedule, carry)
        # the defaults too: one of them may be a tensor that is being differentiated, and `remat` wants to see it
        fixed, changing = {**self.transform.hparams, **(hparams or {})}, dict(schedule or {})
        if state is None:
            state = self.transform.init_state(params, {**fixed, **map_tensors(lambda x: x[0], changing)})
        flat = None
        if not (self.extra_fn or torch.compiler.is_compiling()):
            flat = flattening(params, state, self.transform, fixed, changing)
        if flat:
            params, state = flat.join(params), flat.join_state(state)
        if self.remat or self.compile:
            require_constant_closure(self.loss_fn, batched=not self.compile)
        (params, state, carry), logs = self._run(flat, (params, state, carry), (fixed, batch), (batches, changing))
        if flat:
            params, state = flat.part(params), flat.part_state(state)
        return Unrolled(params, state, {**logs, "carry": carry} if self.has_carry else logs)

    def _check(self, params: Tree, hparams: Any, batch: Any, batches: Any, schedule: Any, carry: Tree) -> None:
        """Raise what `__call__` says it does."""
        require_mapping(schedule or {}, name="schedule")
        require_mapping(hparams or {}, advice=" Data come after them: (params, hparams, batch), batch being a tuple.")
        for name, given in (("batch", batch), ("batches", batches)):
            if not isinstance(given, tuple):
                raise TypeError(
                    f"{name} is a {type(given).__name__}: expected a tuple of what the loss takes after params, such as (x, y)."
                )
        if carry is not None and not self.has_carry:
            raise TypeError("there is a carry, but the loss does not take one: pass has_carry=True to unroll.")
        check_params(params)
        problem = misfit(self.loss_fn, params, *([carry] if self.has_carry else []), *batch, *batches)
        if problem:
            given = ", ".join(["params", *["carry"] * self.has_carry, *["batch"] * len(batch), *["batches"] * len(batches)])
            raise TypeError(f"the loss is called with ({given}), but takes {problem}.")
        for name, tree in (("batches", batches), ("schedule", dict(schedule or {}))):
            loops.require_entry_per_step(tree, self.steps, name, "What is the same at every step goes into `batch` or `hparams`.")

    def _run(self, flat: Flat | None, carried: Tree, same: tuple[HParams, tuple[Any, ...]], own: Tree) -> tuple[Tree, Any]:
        """The loop on what is carried, with what is the `same` at every step and what is each step's `own`."""
        compiles, name = self.compile and not torch.compiler.is_compiling(), ""
        if compiles:  # numbers as tensors: another value is not another program
            (fixed, batch), device = same, next(x.device for x in pack(carried[0])[0])
            same = trees.map_leaves(lambda x: x if isinstance(x, Tensor) else double(x, device), fixed), batch
            name = f"a step of training by {getattr(self.loss_fn, '__qualname__', 'a loss')}"
        return loops.run(
            lambda carried, own, *same: self._step(flat, carried, own, *same),
            carried,
            same,
            own,
            steps=self.steps,
            truncate=self.truncate,
            remat=self.remat,
            cache=self._cache if compiles else None,
            key=flat,
            name=name,
        )

    def _step(
        self, flat: Flat | None, carried: Tree, own: Tree, fixed: HParams, batch: tuple[Any, ...]
    ) -> tuple[Tree, dict[str, Tree]]:
        """A step of the loop, with `flat` of parameters that are one vector: `own` is for this step alone."""
        (params, state, carry), (own_batch, own_hparams) = carried, own
        hparams, batch = {**fixed, **own_hparams}, (*((carry,) if self.has_carry else ()), *batch, *own_batch)
        tree = flat.part(params) if flat else params
        grads, loss, (new, aux) = self._gradients(tree, batch)
        if self.has_carry:
            loops.kept_leaves(new, carry, "carry", "loss")
        extra = {
            "value": loss,
            "evaluate": lambda params: self._evaluated(flat, params, batch),
            "value_fn": lambda params: self._value(flat.part(params) if flat else params, batch),
        }
        if self.extra_fn:
            extra |= composing(self.extra_fn)(detached(tree) if self.first_order else tree, *batch)
        grads = flat.join(grads) if flat else grads
        updates, state = self.transform.update(grads, state, params, hparams, **extra)
        return (applied(params, updates), state, new), {"loss": loss, **({"aux": aux} if self.has_aux else {})}

    def _gradients(self, params: Tree, batch: tuple[Any, ...]) -> tuple[Tree, Tensor, tuple[Tree, Tree]]:
        """As `gradients` of the loss, with what it carries and what is logged; if first order, with gradients that are constants,
        and the derivatives of the value.
        """
        if self.has_aux or self.has_carry:  # Their own derivatives are not known.
            grads, loss, beside = gradients(self._with_aux, params, batch, has_aux=True)
            return detached(grads) if self.first_order else grads, loss, beside if self.has_carry else (None, beside)
        if not self.first_order:
            grads, loss, _ = gradients(self.loss_fn, params, batch)
            return grads, loss, (None, None)
        grads, loss, _ = gradients(self.loss_fn, detached(params), batch)
        return detached(grads), with_slopes(loss, params, detached(grads)), (None, None)

    def _with_aux(self, *given: Any) -> Any:
        """What the loss returns; with `has_carry`, the carry and what is logged as one."""
        returned = composing(self.loss_fn)(*given)
        if not self.has_carry:
            return returned
        expected = ["loss", "carry", *(["aux"] if self.has_aux else [])]
        if not (isinstance(returned, tuple) and len(returned) == len(expected)):
            found = f"{len(returned)} values" if isinstance(returned, tuple) else f"a {type(returned).__name__}"
            raise ValueError(f"the loss returned {found}: expected a tuple ({', '.join(expected)}).")
        return returned[0], (returned[1], returned[2] if self.has_aux else None)

    def _evaluated(self, flat: Flat | None, params: Tree, batch: tuple[Any, ...]) -> LossAt:
        """What a transform is told of the loss elsewhere, in the form that it has the parameters in."""
        grads, loss, (_, aux) = self._gradients(flat.part(params) if flat else params, batch)
        return LossAt(loss, flat.join(grads) if flat else grads, aux)

    def _value(self, params: Tree, batch: tuple[Any, ...]) -> Tensor:
        if self.first_order:
            grads, loss, _ = gradients(self._with_aux, detached(params), batch, has_aux=self.has_aux or self.has_carry)
            return with_slopes(loss, params, detached(grads))
        returned = composing(self.loss_fn)(params, *batch)
        return returned[0] if self.has_aux or self.has_carry else returned


@answering
def unroll(
    loss_fn: Callable[..., Any],
    transform: Transform,
    steps: int,
    *,
    truncate: int | None = None,
    first_order: bool = False,
    remat: bool | int = False,
    has_aux: bool = False,
    extra_fn: Callable[..., Mapping[str, Any]] | None = None,
    compile: bool = False,
    has_carry: bool = False,
) -> Unroll:
    """A training loop as a pure function `(params, hparams, batch, …) -> Unrolled(params, state, logs)`.

        inner = fo.meta.unroll(loss, fo.adam(), steps=5)
        trained = inner(params, {"lr": 0.01}, (x, y)).params

    Differentiate it in the parameters, in any hyper-parameter or in the data with `torch.func.grad`; sweep hyper-parameters,
    tasks or stacked models with `torch.vmap`, whose `chunk_size` bounds the memory; take derivatives of a few hyper-parameters
    with `forward_grad`, whose memory does not grow with the steps. It is pure, so it also goes into `torch.compile`; but there
    the graph is as long as the loop, and `compile=True` is the better way.

    Args:
        loss_fn: `(params, *batch) -> loss`, a () tensor; with `has_aux`, `-> (loss, aux)`. For a module, see `from_module`.
        transform: what turns gradients into updates. It also gets `value`, the loss, and `evaluate`, which
            tells it and its gradient elsewhere.
        steps: how many, at least 1.
        truncate: stop derivatives before every step whose index is a multiple of this, so that none goes through more steps than
            that. None stops none.
        first_order: take the gradients of the loss as constants, those that `evaluate` tells a transform (`sam`) too:
            derivatives then need no second derivatives of the loss. All else stays: what flows through the transform, such as
            the learning rate's part, and the derivatives of the losses themselves, of `logs` and of `value`. `extra_fn` gets
            the parameters as constants.
        remat: keep the states between segments of √steps steps and compute the rest again when differentiated: memory
            grows as √steps, time by a forward pass. An int is the length of a segment.
        has_aux: the loss returns a tree of tensors beside its value; it is logged.
        compile: compile one step, and its transpose, at the first call with tensors of such shapes; see `compiled`, which says
            what is not compiled, and which around the whole program makes it faster still. Keep what `unroll` returns: it holds
            the compiled code.
        has_carry: the loss takes a tree of tensors after the parameters, and returns another beside its value, which it gets at
            the next step: `(params, carry, *batch) -> (loss, carry)`, or `(loss, carry, aux)`. The running statistics of a batch
            norm, an average of weights, the state of a recurrent network.
        extra_fn: `(params, *batch) -> {name: ...}`, with the carry before the batch: what else the transform asks for, such as a
            Hessian's diagonal.

    Raises:
        TypeError: `transform` is no transform, `loss_fn` no function, or a count no whole number.
        ValueError: a count is less than 1.

    Source: Finn et al. 2017, https://arxiv.org/abs/1703.03400; Franceschi et al. 2017, https://arxiv.org/abs/1703.01785;
    Chen et al. 2016, https://arxiv.org/abs/1604.06174. optax has no such function; in TorchOpt one writes the loop, and Adam's
    does not `vmap`.

    >>> import functional_optim as fo
    >>> inner = unroll(lambda p: (p - 3) ** 2, fo.sgd(), steps=2)
    >>> final = lambda lr: inner(torch.tensor(0.0), {"lr": lr}).params  # 3 − 3 (1 − 2 lr)²
    >>> final(torch.tensor(0.25)), torch.func.grad(final)(torch.tensor(0.25))
    (tensor(2.2500), tensor(6.))
    """
    if isinstance(loss_fn, Transform) or not callable(loss_fn):
        found = "a Transform" if isinstance(loss_fn, Transform) else repr(loss_fn)
        raise TypeError(f"unroll(loss_fn, transform, steps): the loss, a function, comes first, but loss_fn is {found}.")
    require_transform(transform, "unroll(loss_fn, transform, steps)")
    steps, truncate, remat = loops.counts_of(steps, truncate, remat)
    return Unroll(loss_fn, transform, steps, truncate, first_order, remat, has_aux, extra_fn, compile, has_carry)


def gradients(
    loss_fn: Callable[..., Any], params: Tree, batch: tuple[Any, ...], *, has_aux: bool = False
) -> tuple[Tree, Tensor, Tree]:
    """Gradient, value and auxiliary output of a loss; the gradient of what is no floating-point tensor is None."""
    leaves, spec = trees.flatten(params)
    trained = [i for i, p in enumerate(leaves) if is_smooth(p)]
    if not trained:
        raise ValueError("params hold no floating-point tensor: there is nothing to train.")
    rebuild_aux: list[Callable[[Sequence[Tensor]], Tree]] = []

    def objective(*values: Tensor) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
        filled = list(leaves)
        for i, value in zip(trained, values, strict=True):
            filled[i] = value
        loss, aux = _loss_and_aux(composing(loss_fn)(trees.unflatten(spec, filled), *batch), has_aux)
        tensors, rebuild = pack(aux)
        rebuild_aux[:] = [rebuild]
        return loss, (loss, tensors)

    inputs = [leaves[i] for i in trained]
    found, (loss, aux) = torch.func.grad(objective, argnums=tuple(range(len(inputs))), has_aux=True)(*inputs)
    slopes = dict(zip(trained, found, strict=True))
    return trees.unflatten(spec, [slopes.get(i) for i in range(len(leaves))]), loss, rebuild_aux[0](aux)


def with_slopes(value: Tensor, params: Tree, slopes: Tree) -> Tensor:
    """The same value, to which constants are added as its derivatives in the parameters."""
    terms = []
    for p, slope in zip(trees.leaves(params), trees.leaves(slopes), strict=True):
        if slope is not None:
            product = slope.conj() * (p - p.detach())
            terms.append((product.real if product.is_complex() else product).sum().to(value))
    zero = torch.stack(terms).sum()
    return value + torch.where(zero.isfinite(), zero, 0.0)  # An infinite slope times 0 is NaN, which the value is not.


def _loss_and_aux(returned: Any, has_aux: bool) -> tuple[Tensor, Tree]:
    if has_aux and not (isinstance(returned, tuple) and len(returned) == 2):
        raise ValueError(f"with has_aux, the loss returns a pair (loss, aux), but it returned {returned!r}.")
    loss, aux = returned if has_aux else (returned, None)
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"the loss is {found}: expected a () tensor. Take a mean, or pass has_aux=True for (loss, aux).")
    for path, leaf in zip(trees.paths(aux, "aux"), trees.leaves(aux), strict=True):
        if leaf is not None and not isinstance(leaf, Tensor):
            raise TypeError(f"{path} is a {type(leaf).__name__}: what the loss returns beside its value is logged, so a tensor.")
    return loss, aux
