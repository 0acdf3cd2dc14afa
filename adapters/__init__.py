"""Transforms behind PyTorch's own interfaces. Installed as `functional_optim.adapters`."""

from .drop_in import ASGD, SGD, Adadelta, Adafactor, Adagrad, Adam, Adamax, AdamW, Muon, NAdam, RAdam, RMSprop, Rprop
from .torch_optimizer import OptimizerAdapter

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Muon",
    "NAdam",
    "OptimizerAdapter",
    "RAdam",
    "RMSprop",
    "Rprop",
]
from .lr_scheduler import as_lr_scheduler

__all__ = ["SGD", "Adam", "AdamW", "OptimizerAdapter", "as_lr_scheduler"]
