"""Runs of an optimizer beside a loop of plain operations: for each parameter an object with `step(p, g) -> p`."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter


class Loop(Protocol):
    """One parameter's optimizer, with a state of its own."""

    def step(self, p: Tensor, g: Tensor) -> Tensor:
        """The next parameter."""
        ...


class Descent:
    """`p ← p − lr (direction(g) + decay p)`."""

    def __init__(self, direction: Callable[[Tensor], Tensor], lr: float, decay: float) -> None:
        self.direction, self.lr, self.decay = direction, lr, decay

    def step(self, p: Tensor, g: Tensor) -> Tensor:
        """The next parameter."""
        return p - self.lr * (self.direction(g) + self.decay * p)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64, the same for the same arguments."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def errors(
    tx: fo.Transform, shapes: Mapping[str, tuple[int, ...]], loop: Callable[[str, Tensor], Loop], steps: int = 30, **hparams: Any
) -> dict[str, float]:
    """Of each parameter the largest error of the pure function and of the optimizer, as a share of the largest displacement."""
    params = {name: randn(*shape, seed=1) for name, shape in shapes.items()}
    loops = {name: loop(name, p) for name, p in params.items()}
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    optimizer = OptimizerAdapter(leaves.items(), tx, **hparams)
    start, expected, state = params, dict(params), tx.init_state(params, hparams)
    for step in range(steps):
        grads = {name: randn(*p.shape, seed=100 + step) for name, p in params.items()}
        params, state = tx.step(grads, state, params, hparams)
        expected = {name: loops[name].step(expected[name], grads[name]) for name in expected}
        for name, leaf in leaves.items():
            leaf.grad = grads[name]
        optimizer.step()
    return {
        name: max(float((x - expected[name]).abs().max()) for x in (params[name], leaves[name].detach()))
        / float((expected[name] - start[name]).abs().max())
        for name in shapes
    }
