"""What a step costs: the fused step against `torch.optim`'s fused kernels and against the speed of a plain copy.

    python tests/benchmarks/bench_fused.py                      # everything; the large model needs 3 GB
    python tests/benchmarks/bench_fused.py --models tiny --steps 300 --skip compile memory

Contestants take turns within one process, so that whatever else the machine does hits all of them; a ratio is one of medians, and
the quartiles of the step-by-step ratios say how far to trust it. Times are printed for orientation only.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch

import functional_optim as fo
from functional_optim.adapters import SGD, AdamW, OptimizerAdapter


@fo.elementwise(slots=("exp_avg",), hparams={"betas": (0.9, 0.99)})
def scale_by_cautious_lion(hp):
    """Lion, moving only where the update and the gradient agree: a rule that torch has no kernel for."""
    b1, b2 = hp["betas"]

    def rule(g, p, m):
        u = torch.sign(b1 * m + (1 - b1) * g)
        return torch.where(u * g > 0, u, torch.zeros_like(u)), b2 * m + (1 - b2) * g

    return rule


def transformer(layers, width, vocabulary, context):
    """The shapes of a GPT-2: 12 tensors a layer, and four more."""
    block = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), (context, width), *block * layers, (width,), (width,)]


def resnet(blocks):
    """The shapes of a ResNet with bottleneck blocks: convolutions without bias, and a scale and a shift after each."""
    convolutions, channels = [(64, 3, 7, 7)], 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            convolutions += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            convolutions += [] if block else [(4 * width, channels, 1, 1)]
            channels = 4 * width
    normalised = [shape for convolution in convolutions for shape in (convolution, convolution[:1], convolution[:1])]
    return [*normalised, (1000, channels), (1000,)]


MODELS = {"tiny": transformer(4, 64, 64, 32), "resnet50": resnet([3, 4, 6, 3]), "gpt2": transformer(12, 768, 50257, 1024)}
STEPS = {"tiny": 400, "resnet50": 41, "gpt2": 21}


def parameters(shapes):
    params = [torch.nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def contestants(params):
    """Name to a function that takes one step. All step the same parameters: what counts is the traffic, not the values."""
    adamw, sgd = torch.optim.AdamW(params, fused=True), torch.optim.SGD(params, lr=1e-3, momentum=0.9, fused=True)

    def clip_then_torch():
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        adamw.step()

    clipped = fo.chain(fo.clip_by_global_norm(), fo.adamw())
    lion = fo.chain(fo.clip_by_global_norm(), scale_by_cautious_lion(), fo.add_decayed_weights(), fo.scale_by_learning_rate(1e-4))
    source = torch.randn(sum(p.numel() for p in params))
    target = torch.empty_like(source)
    return {
        "torch AdamW": adamw.step,
        "AdamW": AdamW(params, fused=True).step,
        "torch clip + AdamW": clip_then_torch,
        "clip + AdamW": OptimizerAdapter(params, clipped, fused=True).step,
        "torch SGD": sgd.step,
        "SGD": SGD(params, lr=1e-3, momentum=0.9, fused=True).step,
        "clip + cautious Lion + decay": OptimizerAdapter(params, lion, fused=True).step,
        "copy": lambda: target.copy_(source),
    }


def eager_contestants(params):
    """Apart from the others: its temporaries, the size of the model, would slow down whoever comes next."""
    options = {"lr": 1e-3, "momentum": 0.9}
    return {
        "torch AdamW, default": torch.optim.AdamW(params).step,
        "AdamW, eager": AdamW(params).step,
        "torch SGD, default": torch.optim.SGD(params, **options).step,
        "SGD, eager": SGD(params, **options).step,
    }


# Ours, the other, how many of the other make one of ours, and the ratio to stay below. Lion reads g twice, p and m, and writes p
# and m: 24 bytes an element where a copy moves 8.
COMPARISONS = {
    "gpt2": [
        ("AdamW", "torch AdamW", 1, 1.05),
        ("clip + AdamW", "torch clip + AdamW", 1, 0.75),
        ("SGD", "torch SGD", 1, None),
        ("clip + cautious Lion + decay", "copy", 3, 1.3),
        ("AdamW, eager", "torch AdamW, default", 1, 1.05),
        ("SGD, eager", "torch SGD, default", 1, 1.05),
    ],
    "resnet50": [
        ("AdamW", "torch AdamW", 1, None),
        ("clip + AdamW", "torch clip + AdamW", 1, None),
        ("SGD", "torch SGD", 1, None),
        ("AdamW, eager", "torch AdamW, default", 1, 1.05),
        ("SGD, eager", "torch SGD, default", 1, 1.05),
    ],
    "tiny": [
        ("AdamW", "torch AdamW", 1, 1.2),
        ("clip + AdamW", "torch clip + AdamW", 1, 1.0),
        ("SGD", "torch SGD", 1, None),
        ("AdamW, eager", "torch AdamW, default", 1, 1.05),
        ("SGD, eager", "torch SGD, default", 1, 1.05),
    ],
}


def timed(functions, steps):
    """Seconds of each step of each function, in turns."""
    times = {name: [] for name in functions}
    for step in range(steps + 3):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if step >= 3:
                times[name].append(time.perf_counter() - start)
    return times


def compare(model, steps):
    shapes = MODELS[model]
    steps = steps or STEPS[model]
    times = timed(contestants(parameters(shapes)), steps)
    times |= timed(eager_contestants(parameters(shapes)), max(steps // 3, 5))
    print(f"\n### {model}: {len(shapes)} tensors, {sum(torch.Size(s).numel() for s in shapes):,} elements\n")
    print("| step | ours | other | ratio of medians | quartiles | at most |\n|---|--:|--:|--:|--:|--:|")
    for ours, other, share, goal in COMPARISONS[model]:
        mine, theirs = times[ours], [share * seconds for seconds in times[other]]
        low, _, high = statistics.quantiles([a / b for a, b in zip(mine, theirs, strict=True)])
        ratio = statistics.median(mine) / statistics.median(theirs)
        name = f"{ours} / {f'{share} × ' if share > 1 else ''}{other}"
        print(f"| {name} | {_ms(mine)} | {_ms(theirs)} | {ratio:.2f} | {low:.2f} … {high:.2f} | {goal or ''} |")


def _ms(seconds):
    return f"{statistics.median(seconds) * 1e3:.3g} ms"


FIRST_STEP = """
import time, torch, functional_optim as fo
from functional_optim.adapters import OptimizerAdapter
params = [torch.nn.Parameter(torch.randn(8 + i % 50, 64)) for i in range({tensors})]
for p in params:
    p.grad = torch.randn_like(p)
optimizer = OptimizerAdapter(params, fo.chain(fo.clip_by_global_norm(), fo.adamw()), fused=True)
start = time.perf_counter()
optimizer.step()
print(time.perf_counter() - start)
"""

PEAK = """
import torch, functional_optim as fo
from functional_optim.adapters import AdamW
params = [torch.nn.Parameter(torch.randn(1000, 1000)) for _ in range(100)]
for p in params:
    p.grad = torch.randn_like(p)
warm_up = AdamW([torch.nn.Parameter(torch.ones(20000))], fused=True)
warm_up.param_groups[0]["params"][0].grad = torch.ones(20000)
warm_up.step()
optimizer = {optimizer}(params, fused=True)
for _ in range(3):
    optimizer.step()
# Not `ru_maxrss`, which a process inherits from the one that started it.
print(next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def compile_times():
    print("\n### First step of clip + AdamW, compilation included\n")
    print("| tensors | cold | from the compiler's cache |\n|--:|--:|--:|")
    cold = {}
    for tensors in (10, 100, 1000):
        with tempfile.TemporaryDirectory() as cache:
            cold[tensors], warm = (_measured(FIRST_STEP.format(tensors=tensors), cache) for _ in range(2))
        print(f"| {tensors} | {cold[tensors]:.1f} s | {warm:.1f} s |")
    print(f"\n1000 tensors over 10, cold: {cold[1000] / cold[10]:.2f} (at most 1.3); cold at most 8 s.")


def peak_memory():
    with tempfile.TemporaryDirectory() as cache:
        ours, theirs = (_measured(PEAK.format(optimizer=name), cache) for name in ("AdamW", "torch.optim.AdamW"))
    print("\n### Peak memory, AdamW on 100 tensors of a million elements; both with the compiler loaded (Linux)\n")
    print(f"{ours:.0f} MB against torch fused {theirs:.0f} MB: {ours / theirs:.3f} (at most 1.05).")


def _measured(code, cache):
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    return float(subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", type=int, help="timed steps; by default, as many as the model's size allows")
    parser.add_argument("--skip", nargs="*", choices=["compile", "memory"], default=[])
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for model in arguments.models:
        compare(model, arguments.steps)
    if "compile" not in arguments.skip:
        compile_times()
    if "memory" not in arguments.skip:
        peak_memory()


if __name__ == "__main__":
    main()
