"""`fused`: the same transform, of plain tensors run as an optimizer's step is."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from functional_optim.combinators.combined import Around
from functional_optim.combinators.origin import Handed, Origin
from functional_optim.form import Engine, Path
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, require_transform


@dataclass(frozen=True, eq=False)
class Fused(Around):
    """The form of a transform with an engine."""

    @property
    def engine(self) -> Engine:
        """Made when it is first asked for."""
        return self._engine

    @cached_property
    def _engine(self) -> Engine:
        from functional_optim.adapters.engine.pure import PureEngine

        return PureEngine(self.inner)

    def takes_each(self, name: str) -> bool:
        """As inside."""
        return self.inner.form.takes_each(name)

    def origins(self, path: Path, outer: Mapping[str, Origin]) -> Handed:
        """The inner names are the outer ones."""
        return {(): {name: outer[name] for name in self.inner.declared}}


@recorded
def fused(transform: Transform) -> Transform:
    """The same transform, whose `update` and `step` run as compiled kernels that touch every tensor once.

        tx = fused(chain(clip_by_global_norm(), adamw()))
        state = tx.init_state(params)
        params, state = tx.step(grads, state, params, {"lr": 3e-4})

    It is what `OptimizerAdapter(..., fused=True)` is for a loop of pure functions: the rules are written down once for each
    structure of them and each set of dtypes, and compiled for any sizes and numbers. Another model, another rate, a rate that is
    a tensor, a schedule: nothing is compiled anew. The results are new tensors, and nothing that is given is written to.
    The numbers are those of `transform`, to rounding, and so are the names, hyper-parameters and states: one may take over from
    the other at any time.

    That is done where all trees hold plain tensors. Under the transforms of `torch.func`, in `torch.compile`, where a tensor
    requires gradients while autograd is on, for sparse tensors, `DTensor` and other subclasses, and without `params`, the rules
    themselves run. What is no rule for a tensor is called as it is, between kernels, with a warning that names it. On other
    devices than the host the rules run over lists of tensors.

    `step` saves the pass for the updates. Inside another transform `fused` is of use too, but best it is outermost.

    Args:
        transform: any transform.

    State: the transform's.

    >>> import torch
    >>> from functional_optim import sgd
    >>> tx = fused(sgd(lr=0.5))
    >>> params = {"w": torch.ones(2)}
    >>> params, state = tx.step({"w": torch.ones(2)}, tx.init_state(params), params)
    >>> params
    {'w': tensor([0.5000, 0.5000])}

    optax needs nothing like it, since XLA compiles whatever `jax.jit` is given, anew for each model.
    """
    require_transform(transform, "fused")
    return Transform.of(Fused(transform), transform.declared, transform.name)
