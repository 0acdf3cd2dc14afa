"""Fromage: a step relative to each tensor's norm, then all parameters shrunk so that they do not grow.

    p ← (p − η g ‖p‖ / ‖g‖) / √(1 + η²)

Bernstein, Vahdat, Yue & Liu 2020, On the distance between two neural networks and the stability of learning,
https://arxiv.org/abs/2002.03432

The step is `scale_by_trust_ratio`; what is written here is the shrinking.
"""

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.transform import elementwise


@elementwise(hparams={"lr": Hparam(1e-3, NON_NEGATIVE)})
def shrink_after_step(hp):
    """Divide the parameter that this update leads to by `√(1 + η²)`: a step of η ‖p‖ at a right angle to p keeps its norm.

    Args:
        lr: η, at least 0; the same that scaled the update before.
    """
    square = hp["lr"] * hp["lr"]
    root = (1 + square) ** 0.5
    # 1 − 1/√(1 + η²), written without the difference of two numbers near 1.
    loss = square / (root * (1 + root))

    def rule(u, p):
        return u / root - loss * p

    return rule
