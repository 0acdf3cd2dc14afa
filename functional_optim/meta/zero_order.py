"""Zero-order gradients: estimated from values alone, for inner loops that have no useful derivative.

The gradient of the smoothed function, E f(θ + σε) with ε ~ N(0, 1), from n directions εᵢ:

    naive           1/(nσ)  Σ f(θ + σεᵢ) εᵢ
    forward         1/(nσ)  Σ (f(θ + σεᵢ) − f(θ)) εᵢ
    antithetic      1/(2nσ) Σ (f(θ + σεᵢ) − f(θ − σεᵢ)) εᵢ

Salimans et al. 2017, Evolution Strategies as a Scalable Alternative to Reinforcement Learning, https://arxiv.org/abs/1703.03864
Nesterov & Spokoiny 2017, Random Gradient-Free Minimization of Convex Functions, https://doi.org/10.1007/s10208-015-9296-2
Metz et al. 2019, Understanding and correcting pathologies in the training of learned optimizers, https://arxiv.org/abs/1810.10180
"""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.hparams import require_count, validate_number
from functional_optim.meta.packing import is_smooth, pack
from functional_optim.meta.remat import require_function
from functional_optim.recipe import answering
from functional_optim.trees import Tree

Estimator: TypeAlias = Literal["antithetic", "forward", "naive"]


@answering
def zero_order_grad(
    function: Callable[..., Tensor],
    *,
    samples: int,
    sigma: float,
    estimator: Estimator = "antithetic",
    batched: bool = True,
    chunk_size: int | None = None,
) -> Callable[..., Tree]:
    """The gradient of a smoothed function, estimated from its values: `(params, *args, generator=…) -> gradients`.

    All three are unbiased for the gradient of `E f(θ + σε)`, which is that of f itself where f is quadratic. The variance of the
    naive one grows as f² / σ²; subtracting f(θ), or f at the opposite point, removes that. The antithetic one also cancels the
    curvature: the one to start with.

    Args:
        function: `(params, *args) -> value`, a () tensor.
        samples: n, directions; each takes one evaluation, two if antithetic.
        sigma: σ, greater than 0, in units of the parameters: how far to look.
        estimator: `"antithetic"`, `"forward"` or `"naive"`.
        batched: evaluate under `torch.vmap`. False calls the function once per point, for one that reads values.
        chunk_size: with `batched`, how many points at a time; None for all.

    Returns:
        A function of the parameters (a tree of tensors, the first argument), the other arguments, and a `torch.Generator` on the
        parameters' device. The same generator state gives the same directions. Integer tensors and None among the parameters
        stay as they are, and their gradient is None.

    Raises:
        TypeError: `function` is none, samples no whole number, or sigma no number.
        ValueError: samples or sigma is not positive, or the estimator is unknown; or, from the function, no parameter is a
            floating-point tensor.

    Source: Salimans et al. 2017, https://arxiv.org/abs/1703.03864. As `torchopt.diff.zero_order`, with the generator passed in.

    >>> gradient = zero_order_grad(lambda p: 3 * p, samples=4, sigma=0.1)
    >>> gradient(torch.tensor(1.0), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([])
    """
    require_function(function, "zero_order_grad")
    samples = require_count("samples", samples, 1)
    validate_number("sigma", sigma, "(0, inf)")
    if estimator not in get_args(Estimator):
        raise ValueError(f"estimator = {estimator!r}: expected one of {', '.join(map(repr, get_args(Estimator)))}.")

    def gradient(params: Tree, *args: Tree, generator: torch.Generator) -> Tree:
        trees.adopt(params)
        noise = directions(params, samples, generator)

        def at(distance: float) -> Tensor:
            def value(direction: Tree) -> Tensor:
                return function(trees.map_leaves(lambda p, e: p if e is None else p + distance * e, params, direction), *args)

            return _evaluated(value, noise, samples, batched, chunk_size)

        if estimator == "antithetic":
            weights = (at(sigma) - at(-sigma)) / (2 * samples * sigma)
        elif estimator == "forward":
            weights = (at(sigma) - function(params, *args)) / (samples * sigma)
        else:
            weights = at(sigma) / (samples * sigma)
        return trees.map_leaves(lambda e: torch.tensordot(weights.to(e.dtype), e, 1), noise)

    return gradient


def directions(params: Tree, samples: int, generator: torch.Generator) -> Tree:
    """Standard normal numbers like the parameters, with a first axis of samples; None for what is no floating-point tensor."""
    noise = trees.map_leaves(lambda p: _normal(p, samples, generator) if is_smooth(p) else None, params)
    if not pack(noise)[0]:
        raise ValueError("params hold no floating-point tensor: there is no gradient to estimate.")
    return noise


def _normal(p: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    if not p.is_complex():
        return torch.randn((samples, *p.shape), generator=generator, dtype=p.dtype, device=p.device)
    # each part with variance 1, where torch shares it out
    return torch.view_as_complex(_normal(torch.view_as_real(p.resolve_conj()), samples, generator))


def _evaluated(value: Callable[[Tree], Tensor], directions: Tree, samples: int, batched: bool, chunk_size: int | None) -> Tensor:
    """The function's value in each direction, of shape (samples,)."""
    tensors, rebuild = pack(directions)
    if batched:
        return torch.vmap(lambda tensors: value(rebuild(tensors)), chunk_size=chunk_size)(tensors)
    return torch.stack([value(rebuild([x[i] for x in tensors])) for i in range(samples)])
