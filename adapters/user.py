"""Warnings at the user's own line, however many frames of torch's and of this library's lie between."""

import inspect
import warnings
from pathlib import Path

import torch

import functional_optim

# The folders of torch, of the core, and of the adapters; `step` goes through decorators of torch's, of another depth in each.
INSIDE = tuple(f"{Path(file).parent}/" for file in (torch.__file__, functional_optim.__file__, __file__))


def warn(message: str) -> None:
    """Warn at the innermost line that is not within torch or this library."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
