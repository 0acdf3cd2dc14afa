"""Lifting: a rule for one tensor, or for all of them at once, brought to trees.

This alone holds the dtype policy, the `None` leaves, complex numbers as pairs of reals, sharded tensors, and the step count;
rules know nothing of them.
"""

from functional_optim.lifting.counts import advanced, device_of, new_count
from functional_optim.lifting.leafwise import Leafwise, Reduction, places_of
from functional_optim.lifting.lifted import Lifted, Rule, require_dims, widened
from functional_optim.lifting.slots import OneNumber, Seed, SlotInit, copied, filled, zeros
from functional_optim.lifting.whole_tree import WholeTree

__all__ = [
    "Leafwise",
    "Lifted",
    "OneNumber",
    "Reduction",
    "Rule",
    "Seed",
    "SlotInit",
    "WholeTree",
    "advanced",
    "copied",
    "device_of",
    "filled",
    "new_count",
    "places_of",
    "require_dims",
    "widened",
    "zeros",
]
