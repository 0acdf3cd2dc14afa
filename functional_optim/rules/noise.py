"""Gradient noise that fades.

    g ← g + √(η / tᵞ) ζ               ζ standard normal, drawn afresh at each step t = 1, 2, …

Neelakantan et al. 2015, Adding Gradient Noise Improves Learning for Very Deep Networks, https://arxiv.org/abs/1511.06807
"""

import torch

from functional_optim import trees
from functional_optim.hparams import ANY, NON_NEGATIVE, Hparam
from functional_optim.numerics import double
from functional_optim.philox import normal
from functional_optim.transform import Transform

# What float64 holds exactly, so that no seed is another's neighbour.
SEEDS = "[0, 9007199254740992]"


def add_noise(eta: float = 0.01, gamma: float = 0.55, seed: int = 0) -> Transform:
    """Add normal noise of variance `η / tᵞ` to every element.

    The noise is a pure function of the seed, the step and the place of the element, all of which are in the state or the tree:
    the same call returns the same noise, a resumed run goes on as if it had not stopped, and `vmap` over `seed` gives
    independent runs. Which leaf is which is told by its shape, then by its order among leaves of that shape. Where optax adds
    other random bits, the distribution is the same.

    Args:
        eta: η, the variance at the first step, in units of g², at least 0.
        gamma: γ; the variance falls as t⁻ᵞ. Neelakantan et al. take 0.55; 0 keeps it.
        seed: a whole number. `init_state` puts it into the state; `update` takes it from there.

    State: `step` and `seed`, () int64, shared by all parameters.

    Source: Neelakantan et al. 2015, https://arxiv.org/abs/1511.06807. As `optax.add_noise`; both parts of a complex number get
    this variance. Behind the adapter it steps eagerly, with one η and one γ for all groups. Drawing costs as much as some tens of
    passes over the tensor.

    >>> import torch
    >>> tx = add_noise(seed=7)
    >>> g, state = torch.zeros(2), tx.init_state(torch.zeros(2))
    >>> bool((tx.update(g, state)[0] == tx.update(g, state)[0]).all())
    True
    """
    declared = {"eta": Hparam(eta, NON_NEGATIVE), "gamma": Hparam(gamma, ANY), "seed": Hparam(seed, SEEDS)}
    return Transform(_init, _update, declared, "add_noise")


def _init(params, hp):
    device = next((p.device for p in trees.leaves(params) if p is not None), None)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return {"step": zero, "seed": (double(zero) + hp["seed"]).to(torch.int64)}


def _update(updates, state, params, hp, **extra):
    step = state["step"] + 1
    deviation = (hp["eta"] / double(step) ** hp["gamma"]) ** 0.5
    leaves, spec = trees.flatten(updates)
    present = [i for i, u in enumerate(leaves) if u is not None]
    for stream, i in enumerate(sorted(present, key=lambda i: tuple(leaves[i].shape))):
        leaves[i] = _noisy(leaves[i], deviation, state["seed"], step, stream)
    return trees.unflatten(spec, leaves), {"step": step, "seed": state["seed"]}


def _noisy(u, deviation, seed, step, stream):
    real = torch.view_as_real(u.resolve_conj()) if u.is_complex() else u
    noise = deviation * normal(real.shape, seed.to(u.device), step.to(u.device), stream)
    noisy = (real + noise).to(real.dtype)
    return torch.view_as_complex(noisy) if u.is_complex() else noisy
