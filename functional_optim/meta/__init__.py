"""Loops to differentiate: step by step, at their optimum, or from values alone. Import as `functional_optim.meta`."""

from typing import TYPE_CHECKING

from functional_optim import hints
from functional_optim.meta.compiled import compiled
from functional_optim.meta.evaluate import evaluate_of
from functional_optim.meta.evolution import Estimate, Particles, WindowedGradient, windowed_grad
from functional_optim.meta.forward import forward_grad
from functional_optim.meta.implicit import custom_fixed_point, custom_root
from functional_optim.meta.keyed import keyed, keys
from functional_optim.meta.loops import loop
from functional_optim.meta.modules import from_module
from functional_optim.meta.remat import remat
from functional_optim.meta.solvers import cg, dense, gmres, neumann, normal_cg
from functional_optim.meta.unroll import Unroll, Unrolled, unroll
from functional_optim.meta.zero_order import zero_order_grad

__all__ = [
    # Loops
    "Unroll",
    "Unrolled",
    "compiled",
    "evaluate_of",
    "forward_grad",
    "from_module",
    "keyed",
    "keys",
    "loop",
    "remat",
    "unroll",
    # Implicit differentiation
    "cg",
    "custom_fixed_point",
    "custom_root",
    "dense",
    "gmres",
    "neumann",
    "normal_cg",
    # Values alone
    "Estimate",
    "Particles",
    "WindowedGradient",
    "windowed_grad",
    "zero_order_grad",
]

if not TYPE_CHECKING:  # Type checkers would take it for a promise that the module has everything.
    __getattr__ = hints.module_getattr(__name__, __all__)
