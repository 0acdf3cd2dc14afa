"""What wrappers cost: chains with one, fused, beside `torch.optim.AdamW(fused=True)` on the same parameters.

    python tests/benchmarks/bench_wrappers.py                      # two models, about four minutes
    python tests/benchmarks/bench_wrappers.py --models tiny --rows monitor "half of the gradients"

All take turns in one process; a ratio is taken within a round, over as many steps as the wrapper's cycle has, and its median and
quartiles are printed. `accumulate` is the mean of a cycle of four, of which one steps.
"""

import argparse
import random
import statistics
import time

import torch
from shapes import MODELS, Stage

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter

CHAINS = {
    "AdamW": lambda: fo.adamw(),
    "clipping + AdamW": lambda: fo.chain(fo.clip_by_global_norm(), fo.adamw()),
    "clipping, cautious(Lion), decay": lambda: fo.chain(
        fo.clip_by_global_norm(), fo.cautious(fo.scale_by_lion()), fo.add_decayed_weights(), fo.scale_by_learning_rate(1e-4)
    ),
    "monitor + AdamW": lambda: fo.chain(fo.monitor("grad"), fo.adamw()),
    "accumulate(AdamW, 4)": lambda: fo.accumulate(fo.adamw(), every=4),
    "apply_if_finite(AdamW)": lambda: fo.apply_if_finite(fo.adamw()),
    "with_master_copy(AdamW)": lambda: fo.with_master_copy(fo.adamw()),
    "schedule_free(AdamW)": lambda: fo.schedule_free(fo.adam(betas=(0.0, 0.999))),
    "prodigy": lambda: fo.prodigy(),
}
CYCLE = {"accumulate(AdamW, 4)": 4}
HALF, GROUPS = "half of the gradients", "a group for each parameter"


def optimizers(row, stage):
    """Ours and torch's."""
    params = [{"params": [p], "lr": 1e-3 + 1e-9 * i} for i, p in enumerate(stage.params)] if row == GROUPS else stage.params
    ours = OptimizerAdapter(params, CHAINS.get(row, CHAINS["AdamW"])(), fused=True)
    return ours.step, torch.optim.AdamW(params, fused=True).step


def ratios(row, model, seconds):
    """Time of ours over torch's, round by round."""
    stage = Stage(MODELS[model])
    steps = optimizers(row, stage)
    found, drawn, cycle = [], random.Random(0), CYCLE.get(row, 1)

    def turn(step):
        taken = 0.0
        for _ in range(cycle):
            stage.reset_gradients()
            for p in stage.params if row == HALF else ():
                p.grad = p.grad if p in present else None
            start = time.perf_counter()
            step()
            taken += time.perf_counter() - start
        return taken

    until, warm = time.perf_counter() + seconds, 12
    while len(found) < warm + 5 or time.perf_counter() < until:
        present = {p for p in stage.params if drawn.random() < 0.5}
        first = drawn.randrange(2)
        times = {i: turn(steps[i]) for i in (first, 1 - first)}
        found.append(times[0] / times[1])
    return found[warm:]


def main():
    rows = [*CHAINS, HALF, GROUPS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=["resnet50", "tiny"])
    parser.add_argument("--rows", nargs="*", choices=rows, default=rows)
    parser.add_argument("--seconds", type=float, default=8, help="of each row; default %(default)s")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, beside torch.optim.AdamW(fused=True)\n")
    print("| " + " | ".join(["", *arguments.models]) + " |\n|---|" + "--:|" * len(arguments.models))
    for row in arguments.rows:
        cells = []
        for model in arguments.models:
            low, middle, high = statistics.quantiles(ratios(row, model, arguments.seconds))
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        print(f"| {row} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
