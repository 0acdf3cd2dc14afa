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
from functional_optim.optimizers import adam, adamw, sgd
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.clip import clip_by_global_norm, clip_by_value
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.freeze import freeze
from functional_optim.rules.lion import scale_by_lion
from functional_optim.rules.momentum import trace
from functional_optim.rules.scale import scale, scale_by_learning_rate, scale_by_schedule
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
    "clip_by_global_norm",
    "clip_by_value",
    "freeze",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_schedule",
    "trace",
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
    "sgd",
]


def __getattr__(name: str) -> Any:
    """`functional_optim.adapters` and `functional_optim.testing`, imported on first use: the core needs neither."""
    if name in ("adapters", "testing"):
        return importlib.import_module(f"functional_optim.{name}")
    raise AttributeError(f"module 'functional_optim' has no attribute {name!r}")
