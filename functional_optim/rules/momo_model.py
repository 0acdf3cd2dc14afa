"""MoMo's model of the loss, and how far to step in it; the algorithm, with its letters, is in `momo.py`.

f(x) ≈ max(ρ f*, f̄ − γ + ⟨m, x⟩) / ρ        the least value of this plus `‖x − p‖²_D / (2 η) + λ/2 ‖x‖²_D`
"""

import math

import torch

from functional_optim.numerics import where

# What the model keeps, and how it starts.
MODEL = {"mean_value": 0.0, "mean_product": 0.0, "lower_bound_estimate": lambda hp: hp["lower_bound"]}


def products(g, p, m, direction):
    """What the model needs the sums of."""
    return g * p, m * direction, m * p


def model(hp, beta, c, sums, old, adapt_lower_bound):
    """The model of the loss, and the step length `tau` that minimises it."""
    gradient, norm, inner = sums.all
    value = beta * old["mean_value"] + (1 - beta) * hp["value"]
    product = beta * old["mean_product"] + (1 - beta) * gradient
    bound = old["lower_bound_estimate"]
    grown = 1 + _shrinkage(hp)
    if adapt_lower_bound:
        cap = grown * (value - product) + inner
        lowered = (cap / (2 * c * grown)).clamp(min=hp["lower_bound"])
        bound = torch.where(cap < grown * c * bound, lowered, bound)
    still = norm <= torch.finfo(torch.float64).eps
    length = (grown * (value - c * bound - product) + inner).clamp(min=0.0) / torch.where(still, 1.0, norm)
    length = torch.where(still, 0.0, length)
    tau = length.clamp(max=hp["lr"] / c)
    if adapt_lower_bound:
        bound = ((value + inner - product - tau * norm / 2) / c).clamp(min=hp["lower_bound"])
    return {"mean_value": value, "mean_product": product, "lower_bound_estimate": bound, "tau": tau}


def way(hp, tau, direction, p):
    """The way to (p − τ d) / (1 + η λ)."""
    shrinkage = _shrinkage(hp)
    return -(shrinkage * p + tau * direction) / (1 + shrinkage)


def _shrinkage(hp):
    """η λ, without a decay 0 for an infinite η, too."""
    return where((hp["lr"] == math.inf) & (hp["weight_decay"] == 0), 0.0, hp["lr"] * hp["weight_decay"])
