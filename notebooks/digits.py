"""One transform, two uses: train a CNN on handwritten digits in an ordinary loop, then sweep 16 learning rates in one `vmap`."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from digits_picture import Cost, Run, Sweep, plot
from mnist_idx import load_mnist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from tqdm import tqdm

import functional_optim as fo

LEARNING_RATE = 3e-3
SWEPT = torch.logspace(-5, -1, 16)
SWEEP_BATCH = 16
ACCURACY_GOAL = 0.97
TOLERANCE = 1e-9

Params = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


# ---- The data ----------------------------------------------------------------------------------------------------------------


@dataclass
class Data:
    """Images (n, 1, 28, 28), normalised by the mean and spread of the training part, and their labels (n,)."""

    name: str
    train: Batch
    held_out: Batch
    batch_size: int
    epochs: int


def load_small() -> Data:
    """The 1797 digits that scikit-learn ships, 8 × 8 pixels scaled to 28 × 28; a fifth of each class is held out."""
    digits = load_digits()
    images = F.interpolate(torch.tensor(digits.images, dtype=torch.float32)[:, None], size=(28, 28), mode="bilinear")
    labels = torch.tensor(digits.target)
    kept, held_out = train_test_split(torch.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return normalised(
        "scikit-learn's digits", (images[kept], labels[kept]), (images[held_out], labels[held_out]), batch_size=64, epochs=8
    )


def load_full(folder: Path) -> Data:
    """MNIST: 60 000 digits to train on, 10 000 held out."""
    mnist = load_mnist(folder)
    train = mnist.train_images[:, None].float(), mnist.train_labels.long()
    held_out = mnist.test_images[:, None].float(), mnist.test_labels.long()
    return normalised("MNIST", train, held_out, batch_size=512, epochs=2)


def normalised(name: str, train: Batch, held_out: Batch, *, batch_size: int, epochs: int) -> Data:
    """Both parts shifted and scaled alike, by what the training part says."""
    spread, mean = torch.std_mean(train[0])
    train, held_out = [((images - mean) / spread, labels) for images, labels in (train, held_out)]
    return Data(name, train, held_out, batch_size, epochs)


def shuffled(count: int, batch_size: int, epochs: int) -> Tensor:
    """Which images each step sees, (steps, batch): every epoch in a new order, without its incomplete last batch."""
    batch_size = min(batch_size, count)
    steps = count // batch_size
    return torch.cat([torch.randperm(count)[: steps * batch_size].reshape(steps, batch_size) for _ in range(epochs)])


# ---- The model and its optimizer ---------------------------------------------------------------------------------------------


def make_cnn() -> nn.Sequential:
    """The classic small CNN: two convolutions with pooling, two fully connected layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU()),
        nn.Linear(500, 10),
    )


def make_transform(steps: int) -> fo.Transform:
    """AdamW with clipping and a schedule. The schedule is a factor from 0 to 1, so `lr` stays free to be set or swept."""
    schedule = fo.warmup_cosine(1.0, warmup_steps=steps // 10, total_steps=steps)
    return fo.chain(
        fo.clip_by_global_norm(),
        fo.scale_by_adam(),
        fo.add_decayed_weights(),
        fo.scale_by_schedule(schedule),
        fo.scale_by_learning_rate(),
    )


# ---- (a) An ordinary loop ----------------------------------------------------------------------------------------------------


def train_in_a_loop(model: nn.Module, tx: fo.Transform, data: Data, order: Tensor, epochs: int) -> Run:
    """Train as one always does in torch: the adapter makes a `torch.optim.Optimizer` of the transform."""
    optimizer = fo.adapters.OptimizerAdapter(model.parameters(), tx, lr=LEARNING_RATE)
    run = Run([], [], Cost(0.0, 0.0))
    images, labels = data.train
    started = now()
    with progress(order, "training", "step") as bar:
        for step, batch in enumerate(bar, start=1):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            run.losses.append(loss.item())
            if step % (len(order) // epochs) == 0:
                run.accuracies.append(accuracy(model, data.held_out).item())
                tqdm.write(f"  epoch {len(run.accuracies)}/{epochs}   held-out accuracy {run.accuracies[-1]:.1%}")
            held_out = f"{run.accuracies[-1]:.1%}" if run.accuracies else "-"
            bar.set_postfix({"loss": f"{loss:.3f}", "held-out": held_out}, refresh=False)
    run.cost = since(started)
    return run


def accuracy(predict: Callable[[Tensor], Tensor], held_out: Batch) -> Tensor:
    """The share of images that `predict` gets right; a few hundred at a time, because 16 models hold 16 times the memory."""
    with torch.no_grad():
        right = [predict(x).argmax(-1).eq(y).sum(-1) for x, y in zip(*(part.split(250) for part in held_out), strict=True)]
    return torch.stack(right).sum(0) / len(held_out[1])


# ---- (b) Sixteen learning rates at once --------------------------------------------------------------------------------------


def make_training(model: nn.Module, tx: fo.Transform) -> Callable[[Params, Tensor, Iterable[Batch]], tuple[Params, Tensor]]:
    """Training as a pure function of the first parameters, the learning rate and the batches."""

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, params, (x,)), y)

    def train(params: Params, lr: Tensor, batches: Iterable[Batch]) -> tuple[Params, Tensor]:
        state = tx.init_state(params, {"lr": lr})
        losses = []
        for x, y in batches:
            grads, value = grad_and_value(loss)(params, x, y)
            updates, state = tx.update(grads, state, params, {"lr": lr})
            params = fo.apply_updates(params, updates)
            losses.append(value)
        return params, torch.stack(losses)

    return train


@torch.no_grad()  # `grad_and_value` takes its own derivatives; none is taken of the training as a whole.
def sweep_learning_rates(model: nn.Module, tx: fo.Transform, data: Data, order: Tensor, rates: Tensor) -> Sweep:
    """Train once per learning rate, all in one `vmap`, then the same runs one after the other; time both."""
    train = make_training(model, tx)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    images, labels = data.train
    batches = [(images[batch], labels[batch]) for batch in order]

    def all_at_once(bar: Iterable[Batch]) -> tuple[Params, Tensor]:
        return torch.vmap(lambda lr: train(params, lr, bar))(rates)

    def one_by_one(bar: Iterable[Tensor]) -> None:
        for lr in bar:
            train(params, lr, batches)

    difference = vmap_against_loop(train, params, batches[:5], rates)
    # A first call also chooses kernels and loads code; that is no part of the comparison.
    torch.vmap(lambda lr: train(params, lr, batches[:3]))(rates)
    train(params, rates[0], batches[:3])
    # Half of the loop runs before the vmap and half after it: what slows the machine down meanwhile slows both.
    half = len(rates) // 2
    before, _ = timed(one_by_one, progress(rates[:half], "one by one, first half", "rate"))
    at_once, (trained, losses) = timed(all_at_once, progress(batches, "all at once", "step"))
    after, _ = timed(one_by_one, progress(rates[half:], "one by one, second half", "rate"))
    in_turn = Cost(before.clock + after.clock, before.work + after.work)

    def predict(x: Tensor) -> Tensor:
        return torch.vmap(lambda params: functional_call(model, params, (x,)))(trained)

    accuracies = accuracy(predict, data.held_out)
    return Sweep(rates, losses, accuracies, at_once, in_turn, difference)


def vmap_against_loop(train: Callable, params: Params, batches: Sequence[Batch], rates: Tensor) -> float:
    """The largest difference between parameters trained both ways.

    In float64, because training amplifies rounding: in float32, two orders of the same sum part ways at large learning rates.
    """
    params = {name: p.double() for name, p in params.items()}
    batches = [(x.double(), y) for x, y in batches]
    at_once, _ = torch.vmap(lambda lr: train(params, lr, batches))(rates)
    one_by_one = [train(params, lr, batches)[0] for lr in rates]
    return max((at_once[name] - torch.stack([each[name] for each in one_by_one])).abs().max().item() for name in params)


def now() -> Cost:
    """What both clocks show."""
    return Cost(time.perf_counter(), time.process_time())


def since(started: Cost) -> Cost:
    """What it has cost since then."""
    ended = now()
    return Cost(ended.clock - started.clock, ended.work - started.work)


def timed(function: Callable, *arguments) -> tuple[Cost, object]:
    """What a call costs, and what it returns."""
    started = now()
    returned = function(*arguments)
    return since(started), returned


# ---- What one sees -----------------------------------------------------------------------------------------------------------


def progress(items: Sequence | Tensor, title: str, unit: str) -> tqdm:
    """A live bar in a terminal; nothing where the output goes to a file."""
    return tqdm(items, desc=f"  {title}", unit=unit, total=len(items), disable=None, leave=False, dynamic_ncols=True)


def table(model: nn.Module, run: Run, sweep: Sweep, path: Path, total: Cost) -> str:
    """The results, a line each."""
    final = run.accuracies[-1]
    rows = {
        "parameters of the CNN": f"{sum(p.numel() for p in model.parameters()):,}",
        "steps": f"{len(run.losses)}",
        "loop: held-out accuracy": f"{final:.1%}, goal {ACCURACY_GOAL:.0%}: {verdict(final >= ACCURACY_GOAL)}",
        "loop: time": str(run.cost),
        f"sweep: {len(sweep.rates)} rates, one vmap": str(sweep.vmap),
        f"sweep: {len(sweep.rates)} rates, one by one": str(sweep.loop),
        "sweep: one by one / one vmap": f"{sweep.ratio:.2f} in processor time, which other programs hardly change",
        "sweep: best learning rate": f"{sweep.rates[sweep.best]:.1e}, held-out accuracy {sweep.accuracies[sweep.best]:.1%}",
        "sweep: vmap against loop": f"differ by {sweep.difference:.0e}, at most {TOLERANCE:.0e}: "
        + verdict(sweep.difference <= TOLERANCE),
        "total time": f"{total.clock:.0f} s",
        "picture": str(path),
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


# ---- The program -------------------------------------------------------------------------------------------------------------


def demo(data: Data, output: Path, *, epochs: int, rates: Tensor, seed: int) -> tuple[Run, Sweep]:
    """Both parts on the same data with the same transform, then the table and the picture."""
    started = now()
    torch.manual_seed(seed)
    order = shuffled(len(data.train[1]), data.batch_size, epochs)
    tx = make_transform(steps=len(order))
    print(f"{data.name}: {len(data.train[1])} digits to train on, {len(data.held_out[1])} held out\n{tx}\n")

    model = make_cnn()
    print(f"(a) an ordinary loop: {len(order)} steps, batches of {order.shape[1]}, lr = {LEARNING_RATE}")
    run = train_in_a_loop(model, tx, data, order, epochs)

    small = order[:, :SWEEP_BATCH]
    print(
        f"\n(b) the same transform, {len(rates)} learning rates from {rates[0]:.0e} to {rates[-1]:.0e}, {len(small)} steps again;"
    )
    print(f"    each on the first {small.shape[1]} images of every batch, to keep it short")
    sweep = sweep_learning_rates(make_cnn(), tx, data, small, rates)

    plot(run, sweep, output)
    print("\n" + table(model, run, sweep, output, since(started)))
    return run, sweep


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, metavar="DIR", help="a folder with the IDX files of MNIST, gzipped or not")
    parser.add_argument("--epochs", type=int, help="8 by default; for MNIST 2")
    parser.add_argument("--output", type=Path, default=Path("digits.png"), help="where the picture goes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.epochs is not None and args.epochs < 1:
        parser.error(f"--epochs is {args.epochs}: at least 1.")
    if not args.output.parent.is_dir():
        parser.error(f"--output: {args.output.parent} is not a folder.")
    try:
        data = load_full(args.mnist) if args.mnist else load_small()
    except (OSError, ValueError) as error:
        sys.exit(f"--mnist: {error}")
    demo(data, args.output, epochs=args.epochs or data.epochs, rates=SWEPT, seed=args.seed)


if __name__ == "__main__":
    main()
