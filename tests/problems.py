"""Functions to minimise: of Moré, Garbow & Hillstrom 1981, https://doi.org/10.1145/355934.355936, and a few more.

Each is a function of one float64 vector, with the point to start at. Those of the paper are sums of squares.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def vector(*numbers: float) -> Tensor:
    """These numbers, in float64."""
    return torch.tensor(numbers, dtype=torch.float64)


def rosenbrock(x: Tensor) -> Tensor:
    """Of two variables or more, each of which has the next in a curved valley."""
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def wood(x: Tensor) -> Tensor:
    """Number 14."""
    a, b, c, d = x.unbind()
    valley = 100 * (b - a**2) ** 2 + (1 - a) ** 2 + 90 * (d - c**2) ** 2 + (1 - c) ** 2
    return valley + 10 * (b + d - 2) ** 2 + 0.1 * (b - d) ** 2


def beale(x: Tensor) -> Tensor:
    """Number 5."""
    powers = torch.stack([x[1], x[1] ** 2, x[1] ** 3])
    return ((vector(1.5, 2.25, 2.625) - x[0] * (1 - powers)) ** 2).sum()


def himmelblau(x: Tensor) -> Tensor:
    """With four minima, all of height 0."""
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


def powell_singular(x: Tensor) -> Tensor:
    """Number 22: the Hessian at the minimum is singular."""
    a, b, c, d = x.reshape(-1, 4).unbind(1)
    return ((a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4).sum()


def brown_badly_scaled(x: Tensor) -> Tensor:
    """Number 4."""
    return (x[0] - 1e6) ** 2 + (x[1] - 2e-6) ** 2 + (x[0] * x[1] - 2) ** 2


def biggs_exp6(x: Tensor) -> Tensor:
    """Number 18."""
    t = 0.1 * torch.arange(1, 14, dtype=torch.float64)
    y = torch.exp(-t) - 5 * torch.exp(-10 * t) + 3 * torch.exp(-4 * t)
    return ((x[2] * torch.exp(-t * x[0]) - x[3] * torch.exp(-t * x[1]) + x[5] * torch.exp(-t * x[4]) - y) ** 2).sum()


def trigonometric(x: Tensor) -> Tensor:
    """Number 26."""
    i = torch.arange(1, len(x) + 1, dtype=torch.float64)
    return ((len(x) - x.cos().sum() + i * (1 - x.cos()) - x.sin()) ** 2).sum()


def rastrigin(x: Tensor) -> Tensor:
    """Started within the basin of its best minimum."""
    return 10 * len(x) + (x**2 - 10 * torch.cos(2 * math.pi * x)).sum()


@dataclass(frozen=True)
class Minimised:
    """A function, and where to start."""

    fn: Callable[[Tensor], Tensor]
    start: Tensor


PROBLEMS = {
    "rosenbrock-2": Minimised(rosenbrock, vector(-1.2, 1)),
    "rosenbrock-100": Minimised(rosenbrock, vector(-1.2, 1).repeat(50)),
    "beale": Minimised(beale, vector(1, 1)),
    "himmelblau": Minimised(himmelblau, vector(0, 0)),
    "powell_singular-40": Minimised(powell_singular, vector(3, -1, 0, 1).repeat(10)),
    "wood": Minimised(wood, vector(-3, -1, -3, -1)),
    "brown_badly_scaled": Minimised(brown_badly_scaled, vector(1, 1)),
    "biggs_exp6": Minimised(biggs_exp6, vector(1, 2, 1, 1, 1, 1)),
    "trigonometric-10": Minimised(trigonometric, torch.full((10,), 0.1, dtype=torch.float64)),
    "rastrigin": Minimised(rastrigin, vector(0.3, -0.2)),
}
