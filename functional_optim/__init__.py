"""Optimizers for PyTorch as pure functions: compose them, vmap them, differentiate through them, or train with them as usual."""

import importlib
from typing import Any

from functional_optim.apply import apply_updates
from functional_optim.combinators.chain import chain
from functional_optim.combinators.rename import rename_hparams
from functional_optim.hparams import Hparam, PerLeaf
from functional_optim.optimizers import adam, adamw, sgd
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.clip import clip_by_global_norm, clip_by_value
from functional_optim.rules.decay import add_decayed_weights
from functional_optim.rules.lion import scale_by_lion
from functional_optim.rules.momentum import trace
from functional_optim.rules.scale import scale, scale_by_learning_rate, scale_by_schedule
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
    "chain",
    "rename_hparams",
    # Rules
    "add_decayed_weights",
    "clip_by_global_norm",
    "clip_by_value",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_schedule",
    "trace",
    # Schedules
    "warmup_cosine",
    # Optimizers
    "adam",
    "adamw",
    "sgd",
]


def __getattr__(name: str) -> Any:
    """`functional_optim.adapters`, `.meta` and `.testing`, imported on first use: the core needs none of them."""
    if name in ("adapters", "meta", "testing"):
        return importlib.import_module(f"functional_optim.{name}")
    raise AttributeError(f"module 'functional_optim' has no attribute {name!r}")
