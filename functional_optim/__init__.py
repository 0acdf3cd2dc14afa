"""Optimizers for PyTorch as pure functions: compose them, vmap them, differentiate through them, or train with them as usual."""

import importlib
from typing import Any

from functional_optim.apply import apply_updates
from functional_optim.combinators.accumulate import accumulate
from functional_optim.combinators.chain import chain
from functional_optim.combinators.conditionally import conditionally, with_extra
from functional_optim.combinators.inspect import hparams_at, state_get, state_set
from functional_optim.combinators.labels import by_module, by_name, by_ndim
from functional_optim.combinators.lookahead import ema_params, lookahead
from functional_optim.combinators.monitor import monitor
from functional_optim.combinators.partition import masked, partition
from functional_optim.combinators.rename import rename_hparams, set_defaults
from functional_optim.combinators.sam import asam, sam
from functional_optim.combinators.scheduled import scheduled
from functional_optim.combinators.skip import apply_if_finite, skip_large_updates
from functional_optim.hparams import Hparam, PerLeaf
from functional_optim.optimizers import (
    adam,
    adamw,
    adan,
    amsgrad,
    fromage,
    lamb,
    lars,
    lion,
    noisy_sgd,
    novograd,
    optimistic_adam,
    optimistic_gradient_descent,
    polyak_sgd,
    sgd,
    sign_sgd,
    signum,
    sm3,
    yogi,
)
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.adan import scale_by_adan
from functional_optim.rules.adaptive_clip import adaptive_grad_clip
from functional_optim.rules.centralize import centralize
from functional_optim.rules.clip import clip_by_block_rms, clip_by_global_norm, clip_by_value
from functional_optim.rules.constrain import keep_params_nonnegative, zero_nans
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.ema import ema
from functional_optim.rules.freeze import freeze
from functional_optim.rules.lion import scale_by_lion
from functional_optim.rules.momentum import trace
from functional_optim.rules.noise import add_noise
from functional_optim.rules.normalize import normalize_by_update_norm
from functional_optim.rules.novograd import scale_by_novograd
from functional_optim.rules.optimistic import scale_by_optimistic_gradient
from functional_optim.rules.param_scale import scale_by_param_block_norm, scale_by_param_block_rms
from functional_optim.rules.per_example import per_example_global_norm_clip
from functional_optim.rules.polyak import scale_by_polyak
from functional_optim.rules.scale import scale, scale_by_learning_rate, scale_by_schedule
from functional_optim.rules.sign import scale_by_sign
from functional_optim.rules.sm3 import scale_by_sm3
from functional_optim.rules.trivial import identity, set_to_zero
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
    "by_module",
    "by_name",
    "by_ndim",
    "chain",
    "conditionally",
    "ema_params",
    "hparams_at",
    "lookahead",
    "masked",
    "monitor",
    "partition",
    "rename_hparams",
    "sam",
    "scheduled",
    "set_defaults",
    "skip_large_updates",
    "state_get",
    "state_set",
    "with_extra",
    # Rules
    "add_decayed_weights",
    "add_noise",
    "adaptive_grad_clip",
    "centralize",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_value",
    "freeze",
    "ema",
    "identity",
    "keep_params_nonnegative",
    "normalize_by_update_norm",
    "per_example_global_norm_clip",
    "scale",
    "scale_by_adam",
    "scale_by_adan",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_novograd",
    "scale_by_optimistic_gradient",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "scale_by_polyak",
    "scale_by_schedule",
    "scale_by_sign",
    "scale_by_sm3",
    "scale_by_trust_ratio",
    "scale_by_yogi",
    "set_to_zero",
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
    # Optimizers
    "adam",
    "adamw",
    "adan",
    "amsgrad",
    "fromage",
    "lamb",
    "lars",
    "lion",
    "noisy_sgd",
    "novograd",
    "optimistic_adam",
    "optimistic_gradient_descent",
    "polyak_sgd",
    "sgd",
    "sign_sgd",
    "signum",
    "sm3",
    "yogi",
]


def __getattr__(name: str) -> Any:
    """`functional_optim.adapters` and `functional_optim.testing`, imported on first use: the core needs neither."""
    if name in ("adapters", "testing"):
        return importlib.import_module(f"functional_optim.{name}")
    raise AttributeError(f"module 'functional_optim' has no attribute {name!r}")
