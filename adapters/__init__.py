"""Transforms behind PyTorch's own interfaces. Installed as `functional_optim.adapters`."""

from .drop_in import ASGD, SGD, Adadelta, Adafactor, Adagrad, Adam, Adamax, AdamW, Muon, NAdam, RAdam, RMSprop, Rprop
from .functional_state import FunctionalState, functional_state, load_functional_state, transform_of
from .generic_adaptive import GenericAdaptiveOptimizer
from .lbfgs import LBFGS
from .loading import LoadReport, load_by_name
from .lr_scheduler import as_lr_scheduler
from .step_param import as_optimizer_class, as_transform
from .torch_optimizer import OptimizerAdapter
from .weight_decay import WeightDecay

__all__ = [
    "ASGD",
    "SGD",
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
    "WeightDecay",
    "as_lr_scheduler",
    "as_optimizer_class",
    "as_transform",
    "functional_state",
    "load_by_name",
    "load_functional_state",
    "transform_of",
]
