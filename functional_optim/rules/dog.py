"""DoG and DoWG: a step size that is the distance travelled over the gradients met.

    DoG:   r ← max(r, ‖p − x₀‖),  r = ρ (1 + ‖x₀‖) at first
           G ← G + ‖g‖²
           u ← r / √(G + ε) · g
    DoWG:  R ← max(R, ‖p − x₀‖²),  R = ε at first
           W ← W + R ‖g‖²
           u ← R / (√W + ε) · g

Ivgi, Hinder & Carmon 2023, DoG is SGD's Best Friend, https://arxiv.org/abs/2302.12022
Khaled, Mishchenko & Jin 2023, DoWG Unleashed, https://arxiv.org/abs/2305.16284

All norms are over all parameters together, x₀ is where they started.
"""

import torch

from functional_optim.hparams import POSITIVE, Hparam
from functional_optim.lifting import copied
from functional_optim.numerics import sqrt
from functional_optim.transform import numbered


def _scaled(new, g, p, x0):
    return new["factor"] * g, x0


@numbered(
    slots={"x0": copied},
    shared={"max_dist": 0.0, "sum_sq_norm_grads": 0.0},
    hparams={"reps_rel": Hparam(1e-6, POSITIVE), "eps": Hparam(1e-8, POSITIVE)},
    each=(),
)
def scale_by_dog(hp, numbers):
    """Multiply the gradient by the largest distance from the start over the root of the sum of squared gradient norms.

    It needs no learning rate (the one that follows is 1); the authors evaluate an average of the iterates.

    Args:
        reps_rel: ρ, greater than 0: the first step's length relative to `1 + ‖x₀‖`.
        eps: greater than 0, in units of g².
        state_dtype: dtype of the slot; the parameter's by default.

    State: `x0`, the first parameters; `max_dist` (r) and `sum_sq_norm_grads` (G), () float64 tensors that all parameters share.

    Raises:
        ValueError: `update` was called without params.

    Source: Ivgi et al. 2023, https://arxiv.org/abs/2302.12022. As in `optax.contrib.dog(1.0, ("heuristic", reps_rel))`; the
    authors' program has norms, and so a step size, for each parameter group: here, a branch each in a `partition`. torch has no
    counterpart.
    """

    def terms(g, p, x0):
        return x0 * x0, (p - x0) ** 2, g * g

    def finish(sums):
        start, travelled, gradient = sums.all
        first = hp["reps_rel"] * (1 + sqrt(start))
        largest = torch.maximum(torch.maximum(numbers["max_dist"], first), sqrt(travelled))
        total = numbers["sum_sq_norm_grads"] + gradient
        return {"max_dist": largest, "sum_sq_norm_grads": total, "factor": largest / (total + hp["eps"]).sqrt()}

    return terms, finish, _scaled


@numbered(
    slots={"x0": copied},
    shared={"estim_sq_dist": lambda hp: hp["eps"], "weighted_sq_norm_grads": 0.0},
    hparams={"eps": Hparam(1e-4, POSITIVE)},
    each=(),
)
def scale_by_dowg(hp, numbers):
    """As `scale_by_dog`, with each squared gradient norm weighted by the distance that it was met at.

    Args:
        eps: greater than 0: the first squared distance, and what is added to the root.
        state_dtype: dtype of the slot; the parameter's by default.

    State: `x0`, the first parameters; `estim_sq_dist` (R) and `weighted_sq_norm_grads` (W), () float64 tensors that all
    parameters share.

    Raises:
        ValueError: `update` was called without params.

    Source: Khaled et al. 2023, https://arxiv.org/abs/2305.16284. As in `optax.contrib.dowg(1.0)`; torch has no counterpart.
    """

    def terms(g, p, x0):
        return (p - x0) ** 2, g * g

    def finish(sums):
        travelled, gradient = sums.all
        largest = torch.maximum(numbers["estim_sq_dist"], travelled)
        total = numbers["weighted_sq_norm_grads"] + largest * gradient
        factor = largest / (sqrt(total) + hp["eps"])
        return {"estim_sq_dist": largest, "weighted_sq_norm_grads": total, "factor": factor}

    return terms, finish, _scaled
