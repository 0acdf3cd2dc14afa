"""A brake on the growth of each tensor's norm.

    q ← p + u
    d ← ‖q‖ − ‖p‖                  pinned:  d ← ⟨p, u⟩ / ‖p‖, the part of u along p
    p ← q (‖p‖ + s d) / ‖q‖        s: one factor outwards, where d > 0, and another inwards

As in entries of the optimization track of the speed-runs of NanoGPT; of outward and inward 0 it is a step on a sphere.
"""

import torch

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.numerics import sqrt
from functional_optim.transform import numbered

# Norms below this one count as this one.
LEAST = 1e-12


@numbered(hparams={"outward": Hparam(0.5, NON_NEGATIVE), "inward": Hparam(1.0, NON_NEGATIVE)})
def radial_brake(hp, numbers, *, pinned: bool = False):
    """Let the norm of each tensor change by a share of what the step would change it: outwards by half of it.

    The last link of a chain, behind the learning rate. It does what weight decay is for, where the scale of a tensor doesn't
    matter: its norm grows by the steps' noise alone, and smaller steps relative to it are slower ones.

    Args:
        outward: the share that is left of a step away from 0, at least 0.
        inward: that of a step towards 0; 1 leaves it.
        pinned: take the part of the step along the parameter for the change, and not the difference of the norms, so that
            steps across leave the norm as it is.

    Raises:
        ValueError: `update` was called without params.

    Source: entries of modded-nanogpt's optimization track of 2026, whose first ones shorten the part along the parameter before
    the step, which is this to first order; NVIDIA's `RadialBrake` is this without `pinned`. Neither torch nor optax has it.

    >>> p, u = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])
    >>> p + radial_brake().update(u, {}, p)[0]
    tensor([4.5000, 6.0000])
    """

    def terms(u, p):
        return p * p, u * p, u * u

    def finish(sums):
        pp, up, uu = sums.own
        before, after = sqrt(pp), sqrt((pp + 2 * up + uu).clamp(min=0.0))
        change = after - before
        if pinned:
            change = torch.where(pp == 0, change, up / torch.where(pp == 0, 1.0, before))
        length = before + torch.where(change > 0, hp["outward"] * change, hp["inward"] * change)
        return {"scale": length.clamp(min=0.0) / after.clamp(min=LEAST)}

    def rule(new, u, p):
        return new["scale"] * (p + u) - p

    return terms, finish, rule
