"""What chains cost that nobody had in mind: random ones, fused, beside `torch.optim.AdamW(fused=True)`, by the byte.

    python tests/benchmarks/bench_random.py                        # 20 chains on 26 million elements, each compiled first
    python tests/benchmarks/bench_random.py --model tiny --chains 5

The chains are drawn as the tests draw theirs (test_random_chains.py). A step of theirs and one of AdamW's take turns; the time of
each is divided by the bytes that have to be moved: gradient, parameter twice, and the state twice. Each chain's ratio is a median
over rounds of a cycle of steps, since some wrappers do something at every second one; the median of all chains comes last.
"""

import argparse
import random
import statistics
import sys
import time
from importlib import import_module
from pathlib import Path

import torch
from shapes import MODELS, Stage

from functional_optim.adapters import OptimizerAdapter

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "engine")]
chains = import_module("test_random_chains")

CYCLE, WARM = 2, 3
LOSS = torch.tensor(1.0)


def drawn(generator):
    """The names of up to three links and of up to two wrappers, as the tests draw them."""
    links = [generator.choice(sorted(chains.LINKS)) for _ in range(generator.randint(0, 3))]
    return links, generator.sample(sorted(chains.WRAPPERS), generator.randint(0, 2))


def bytes_of(optimizer):
    """What a step has to move: gradient, parameter twice, and every tensor of the state twice."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = sum(x.nbytes for p in params for x in optimizer.state[p].values() if isinstance(x, torch.Tensor))
    return 3 * sum(p.nbytes for p in params) + 2 * state


def turn(stage, step):
    """The time of a cycle."""
    taken = 0.0
    for _ in range(CYCLE):
        stage.reset_gradients()
        start = time.perf_counter()
        step()
        taken += time.perf_counter() - start
    return taken


def ratio(model, links, around, seconds):
    """Time by the byte of a chain over that of torch's AdamW."""
    stage = Stage(MODELS[model])
    ours = OptimizerAdapter([(str(i), p) for i, p in enumerate(stage.params)], chains.built(links, around), fused=True)
    theirs = torch.optim.AdamW(stage.params, fused=True)
    steps, found = (lambda: ours.step(lambda: LOSS), theirs.step), []
    until = None
    while until is None or len(found) < WARM + 3 or time.perf_counter() < until:
        times = [turn(stage, step) for step in steps]
        until = until or time.perf_counter() + seconds  # What is compiled is compiled.
        found.append(times[0] / times[1])
    return statistics.median(found[WARM:]) * bytes_of(theirs) / bytes_of(ours)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="resnet50")
    parser.add_argument("--chains", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5, help="of each chain; default %(default)s")
    arguments = parser.parse_args()
    generator, ratios = random.Random(arguments.seed), []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.model}\n")
    print("| chain | time by the byte |\n|---|--:|")
    for _ in range(arguments.chains):
        links, around = drawn(generator)
        ratios.append(ratio(arguments.model, links, around, arguments.seconds))
        print(
            f"| {' → '.join(links) or 'learning rate only'}{''.join(f', {name}' for name in around)} | {ratios[-1]:.2f} |",
            flush=True,
        )
    print(f"\nmedian of {len(ratios)}: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
