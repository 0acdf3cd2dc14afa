"""Made by `make catalogue`: the names of `__init__.py`, with the signatures that decorators make."""

import collections.abc

import torch

from functional_optim import adapters as adapters
from functional_optim import meta as meta
from functional_optim import numerics as numerics
from functional_optim import schedules as schedules
from functional_optim import solvers as solvers
from functional_optim import testing as testing
from functional_optim.apply import apply_updates
from functional_optim.codecs import Blockwise, Codec, Stochastic
from functional_optim.combinators.accumulate import accumulate
from functional_optim.combinators.blocked import blocked
from functional_optim.combinators.chain import chain
from functional_optim.combinators.conditionally import conditionally, with_extra
from functional_optim.combinators.ema_nesterov import ema_nesterov
from functional_optim.combinators.evaluated import evaluated
from functional_optim.combinators.fused import fused
from functional_optim.combinators.graft import graft
from functional_optim.combinators.hyperball import hyperball
from functional_optim.combinators.inspect import hparams_at, state_get, state_set
from functional_optim.combinators.labels import by_module, by_name, by_ndim
from functional_optim.combinators.line_search import with_line_search
from functional_optim.combinators.logs import log_values
from functional_optim.combinators.lookahead import ema_params, lookahead
from functional_optim.combinators.lr_factor import with_lr_factor
from functional_optim.combinators.master_copy import with_master_copy
from functional_optim.combinators.mechanize import mechanize
from functional_optim.combinators.monitor import log_norms, monitor
from functional_optim.combinators.partition import masked, partition
from functional_optim.combinators.per_matrix import per_matrix
from functional_optim.combinators.project import project
from functional_optim.combinators.quantized import quantized
from functional_optim.combinators.rename import rename_hparams, set_defaults
from functional_optim.combinators.roles import by_role
from functional_optim.combinators.rotate import rotate
from functional_optim.combinators.rounding import with_rounding
from functional_optim.combinators.sam import asam, sam
from functional_optim.combinators.schedule_free import eval_params, schedule_free
from functional_optim.combinators.scheduled import scheduled
from functional_optim.combinators.signed import cautious, with_gradient_signs
from functional_optim.combinators.skip import apply_if_finite, skip_large_updates
from functional_optim.config import from_config, to_config
from functional_optim.explain import explain
from functional_optim.find import find
from functional_optim.hparams import Hparam, PerLeaf
from functional_optim.optimizers import (
    adabelief,
    adadelta,
    adafactor,
    adagc,
    adagrad,
    adam,
    adam_atan2,
    adam_mini,
    adamax,
    adamc,
    adamuon,
    adamw,
    adan,
    ademamix,
    adopt,
    amsgrad,
    apollo,
    asgd,
    came,
    dadapt_adam,
    dion,
    dion2,
    dog,
    dowg,
    fira,
    fromage,
    galore,
    grams,
    kl_shampoo,
    kl_soap,
    lamb,
    laprop,
    lars,
    lion,
    madgrad,
    mars,
    muon,
    nadam,
    noisy_sgd,
    normuon,
    novograd,
    optimistic_adam,
    optimistic_gradient_descent,
    polyak_sgd,
    prodigy,
    psgd_kron,
    radam,
    rmsprop,
    rprop,
    schedule_free_adamw,
    schedule_free_sgd,
    scion,
    sgd,
    shampoo,
    sign_sgd,
    signum,
    simplified_ademamix,
    sm3,
    soap,
    sophia,
    sparse_adam,
    splus,
    stable_adamw,
    yogi,
)
from functional_optim.rules.adafactor import scale_by_factored_rms
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.dion import scale_by_dion
from functional_optim.rules.dion2 import scale_by_dion2
from functional_optim.rules.ema import ema
from functional_optim.rules.kl_shampoo import scale_by_kl_shampoo
from functional_optim.rules.lbfgs import scale_by_lbfgs
from functional_optim.rules.lmo import scale_by_lmo
from functional_optim.rules.muon import scale_by_muon
from functional_optim.rules.orthogonalize import orthogonalize
from functional_optim.rules.per_example import per_example_global_norm_clip
from functional_optim.rules.psgd_kron import scale_by_psgd_kron
from functional_optim.rules.shampoo import scale_by_shampoo
from functional_optim.rules.shape import scale_by_shape
from functional_optim.rules.sophia import gauss_newton_bartlett
from functional_optim.rules.splus import scale_by_splus
from functional_optim.schedules import (
    constant,
    cosine,
    cosine_restarts,
    exponential,
    inverse_sqrt,
    join,
    linear,
    noam,
    one_cycle,
    piecewise_constant,
    piecewise_interpolate,
    polynomial,
    warmup_cosine,
    warmup_stable_decay,
)
from functional_optim.solvers import least_squares, minimize
from functional_optim.transform import Transform, elementwise, per_tensor, whole_tree

__version__: str

def adaptive_grad_clip(clipping: float = 0.01, eps: float = 0.001) -> Transform: ...
def add_corrected_decayed_weights(weight_decay: float = 0.01, lr: float = 0.001, max_lr: float = 0.001) -> Transform: ...
def add_decayed_weights(weight_decay: float = 0.01) -> Transform: ...
def add_l1_decay(l1_decay: float = 0.0001) -> Transform: ...
def add_noise(eta: float = 0.01, gamma: float = 0.55, seed: float = 0) -> Transform: ...
def average_iterates(t0: float = 1000000.0, *, state_dtype: torch.dtype | None = None) -> Transform: ...
def cautious_decay(weight_decay: float = 0.01) -> Transform: ...
def centralize() -> Transform: ...
def clip_by_adagc(
    lambda_abs: float = 1.0, lambda_rel: float = 1.05, beta: float = 0.98, *, warmup_steps: int = 100
) -> Transform: ...
def clip_by_block_rms(threshold: float = 1.0) -> Transform: ...
def clip_by_global_norm(max_norm: float = 1.0) -> Transform: ...
def clip_by_value(clip_value: float = 1.0) -> Transform: ...
def error_bits() -> Transform: ...
def freeze() -> Transform: ...
def identity() -> Transform: ...
def kahan_sum() -> Transform: ...
def keep_params_nonnegative() -> Transform: ...
def mars_correction(
    betas: tuple[float, float] = (0.95, 0.99),
    gamma: float = 0.025,
    correction_norm: float = 1.0,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform: ...
def momo(
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    lower_bound: float = 0.0,
    *,
    adapt_lower_bound: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def momo_adam(
    lr: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    lower_bound: float = 0.0,
    *,
    adapt_lower_bound: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def negate() -> Transform: ...
def normalize_by_update_norm(scale_factor: float = 1.0, eps: float = 1e-06) -> Transform: ...
def radial_brake(outward: float = 0.5, inward: float = 1.0, *, pinned: bool = False) -> Transform: ...
def reduce_on_plateau(
    factor: float = 0.1,
    rtol: float = 0.0001,
    atol: float = 0.0,
    min_scale: float = 0.0,
    *,
    patience: int = 10,
    cooldown: int = 0,
    accumulation_size: int = 1,
) -> Transform: ...
def row_floor(min_ratio: float = 0.1) -> Transform: ...
def scale(factor: float = 1.0) -> Transform: ...
def scale_by_adadelta(rho: float = 0.9, eps: float = 1e-06, *, state_dtype: torch.dtype | Codec | None = None) -> Transform: ...
def scale_by_adam_atan2(
    betas: tuple[float, float] = (0.9, 0.999), a: float = 1.27, b: float = 1.0, *, state_dtype: torch.dtype | Codec | None = None
) -> Transform: ...
def scale_by_adam_mini(
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    *,
    blocks: int | None = 1,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_adamax(
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-08, *, state_dtype: torch.dtype | Codec | None = None
) -> Transform: ...
def scale_by_adan(
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99), eps: float = 1e-08, *, state_dtype: torch.dtype | Codec | None = None
) -> Transform: ...
def scale_by_ademamix(
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    alpha: float = 5.0,
    eps: float = 1e-08,
    *,
    alpha_warmup: int | None = None,
    beta3_warmup: int | None = None,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_adopt(
    betas: tuple[float, float] = (0.9, 0.9999),
    eps: float = 1e-06,
    *,
    nesterov: bool = False,
    clipped: bool = True,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_asgd(lr: float = 0.01, lambd: float = 0.0001, alpha: float = 0.75) -> Transform: ...
def scale_by_belief(
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    *,
    rectify: bool = False,
    degenerated_to_sgd: bool = True,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_bias_correction(betas: tuple[float, float] = (0.9, 0.999)) -> Transform: ...
def scale_by_came(
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    eps: tuple[float, float] = (1e-30, 1e-16),
    clip_threshold: float = 1.0,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_d_adaptation(
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    d0: float = 1e-06,
    *,
    use_bias_correction: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_dog(reps_rel: float = 1e-06, eps: float = 1e-08, *, state_dtype: torch.dtype | None = None) -> Transform: ...
def scale_by_dowg(eps: float = 0.0001, *, state_dtype: torch.dtype | None = None) -> Transform: ...
def scale_by_inverse_time(lr_decay: float = 0.0) -> Transform: ...
def scale_by_laprop(
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-15, *, state_dtype: torch.dtype | Codec | None = None
) -> Transform: ...
def scale_by_learning_rate(lr: float = 0.001) -> Transform: ...
def scale_by_lion(betas: tuple[float, float] = (0.9, 0.99), *, state_dtype: torch.dtype | Codec | None = None) -> Transform: ...
def scale_by_madgrad(
    lr: float = 0.01, momentum: float = 0.9, eps: float = 1e-06, *, state_dtype: torch.dtype | None = None
) -> Transform: ...
def scale_by_mean_side(nonstandard_constant: float = 0.001, *, max_dim: int = 10000) -> Transform: ...
def scale_by_nadam(
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    momentum_decay: float = 0.004,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_novograd(
    betas: tuple[float, float] = (0.9, 0.25),
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_optimistic_gradient(
    alpha: float = 1.0, beta: float = 1.0, *, state_dtype: torch.dtype | None = None
) -> Transform: ...
def scale_by_palm(
    beta1: float = 0.9, beta2_decay: float = -0.8, eps: float = 1e-08, *, state_dtype: torch.dtype | Codec | None = None
) -> Transform: ...
def scale_by_param_block_norm(min_scale: float = 0.001) -> Transform: ...
def scale_by_param_block_rms(min_scale: float = 0.001) -> Transform: ...
def scale_by_polyak(max_lr: float = 1.0, f_min: float = 0.0, eps: float = 0.0, *, positive_part: bool = False) -> Transform: ...
def scale_by_prodigy(
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    d0: float = 1e-06,
    d_coef: float = 1.0,
    *,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_radam(
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    *,
    degenerated_to_sgd: bool = True,
    optimized_update: bool = True,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_relative_step(lr: float = 0.01) -> Transform: ...
def scale_by_rms(
    alpha: float = 0.99,
    eps: float = 1e-08,
    *,
    eps_in_sqrt: bool = False,
    bias_correction: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_row_rms(beta2: float = 0.95, row_eps: float = 1e-10, *, state_dtype: torch.dtype | None = None) -> Transform: ...
def scale_by_rprop(
    lr: float = 0.01,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-06, 50.0),
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform: ...
def scale_by_rss(
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    *,
    eps_in_sqrt: bool = False,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_schedule(schedule: collections.abc.Callable[[float | torch.Tensor], float | torch.Tensor]) -> Transform: ...
def scale_by_sign() -> Transform: ...
def scale_by_simplified_ademamix(
    betas: tuple[float, float] = (0.99, 0.95),
    alpha: float = 0.0,
    eps: float = 1e-08,
    *,
    beta1_warmup: int | None = None,
    min_beta1: float = 0.9,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_sm3(momentum: float = 0.9, eps: float = 1e-08, *, state_dtype: torch.dtype | Codec | None = None) -> Transform: ...
def scale_by_sophia(
    betas: tuple[float, float] = (0.965, 0.99),
    rho: float = 0.04,
    eps: float = 1e-12,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_sparse_adam(
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-08, *, state_dtype: torch.dtype | None = None
) -> Transform: ...
def scale_by_stable_adamw(
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-06,
    weight_decay: float = 0.01,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_by_stddev(
    alpha: float = 0.99,
    eps: float = 1e-08,
    *,
    eps_in_sqrt: bool = False,
    bias_correction: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Transform: ...
def scale_by_trust_ratio(
    min_norm: float = 0.0, trust_coefficient: float = 1.0, eps: float = 0.0, *, trust_clip: bool = False
) -> Transform: ...
def scale_by_yogi(
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 0.001,
    initial_accumulator_value: float = 1e-06,
    *,
    state_dtype: torch.dtype | Codec | None = None,
) -> Transform: ...
def scale_to_rms(rms: float = 0.2, rms_eps: float = 1e-08) -> Transform: ...
def schedule_free_average(
    lr: float = 0.001, momentum: float = 0.9, weight_lr_power: float = 2.0, *, state_dtype: torch.dtype | None = None
) -> Transform: ...
def soft_threshold(lr: float = 0.001, l1_decay: float = 0.0001) -> Transform: ...
def stochastic_rounding(seed: float = 0) -> Transform: ...
def subtract_decayed_weights(weight_decay: float = 0.0001) -> Transform: ...
def trace(
    momentum: float = 0.9, dampening: float = 0.0, *, nesterov: bool = False, state_dtype: torch.dtype | Codec | None = None
) -> Transform: ...
def zero_nans() -> Transform: ...

__all__ = [
    # The interface
    "Hparam",
    "PerLeaf",
    "Transform",
    "apply_updates",
    "elementwise",
    "per_tensor",
    "whole_tree",
    # Combinators
    "accumulate",
    "apply_if_finite",
    "asam",
    "blocked",
    "by_module",
    "by_name",
    "by_ndim",
    "by_role",
    "cautious",
    "chain",
    "conditionally",
    "ema_nesterov",
    "ema_params",
    "eval_params",
    "evaluated",
    "fused",
    "graft",
    "hparams_at",
    "hyperball",
    "log_norms",
    "log_values",
    "lookahead",
    "masked",
    "mechanize",
    "monitor",
    "partition",
    "per_matrix",
    "project",
    "quantized",
    "rename_hparams",
    "rotate",
    "sam",
    "schedule_free",
    "scheduled",
    "set_defaults",
    "skip_large_updates",
    "state_get",
    "state_set",
    "with_extra",
    "with_gradient_signs",
    "with_line_search",
    "with_lr_factor",
    "with_master_copy",
    "with_rounding",
    # Codecs
    "Blockwise",
    "Stochastic",
    # As data, and what there is
    "explain",
    "find",
    "from_config",
    "to_config",
    # Rules
    "adaptive_grad_clip",
    "add_corrected_decayed_weights",
    "add_decayed_weights",
    "add_l1_decay",
    "add_noise",
    "average_iterates",
    "cautious_decay",
    "centralize",
    "clip_by_adagc",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_value",
    "ema",
    "error_bits",
    "freeze",
    "gauss_newton_bartlett",
    "identity",
    "kahan_sum",
    "keep_params_nonnegative",
    "mars_correction",
    "momo",
    "momo_adam",
    "negate",
    "normalize_by_update_norm",
    "orthogonalize",
    "per_example_global_norm_clip",
    "radial_brake",
    "reduce_on_plateau",
    "row_floor",
    "scale",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adam_atan2",
    "scale_by_adam_mini",
    "scale_by_adamax",
    "scale_by_adan",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_asgd",
    "scale_by_belief",
    "scale_by_bias_correction",
    "scale_by_came",
    "scale_by_d_adaptation",
    "scale_by_dion",
    "scale_by_dion2",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_factored_rms",
    "scale_by_inverse_time",
    "scale_by_kl_shampoo",
    "scale_by_laprop",
    "scale_by_lbfgs",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_lmo",
    "scale_by_madgrad",
    "scale_by_mean_side",
    "scale_by_muon",
    "scale_by_nadam",
    "scale_by_novograd",
    "scale_by_optimistic_gradient",
    "scale_by_palm",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "scale_by_polyak",
    "scale_by_prodigy",
    "scale_by_psgd_kron",
    "scale_by_radam",
    "scale_by_relative_step",
    "scale_by_rms",
    "scale_by_row_rms",
    "scale_by_rprop",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_shampoo",
    "scale_by_shape",
    "scale_by_sign",
    "scale_by_simplified_ademamix",
    "scale_by_sm3",
    "scale_by_sophia",
    "scale_by_sparse_adam",
    "scale_by_splus",
    "scale_by_stable_adamw",
    "scale_by_stddev",
    "scale_by_trust_ratio",
    "scale_by_yogi",
    "scale_to_rms",
    "schedule_free_average",
    "soft_threshold",
    "stochastic_rounding",
    "subtract_decayed_weights",
    "trace",
    "zero_nans",
    # Schedules
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "join",
    "linear",
    "noam",
    "one_cycle",
    "piecewise_constant",
    "piecewise_interpolate",
    "polynomial",
    "warmup_cosine",
    "warmup_stable_decay",
    # Solvers
    "least_squares",
    "minimize",
    # Optimizers
    "adabelief",
    "adadelta",
    "adafactor",
    "adagc",
    "adagrad",
    "adam",
    "adam_atan2",
    "adam_mini",
    "adamax",
    "adamc",
    "adamuon",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "amsgrad",
    "apollo",
    "asgd",
    "came",
    "dadapt_adam",
    "dion",
    "dion2",
    "dog",
    "dowg",
    "fira",
    "fromage",
    "galore",
    "grams",
    "kl_shampoo",
    "kl_soap",
    "lamb",
    "laprop",
    "lars",
    "lion",
    "madgrad",
    "mars",
    "muon",
    "nadam",
    "noisy_sgd",
    "normuon",
    "novograd",
    "optimistic_adam",
    "optimistic_gradient_descent",
    "polyak_sgd",
    "prodigy",
    "psgd_kron",
    "radam",
    "rmsprop",
    "rprop",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "scion",
    "sgd",
    "shampoo",
    "sign_sgd",
    "signum",
    "simplified_ademamix",
    "sm3",
    "soap",
    "sophia",
    "sparse_adam",
    "splus",
    "stable_adamw",
    "yogi",
]
