"""Solvers: local minima of functions, by descent along lines. Import as `functional_optim.solvers`."""

from functional_optim.searches.backtracking import backtracking, fixed
from functional_optim.searches.hager_zhang import hager_zhang
from functional_optim.searches.more_thuente import zoom
from functional_optim.searches.search import Heard, Search
from functional_optim.searches.strong_wolfe import strong_wolfe
from functional_optim.solvers.descent import Descent, Direction, Point
from functional_optim.solvers.least_squares import gauss_newton, least_squares, levenberg_marquardt
from functional_optim.solvers.minimize import Method, Minimum, bfgs, lbfgs, minimize, newton_cg, nonlinear_cg

__all__ = [
    # Methods
    "Method",
    "Minimum",
    "bfgs",
    "gauss_newton",
    "lbfgs",
    "least_squares",
    "levenberg_marquardt",
    "minimize",
    "newton_cg",
    "nonlinear_cg",
    # Searches
    "backtracking",
    "fixed",
    "hager_zhang",
    "strong_wolfe",
    "zoom",
    # To write one of your own
    "Descent",
    "Direction",
    "Heard",
    "Point",
    "Search",
]
