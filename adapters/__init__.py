"""Transforms behind PyTorch's own interfaces. Installed as `functional_optim.adapters`."""

from .drop_in import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, Muon, NAdam, RAdam, RMSprop, Rprop
from .generic_adaptive import GenericAdaptiveOptimizer
from .lr_scheduler import as_lr_scheduler
from .step_param import as_optimizer_class, as_transform
from .torch_optimizer import OptimizerAdapter
from .weight_decay import WeightDecay

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "GenericAdaptiveOptimizer",
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
]
