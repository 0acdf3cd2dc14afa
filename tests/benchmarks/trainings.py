"""Small trainings, of which `fidelity.py` draws up what codes cost: models as functions, and what they are trained on.

A perceptron of 85 thousand parameters and a convolutional net of 13 thousand learn handwritten digits (1797 of scikit-learn's,
a fifth of them held out), and a transformer of 70 thousand the next byte of the standard library's sources (a tenth of the files
held out). All models start as torch's layers do.
"""

import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, embedding, layer_norm, max_pool2d

Params = Mapping[str, Tensor]

SIZES = [(64, 256), (256, 256), (256, 10)]
CHANNELS = [(1, 24), (24, 48)]
WIDTH, CONTEXT, HEADS = 56, 32, 4


@dataclass(frozen=True)
class Training:
    """A model and its data.

    Attributes:
        shapes: of each parameter, and of how many numbers an output of it is a sum.
        loss: of parameters on inputs and targets.
        data: inputs and targets to train on, and those held out.
        batch: how many of them in a step.
        lr: by how much learning rates of the perceptron are multiplied.
    """

    shapes: dict[str, tuple[tuple[int, ...], int]]
    loss: Callable[[Params, Tensor, Tensor], Tensor]
    data: Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]
    batch: int
    lr: float = 1.0

    def new_params(self, seed: int) -> dict[str, Tensor]:
        """Evenly between ± 1 / √n, of the n numbers that an output is a sum of; ones where there is none."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: (torch.rand(shape, generator=generator) * 2 - 1) / count**0.5 if count else torch.ones(shape)
            for name, (shape, count) in self.shapes.items()
        }


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels."""
    found: Any = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(found.data, dtype=torch.float32)[order] / 16, torch.tensor(found.target)[order]
    count = len(y) * 4 // 5
    return x[:count], y[:count], x[count:], y[count:]


def sources() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stretches of the standard library's sources, and the bytes that follow each of theirs."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
    held, rest = files[::10], [path for i, path in enumerate(files) if i % 10]
    found: list[Tensor] = []
    for some, limit in ((rest, 1 << 20), (held, 1 << 14)):
        text = torch.tensor(list(b"".join(path.read_bytes() for path in some)[: limit + 1]))
        rows = (len(text) - 1) // CONTEXT
        found += [text[shift : rows * CONTEXT + shift].view(rows, CONTEXT) for shift in (0, 1)]
    return found[0], found[1], found[2], found[3]


def perceptron_loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Of a perceptron with two hidden layers."""
    for i in range(len(SIZES)):
        x = x @ params[f"{i}.weight"].mT + params[f"{i}.bias"]
        x = x.relu() if i < len(SIZES) - 1 else x
    return cross_entropy(x, y)


def convolutional_loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Of two convolutions, each halved in size, and a linear layer."""
    x = x.view(-1, 1, 8, 8)
    for i in range(len(CHANNELS)):
        x = max_pool2d(conv2d(x, params[f"{i}.weight"], params[f"{i}.bias"], padding=1).relu(), 2)
    return cross_entropy(x.flatten(1) @ params["head.weight"].mT + params["head.bias"], y)


def language_loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Of a transformer of one layer, with norms before its halves."""
    h = embedding(x, params["bytes"]) + params["places"]
    q, k, v = (layer_norm(h, (WIDTH,), params["norm.0"]) @ params["attention"].mT).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(-3, -2) for part in (q, k, v))
    later = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)
    attention = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(later, -torch.inf).softmax(-1)
    h = h + (attention @ v).transpose(-3, -2).flatten(-2) @ params["mix"].mT
    h = h + (layer_norm(h, (WIDTH,), params["norm.1"]) @ params["up"].mT).relu() @ params["down"].mT
    h = layer_norm(h, (WIDTH,), params["norm.2"]) @ params["head"].mT
    return cross_entropy(h.flatten(0, -2), y.flatten())


def _layers(sizes: dict[str, tuple[int, ...]]) -> dict[str, tuple[tuple[int, ...], int]]:
    """Weights and biases of layers, by their names."""
    found = {}
    for name, shape in sizes.items():
        count = torch.Size(shape[1:]).numel()
        found |= {f"{name}.weight": (shape, count), f"{name}.bias": (shape[:1], count)}
    return found


TRAININGS = {
    "perceptron": Training(
        _layers({str(i): (outputs, inputs) for i, (inputs, outputs) in enumerate(SIZES)}), perceptron_loss, digits, 128
    ),
    "convolutions": Training(
        _layers({str(i): (outputs, inputs, 3, 3) for i, (inputs, outputs) in enumerate(CHANNELS)} | {"head": (10, 192)}),
        convolutional_loss,
        digits,
        64,
    ),
    "language": Training(
        {
            "bytes": ((256, WIDTH), WIDTH),
            "places": ((CONTEXT, WIDTH), WIDTH),
            **{f"norm.{i}": ((WIDTH,), 0) for i in range(3)},
            "attention": ((3 * WIDTH, WIDTH), WIDTH),
            "mix": ((WIDTH, WIDTH), WIDTH),
            "up": ((4 * WIDTH, WIDTH), WIDTH),
            "down": ((WIDTH, 4 * WIDTH), 4 * WIDTH),
            "head": ((256, WIDTH), WIDTH),
        },
        language_loss,
        sources,
        12,
        2.0,
    ),
}
