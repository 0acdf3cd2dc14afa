"""Runs of version 0.1.0 that were interrupted: what made them, for the checkpoints in `checkpoints/` that they left behind.

The files were written once, by `python tests/old_runs.py`, before the layout of the state changed for the first time. Don't write
them anew: that later versions load them is the point. A new kind of run is added with the version that first writes it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import functional_optim as fo
from functional_optim.adapters import SGD, Adafactor, AdamW, OptimizerAdapter

FOLDER = Path(__file__).parent / "checkpoints"
BEFORE, AFTER = 5, 4
SHAPES = {"decay.weight": (3, 2), "decay.other": (2, 2), "plain.bias": (2,), "plain.scale": ()}

# Parameters sit out steps of these runs; in all other runs every gradient is there.
WITH_GAPS = {"gaps": {("plain.bias", 0), ("plain.bias", 3), ("decay.weight", 2), ("plain.scale", 6)}}

labels = fo.by_name({"^decay": "decay", ".*": "plain"})


def adapter(transform: fo.Transform, **hparams: Any) -> Callable[[Any], torch.optim.Optimizer]:
    """The constructor of an adapter."""
    return lambda params: OptimizerAdapter(params, transform, **hparams)


RUNS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "accumulate": adapter(fo.accumulate(fo.adamw(lr=0.1), every=3)),
    "adafactor": lambda params: Adafactor(params, lr=0.1),
    "adamw": lambda params: AdamW(params, lr=0.1, amsgrad=True),
    "apply_if_finite": adapter(fo.apply_if_finite(fo.adamw(lr=0.1))),
    "clip_and_adamw": adapter(fo.chain(fo.clip_by_global_norm(), fo.adamw()), lr=0.1),
    "clocks": adapter(fo.chain(fo.scale_by_adam(), fo.scale_by_schedule(lambda t: 0.5**t), fo.scale_by_learning_rate()), lr=0.1),
    "conditionally": adapter(fo.conditionally(fo.adam(lr=0.1), lambda step: step % 2 == 0, otherwise=fo.sgd(0.1, 0.9))),
    "ema_params": adapter(fo.ema_params(fo.scheduled(fo.adamw(), lr=fo.warmup_cosine(0.1, 3, 10)))),
    "gaps": adapter(fo.chain(fo.clip_by_global_norm(), fo.adamw()), lr=0.1),
    "lookahead": adapter(fo.lookahead(fo.adam(lr=0.1), sync_period=3)),
    "master_copy": adapter(fo.with_master_copy(fo.adamw(lr=0.1))),
    "mechanize": adapter(fo.mechanize(fo.adam(lr=1.0), s_init=1e-2)),
    "muon_and_adam": adapter(
        fo.partition({"decay": fo.muon(lr=0.1), "plain": fo.chain(fo.clip_by_global_norm(), fo.adam(lr=0.1))}, labels)
    ),
    "partition": adapter(fo.partition({"decay": fo.adamw(), "plain": fo.adam()}, labels), lr=0.1),
    "partition_and_clocks": adapter(
        fo.partition(
            {
                "decay": fo.scheduled(fo.adamw(), lr=fo.linear(0.1, 0.0, 12)),
                "plain": fo.scheduled(fo.sgd(0.1, 0.9), lr=fo.constant(0.1)),
            },
            labels,
        )
    ),
    "prodigy": adapter(fo.prodigy(d0=0.1)),
    "reduce_on_plateau": adapter(fo.chain(fo.adam(lr=0.1), fo.reduce_on_plateau(factor=0.3, patience=1))),
    "schedule_free": adapter(fo.schedule_free_adamw(lr=0.1)),
    "scheduled": adapter(fo.scheduled(fo.adamw(), lr=fo.warmup_cosine(0.1, 3, 10), weight_decay=fo.linear(0.1, 0.0, 10))),
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "skip_large_updates": adapter(fo.skip_large_updates(fo.adamw(lr=0.1), largest_norm=4.0)),
    "two_traces": adapter(
        fo.chain(fo.trace(0.5), fo.scale_by_adam(), fo.trace(0.5), fo.add_noise(), fo.scale_by_learning_rate(0.1))
    ),
}


def groups(name: str) -> list[dict[str, Any]]:
    """Named parameters, always the same numbers, in two groups."""
    dtype = torch.bfloat16 if name == "master_copy" else torch.float32
    params = {key: torch.nn.Parameter(wave(shape, i).to(dtype)) for i, (key, shape) in enumerate(SHAPES.items())}
    pairs = list(params.items())
    return [{"params": pairs[:1]}, {"params": pairs[1:]}]


def go_on(name: str, optimizer: torch.optim.Optimizer, first: int, steps: int) -> None:
    """Some steps of a run, with its gradients."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(first, first + steps):
        for i, (key, p) in enumerate(zip(SHAPES, params, strict=True)):
            is_missing = (key, t) in WITH_GAPS.get(name, ())
            p.grad = None if is_missing else wave(p.shape, 7 * t + i).to(p.dtype)
        if name == "reduce_on_plateau":
            optimizer.step(value=1.0 + t % 3)
        else:
            optimizer.step()


def wave(shape: Any, phase: int) -> torch.Tensor:
    """Numbers between -1 and 1, not the same in any two places."""
    return torch.sin(1.7 * torch.arange(torch.Size(shape).numel()) + phase + 1).reshape(shape)


def values(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Copies of the parameters."""
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def write() -> None:
    """Write the checkpoint of every run: the state, the parameters then, and those some steps later."""
    FOLDER.mkdir(exist_ok=True)
    for name, make in RUNS.items():
        optimizer = make(groups(name))
        go_on(name, optimizer, 0, BEFORE)
        checkpoint = {"optimizer": optimizer.state_dict(), "params": values(optimizer)}
        torch.save(checkpoint, FOLDER / f"{name}.pt")
        go_on(name, optimizer, BEFORE, AFTER)
        torch.save({**torch.load(FOLDER / f"{name}.pt"), "later": values(optimizer)}, FOLDER / f"{name}.pt")


if __name__ == "__main__":
    write()
