"""`with_master_copy`: train a float32 copy of parameters of lower precision, and let these follow it.

    u ← base(g, w)            w: the copy, in float32, as are the base's slots
    w ← w + u
    p ← w, rounded

Micikevicius et al. 2018, Mixed Precision Training, section 3.1, https://arxiv.org/abs/1710.03740
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from functional_optim import trees
from functional_optim.combinators.combined import Combined
from functional_optim.combinators.origin import Handed, Origin
from functional_optim.form import Path
from functional_optim.hparams import HParams
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class MasterCopied(Combined):
    """The form of a transform that trains a copy."""

    inner: Transform

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {(self.inner.name,): self.inner}

    @property
    def copy(self) -> str:
        return "fp32_copy"

    def origins(self, path: Path, outer: Mapping[str, Origin]) -> Handed:
        """The names of what is inside are the wrapper's."""
        return {(self.inner.name,): {name: outer[name] for name in self.inner.declared}}

    def evaluated(self, state: Tree, params: Tree) -> Tree:
        """Where the copy is evaluated, rounded."""
        found, spec = trees.flatten(self.inner.form.evaluated(state[self.inner.name], state["fp32_copy"]))
        return trees.unflatten(
            spec, [None if x is None else x.to(p.dtype) for x, p in zip(found, trees.leaves(params), strict=True)]
        )

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The copy, and the inner state over it."""
        copy = trees.map_leaves(lambda p: p.to(torch.promote_types(p.dtype, torch.float32), copy=True), params)
        return {"fp32_copy": copy, self.inner.name: self.inner.init_fn(copy, self.inner.select(hp))}

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The way from the parameters to where the copy goes: what rounding left behind at the last step is in it."""
        if params is None:
            raise ValueError("with_master_copy needs the parameters: update(grads, state, params).")
        copy = state["fp32_copy"]
        u, inner = self.inner.update_fn(updates, state[self.inner.name], copy, self.inner.select(hp), **extra)
        moved = trees.map_leaves(lambda w, u: w if u is None else (w + u).to(w.dtype), copy, u)
        way = trees.map_leaves(lambda u, w, p: w - p, u, moved, params)
        return way, {"fp32_copy": moved, self.inner.name: inner}


@recorded
def with_master_copy(transform: Transform) -> Transform:
    """Keep a float32 copy of float16 and bfloat16 parameters, and train that; updates too small for them add up in it.

    The update is `w − p`, computed in float32 and rounded once: adding it brings p to the number nearest to w, or, within 2⁻⁸ of
    the update's size of a tie, 2⁻¹¹ in float16, to the other one as near; `step` always to the nearest. It starts from the p that
    is there, so no error is carried on. A parameter of float32 or more is its own copy, to rounding.

    Args:
        transform: what trains the copy, which it gets as its parameters; its slots are float32, like the copy.

    State: `fp32_copy` (w), a tree like the parameters in at least float32; the transform's under its name.

    Raises:
        ValueError: `update` was called without params.

    Source: Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740. Neither torch nor optax has it as a transform.

    >>> import torch
    >>> from functional_optim import apply_updates, sgd
    >>> tx, p = with_master_copy(sgd(lr=1e-3)), torch.tensor(1.0, dtype=torch.bfloat16)
    >>> state = tx.init_state(p)
    >>> for _ in range(100):
    ...     update, state = tx.update(torch.ones_like(p), state, p)
    ...     p = apply_updates(p, update)
    >>> p  # without the copy still 1: bfloat16 has nothing between 1 and 0.996
    tensor(0.8984, dtype=torch.bfloat16)
    """
    require_transform(transform, "with_master_copy")
    form = MasterCopied(transform)
    return Transform.of(form, transform.declared, "with_master_copy")
