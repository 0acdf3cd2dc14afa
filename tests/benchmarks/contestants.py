"""Who steps what: tasks, and for each library how its users would ask it to do them.

A contestant is a function from parameters to its ways: task to a function without arguments that builds the optimizer and returns
its `step`. A library that is not installed, or not importable, takes no part.
"""

import functools
import importlib
import warnings
from dataclasses import dataclass
from typing import Any

import torch

import functional_optim as fo
from functional_optim.adapters import SGD, AdamW, OptimizerAdapter

COPY = "copy"


@dataclass(frozen=True)
class Task:
    """An update in float32: how many slots it keeps, and whether it must read every gradient before the first write; and then
    gradients and slots once more, to count where they agree."""

    title: str
    slots: int
    clips: bool = False
    counts: bool = False
    reference: str = "torch fused"

    def bytes_moved(self, elements):
        """What an ideal step moves: it reads gradient, parameter and slots, writes the last two, and clipping reads once more."""
        reads, writes = 2 + self.slots + self.clips + self.counts * (1 + self.slots), 1 + self.slots
        return 4 * elements * (reads + writes)


TASKS = {
    "adamw": Task("AdamW", slots=2),
    "clip": Task("clipping by the global norm + AdamW", slots=2, clips=True),
    "sgd": Task("SGD with momentum", slots=1),
    "lion": Task("Lion", slots=1, reference=COPY),
    "chain": Task("clipping + cautious Lion + decay", slots=1, clips=True, counts=True, reference=COPY),
}

ADAMW: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
MOMENTUM: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9}
LION: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 1e-2}


def ours(params, fused):
    clipped = fo.chain(fo.clip_by_global_norm(), fo.adamw(**ADAMW))
    update = (fo.cautious(fo.scale_by_lion()), fo.add_decayed_weights(), fo.scale_by_learning_rate(1e-4))
    chain = fo.chain(fo.clip_by_global_norm(), *update)
    return {
        "adamw": lambda: AdamW(params, **ADAMW, fused=fused).step,
        "clip": lambda: OptimizerAdapter(params, clipped, fused=fused).step,
        "sgd": lambda: SGD(params, **MOMENTUM, fused=fused).step,
        "lion": lambda: OptimizerAdapter(params, fo.lion(**LION), fused=fused).step,
        "chain": lambda: OptimizerAdapter(params, chain, fused=fused).step,
    }


def clipping(params, build):
    """The way of a library whose optimizers don't clip: the user's loop does, in place, before the step."""
    step = build()

    def clip_and_step():
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        step()

    return clip_and_step


def torchs(params, **how):
    def adamw():
        return torch.optim.AdamW(params, **ADAMW, **how).step

    return {
        "adamw": adamw,
        "clip": lambda: clipping(params, adamw),
        "sgd": lambda: torch.optim.SGD(params, **MOMENTUM, **how).step,
    }


def torchopts(params):
    import torchopt
    from torchopt.clip import clip_grad_norm

    def clipped():
        transforms = torchopt.chain(clip_grad_norm(1.0), torchopt.adamw(**ADAMW))
        return torchopt.Optimizer(params, transforms).step

    return {
        "adamw": lambda: torchopt.AdamW(params, **ADAMW).step,
        "clip": clipped,
        "sgd": lambda: torchopt.SGD(params, **MOMENTUM).step,
    }


def heavyballs(params):
    import heavyball

    def adamw():
        return heavyball.AdamW(params, **ADAMW).step

    return {
        "adamw": adamw,
        "clip": lambda: clipping(params, adamw),
        "sgd": lambda: heavyball.SGD(params, lr=MOMENTUM["lr"], beta=MOMENTUM["momentum"]).step,
    }


def optimis(params):
    import optimi

    def adamw():
        return optimi.AdamW(params, **ADAMW).step

    return {
        "adamw": adamw,
        "clip": lambda: clipping(params, adamw),
        "sgd": lambda: optimi.SGD(params, **MOMENTUM).step,
        "lion": lambda: optimi.Lion(params, **LION).step,
    }


def pytorch_optimizers(params):
    import pytorch_optimizer

    return {
        "sgd": lambda: pytorch_optimizer.SGDW(params, **MOMENTUM, weight_decay=0.0).step,
        "lion": lambda: pytorch_optimizer.Lion(params, **LION).step,
    }


OURS, FUSED = "ours, eager", "ours, fused"
CONTESTANTS = {
    "torch fused": functools.partial(torchs, fused=True),
    "torch foreach": functools.partial(torchs, foreach=True),
    "torch for-loop": functools.partial(torchs, foreach=False),
    OURS: functools.partial(ours, fused=None),
    FUSED: functools.partial(ours, fused=True),
    "TorchOpt": torchopts,
    "HeavyBall": heavyballs,
    "optimi": optimis,
    "pytorch_optimizer": pytorch_optimizers,
}

MODULES = {"TorchOpt": "torchopt", "HeavyBall": "heavyball", "optimi": "optimi", "pytorch_optimizer": "pytorch_optimizer"}

REMARKS = {
    "TorchOpt": "has no Lion.",
    "HeavyBall": (
        "has no Lion. Its compiled step is unrolled over the tensors, which takes a minute or more: the tiny model only. "
        "Its AdamW divides by max(√v, ε), not √v + ε: a deviation in the elements whose gradient is near ε."
    ),
    "optimi": "runs with foreach here: its Triton kernels need a GPU.",
    "pytorch_optimizer": "exports torch's own AdamW and SGD. SGD here is its SGDW without decay.",
}

TINY_ONLY = {"HeavyBall"}


def missing(names):
    """Those of these contestants whose library can't be imported."""
    return [name for name in names if name in MODULES and not _importable(MODULES[name])]


def _importable(module):
    try:
        with warnings.catch_warnings(action="ignore"):
            importlib.import_module(module)
    except ImportError:
        return False
    return True
