"""Optimizers that orthogonalise matrices, or parts of them: Muon's kin."""

import dataclasses

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.combinators.rename import rename_hparams
from functional_optim.hparams import NON_NEGATIVE, Hparam, declare
from functional_optim.optimizers.torch_optim.muon import for_matrices
from functional_optim.recipe import recorded
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.dion import scale_by_dion
from functional_optim.rules.dion2 import scale_by_dion2
from functional_optim.rules.ema import ema
from functional_optim.rules.lmo import scale_by_lmo
from functional_optim.rules.momentum import trace
from functional_optim.rules.newton_schulz import Schedule
from functional_optim.rules.orthogonalize import orthogonalize
from functional_optim.rules.rms import scale_by_rms
from functional_optim.rules.row_rms import scale_by_row_rms
from functional_optim.rules.scale import scale, scale_by_learning_rate
from functional_optim.rules.shape import scale_by_shape, scale_to_rms
from functional_optim.rules.sign import scale_by_sign
from functional_optim.transform import Transform


@recorded
def normuon(
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    beta2: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    *,
    coefficients: str | Schedule = "muon",
    nesterov: bool = True,
    ns_steps: int = 5,
    adjust_lr_fn: str = "match_rms_adamw",
    ns_dtype: torch.dtype | None = torch.bfloat16,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """NorMuon: Muon whose rows are of like size in the long run, for matrices; AdamW for the rest. See `scale_by_row_rms`.

    Args:
        lr: η of both, at least 0; `muon.lr` and `adamw.lr` set one of them.
        weight_decay: λ of both, at least 0, decoupled; `muon.weight_decay` and `adamw.weight_decay` set one of them.
        momentum: μ of the matrices, in [0, 1).
        beta2: β₂, decay of the rows' mean squares, in [0, 1).
        betas: AdamW's.
        eps: AdamW's.
        coefficients, ns_steps, ns_dtype: see `orthogonalize`; here, as in Muon, the iteration is in bfloat16.
        nesterov: orthogonalise the momentum looked ahead.
        adjust_lr_fn: see `scale_by_shape`; the authors' program has "original" and lr 0.02.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Li et al. 2025, https://arxiv.org/abs/2510.05491. Its momentum is a sum where theirs is a mean: orthogonalised, they
    are one.
    """
    links = (
        trace(momentum, nesterov=nesterov, state_dtype=state_dtype),
        orthogonalize(coefficients, ns_steps=ns_steps, ns_dtype=ns_dtype),
        scale_by_row_rms(beta2),
        scale_by_shape(adjust_lr_fn),
    )
    return for_matrices("normuon", links, lr, weight_decay, betas, eps, state_dtype)


@recorded
def adamuon(
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    beta2: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    *,
    coefficients: str | Schedule = "muon",
    nesterov: bool = True,
    ns_steps: int = 5,
    ns_dtype: torch.dtype | None = torch.bfloat16,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """AdaMuon: the sign of the momentum orthogonalised, divided by its root mean square, of the size of AdamW's updates, for
    matrices; AdamW for the rest.

    Args:
        lr: η of both, at least 0; `muon.lr` and `adamw.lr` set one of them.
        weight_decay: λ of both, at least 0, decoupled; `muon.weight_decay` and `adamw.weight_decay` set one of them.
        momentum: μ of the matrices, in [0, 1).
        beta2: decay of the mean square of the matrices' updates, in [0, 1); the paper takes μ.
        betas: AdamW's.
        eps: ε of both, at least 0.
        coefficients, ns_steps, ns_dtype: see `orthogonalize`; here, as in Muon, the iteration is in bfloat16.
        nesterov: take the sign of the momentum looked ahead.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Si et al. 2025, https://arxiv.org/abs/2507.11005, algorithm 1.
    """
    links = (
        trace(momentum, nesterov=nesterov, state_dtype=state_dtype),
        scale_by_sign(),
        orthogonalize(coefficients, ns_steps=ns_steps, ns_dtype=ns_dtype),
        scale_by_rms(beta2, eps, state_dtype=state_dtype),
        scale_to_rms(0.2, eps),
    )
    return for_matrices("adamuon", links, lr, weight_decay, betas, eps, state_dtype)


@recorded
def dion(
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    seed: float = 0,
    *,
    rank_fraction: float = 1.0,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Dion: the momentum's largest directions, orthogonalised, for matrices; AdamW for the rest. See `scale_by_dion`.

    Args:
        lr: η of both, at least 0; `muon.lr` and `adamw.lr` set one of them.
        weight_decay: λ of both, at least 0, decoupled; `muon.weight_decay` and `adamw.weight_decay` set one of them.
        momentum: μ of the matrices, in [0, 1).
        betas: AdamW's.
        eps: AdamW's; that of the matrices is `dion_eps`, 1e-8.
        seed: a whole number up to 2⁵³, of the first directions.
        rank_fraction: how many directions, as a share of the smaller dimension, in (0, 1].
        state_dtype: dtype of AdamW's slots; the parameter's by default.

    Source: Ahn et al. 2025, https://arxiv.org/abs/2504.05295. Retraces the authors' program in plain operations, `dion_simple`,
    from equal first directions.
    """
    rule = scale_by_dion(momentum, seed=seed, rank_fraction=rank_fraction)
    return for_matrices("dion", [rule], lr, weight_decay, betas, eps, state_dtype)


@recorded
def dion2(
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    ef_decay: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    *,
    fraction: float = 0.25,
    coefficients: str | Schedule = "polar_express",
    ns_steps: int = 5,
    ns_dtype: torch.dtype | None = torch.bfloat16,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Dion2: a share of the momentum's rows or columns, orthogonalised, for matrices; AdamW for the rest. See `scale_by_dion2`.

    Args:
        lr: η of both, at least 0; `muon.lr` and `adamw.lr` set one of them.
        weight_decay: λ of both, at least 0, decoupled; `muon.weight_decay` and `adamw.weight_decay` set one of them.
        ef_decay: δ of the matrices, in [0, 1).
        betas: AdamW's.
        eps: AdamW's.
        fraction: the share of rows or columns, in (0, 1].
        coefficients, ns_steps, ns_dtype: see `orthogonalize`; here, as in Muon, the iteration is in bfloat16.
        state_dtype: dtype of the slots, or a codec; the parameter's by default.

    Source: Ahn et al. 2025, https://arxiv.org/abs/2512.16928. Retraces the authors' program but for the coefficients of the
    iteration, which they compute with another margin.
    """
    options = {"fraction": fraction, "coefficients": coefficients, "ns_steps": ns_steps, "ns_dtype": ns_dtype}
    rule = scale_by_dion2(ef_decay, state_dtype=state_dtype, **options)
    return for_matrices("dion2", [rule], lr, weight_decay, betas, eps, state_dtype)


@recorded
def scion(
    lr: float = 1e-3,
    decay: float = 0.9,
    radius: float = 1.0,
    weight_decay: float = 1.0,
    *,
    norm: str = "auto",
    normalized: bool = True,
    transpose: bool = False,
    ns_steps: int = 5,
    ns_dtype: torch.dtype | None = torch.bfloat16,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """Scion: steps within balls of norms that fit the layers, `p ← (1 − η) p − η ρ lmo(m)`; see `scale_by_lmo`.

    Layers of different kinds take different norms and radii: the authors' language models have "spectral" and 50 for the hidden
    matrices, "sign" and 3000 for embeddings and heads. `partition({"hidden": scion(radius=50.0), "ends": scion(norm="sign",
    radius=3e3)}, labels)` says so.

    Args:
        lr: η, in practice well below 1.
        decay: of the mean of gradients, in [0, 1). The authors' `momentum` is 1 − decay, and 1 by default.
        radius: ρ, at least 0: of the ball that the parameters stay in, their `scale`.
        weight_decay: 1 keeps them in the ball. 0 is their `unconstrained`.
        norm, normalized, transpose, ns_steps: see `scale_by_lmo`.
        ns_dtype: see `orthogonalize`; here, as in Muon, the iteration is in bfloat16.
        state_dtype: dtype of the slot, or a codec; the parameter's by default.

    Source: Pethick et al. 2025, https://arxiv.org/abs/2502.07529. Retraces the authors' program, which also starts parameters in
    the ball: their `init()` is not part of this.
    """
    ball = dataclasses.replace(
        rename_hparams(scale(), factor="radius"), declared=declare({"radius": Hparam(radius, NON_NEGATIVE)})
    )
    return chain(
        ema(decay, debias=False, state_dtype=state_dtype),
        scale_by_lmo(norm, normalized=normalized, transpose=transpose, ns_steps=ns_steps, ns_dtype=ns_dtype),
        ball,
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
        name="scion",
    )
