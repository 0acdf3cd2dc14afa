"""Optimizers that divide by a moment of the gradient: Adam's further family."""

from functional_optim.optimizers.moments.adam_variants import adagc, adam_atan2, adamc, adopt, grams, laprop, stable_adamw
from functional_optim.optimizers.moments.averages import adan, ademamix, madgrad, mars, simplified_ademamix
from functional_optim.optimizers.moments.curvature import adabelief, sophia, yogi
from functional_optim.optimizers.moments.low_memory import adam_mini, came, sm3

__all__ = [
    "adabelief",
    "adagc",
    "adam_atan2",
    "adam_mini",
    "adamc",
    "adan",
    "ademamix",
    "adopt",
    "came",
    "grams",
    "laprop",
    "madgrad",
    "mars",
    "simplified_ademamix",
    "sm3",
    "sophia",
    "stable_adamw",
    "yogi",
]
