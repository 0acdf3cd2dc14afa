"""Transforms behind PyTorch's own interfaces. Installed as `functional_optim.adapters`."""

from .drop_in import SGD, Adam, AdamW
from .torch_optimizer import OptimizerAdapter

__all__ = ["SGD", "Adam", "AdamW", "OptimizerAdapter"]
