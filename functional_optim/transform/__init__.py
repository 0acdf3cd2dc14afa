"""The interface: `Transform`, and the decorators that make one of a rule for one tensor, or for all of them."""

from functional_optim.transform.decorators import elementwise, numbered, per_tensor, whole_tree
from functional_optim.transform.interface import Transform, require_transform

__all__ = ["Transform", "elementwise", "numbered", "per_tensor", "require_transform", "whole_tree"]
