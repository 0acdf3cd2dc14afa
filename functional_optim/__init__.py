"""Optimizers for PyTorch as pure functions: compose them, vmap them, differentiate through them, or train with them as usual."""

import importlib
from typing import Any

from functional_optim.apply import apply_updates
from functional_optim.combinators.chain import chain
from functional_optim.combinators.rename import rename_hparams
from functional_optim.combinators.schedule_free import eval_params, schedule_free
from functional_optim.combinators.signed import cautious, with_gradient_signs
from functional_optim.hparams import Hparam, PerLeaf
from functional_optim.optimizers import (
    adagc,
    adam,
    adam_atan2,
    adam_mini,
    adamc,
    adamw,
    ademamix,
    adopt,
    came,
    dadapt_adam,
    dog,
    dowg,
    grams,
    laprop,
    madgrad,
    mars,
    prodigy,
    schedule_free_adamw,
    schedule_free_sgd,
    sgd,
    simplified_ademamix,
    stable_adamw,
)
from functional_optim.rules.adagc import clip_by_adagc
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.adam_atan2 import scale_by_adam_atan2
from functional_optim.rules.adam_mini import scale_by_adam_mini
from functional_optim.rules.adamc import add_corrected_decayed_weights
from functional_optim.rules.ademamix import scale_by_ademamix, scale_by_simplified_ademamix
from functional_optim.rules.adopt import scale_by_adopt
from functional_optim.rules.came import scale_by_came
from functional_optim.rules.clip import clip_by_global_norm, clip_by_value
from functional_optim.rules.d_adaptation import scale_by_d_adaptation
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.dog import scale_by_dog, scale_by_dowg
from functional_optim.rules.kahan import kahan_sum
from functional_optim.rules.laprop import scale_by_laprop
from functional_optim.rules.lion import scale_by_lion
from functional_optim.rules.madgrad import scale_by_madgrad
from functional_optim.rules.mars import mars_correction
from functional_optim.rules.momentum import trace
from functional_optim.rules.palm import scale_by_palm
from functional_optim.rules.prodigy import scale_by_prodigy
from functional_optim.rules.scale import scale, scale_by_learning_rate, scale_by_schedule
from functional_optim.rules.schedule_free import average_iterates
from functional_optim.rules.stable_adamw import scale_by_stable_adamw
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
    "cautious",
    "chain",
    "eval_params",
    "rename_hparams",
    "schedule_free",
    "with_gradient_signs",
    # Rules
    "add_corrected_decayed_weights",
    "add_decayed_weights",
    "average_iterates",
    "clip_by_adagc",
    "clip_by_global_norm",
    "clip_by_value",
    "kahan_sum",
    "mars_correction",
    "scale",
    "scale_by_adam",
    "scale_by_adam_atan2",
    "scale_by_adam_mini",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_came",
    "scale_by_d_adaptation",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_laprop",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_madgrad",
    "scale_by_palm",
    "scale_by_prodigy",
    "scale_by_schedule",
    "scale_by_simplified_ademamix",
    "scale_by_stable_adamw",
    "trace",
    # Schedules
    "warmup_cosine",
    # Optimizers
    "adagc",
    "adam",
    "adam_atan2",
    "adam_mini",
    "adamc",
    "adamw",
    "ademamix",
    "adopt",
    "came",
    "dadapt_adam",
    "dog",
    "dowg",
    "grams",
    "laprop",
    "madgrad",
    "mars",
    "prodigy",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "simplified_ademamix",
    "stable_adamw",
]


def __getattr__(name: str) -> Any:
    """`functional_optim.adapters` and `functional_optim.testing`, imported on first use: the core needs neither."""
    if name in ("adapters", "testing"):
        return importlib.import_module(f"functional_optim.{name}")
    raise AttributeError(f"module 'functional_optim' has no attribute {name!r}")
