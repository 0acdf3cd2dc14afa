"""Gradients of a scaled loss: what undoes the scale comes first for every parameter, so that all links see true gradients."""

from collections.abc import Container

from functional_optim.combinators.origin import Origin
from functional_optim.rules.scale import scale

from ..state.layout import Key
from .route import Link

# What the factor is called among the hyper-parameters of a step. No hyper-parameter can be called so.
FACTOR = "1 / grad_scale"


def unscaling(members: Container[Key]) -> Link:
    """The link that these parameters' gradients go through first."""
    return Link(scale(), (), {"factor": Origin((FACTOR,))}, members)
