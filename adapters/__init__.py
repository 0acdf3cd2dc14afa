"""Transforms behind PyTorch's own interfaces. Installed as `functional_optim.adapters`."""

from .drop_in import SGD, Adam, AdamW
from .lr_scheduler import as_lr_scheduler
from .torch_optimizer import OptimizerAdapter

__all__ = ["SGD", "Adam", "AdamW", "OptimizerAdapter", "as_lr_scheduler"]
