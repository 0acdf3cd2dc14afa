"""Optimizers for PyTorch as pure functions: compose them, vmap them, differentiate through them, or train with them as usual."""

import importlib
import importlib.util
from typing import Any

from functional_optim import hints
from functional_optim.apply import apply_updates
from functional_optim.codecs import Blockwise, Stochastic
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
from functional_optim.rules.adabelief import scale_by_belief
from functional_optim.rules.adadelta import scale_by_adadelta
from functional_optim.rules.adafactor import scale_by_factored_rms, scale_by_relative_step
from functional_optim.rules.adagc import clip_by_adagc
from functional_optim.rules.adagrad import scale_by_rss
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.adam_atan2 import scale_by_adam_atan2
from functional_optim.rules.adam_mini import scale_by_adam_mini
from functional_optim.rules.adamax import scale_by_adamax
from functional_optim.rules.adamc import add_corrected_decayed_weights
from functional_optim.rules.adan import scale_by_adan
from functional_optim.rules.adaptive_clip import adaptive_grad_clip
from functional_optim.rules.ademamix import scale_by_ademamix, scale_by_simplified_ademamix
from functional_optim.rules.adopt import scale_by_adopt
from functional_optim.rules.asgd import average_iterates, scale_by_asgd
from functional_optim.rules.bias_correction import scale_by_bias_correction
from functional_optim.rules.came import scale_by_came
from functional_optim.rules.cautious_decay import cautious_decay
from functional_optim.rules.centralize import centralize
from functional_optim.rules.clip import clip_by_block_rms, clip_by_global_norm, clip_by_value
from functional_optim.rules.constrain import keep_params_nonnegative, zero_nans
from functional_optim.rules.d_adaptation import scale_by_d_adaptation
from functional_optim.rules.decay import add_decayed_weights, add_l1_decay, soft_threshold, subtract_decayed_weights
from functional_optim.rules.dion import scale_by_dion
from functional_optim.rules.dion2 import scale_by_dion2
from functional_optim.rules.dog import scale_by_dog, scale_by_dowg
from functional_optim.rules.ema import ema
from functional_optim.rules.error_bits import error_bits
from functional_optim.rules.kahan import kahan_sum
from functional_optim.rules.kl_shampoo import scale_by_kl_shampoo
from functional_optim.rules.laprop import scale_by_laprop
from functional_optim.rules.lbfgs import scale_by_lbfgs
from functional_optim.rules.lion import scale_by_lion
from functional_optim.rules.lmo import scale_by_lmo
from functional_optim.rules.madgrad import scale_by_madgrad
from functional_optim.rules.mars import mars_correction
from functional_optim.rules.momentum import trace
from functional_optim.rules.momo import momo
from functional_optim.rules.momo_adam import momo_adam
from functional_optim.rules.muon import scale_by_muon
from functional_optim.rules.nadam import scale_by_nadam
from functional_optim.rules.noise import add_noise
from functional_optim.rules.normalize import normalize_by_update_norm
from functional_optim.rules.novograd import scale_by_novograd
from functional_optim.rules.optimistic import scale_by_optimistic_gradient
from functional_optim.rules.orthogonalize import orthogonalize
from functional_optim.rules.palm import scale_by_palm
from functional_optim.rules.param_scale import scale_by_param_block_norm, scale_by_param_block_rms
from functional_optim.rules.per_example import per_example_global_norm_clip
from functional_optim.rules.plateau import reduce_on_plateau
from functional_optim.rules.polyak import scale_by_polyak
from functional_optim.rules.prodigy import scale_by_prodigy
from functional_optim.rules.psgd_kron import scale_by_psgd_kron
from functional_optim.rules.radam import scale_by_radam
from functional_optim.rules.radial_brake import radial_brake
from functional_optim.rules.rms import scale_by_rms, scale_by_stddev
from functional_optim.rules.row_floor import row_floor
from functional_optim.rules.row_rms import scale_by_row_rms
from functional_optim.rules.rprop import scale_by_rprop
from functional_optim.rules.scale import negate, scale, scale_by_inverse_time, scale_by_learning_rate, scale_by_schedule
from functional_optim.rules.schedule_free import schedule_free_average
from functional_optim.rules.shampoo import scale_by_shampoo
from functional_optim.rules.shape import scale_by_shape, scale_to_rms
from functional_optim.rules.sign import scale_by_sign
from functional_optim.rules.sm3 import scale_by_sm3
from functional_optim.rules.sophia import gauss_newton_bartlett, scale_by_sophia
from functional_optim.rules.sparse_adam import scale_by_sparse_adam
from functional_optim.rules.splus import scale_by_mean_side, scale_by_splus
from functional_optim.rules.stable_adamw import scale_by_stable_adamw
from functional_optim.rules.stochastic_rounding import stochastic_rounding
from functional_optim.rules.trivial import freeze, identity
from functional_optim.rules.trust_ratio import scale_by_trust_ratio
from functional_optim.rules.yogi import scale_by_yogi
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

__version__ = "0.1.0"

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


# Beside the names above, the modules that a user opens; the core needs none of the first three.
_ON_FIRST_USE = ("adapters", "meta", "testing")
_LOADED = ("numerics", "schedules", "solvers")


def __getattr__(name: str) -> Any:
    """`functional_optim.adapters`, `.meta` and `.testing`, imported on first use."""
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"functional_optim.{name}")
    raise AttributeError(f"module 'functional_optim' has no attribute {name!r}.{_advice(name)}")


def _advice(name: str) -> str:
    """What may be meant by a name that is not here: a sentence after a space, or nothing."""
    # `from functional_optim import trees` asks for an attribute before it imports a module.
    if name.startswith("_") or importlib.util.find_spec(f"functional_optim.{name}"):
        return ""
    for part in (*_ON_FIRST_USE, *_LOADED):
        found = getattr(importlib.import_module(f"functional_optim.{part}"), name, None)
        if getattr(found, "__module__", "").startswith("functional_optim"):
            return f" Did you mean {f'{part}.{name}'!r}?"
    return hints.hint(name, [*__all__, "adapters.OptimizerAdapter", "adapters.as_lr_scheduler"])


def __dir__() -> list[str]:
    """The table of contents: what is public, imported or not."""
    own = (name for name in globals() if name.startswith("__"))
    return sorted({*__all__, *_ON_FIRST_USE, *_LOADED, *own})
