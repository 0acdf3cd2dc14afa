"""torch.optim's Muon, and what optimizers of matrices share: AdamW for the rest of the parameters."""

import dataclasses
from collections.abc import Sequence

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.combinators.partition import partition
from functional_optim.optimizers.torch_optim.adam import adamw
from functional_optim.recipe import recorded
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.muon import MuonOrAdamW, scale_by_muon
from functional_optim.rules.newton_schulz import COEFFICIENTS, Schedule
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.transform import Transform


@recorded
def muon(
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    ns_coefficients: tuple[float, float, float] | str | Schedule = COEFFICIENTS,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    *,
    nesterov: bool = True,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = "match_rms_adamw",
    ns_dtype: torch.dtype | None = torch.bfloat16,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Muon for parameters of at least two dimensions, AdamW for the rest; see `scale_by_muon`.

    Embeddings and output layers are matrices too, though those who train language models give them to AdamW: for that, write
    the `partition` yourself, with `by_name`.

    Args:
        lr: η of both, at least 0; `muon.lr` and `adamw.lr` set one of them.
        weight_decay: λ of both, at least 0; `muon.weight_decay` and `adamw.weight_decay` set one of them.
        momentum: μ of Muon, in [0, 1).
        ns_coefficients: of its iteration; see `scale_by_muon`.
        betas: AdamW's.
        eps: AdamW's. Muon's is the hyper-parameter `muon.eps`.
        nesterov, ns_steps, ns_dtype: see `scale_by_muon`; here, as in torch, the iteration is in bfloat16.
        adjust_lr_fn: see `scale_by_muon`; "match_rms_adamw" is what lets both branches have one learning rate.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    State: of each branch, over a flat dict of its parameters, under `"muon"` and `"adamw"`.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025, https://arxiv.org/abs/2502.16982.
    With matrices alone, `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`. `optax.contrib.muon` takes matrices only, and
    has other defaults.
    """
    rule = scale_by_muon(
        momentum,
        ns_coefficients,
        nesterov=nesterov,
        ns_steps=ns_steps,
        adjust_lr_fn=adjust_lr_fn,
        ns_dtype=ns_dtype,
        state_dtype=state_dtype,
    )
    return for_matrices("muon", [rule], lr, weight_decay, betas, eps, state_dtype)


def for_matrices(
    name: str,
    links: Sequence[Transform],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    state_dtype: torch.dtype | Codec | None,
    label: str = "muon",
) -> Transform:
    """These links, decay and the rate for matrices, under a label; AdamW of the same numbers for vectors and scalars."""
    matrices = chain(*links, add_decayed_weights(weight_decay), scale_by_learning_rate(lr), name=name)
    branches = {label: matrices, "adamw": adamw(lr, betas, eps, weight_decay, state_dtype=state_dtype)}
    return dataclasses.replace(partition(branches, MuonOrAdamW(label)), name=name)
