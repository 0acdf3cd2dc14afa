"""Training loops to differentiate: unrolled, at their optimum, or from values alone. Import as `functional_optim.meta`."""

from functional_optim.meta.remat import remat
from functional_optim.meta.unroll import Unroll, Unrolled, unroll

__all__ = ["Unroll", "Unrolled", "remat", "unroll"]
