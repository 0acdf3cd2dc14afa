"""What coded slots cost in loss: the same training with averages in float32, in 8 and in 4 bits, several seeds in one `vmap`.

    python tests/benchmarks/fidelity.py                            # a perceptron, four rules, five seeds: about ten minutes
    python tests/benchmarks/fidelity.py --trainings convolutions language
    python tests/benchmarks/fidelity.py --rules adamw --steps 200
    python tests/benchmarks/fidelity.py --formats float32 --others # bitsandbytes and torchao, those that are installed

What is trained stands in `trainings.py`. Printed are the means over seeds, and their standard deviations, of the losses after the
last step; and beside float32's, how far the mean held-out loss is from its mean, in its standard deviations, and the ratio of the
train losses. All formats see the same batches.
"""

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from trainings import TRAININGS, Training

import functional_optim as fo

RULES = {
    "adamw": lambda factor: fo.adamw(lr=2e-3 * factor),
    "lion": lambda factor: fo.lion(lr=2e-4 * factor, weight_decay=0.1),
    "ademamix": lambda factor: fo.ademamix(lr=1e-3 * factor),
    "muon": lambda factor: fo.muon(lr=5e-3 * factor),
}
FORMATS = {
    "float32": lambda tx: tx,
    "8 bits": lambda tx: fo.quantized(tx, bits=8),
    "4 bits": lambda tx: fo.quantized(tx, bits=4),
    "bfloat16, stochastic": lambda tx: fo.quantized(tx, codec=fo.Stochastic()),
}

# Optimizers of other libraries, by the rules that they have; with weight decay as the rules here have it.
OTHERS = {
    "bitsandbytes, 8 bits": ("bitsandbytes.optim", {"adamw": "AdamW8bit", "lion": "Lion8bit", "ademamix": "AdEMAMix8bit"}),
    "torchao, 8 bits": ("torchao.optim", {"adamw": "AdamW8bit"}),
    "torchao, 4 bits": ("torchao.optim", {"adamw": "AdamW4bit"}),
}
SETTINGS = {
    "adamw": {"lr": 2e-3, "weight_decay": 0.01},
    "lion": {"lr": 2e-4, "weight_decay": 0.1},
    "ademamix": {"lr": 1e-3, "weight_decay": 0.0},
}

# Of what a model was trained on, its loss is taken over no more rows than these.
SEEN = 600


def trained(training: Training, tx: fo.Transform, seeds: int, steps: int) -> tuple[Tensor, Tensor]:
    """The losses of each seed after the last step, on what it was trained on, and held out."""
    x, y, held_x, held_y = training.data()
    each = [training.new_params(seed) for seed in range(seeds)]
    params = {name: torch.stack([own[name] for own in each]) for name in each[0]}
    state = torch.vmap(tx.init_state)(params)

    def step(params, state, rows):
        return tx.step(torch.func.grad(training.loss)(params, x[rows], y[rows]), state, params)

    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    for _ in range(steps):
        rows = torch.stack([torch.randint(len(y), (training.batch,), generator=generator) for generator in generators])
        params, state = torch.vmap(step)(params, state, rows)
    some = slice(None, None, -(-len(y) // SEEN))
    return torch.vmap(lambda p: training.loss(p, x[some], y[some]))(params), torch.vmap(
        lambda p: training.loss(p, held_x, held_y)
    )(params)


def trained_elsewhere(training: Training, make: Callable[..., Any], seeds: int, steps: int) -> tuple[Tensor, Tensor]:
    """The same of an optimizer of another library, seed after seed, on the same batches."""
    x, y, held_x, held_y = training.data()
    train, held, some = [], [], slice(None, None, -(-len(y) // SEEN))
    for seed in range(seeds):
        params = {name: torch.nn.Parameter(p) for name, p in training.new_params(seed).items()}
        optimizer, generator = make(list(params.values())), torch.Generator().manual_seed(seed)
        for _ in range(steps):
            rows = torch.randint(len(y), (training.batch,), generator=generator)
            optimizer.zero_grad()
            training.loss(params, x[rows], y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            train.append(training.loss(params, x[some], y[some]))
            held.append(training.loss(params, held_x, held_y))
    return torch.stack(train), torch.stack(held)


def found_elsewhere(rule: str, factor: float) -> dict[str, Callable[..., Any]]:
    """What makes optimizers of this rule, of the libraries that are installed."""
    makers = {}
    for name, (module, classes) in OTHERS.items():
        if rule in classes and importlib.util.find_spec(module.split(".")[0]):
            cls, settings = getattr(importlib.import_module(module), classes[rule]), SETTINGS[rule]
            settings = {**settings, "lr": settings["lr"] * factor}
            makers[name] = lambda params, cls=cls, settings=settings: cls(params, **settings)
    return makers


def rows(training: Training, rule: str, given: argparse.Namespace) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of each format, and of other libraries: its name, and the losses of all seeds."""
    for name in given.formats:
        yield name, *trained(training, FORMATS[name](RULES[rule](training.lr)), given.seeds, given.steps)
    for name, make in found_elsewhere(rule, training.lr).items() if given.others else ():
        yield name, *trained_elsewhere(training, make, given.seeds, given.steps)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=["perceptron"])
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--others", action="store_true", help="rows of bitsandbytes and torchao, too")
    given = parser.parse_args()
    print("| training | rule | averages | held-out loss | train loss | from float32's | train / float32's |")
    print("|---|---|---|--:|--:|--:|--:|")
    for model in given.trainings:
        for rule in given.rules:
            first = None
            for name, train, held in rows(TRAININGS[model], rule, given):
                first = first or (train, held)
                losses = " | ".join(f"{x.mean():.4f} ± {x.std():.4f}" for x in (held, train))
                away, ratio = (held.mean() - first[1].mean()) / first[1].std(), train.mean() / first[0].mean()
                print(f"| {model} | {rule} | {name} | {losses} | {away:+.2f} σ | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
