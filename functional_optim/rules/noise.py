"""Gradient noise that fades.

    g ← g + √(η / tᵞ) ζ               ζ standard normal, drawn afresh at each step t = 1, 2, …

Neelakantan et al. 2015, Adding Gradient Noise Improves Learning for Very Deep Networks, https://arxiv.org/abs/1511.06807
"""

from functional_optim.hparams import ANY, NON_NEGATIVE, Hparam
from functional_optim.lifting import Seed
from functional_optim.numerics import double
from functional_optim.philox import normal
from functional_optim.sharded import placed_like
from functional_optim.transform import whole_tree

# The whole numbers that float64, the dtype of shared values, holds exactly.
SEEDS = "[0, 9007199254740992] whole"


@whole_tree(
    shared={"seed": Seed("seed")},
    hparams={"eta": Hparam(0.01, NON_NEGATIVE), "gamma": Hparam(0.55, ANY), "seed": Hparam(0, SEEDS)},
)
def add_noise(hp, t):
    """Add normal noise of variance `η / tᵞ` to every element.

    The noise is a pure function of the seed, the step and the place of the element, all of which are in the state or the tree:
    the same call returns the same noise, a resumed run goes on as if it had not stopped, and `vmap` over `seed` gives
    independent runs. Which leaf is which is told by its shape, then by its order among leaves of that shape.
    Several such rules in one transform, in branches or as links, draw different noise with one seed: which is which is told by
    their order, and `init_state` makes each a seed of its own.

    Args:
        eta: η, the variance at the first step, in units of g², at least 0.
        gamma: γ; the variance falls as t⁻ᵞ. Neelakantan et al. take 0.55; 0 keeps it.
        seed: a whole number up to 2⁵³. `init_state` puts it, or for a second rule what it makes of it, into the state; `update`
            takes it from there.

    State: `step` () int64; `seed` () float64. Both are shared by all parameters.

    Source: Neelakantan et al. 2015, https://arxiv.org/abs/1511.06807. As `optax.add_noise`, with other random bits; both parts of
    a complex number get this variance. Behind the adapter it steps eagerly, with one η and one γ for all groups.

    >>> import torch
    >>> tx = add_noise(seed=7)
    >>> g, state = torch.zeros(2), tx.init_state(torch.zeros(2))
    >>> bool((tx.update(g, state)[0] == tx.update(g, state)[0]).all())
    True
    """
    deviation = (hp["eta"] / double(t) ** hp["gamma"]) ** 0.5

    def rule(gs, ps, shared):
        by_shape = sorted(range(len(gs)), key=lambda i: tuple(gs[i].shape))
        stream_of = {i: stream for stream, i in enumerate(by_shape)}
        noise = [normal(g.shape, shared["seed"], t, stream_of[i], g.device) for i, g in enumerate(gs)]
        # Of a sharded gradient each process draws all the noise and keeps its part.
        return [g + deviation * placed_like(z.to(g.dtype), g) for g, z in zip(gs, noise, strict=True)], shared

    return rule
