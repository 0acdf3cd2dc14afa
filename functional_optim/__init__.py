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
from functional_optim.combinators.master_copy import with_master_copy
from functional_optim.combinators.monitor import monitor
from functional_optim.combinators.partition import masked, partition
from functional_optim.combinators.rename import rename_hparams, set_defaults
from functional_optim.combinators.sam import asam, sam
from functional_optim.combinators.scheduled import scheduled
from functional_optim.combinators.skip import apply_if_finite, skip_large_updates
from functional_optim.hparams import Hparam, PerLeaf
from functional_optim.optimizers import (
    adabelief,
    adadelta,
    adagrad,
    adam,
    adamax,
    adamw,
    asgd,
    muon,
    nadam,
    radam,
    rmsprop,
    rprop,
    sgd,
    sophia,
)
from functional_optim.rules.adabelief import scale_by_belief
from functional_optim.rules.adadelta import scale_by_adadelta
from functional_optim.rules.adagrad import scale_by_rss
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.adamax import scale_by_adamax
from functional_optim.rules.asgd import average_iterates, scale_by_asgd
from functional_optim.rules.clip import clip_by_global_norm, clip_by_value
from functional_optim.rules.decay import add_decayed_weights, add_l1_decay, soft_threshold, subtract_decayed_weights
from functional_optim.rules.freeze import freeze
from functional_optim.rules.lion import scale_by_lion
from functional_optim.rules.momentum import trace
from functional_optim.rules.muon import scale_by_muon
from functional_optim.rules.nadam import scale_by_nadam
from functional_optim.rules.radam import scale_by_radam
from functional_optim.rules.rms import scale_by_rms, scale_by_stddev
from functional_optim.rules.rprop import scale_by_rprop
from functional_optim.rules.scale import negate, scale, scale_by_inverse_time, scale_by_learning_rate, scale_by_schedule
from functional_optim.rules.sophia import gauss_newton_bartlett, scale_by_sophia
from functional_optim.schedules import warmup_cosine
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
    "with_master_copy",
    # Rules
    "add_decayed_weights",
    "add_l1_decay",
    "average_iterates",
    "clip_by_global_norm",
    "clip_by_value",
    "freeze",
    "negate",
    "scale",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_asgd",
    "scale_by_belief",
    "scale_by_inverse_time",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_muon",
    "scale_by_nadam",
    "scale_by_radam",
    "scale_by_rms",
    "scale_by_rprop",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_sophia",
    "scale_by_stddev",
    "soft_threshold",
    "subtract_decayed_weights",
    "trace",
    # Schedules
    "warmup_cosine",
    # Curvature
    "gauss_newton_bartlett",
    # Optimizers
    "adabelief",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "sophia",
]


def __getattr__(name: str) -> Any:
    """`functional_optim.adapters` and `functional_optim.testing`, imported on first use: the core needs neither."""
    if name in ("adapters", "testing"):
        return importlib.import_module(f"functional_optim.{name}")
    raise AttributeError(f"module 'functional_optim' has no attribute {name!r}")
