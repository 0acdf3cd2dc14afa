"""Solvers: local minima of functions, by descent along lines. Import as `functional_optim.solvers`."""

from functional_optim.solvers.backtracking import backtracking, fixed
from functional_optim.solvers.minimize import Method, Minimum, lbfgs, minimize
from functional_optim.solvers.more_thuente import zoom

__all__ = ["Method", "Minimum", "backtracking", "fixed", "lbfgs", "minimize", "zoom"]
