"""What a step costs: this library, eager and fused, against `torch.optim`, other libraries and the speed of a plain copy.

    make bench                                                                     # everything, about 8 minutes on two cores
    make bench BENCH="--models tiny --tasks adamw --skip pure first-step memory"        # one table
    make bench BENCH="--models gpt2 --tasks clip --contestants 'ours, fused' 'torch fused' --skip pure first-step memory"

The large model with all contestants needs 12 GB, since each keeps its state; two of them need 6 GB. Other libraries come with the
extra `bench` and take part if they can be imported.

GB/s: what an ideal step would have to move, over the time. A step may beat the copy, whose target the processor fetches before it
is overwritten. Deviation: how far the parameters are, after three steps, from torch.optim's (from this library's, where torch has
no such optimizer), as a share of the way. Much more than rounding means that the contestant does something else.
"""

import argparse
import gc

import first_step
import pure
import report
import torch
from contestants import CONTESTANTS, TASKS, TINY_ONLY, missing
from measure import measure
from shapes import MODELS, Stage


def compete(model, task, names, arguments):
    """The result of one task on one model, or None if none of the contestants does it."""
    torch.manual_seed(0)
    stage = Stage(MODELS[model], arguments.device)
    ways = {name: CONTESTANTS[name](stage.params) for name in names if model == "tiny" or name not in TINY_ONLY}
    builders = {name: way[task] for name, way in ways.items() if task in way}
    result = measure(stage, TASKS[task], builders, arguments.seconds) if builders else None
    del ways, builders, stage
    gc.collect()  # Optimizers hold their gigabytes in cycles.
    return result


def main():
    arguments = parse()
    absent = missing(arguments.contestants)
    names = [name for name in CONTESTANTS if name in arguments.contestants and name not in absent]
    device = torch.get_device_module(arguments.device).get_device_name() if arguments.device != "cpu" else "CPU"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(report.remarks(names, absent))
    results = {}
    for model in arguments.models:
        elements = sum(torch.Size(shape).numel() for shape in MODELS[model])
        print(f"\n## {model}: {len(MODELS[model])} tensors, {elements:,} elements", flush=True)
        for task in arguments.tasks:
            result = compete(model, task, names, arguments)
            if result:
                results[model, task] = result
                print(f"\n### {model}, {result.task.title}\n\n{report.table(result)}", flush=True)
    if arguments.device == "cpu" and report.targets(results):
        print(f"\n## Targets\n\n{report.targets(results)}")
    if results:
        report.plot(results, arguments.plot)
        print(f"\nPlot: {arguments.plot}")
    if "pure" not in arguments.skip and arguments.device == "cpu":
        pure.table()
    if "first-step" not in arguments.skip:
        first_step.compile_times()
    if "memory" not in arguments.skip:
        first_step.peak_memory()


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--contestants", nargs="*", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--seconds", type=float, default=10, help="for the turns of a table, of at least 5 rounds; default 10")
    parser.add_argument("--skip", nargs="*", choices=["pure", "first-step", "memory"], default=[])
    parser.add_argument("--plot", default="bench.png", metavar="PATH", help="where to draw the results; default %(default)s")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
