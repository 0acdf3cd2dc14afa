"""Which optimizers are of this library: those that step with a transform."""

from typing import Any


def is_own(optimizer: Any) -> bool:
    """Whether this is an optimizer that steps with a transform."""
    return hasattr(optimizer, "transform_for")


def unwrapped(optimizer: Any) -> Any:
    """The optimizer inside those that frameworks put around one, such as accelerate's."""
    while not is_own(optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def require_own(optimizer: Any) -> None:
    """Raise TypeError unless this is an optimizer that steps with a transform."""
    if not is_own(optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}: expected an OptimizerAdapter or another class of fo.adapters. "
            "Their load_state_dict takes what torch's classes saved."
        )
