"""Transforms behind PyTorch's own interfaces. Installed as `functional_optim.adapters`."""

from typing import TYPE_CHECKING

from functional_optim import hints, optimizers

from .bridges.callbacks import lightning_callback, trainer_callback
from .bridges.functional import FunctionalState, functional_state, load_functional_state, transform_of
from .bridges.in_backward import StepsInBackward, step_in_backward
from .bridges.logs import log_values
from .bridges.lr_scheduler import as_lr_scheduler
from .bridges.param_groups import param_groups
from .bridges.timm import register_with_timm
from .evaluation import eval_params
from .optimizer import OptimizerAdapter
from .state.by_name import LoadReport, load_by_name
from .template.optimizer import GenericAdaptiveOptimizer
from .template.transform import as_optimizer_class, as_transform
from .template.weight_decay import WeightDecay
from .torch_classes import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)

__all__ = [
    "ASGD",
    "SGD",
    "SparseAdam",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "FunctionalState",
    "GenericAdaptiveOptimizer",
    "LBFGS",
    "LoadReport",
    "Muon",
    "NAdam",
    "OptimizerAdapter",
    "RAdam",
    "RMSprop",
    "Rprop",
    "StepsInBackward",
    "WeightDecay",
    "as_lr_scheduler",
    "as_optimizer_class",
    "as_transform",
    "eval_params",
    "functional_state",
    "lightning_callback",
    "load_by_name",
    "load_functional_state",
    "log_values",
    "param_groups",
    "register_with_timm",
    "step_in_backward",
    "trainer_callback",
    "transform_of",
]

if not TYPE_CHECKING:  # Type checkers would take it for a promise that the module has everything.
    __getattr__ = hints.module_getattr(__name__, __all__, optimizers.__all__)
