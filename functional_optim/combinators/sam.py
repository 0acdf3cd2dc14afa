"""Sharpness-aware minimisation: step with the gradient of the worst point nearby.

    ε ← ρ g / (‖g‖ + 10⁻¹²)             SAM        ‖·‖ over all parameters; 0 where all gradients are
    ε ← ρ w² g / (‖w g‖ + 10⁻¹²)        ASAM       elementwise products
    u ← base(∇L(w + ε))

Foret et al. 2021, Sharpness-Aware Minimization for Efficiently Improving Generalization, https://arxiv.org/abs/2010.01412
Kwon et al. 2021, ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning, https://arxiv.org/abs/2102.11600
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from functional_optim import trees
from functional_optim.combinators.combined import Combined
from functional_optim.evaluate import gradients_in
from functional_optim.form import Needs, Path
from functional_optim.hparams import NON_NEGATIVE, Hparam, HParams, spread
from functional_optim.lifting import widened
from functional_optim.numerics import global_norm
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree

# The authors' program's, in units of the gradient.
TINY = 1e-12


@dataclass(frozen=True, eq=False)
class SharpnessAware(Combined):
    """The form of a transform that gets the gradient of a point uphill."""

    inner: Transform
    adaptive: bool

    @property
    def needs(self) -> Needs:
        """The loss."""
        return Needs(functions=("evaluate",))

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {(): self.inner}

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The inner state."""
        return self.inner.init_fn(params, self.inner.select(hp))

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The inner update on the gradients at w + ε."""
        if params is None:
            raise ValueError("sam needs the parameters: update(grads, state, params, evaluate=...).")
        u, spec = trees.flatten(updates)
        p = trees.leaves(params)
        scale = [None if g is None else w.abs() if self.adaptive else torch.ones_like(w) for g, w in zip(u, p, strict=True)]
        ascent = [None if g is None else g * s for g, s in zip(u, scale, strict=True)]
        norm = global_norm([torch.view_as_real(a) if a is not None and a.is_complex() else a for a in ascent])
        rho = [own.hp["rho"] for own in spread({"rho": hp["rho"]}, None, spec)]
        # The slope of g/‖g‖ at 0 has no bound: it is 0 there, as ε is.
        share = torch.where(norm == 0, 0.0, 1 / torch.where(norm == 0, 1.0, norm + TINY))
        uphill = [w if a is None else w + r * s * a * share for w, a, s, r in zip(p, ascent, scale, rho, strict=True)]
        there = gradients_in(extra, trees.unflatten(spec, uphill), updates, "sam")
        there = trees.map_leaves(lambda u, g: torch.zeros_like(u) if g is None else widened(g), updates, there)
        return self.inner.update_fn(there, state, params, self.inner.select(hp), **extra)


@recorded
def sam(transform: Transform, rho: float = 0.05) -> Transform:
    """Let a transform step with the gradient at `w + ρ g/‖g‖`, the worst point within ρ to first order.

    It needs the gradient elsewhere: `update(grads, state, params, hparams, evaluate=fo.meta.evaluate_of(loss))`; `unroll` gives
    it. Behind the adapter it takes a closure, `optimizer.step(closure)`, which is called twice.

    Args:
        transform: what steps, such as `adamw()`; its state is that of the whole.
        rho: ρ, at least 0, in units of the parameters. A hyper-parameter.

    Raises:
        ValueError: neither `evaluate` nor a closure was given, or no params.

    Source: Foret et al. 2021, https://arxiv.org/abs/2010.01412. As `optax.contrib.sam(opaque_mode=True, sync_period=2)`
    without its adversarial optimizer.

    >>> from functional_optim import meta, sgd
    >>> tx = sam(sgd(lr=1.0), rho=0.5)
    >>> w = torch.tensor(1.0)
    >>> tx.update(2 * w, tx.init_state(w), w, evaluate=meta.evaluate_of(lambda w: w * w))[0]
    tensor(-3.)
    """
    return _aware(transform, rho, adaptive=False, name="sam")


@recorded
def asam(transform: Transform, rho: float = 0.5) -> Transform:
    """`sam` with a neighbourhood that scales with each weight: `w + ρ w² g/‖w g‖`, unmoved by a rescaling of the weights.

    Args, state, errors: as `sam`; the useful ρ is some ten times larger.

    Source: Kwon et al. 2021, https://arxiv.org/abs/2102.11600, with η = 0.
    """
    return _aware(transform, rho, adaptive=True, name="asam")


def _aware(transform: Transform, rho: float, *, adaptive: bool, name: str) -> Transform:
    require_transform(transform, name)
    form = SharpnessAware(transform, adaptive)
    return Transform.of(form, {"rho": Hparam(rho, NON_NEGATIVE), **transform.declared}, name)
