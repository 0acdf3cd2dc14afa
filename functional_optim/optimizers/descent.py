"""Gradient descent with noise, with a look back, or with a step length from the loss."""

import torch

from functional_optim.combinators.chain import chain
from functional_optim.recipe import recorded
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.noise import add_noise
from functional_optim.rules.optimistic import scale_by_optimistic_gradient
from functional_optim.rules.polyak import scale_by_polyak
from functional_optim.rules.scale import scale_by_learning_rate
from functional_optim.transform import Transform


@recorded
def noisy_sgd(lr: float = 1e-3, eta: float = 0.01, gamma: float = 0.55, seed: int = 0) -> Transform:
    """Gradient descent with noise of variance `η / tᵞ` on the gradient; see `add_noise`.

    Args:
        lr: the learning rate, at least 0.
        eta: η, the variance at the first step, at least 0.
        gamma: γ, how fast it falls.
        seed: a whole number up to 2⁵³; the noise is a function of it and of the step.

    Source: Neelakantan et al. 2015, https://arxiv.org/abs/1511.06807. As `optax.noisy_sgd`, with other random bits.
    """
    return chain(add_noise(eta, gamma, seed), scale_by_learning_rate(lr), name="noisy_sgd")


@recorded
def polyak_sgd(
    lr: float = 1.0, max_lr: float = 1.0, f_min: float = 0.0, eps: float = 0.0, *, positive_part: bool = False
) -> Transform:
    """Gradient descent with the Polyak step: `p ← p − min((f − f*) / (‖u‖² + ε), γ) u`, with u = η g; see `scale_by_polyak`.

    Args:
        lr: η, at least 0; it scales the gradient before the step is measured, so that a smaller η gives a longer step.
        max_lr: γ, the longest step, greater than 0.
        f_min: f*, the least value of the loss.
        eps: at least 0, in units of ‖u‖².
        positive_part: no step where the loss is below f*.

    `update` needs the loss, `value=f`; behind an optimizer, `step(closure)` passes it.

    Source: Loizou et al. 2021, https://arxiv.org/abs/2002.10542. As `optax.polyak_sgd`, whose `scaling` is `lr`.
    """
    return chain(scale_by_learning_rate(lr), scale_by_polyak(max_lr, f_min, eps, positive_part=positive_part), name="polyak_sgd")


@recorded
def optimistic_gradient_descent(
    lr: float = 1e-3, alpha: float = 1.0, beta: float = 1.0, *, state_dtype: torch.dtype | None = None
) -> Transform:
    """Optimistic gradient descent: `p ← p − η (α g + β (g − g₋₁))`; see `scale_by_optimistic_gradient`.

    Args:
        lr: η, at least 0.
        alpha: α, the weight of the gradient.
        beta: β, the weight of its change.
        state_dtype: dtype of the slot; the parameter's by default.

    Source: Mokhtari et al. 2020, https://arxiv.org/abs/1901.08511. As `optax.optimistic_gradient_descent`.
    """
    return chain(
        scale_by_optimistic_gradient(alpha, beta, state_dtype=state_dtype),
        scale_by_learning_rate(lr),
        name="optimistic_gradient_descent",
    )


@recorded
def optimistic_adam(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Optimistic Adam: Adam's update, corrected by how it changed: `p ← p − η (α u + β (u − u₋₁))`.

    Args:
        lr: η, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: at least 0, in units of |g|.
        alpha: α, the weight of the update.
        beta: β, the weight of its change.
        state_dtype: dtype of the slots; the parameter's by default.

    Source: Daskalakis, Ilyas, Syrgkanis & Zeng 2018, Training GANs with Optimism, https://arxiv.org/abs/1711.00141.
    As `optax.optimistic_adam_v2(nesterov=False)`.
    """
    return chain(
        scale_by_adam(betas, eps, state_dtype=state_dtype),
        scale_by_optimistic_gradient(alpha, beta, state_dtype=state_dtype),
        scale_by_learning_rate(lr),
        name="optimistic_adam",
    )
