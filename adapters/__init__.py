"""Transforms behind PyTorch's own interfaces. Installed as `functional_optim.adapters`."""

from .drop_in import SGD, Adam, AdamW
from .functional_state import FunctionalState, functional_state, load_functional_state, transform_of
from .loading import LoadReport, load_by_name
from .lr_scheduler import as_lr_scheduler
from .torch_optimizer import OptimizerAdapter

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "FunctionalState",
    "LoadReport",
    "OptimizerAdapter",
    "as_lr_scheduler",
    "functional_state",
    "load_by_name",
    "load_functional_state",
    "transform_of",
]
