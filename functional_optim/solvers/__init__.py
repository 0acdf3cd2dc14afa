"""Solvers: local minima of functions, by descent along lines. Import as `functional_optim.solvers`."""

from functional_optim.solvers.backtracking import backtracking, fixed
from functional_optim.solvers.minimize import Method, Minimum, lbfgs, minimize
from functional_optim.solvers.more_thuente import zoom
from functional_optim.solvers.strong_wolfe import strong_wolfe

__all__ = ["Method", "Minimum", "backtracking", "fixed", "lbfgs", "minimize", "strong_wolfe", "zoom"]
