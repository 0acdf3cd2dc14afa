"""Bounds of parameters, as two vectors."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.solvers.problem import Problem


def bounded(problem: Problem, bounds: Any, *, implicit: Any) -> Problem:
    """The problem within bounds, (lower, upper): each None, a number for all, or a tree like the parameters of such.

    Raises:
        TypeError: no pair, or of something else than numbers.
        ValueError: bounds of complex parameters, of another shape, that are NaN, or that leave nothing in between; or derivatives
            from the equation that a minimum without bounds solves.
    """
    if bounds is None:
        return problem
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        raise TypeError("bounds is scipy's: give a pair here, (torch.as_tensor(bounds.lb), torch.as_tensor(bounds.ub)).")
    if not (isinstance(bounds, tuple | list) and len(bounds) == 2):
        raise TypeError(
            f"bounds is {bounds!r}: expected a pair (lower, upper), each of them a number, a tree like params, or None. What is "
            "a pair for each variable in scipy is a pair of tensors here."
        )
    if implicit:
        raise ValueError("implicit with bounds: a minimum at a bound has a gradient that is not 0. Differentiate the steps.")
    if any(problem.leaves[i].is_complex() for i in problem.trained):
        raise ValueError("bounds are for real parameters: complex numbers have no order.")
    low = _vector(problem, bounds[0], -math.inf, "the lower bound")
    high = _vector(problem, bounds[1], math.inf, "the upper bound")
    if problem.on_host and not bool((low <= high).all()):
        raise ValueError("bounds: some lower bound is greater than the upper one, or one of them is NaN.")
    return replace(problem, bounds=(low, high))


def _vector(problem: Problem, bound: Any, nothing: float, name: str) -> Tensor:
    """One value for each number of the parameters."""
    params = trees.unflatten(problem.spec, list(problem.leaves))
    if bound is None or isinstance(bound, int | float) or (isinstance(bound, Tensor) and bound.ndim == 0):
        leaves = [bound] * len(problem.leaves)
    elif isinstance(bound, tuple | list) and isinstance(params, Tensor):
        raise TypeError(
            f"{name} is {bound!r}: expected a number, a tensor or None. What is a pair for each variable in scipy is a pair of "
            "tensors here, (torch.tensor(lower), torch.tensor(upper))."
        )
    else:
        leaves = trees.leaves_like(bound, params, problem.spec, name, "params")
    places = trees.paths(params, "params")
    values = [nothing if leaves[i] is None else leaves[i] for i in problem.trained]
    like = [(problem.leaves[i], f"{name} of {places[i]}") for i in problem.trained]
    return problem.joined([_filled(value, x, where) for value, (x, where) in zip(values, like, strict=True)])


def _filled(bound: Any, like: Tensor, where: str) -> Tensor:
    """A bound in the shape of what it is for."""
    if isinstance(bound, int | float):
        return torch.full_like(like, bound)
    if not isinstance(bound, Tensor):
        raise TypeError(f"{where} is a {type(bound).__name__}: expected a number, a tensor or None.")
    try:
        return bound.to(like.dtype).expand(like.shape)
    except RuntimeError:
        raise ValueError(
            f"{where} has shape {tuple(bound.shape)}, which does not fit {tuple(like.shape)}: expected a number, or as many."
        ) from None
