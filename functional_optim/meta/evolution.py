"""Gradients of long loops from values alone, window by window: evolution strategies that see past the end of a window.

A loop of K steps is run in windows of W. In window τ, particle i runs from its own states sᵢ⁺ and sᵢ⁻, with the parameters

    θ ± σ εᵢ                    L±: the sum of the losses of the window

    PES         a new εᵢ for each window        gᵗ = 1/(2nσ) Σᵢ (Lᵢ⁺ − Lᵢ⁻) ξᵢ,  ξᵢ the sum of εᵢ of this and all windows before
    NRES        one εᵢ for the whole loop       gᵗ = 1/(2nσ) Σᵢ (Lᵢ⁺ − Lᵢ⁻) εᵢ

The parameters may move between windows; where they don't, the windows' estimates add up to that of the loop.

Vicol, Metz & Sohl-Dickstein 2021, Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent Evolution
    Strategies, https://arxiv.org/abs/2112.13835
Li et al. 2023, Variance-Reduced Gradient Estimation via Noise-Reuse in Online Evolution Strategies, https://arxiv.org/abs/2304.12180
Vicol, Kolter & Swersky 2023, Low-Variance Gradient Estimation in Unrolled Computation Graphs with ES-Single,
    https://arxiv.org/abs/2304.11153: the same as NRES, all particles at the same step of the loop
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.hparams import require_count, validate_number
from functional_optim.meta.loops import loop, require_entry_per_step
from functional_optim.meta.packing import map_tensors
from functional_optim.meta.zero_order import directions
from functional_optim.recipe import answering
from functional_optim.trees import Tree

Windowed: TypeAlias = Literal["pes", "nres"]


class Particles(NamedTuple):
    """What `windowed_grad` hands from one window of a long loop to the next.

    Attributes:
        up, down: the states of the loops at θ + σε and θ − σε, with a first axis of the samples.
        noise: of each parameter, the direction of the last window, with that axis too.
        total: what the values are weighed with: the sum of the directions of all windows, or the one direction.
        steps: how many steps of the loop are done, a () tensor of integers.
    """

    up: Tree
    down: Tree
    noise: Tree
    total: Tree
    steps: Tensor


class Estimate(NamedTuple):
    """What one window of `windowed_grad` returns: the gradient, the losses, and what the next window needs.

    Attributes:
        grads: the estimate of the gradient, a tree like the parameters, None for what is no floating-point tensor.
        error: its standard error, the same tree: the samples' deviation over their root.
        loss: the sum of the losses of the window, the mean of all particles.
        particles: where to go on from.
    """

    grads: Tree
    error: Tree
    loss: Tensor
    particles: Particles


@dataclass(frozen=True)
class WindowedGradient:
    """What `windowed_grad` returns. The attributes are its arguments."""

    step: Callable[..., tuple[Tree, Tensor]]
    window: int
    samples: int
    sigma: float
    estimator: Windowed = "pes"
    chunk_size: int | None = None

    def __call__(self, params: Tree, state: Tree, steps: int, xs: Tree = None, *, generator: torch.Generator) -> Tree:
        """The gradient of the sum of the losses of a whole loop from this state: the windows' estimates, added up.

        Raises:
            ValueError: `steps` is no multiple of the window, `xs` has not an entry for each step, or as `init`.
        """
        steps = require_count("steps", steps, 1)
        if steps % self.window:
            raise ValueError(f"steps = {steps}: expected a multiple of the window, {self.window}.")
        require_entry_per_step(xs, steps, "xs", "Without xs a step gets its index.")
        particles, found = self.init(params, state, generator=generator), None
        for start in range(0, steps, self.window):
            own = map_tensors(lambda x, start=start: x[start : start + self.window], xs)
            estimate = self.next(params, particles, own, generator=generator)
            particles, grads = estimate.particles, estimate.grads
            found = grads if found is None else trees.map_leaves(torch.add, found, grads)
        return found

    def init(self, params: Tree, state: Tree, *, generator: torch.Generator) -> Particles:
        """Particles at the beginning of the loop, all from this state.

        Raises:
            ValueError: no parameter is a floating-point tensor.
        """
        trees.adopt(params)
        noise = directions(params, self.samples, generator)
        states = map_tensors(lambda x: x.expand(self.samples, *x.shape), state)
        total = trees.map_leaves(torch.zeros_like, noise) if self.estimator == "pes" else noise
        device = next(x.device for x in trees.leaves(noise) if x is not None)
        return Particles(states, states, noise, total, torch.zeros((), dtype=torch.int64, device=device))

    def next(self, params: Tree, particles: Particles, xs: Tree = None, *, generator: torch.Generator) -> Estimate:
        """The estimate of the next window; `xs` are its entries, none: the step gets its index in the whole loop.

        The parameters may be others than in the window before. At the end of the loop, go on with `init`.
        """
        noise, total = particles.noise, particles.total
        if self.estimator == "pes":
            noise = directions(params, self.samples, generator)
            total = trees.map_leaves(torch.add, total, noise)
        if xs is None:
            xs = particles.steps + torch.arange(self.window, device=particles.steps.device)

        def run(sign: int) -> Any:
            def one(state: Tree, direction: Tree) -> tuple[Tree, Tensor]:
                at = trees.map_leaves(lambda p, e: p if e is None else p + sign * self.sigma * e, params, direction)
                state, losses = loop(self.step, state, self.window, xs, args=(at,))
                if not isinstance(losses, Tensor) or losses.ndim != 1:
                    what = f"a tensor of shape {tuple(losses.shape[1:])}" if isinstance(losses, Tensor) else "no tensor"
                    raise ValueError(f"the loss that the step returned is {what}: expected a () tensor. Take its mean or sum.")
                return state, losses.sum()

            return torch.vmap(one, (0, axes), chunk_size=self.chunk_size)

        axes = trees.map_leaves(lambda e: 0, noise)
        up, above = run(1)(particles.up, noise)
        down, below = run(-1)(particles.down, noise)
        weights = (above - below) / (2 * self.sigma)
        each = trees.map_leaves(lambda e: weights.reshape(-1, *(1,) * (e.ndim - 1)).to(e.dtype) * e, total)
        grads = trees.map_leaves(lambda x: x.mean(0), each)
        error = trees.map_leaves(lambda x: (x.abs() if x.is_complex() else x).std(0) / self.samples**0.5, each)
        done = Particles(up, down, noise, total, particles.steps + self.window)
        return Estimate(grads, error, (above + below).mean() / 2, done)


@answering
def windowed_grad(
    step: Callable[..., tuple[Tree, Tensor]],
    *,
    window: int,
    samples: int,
    sigma: float,
    estimator: Windowed = "pes",
    chunk_size: int | None = None,
) -> WindowedGradient:
    """The gradient of a long loop, estimated from values by windows: `(params, state, steps, xs, generator=…) -> gradients`.

        gradient = fo.meta.windowed_grad(step, window=10, samples=32, sigma=0.05)
        grads = gradient(params, state, steps=1000, generator=generator)  # the whole loop, with these parameters

        particles = gradient.init(params, state, generator=generator)  # or an update after each window
        for _ in range(100):
            estimate = gradient.next(params, particles, generator=generator)
            particles = estimate.particles
            params = ...  # by estimate.grads

    Truncated derivatives miss what the parameters do beyond a window; these do not. Both are unbiased for the gradient of the
    smoothed loss, which is that of the loss itself where that is quadratic in the parameters (of every window, for PES). Nothing
    is differentiated, so a step may be anything that `torch.vmap` takes. Two evaluations of each step for each sample.

    Args:
        step: `(state, x, params) -> (state, loss)`, the step of a `loop`; the loss is a () tensor.
        window: how many steps between two estimates.
        samples: n, directions, at least 2, whose deviation tells the error; each of them is tried both ways.
        sigma: σ, greater than 0, in units of the parameters: how far to look.
        estimator: `"pes"`: a new direction in each window, so that the variance grows with the windows behind. `"nres"`: one for
            the whole loop: less variance where losses of distant windows go together, and that of plain evolution strategies.
        chunk_size: how many samples at a time; None for all.

    Returns:
        A `WindowedGradient`.

    Raises:
        TypeError: a count is no whole number, or sigma no number.
        ValueError: one of them is not positive, there are less than two samples, or the estimator is unknown; and when it is
            called, the loss of a step is not a () tensor.

    For plain evolution strategies over a whole loop, see `zero_order_grad`. Source: Vicol et al. 2021,
    https://arxiv.org/abs/2112.13835; Li et al. 2023, https://arxiv.org/abs/2304.12180. In `learned_optimization`, for JAX, they
    are `TruncatedPES` and `TruncatedESSharedNoise`.

    >>> def step(x, i, rate):
    ...     return x - rate * x, x * x
    >>> gradient = windowed_grad(step, window=5, samples=100, sigma=0.01)
    >>> found = gradient(torch.tensor(0.1), torch.tensor(1.0), steps=10, generator=torch.Generator().manual_seed(0))
    >>> found < 0
    tensor(True)
    """
    window = require_count("window", window, 1)
    samples = require_count("samples", samples, 2)
    validate_number("sigma", sigma, "(0, inf)")
    if estimator not in get_args(Windowed):
        raise ValueError(f"estimator = {estimator!r}: expected one of {', '.join(map(repr, get_args(Windowed)))}.")
    return WindowedGradient(step, window, samples, sigma, estimator, chunk_size)
