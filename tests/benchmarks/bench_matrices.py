"""What a step of the matrix methods costs, beside pytorch_optimizer, HeavyBall and torch.optim.

    python tests/benchmarks/bench_matrices.py                          # 12 matrices of 256 × 256
    python tests/benchmarks/bench_matrices.py --model gpt2 --tasks soap

Same precision and same period; contestants take turns in one process, and a ratio is taken within a round. A period is the mean
step over whole periods, new bases and roots included. Other libraries come with the extra `bench`, and take part if they can be
imported. torch's Muon multiplies in bfloat16, and so does ours of that row; those of `muon_float32` both in float32.
"""

import argparse
import functools
import importlib
import statistics
import warnings

import torch
from measure import take_turns
from shapes import Stage, transformer

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter

PERIOD = 10
MODELS = {"twelve": [(256, 256)] * 12, "gpt2": [shape for shape in transformer(4, 768, 64, 64) if len(shape) > 1]}
OURS = "ours"


def library(module, name):
    """A class of another library; None where that is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return getattr(importlib.import_module(module), name, None)
        except ImportError:
            return None


def ours(transform):
    return lambda params: OptimizerAdapter(params, transform)


# A class of another library, and the arguments by which it does the task.
OTHERS = {
    "soap": {
        "pytorch_optimizer SOAP": ("pytorch_optimizer", "SOAP", {"precondition_frequency": PERIOD}),
        "HeavyBall SOAP": ("heavyball", "SOAP", {"lr": 3e-3, "betas": (0.95, 0.95), "precondition_frequency": PERIOD}),
    },
    "shampoo": {
        # Its momentum is off by default; ours keeps one.
        "pytorch_optimizer Shampoo": ("pytorch_optimizer", "Shampoo", {"preconditioning_compute_steps": PERIOD, "momentum": 0.9}),
    },
    "psgd": {
        "kron_torch Kron": ("kron_torch", "Kron", {"preconditioner_update_probability": 1.0}),
        "pytorch_optimizer Kron": ("pytorch_optimizer", "Kron", {"pre_conditioner_update_probability": 1.0}),
        "HeavyBall PSGDKron": ("heavyball", "PSGDKron", {"preconditioner_update_probability": 1.0}),
    },
    "muon": {"torch.optim.Muon": ("torch.optim", "Muon", {"adjust_lr_fn": "match_rms_adamw"})},
    "muon_float32": {"pytorch_optimizer Muon": ("pytorch_optimizer", "Muon", {"weight_decay": 0.1})},
}
TRANSFORMS = {
    "soap": lambda: fo.soap(precondition_frequency=PERIOD),
    "shampoo": lambda: fo.shampoo(precondition_frequency=PERIOD),
    "psgd": lambda: fo.psgd_kron(update_probability=1.0),
    "muon": fo.muon,
    "muon_float32": lambda: fo.muon(ns_dtype=None),
}


def builders(task):
    """By the name of each contestant that is there, what makes its optimizer of parameters."""
    found = {OURS: ours(TRANSFORMS[task]())}
    for name, (module, cls, arguments) in OTHERS[task].items():
        made = library(module, cls)
        if made is not None:
            own = {"use_muon": True} if task == "muon_float32" else {}
            found[name] = lambda params, made=made, own=own, kw=arguments: made([{"params": params, **own}], **kw)
    return found


def their_products_in_float32():
    """pytorch_optimizer's iteration takes a dtype, which its Muon does not hand on."""
    if library("pytorch_optimizer", "Muon"):
        module = importlib.import_module("pytorch_optimizer.optimizer.muon.base")
        iteration = module.zero_power_via_newton_schulz_5
        module.zero_power_via_newton_schulz_5 = functools.partial(iteration, dtype=torch.float32)


def periods(stage, task, seconds):
    """Of each contestant the mean seconds of a step, for each period."""
    steps, made = {}, builders(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, build in made.items():
            params = [torch.nn.Parameter(p.detach().clone()) for p in stage.params]
            steps[name] = _stepping(build(params), params, stage)
        for _ in range(PERIOD + 1):
            for step in steps.values():
                step()
        times = take_turns(stage, steps, seconds, least=3 * PERIOD, most=30 * PERIOD)
    return {
        name: [statistics.mean(own[i : i + PERIOD]) for i in range(0, len(own) - PERIOD + 1, PERIOD)]
        for name, own in times.items()
    }


def _stepping(optimizer, params, stage):
    def step():
        for p, source in zip(params, stage.params, strict=True):
            p.grad = source.grad
        optimizer.step()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="twelve")
    parser.add_argument("--tasks", nargs="*", choices=TRANSFORMS, default=list(TRANSFORMS))
    parser.add_argument("--seconds", type=float, default=20, help="for the turns of a task, of at least three periods")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    their_products_in_float32()
    for task in arguments.tasks:
        times = periods(_stage(arguments.model), task, arguments.seconds)
        print(f"\n### {arguments.model}, {task}\n\n| contestant | step | fastest period | ours / it, by periods |")
        print("|---|--:|--:|--:|")
        for name, own in times.items():
            lower, middle, upper = statistics.quantiles([a / b for a, b in zip(times[OURS], own, strict=True)])
            row = f"{name} | {statistics.median(own) * 1e3:.0f} ms | {min(own) * 1e3:.0f} ms"
            print(f"| {row} | {middle:.2f} ({lower:.2f} … {upper:.2f}) |", flush=True)


def _stage(model):
    torch.manual_seed(0)
    stage = Stage(MODELS[model])
    stage.reset_gradients()
    return stage


if __name__ == "__main__":
    main()
