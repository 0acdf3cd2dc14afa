"""Optimizers of second moments along rows and along columns."""

import torch

from functional_optim.codecs import Codec
from functional_optim.combinators.chain import chain
from functional_optim.combinators.graft import graft
from functional_optim.combinators.lookahead import ema_params
from functional_optim.combinators.rotate import rotate
from functional_optim.optimizers.torch_optim.muon import for_matrices
from functional_optim.recipe import recorded
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.kl_shampoo import scale_by_kl_shampoo
from functional_optim.rules.psgd_kron import scale_by_psgd_kron
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.rules.shampoo import scale_by_shampoo
from functional_optim.rules.splus import scale_by_mean_side, scale_by_splus
from functional_optim.transform import Transform


@recorded
def soap(
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.95, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    shampoo_beta: float = 0.95,
    *,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10_000,
    precondition_1d: bool = False,
    dims: int = 2,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """SOAP: AdamW in the eigenbasis of the gradients' second moments along rows and columns; see `rotate`.

    Args:
        lr: η, at least 0.
        betas: decay of Adam's two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|, added to the root of the moment before the bias is corrected.
        weight_decay: λ, at least 0, decoupled.
        shampoo_beta: decay of the means of G Gᵀ and Gᵀ G per step, in [0, 1); the authors take β₂.
        precondition_frequency: how many steps pass between two new bases, at least 1.
        max_precond_dim: the largest dimension that is turned.
        precondition_1d: turn vectors, too.
        dims: how many dimensions are turned; see `rotate`. With 4, a convolution's are one each, as in the authors' program.
        state_dtype: dtype of Adam's slots; the parameter's by default. The matrices are in at least float32.

    Source: Vyas et al. 2024, https://arxiv.org/abs/2409.11321. Retraces the authors' program but for its decay, which shrinks the
    parameter after the step, not before, and not in the first step; and but for a convolution, if `dims` is not 4.
    """
    adam = scale_by_adam(betas, eps, optimized_update=True, state_dtype=state_dtype)
    return chain(
        rotate(
            adam,
            shampoo_beta,
            precondition_frequency=precondition_frequency,
            max_precond_dim=max_precond_dim,
            precondition_1d=precondition_1d,
            dims=dims,
        ),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
        name="soap",
    )


@recorded
def shampoo(
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 1.0),
    epsilon: float = 1e-12,
    weight_decay: float = 0.0,
    *,
    grafting: Transform | None = None,
    precondition_frequency: int = 1,
    max_preconditioner_dim: int = 1024,
    dims: int = 2,
) -> Transform:
    """Shampoo: momentum, preconditioned along each dimension; see `scale_by_shampoo`.

    Args:
        lr: η, at least 0.
        betas: decay of the momentum and of the second moments per step, each in [0, 1); the second may be 1, for sums.
        epsilon: ε, at least 0, in units of g².
        weight_decay: λ, at least 0, decoupled.
        grafting: what gives each tensor's update its size, such as `scale_by_adam()`, see `graft`; None leaves it as it is.
        precondition_frequency: how many steps pass between two computations of the roots, at least 1.
        max_preconditioner_dim: larger dimensions have no preconditioner.
        dims: how many dimensions have one each; of a tensor with more, the last ones are taken together as one.

    Source: Gupta et al. 2018, https://arxiv.org/abs/1802.09568; Shi et al. 2023, https://arxiv.org/abs/2309.06497, whose program
    has these defaults.
    """
    direction = scale_by_shampoo(
        betas,
        epsilon,
        precondition_frequency=precondition_frequency,
        max_preconditioner_dim=max_preconditioner_dim,
        dims=dims,
    )
    return chain(
        direction if grafting is None else graft(direction, grafting),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
        name="shampoo",
    )


@recorded
def psgd_kron(
    lr: float = 3e-4,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    precond_lr: float = 0.1,
    seed: float = 0,
    *,
    update_probability: float | None = None,
    max_size_triangular: int = 8192,
    min_ndim_triangular: int = 2,
    precond_init_scale: float = 1.0,
    dims: int = 2,
) -> Transform:
    """PSGD Kron: momentum, whitened by a Kronecker product of triangular matrices; see `scale_by_psgd_kron`.

    Args:
        lr: η, at least 0; about a third of AdamW's.
        momentum: β, in [0, 1).
        weight_decay: λ, at least 0, decoupled; of vectors and scalars, too.
        precond_lr: the step of the fit, at least 0.
        seed: a whole number up to 2⁵³, of its probes.
        update_probability, max_size_triangular, min_ndim_triangular, precond_init_scale, dims: see `scale_by_psgd_kron`.

    Source: Li 2015, https://arxiv.org/abs/1512.04202; kron_torch's `Kron`, whose decay leaves vectors and scalars as they are.
    """
    whitened = scale_by_psgd_kron(
        momentum,
        precond_lr,
        seed,
        update_probability=update_probability,
        max_size_triangular=max_size_triangular,
        min_ndim_triangular=min_ndim_triangular,
        precond_init_scale=precond_init_scale,
        dims=dims,
    )
    return chain(whitened, add_decayed_weights(weight_decay), scale_by_learning_rate(lr), name="psgd_kron")


@recorded
def kl_soap(
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    shampoo_beta: float = 0.95,
    kl_eps: float = 1e-8,
    *,
    precondition_frequency: int = 2,
    max_precond_dim: int = 2048,
    dims: int = 2,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """KL-SOAP: SOAP in bases that whiten along rows and columns together; see `rotate(kl=True)`.

    Args:
        lr: η, at least 0.
        betas: decay of Adam's two moments, each in [0, 1).
        eps: ε, at least 0, in units of |g|, added to the root of the moment before the bias is corrected.
        weight_decay: λ, at least 0, decoupled.
        shampoo_beta: decay of the second moments along rows and columns per step, in [0, 1).
        kl_eps: the least of their eigenvalues that is divided by, at least 0.
        precondition_frequency: how many steps pass between two new bases, at least 1.
        max_precond_dim: the largest dimension that is turned.
        dims: how many dimensions are turned; see `rotate`.
        state_dtype: dtype of Adam's slots; the parameter's by default.

    Source: Lin et al. 2025, https://arxiv.org/abs/2509.03378. How it differs from the authors' program `rotate` tells; that does
    not correct Adam's bias, and leaves the columns of bases in the order they have.
    """
    adam = scale_by_adam(betas, eps, optimized_update=True, state_dtype=state_dtype)
    return chain(
        rotate(
            adam,
            shampoo_beta,
            precondition_frequency=precondition_frequency,
            max_precond_dim=max_precond_dim,
            dims=dims,
            kl=True,
            kl_eps=kl_eps,
        ),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
        name="kl_soap",
    )


@recorded
def kl_shampoo(
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    kl_eps: float = 1e-8,
    *,
    precondition_frequency: int = 2,
    max_precond_dim: int = 2048,
    init_factor: float = 0.1,
    dims: int = 2,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform:
    """KL-Shampoo for matrices, AdamW for the rest; see `scale_by_kl_shampoo`.

    Args:
        lr: η of both, at least 0; `matrices.lr` and `adamw.lr` set one of them.
        betas: decay of the momentum and of the second moments per step, each in [0, 1); AdamW's, too.
        eps: AdamW's.
        weight_decay: λ of both, at least 0, decoupled.
        kl_eps, precondition_frequency, max_precond_dim, init_factor, dims: see `scale_by_kl_shampoo`.
        state_dtype: dtype of AdamW's slots, or a codec; the parameter's by default.

    Source: Lin et al. 2025, https://arxiv.org/abs/2509.03378; HeavyBall's `KLShampoo` has these numbers.
    """
    options = {"precondition_frequency": precondition_frequency, "max_precond_dim": max_precond_dim, "dims": dims}
    rule = scale_by_kl_shampoo(betas, kl_eps, init_factor=init_factor, **options)
    return for_matrices("kl_shampoo", [rule], lr, weight_decay, betas, eps, state_dtype, label="matrices")


@recorded
def splus(
    lr: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 1e-2,
    ema_decay: float = 0.999,
    nonstandard_constant: float = 1e-3,
    *,
    inverse_every: int = 100,
    max_dim: int = 10_000,
) -> Transform:
    """SPlus: signs in the eigenbasis of the gradients' second moments, evaluated at an average of the parameters.

    `evaluated`, and `eval_params` of an optimizer, give the average; see `ema_params`.

    Args:
        lr: η, at least 0, of matrices in units of 2 / (rows + columns).
        betas: decay of the momentum and of the second moments per step, each in [0, 1).
        weight_decay: λ, at least 0, decoupled, in the same units.
        ema_decay: decay of the average per step, in [0, 1).
        nonstandard_constant: what those units are for other tensors than matrices; at least 0.
        inverse_every: how many steps pass between two bases.
        max_dim: the largest dimension that is turned.

    Source: Frans et al. 2025, https://arxiv.org/abs/2506.07254. The authors' programs have averages that start at 0, corrected
    for it, where this one starts at the parameters; the one in torch has 1 / (2 (rows + columns)) for the units, and decays after
    the step.
    """
    return ema_params(
        chain(
            scale_by_splus(betas, inverse_every=inverse_every, max_dim=max_dim),
            add_decayed_weights(weight_decay),
            scale_by_mean_side(nonstandard_constant, max_dim=max_dim),
            scale_by_learning_rate(lr),
            name="splus",
        ),
        ema_decay,
    )
