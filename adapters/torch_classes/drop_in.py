"""What this module held is a file for each class: optimizers that were pickled whole still look for the classes here."""

import warnings
from typing import Any

from .. import torch_classes


def __getattr__(name: str) -> Any:
    """One of the classes, with a warning that this is its old place."""
    if name not in torch_classes.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"{__name__} is where {name} was; later versions will not look here. Pickle the optimizer again, or keep its state_dict.",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(torch_classes, name)
