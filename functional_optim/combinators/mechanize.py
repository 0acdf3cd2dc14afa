"""Mechanic: a learning-rate tuner for any optimizer.

    Δ ← (x₀ − x) / Σ s                                  where the base alone would be, seen from the start
    h ← ⟨g + λ Σs ‖g‖/‖x‖ x, Δ⟩
    for each βᵢ = 1 − 10⁻ⁱ:   m ← max(βᵢ m, |h| + ε)    v ← βᵢ² v + h²    r ← βᵢ r + clip(h, ±m before) s
                              s ← (s₀/n · m + max(0, r)) / (√v + ε)
    x ← x₀ − Σ s · (Δ − u)                              u the base's update

Cutkosky, Defazio & Mehta 2023, Mechanic: A Learning Rate Tuner, https://arxiv.org/abs/2306.00144
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.combinators.combined import Combined
from functional_optim.form import Path
from functional_optim.hparams import NON_NEGATIVE, POSITIVE, Hparam, HParams, require_count
from functional_optim.lifting import device_of, widened
from functional_optim.numerics import global_norm, inner_product, sqrt
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


@dataclass(frozen=True, eq=False)
class Mechanized(Combined):
    """The form of a tuned transform."""

    inner: Transform
    num_betas: int
    own: Mapping[str, Hparam]

    @property
    def single(self) -> tuple[str, ...]:
        return tuple(self.own)

    @property
    def parts(self) -> Mapping[Path, Transform]:
        return {("inner",): self.inner}

    def check(self, params: Tree) -> None:
        """Raise TypeError for a complex parameter."""
        for name, p in zip(trees.names(params), trees.leaves(params), strict=True):
            if p is not None and p.is_complex():
                raise TypeError(f"mechanize takes no complex parameters, but {name!r} is {p.dtype}.")
        super().check(params)

    def logs(self, state: Tree) -> Mapping[str, Tensor]:
        """What the base's updates are multiplied with."""
        return {"scale": state["scales"].sum()}

    def init(self, params: Tree, hp: HParams) -> Tree:
        """The scales at their first value, and where the parameters start."""
        device = device_of(params)

        def filled(value: Any) -> Any:
            return torch.zeros(self.num_betas, dtype=torch.float64, device=device) + value

        return {
            "scales": filled(hp["s_init"]),
            **{name: filled(0.0) for name in ("largest", "variance", "reward")},
            "start": trees.map_leaves(lambda p: p.clone(), params),
            "inner": self.inner.init_fn(params, self.inner.select(hp)),
        }

    def update(self, updates: Tree, state: Tree, params: Tree, hp: HParams, **extra: Any) -> tuple[Tree, Tree]:
        """The base's update, scaled from the start."""
        if params is None:
            raise ValueError("mechanize needs the parameters: update(grads, state, params).")
        base, inner = self.inner.update_fn(updates, state["inner"], params, self.inner.select(hp), **extra)
        eps, s = hp["mechanic_eps"], state["scales"]
        total = s.sum()
        present = [i for i, u in enumerate(trees.leaves(updates)) if u is not None]
        g, p, x0 = ([trees.leaves(tree)[i] for i in present] for tree in (updates, params, state["start"]))
        x0 = [widened(x) for x in x0]
        decay = hp["mechanic_decay"] * total * global_norm(g) / (global_norm(p) + eps)
        delta = [(start - x) / (total + eps) for start, x in zip(x0, p, strict=True)]
        h = inner_product([x + decay * y for x, y in zip(g, p, strict=True)], delta).to(s)

        betas = 1 - 0.1 ** torch.arange(1, self.num_betas + 1, dtype=s.dtype, device=s.device)
        reward = betas * state["reward"] + torch.maximum(torch.minimum(h, state["largest"]), -state["largest"]) * s
        largest = torch.maximum(betas * state["largest"], h.abs() + eps)
        variance = betas**2 * state["variance"] + h**2
        scales = (hp["s_init"] / self.num_betas * largest + reward.clamp(min=0.0)) / (sqrt(variance) + eps)

        new, spec = trees.flatten(base)
        for i, start, d, x in zip(present, x0, delta, p, strict=True):
            new[i] = start - scales.sum() * (d - new[i]) - x
        tuned = {"scales": scales, "largest": largest, "variance": variance, "reward": reward}
        return trees.unflatten(spec, new), {**tuned, "start": state["start"], "inner": inner}


@recorded
def mechanize(
    transform: Transform, mechanic_decay: float = 1e-2, s_init: float = 1e-6, mechanic_eps: float = 1e-8, *, num_betas: int = 6
) -> Transform:
    """Tune the learning rate of an optimizer while it trains: its updates are scaled, from where the parameters started.

    Args:
        transform: the base, usually with a schedule and a learning rate of about 1 for Adam-like rules.
        mechanic_decay: λ, at least 0, a weight decay in the tuner's own objective. A hyper-parameter, as the next two are.
        s_init: s₀, greater than 0, the first scale: small.
        mechanic_eps: ε, at least 0.
        num_betas: n, the number of memories of different length, at least 1.

    State: `scales`, `largest`, `variance`, `reward`, (n,) float64; `start`, like the parameters; the base's under `"inner"`.

    Source: Cutkosky, Defazio & Mehta 2023, https://arxiv.org/abs/2306.00144. As `optax.contrib.mechanize`; it starts from the
    parameters given to `init_state`, not from those of the first update. The authors' program differs, and visibly so: it does
    not clip h, keeps max(0, r) in place of r, adds no ε to |h|, starts at s = 0 and m = 10⁻⁶ with s₀ = ε = 10⁻⁸, and takes the x
    of the decay after the base's step.

    Raises:
        TypeError: from `init_state`, for a complex parameter: the tuner's products are real.
        ValueError: `update` was called without params.
    """
    require_transform(transform, "mechanize")
    num_betas = require_count("num_betas", num_betas, 1)
    own = {
        "mechanic_decay": Hparam(mechanic_decay, NON_NEGATIVE),
        "s_init": Hparam(s_init, POSITIVE),
        "mechanic_eps": Hparam(mechanic_eps, NON_NEGATIVE),
    }
    form = Mechanized(transform, num_betas, own)
    return Transform.of(form, {**own, **transform.declared}, "mechanize")
