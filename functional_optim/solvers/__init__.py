"""Solvers: local minima of functions, by descent along lines. Import as `functional_optim.solvers`."""

from functional_optim.solvers.backtracking import backtracking, fixed
from functional_optim.solvers.least_squares import least_squares
from functional_optim.solvers.minimize import Method, Minimum, bfgs, lbfgs, minimize, nonlinear_cg
from functional_optim.solvers.more_thuente import zoom
from functional_optim.solvers.strong_wolfe import strong_wolfe

__all__ = [
    "Method",
    "Minimum",
    "backtracking",
    "bfgs",
    "fixed",
    "least_squares",
    "lbfgs",
    "minimize",
    "nonlinear_cg",
    "strong_wolfe",
    "zoom",
]
