"""What it takes to get going: the first step of a compiled chain, cold and from the cache, and peak memory.

Each figure comes from a process of its own, with a compiler cache that was empty before.
"""

import os
import subprocess
import sys
import tempfile

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


def measured(code, *arguments):
    """What a program prints that finds an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        return _measured(code, cache, *arguments)


def _measured(code, cache, *arguments):
    # The precompiled header is kept in the folder for temporary files
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TMPDIR": cache, "PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-c", code, *arguments]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
