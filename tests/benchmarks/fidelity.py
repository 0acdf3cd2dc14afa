"""What coded slots cost in loss: the same training with averages in float32, in 8 and in 4 bits, several seeds in one `vmap`.

    python tests/benchmarks/fidelity.py                            # four rules, five seeds, about ten minutes
    python tests/benchmarks/fidelity.py --rules adamw --steps 200
    python tests/benchmarks/fidelity.py --formats float32 --others # bitsandbytes and torchao, those that are installed

A perceptron of 85 thousand parameters learns handwritten digits (scikit-learn's 1797, a fifth of them held out). Printed are the
means over seeds, and their standard deviations, of the losses after the last step. All formats see the same batches.
"""

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

import functional_optim as fo

SIZES = [(64, 256), (256, 256), (256, 10)]
RULES = {
    "adamw": lambda: fo.adamw(lr=2e-3),
    "lion": lambda: fo.lion(lr=2e-4, weight_decay=0.1),
    "ademamix": lambda: fo.ademamix(lr=1e-3),
    "muon": lambda: fo.muon(lr=5e-3),
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


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels, to train on and held out."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(found.data, dtype=torch.float32)[order] / 16, torch.tensor(found.target)[order]
    count = len(y) * 4 // 5
    return x[:count], y[:count], x[count:], y[count:]


def new_params(seed: int) -> dict[str, Tensor]:
    """As torch's linear layers start."""
    generator = torch.Generator().manual_seed(seed)
    params = {}
    for i, (inputs, outputs) in enumerate(SIZES):
        params[f"{i}.weight"] = (torch.rand(outputs, inputs, generator=generator) * 2 - 1) / inputs**0.5
        params[f"{i}.bias"] = (torch.rand(outputs, generator=generator) * 2 - 1) / inputs**0.5
    return params


def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Of a perceptron with two hidden layers."""
    for i in range(len(SIZES)):
        x = x @ params[f"{i}.weight"].mT + params[f"{i}.bias"]
        x = x.relu() if i < len(SIZES) - 1 else x
    return cross_entropy(x, y)


def trained(tx: fo.Transform, seeds: int, steps: int, batch: int = 128) -> tuple[Tensor, Tensor]:
    """The losses of each seed after the last step, over all that it was trained on, and held out."""
    x, y, held_x, held_y = digits()
    each = [new_params(seed) for seed in range(seeds)]
    params = {name: torch.stack([own[name] for own in each]) for name in each[0]}
    state = torch.vmap(tx.init_state)(params)

    def step(params, state, rows):
        return tx.step(torch.func.grad(loss)(params, x[rows], y[rows]), state, params)

    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    for _ in range(steps):
        rows = torch.stack([torch.randint(len(y), (batch,), generator=generator) for generator in generators])
        params, state = torch.vmap(step)(params, state, rows)
    return torch.vmap(lambda p: loss(p, x, y))(params), torch.vmap(lambda p: loss(p, held_x, held_y))(params)


def trained_elsewhere(make: Callable[..., Any], seeds: int, steps: int, batch: int = 128) -> tuple[Tensor, Tensor]:
    """The same of an optimizer of another library, seed after seed, on the same batches."""
    x, y, held_x, held_y = digits()
    train, held = [], []
    for seed in range(seeds):
        params = {name: torch.nn.Parameter(p) for name, p in new_params(seed).items()}
        optimizer, generator = make(list(params.values())), torch.Generator().manual_seed(seed)
        for _ in range(steps):
            rows = torch.randint(len(y), (batch,), generator=generator)
            optimizer.zero_grad()
            loss(params, x[rows], y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            train.append(loss(params, x, y))
            held.append(loss(params, held_x, held_y))
    return torch.stack(train), torch.stack(held)


def found_elsewhere(rule: str) -> dict[str, Callable[..., Any]]:
    """What makes optimizers of this rule, of the libraries that are installed."""
    makers = {}
    for name, (module, classes) in OTHERS.items():
        if rule in classes and importlib.util.find_spec(module.split(".")[0]):
            cls = getattr(importlib.import_module(module), classes[rule])
            makers[name] = lambda params, cls=cls: cls(params, **SETTINGS[rule])
    return makers


def row(rule: str, name: str, train: Tensor, held: Tensor) -> None:
    """Print a row."""
    print(f"| {rule} | {name} | {' | '.join(f'{x.mean():.4f} ± {x.std():.4f}' for x in (held, train))} |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--others", action="store_true", help="rows of bitsandbytes and torchao, too")
    given = parser.parse_args()
    print("| rule | averages | held-out loss | train loss |\n|---|---|--:|--:|")
    for rule in given.rules:
        for name in given.formats:
            row(rule, name, *trained(FORMATS[name](RULES[rule]()), given.seeds, given.steps))
        for name, make in found_elsewhere(rule).items() if given.others else ():
            row(rule, name, *trained_elsewhere(make, given.seeds, given.steps))


if __name__ == "__main__":
    main()
