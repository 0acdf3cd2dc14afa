"""The sign of the gradient.

    u ← sign(g)

Bernstein, Wang, Azizzadenesheli & Anandkumar 2018, signSGD: Compressed Optimisation for Non-Convex Problems,
https://arxiv.org/abs/1802.04434

After an average of gradients (`ema`) this is Signum.
"""

from functional_optim.transform import elementwise


@elementwise()
def scale_by_sign(hp):
    """Every element of the update becomes −1, 0 or 1.

    The sign of NaN is 0 in torch; `apply_if_finite(...)` around the chain leaves such a step out.

    Source: Bernstein et al. 2018, https://arxiv.org/abs/1802.04434. As `optax.scale_by_sign`; complex numbers get the sign of
    each part, where optax divides by the absolute value.
    """
    del hp

    def rule(g, p):
        return g.sign()

    return rule
