"""What the digits demo measures, and the picture it draws of that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

INK, MUTED, BLUE, ORANGE = "#222222", "#8a8a8a", "#0072B2", "#D55E00"
ABOVE = {"textcoords": "offset points", "ha": "center"}


class Cost(NamedTuple):
    """Seconds by the clock, and of the processor's work, on all cores together."""

    clock: float
    work: float

    def __str__(self) -> str:
        return f"{self.clock:.1f} s, {self.work:.1f} s of processor time"


@dataclass
class Run:
    """What the ordinary loop leaves: the loss of every step, and the held-out accuracy after every epoch."""

    losses: list[float]
    accuracies: list[float]
    cost: Cost


@dataclass
class Sweep:
    """Losses (rates, steps) and accuracies (rates,); what both ways cost, and how far apart their parameters are."""

    rates: Tensor
    losses: Tensor
    accuracies: Tensor
    vmap: Cost
    loop: Cost
    difference: float

    @property
    def ratio(self) -> float:
        """How many times the work of `vmap` the loop's was. What else runs on the machine makes the clock go on, but not this."""
        return self.loop.work / self.vmap.work

    @property
    def best(self) -> int:
        """The index of the most accurate run; of several, the one with the lowest loss at the end."""
        ending = self.losses[:, -10:].mean(1).nan_to_num(torch.inf)
        return max(range(len(self.rates)), key=lambda i: (self.accuracies[i].item(), -ending[i].item()))


def plot(run: Run, sweep: Sweep, path: Path) -> None:
    """Three pictures side by side: the ordinary run, the losses of the sweep, and the accuracy over the learning rate."""
    style = {
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "text.color": INK,
        "legend.frameon": False,
    }
    with rc_context(style):
        figure = Figure(figsize=(13.5, 4.6), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        one, many, over_rates = figure.subplots(1, 3)
        plot_run(one, run)
        plot_losses(many, sweep)
        plot_accuracies(over_rates, sweep)
        figure.savefig(path, dpi=150)


def plot_run(axes: Axes, run: Run) -> None:
    steps = range(1, len(run.losses) + 1)
    axes.semilogy(steps, run.losses, color=BLUE, alpha=0.25, linewidth=1)
    axes.semilogy(steps, smoothed(run.losses), color=BLUE, linewidth=2)
    axes.set(title="One run, in an ordinary loop", xlabel="step")
    axes.set_ylabel("training loss", color=BLUE)

    epoch = len(run.losses) // len(run.accuracies)
    right = axes.twinx()
    right.plot(range(epoch, len(run.losses) + 1, epoch), run.accuracies, "o-", color=ORANGE, markersize=5, linewidth=1)
    right.annotate(f"{run.accuracies[-1]:.1%}", (len(run.losses), run.accuracies[-1]), (0, 7), **ABOVE, color=ORANGE)
    right.set_ylim(min(0.8, *run.accuracies), 1.005)
    right.set_ylabel("held-out accuracy, each epoch", color=ORANGE)
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    right.tick_params(length=0)
    right.grid(False)


def plot_losses(axes: Axes, sweep: Sweep) -> None:
    last = len(sweep.rates) - 1
    for i, losses in enumerate(sweep.losses.tolist()):
        label = f"lr = {sweep.rates[i]:.1e}" if i in (0, sweep.best, last) else None
        width, order = (2.8, 3) if i == sweep.best else (1.2, 2)
        axes.semilogy(smoothed(losses, 25), color=rate_color(i, sweep), linewidth=width, zorder=order, label=label)
    axes.set(title=f"{last + 1} learning rates, in one vmap", xlabel="step", ylabel="training loss, running mean of 25 steps")
    axes.legend(loc="lower left")


def plot_accuracies(axes: Axes, sweep: Sweep) -> None:
    rates, accuracies = sweep.rates.tolist(), sweep.accuracies.tolist()
    axes.semilogx(rates, accuracies, color=MUTED, linewidth=1, zorder=2)
    axes.scatter(rates, accuracies, c=[rate_color(i, sweep) for i in range(len(rates))], s=48, zorder=3)
    best = rates[sweep.best], accuracies[sweep.best]
    axes.scatter(*best, s=150, facecolors="none", edgecolors=INK, linewidths=1.5, zorder=4)
    axes.annotate(
        f"best: {best[1]:.1%}\nat lr = {best[0]:.1e}",
        best,
        (best[0], 0.55),
        ha="center",
        arrowprops={"arrowstyle": "-", "color": MUTED, "shrinkB": 9},
    )
    axes.set(title="… and how accurate each became", xlabel="learning rate (same colours)", ylabel="held-out accuracy")
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def rate_color(index: int, sweep: Sweep) -> tuple:
    """Dark for small learning rates, light for large ones; readable for every kind of colour vision."""
    return colormaps["viridis"](0.95 * index / max(len(sweep.rates) - 1, 1))


def smoothed(losses: Sequence[float], window: int = 9) -> list[float]:
    """The running mean over the last few steps."""
    recent = [losses[max(0, i + 1 - window) : i + 1] for i in range(len(losses))]
    return [math.fsum(part) / len(part) for part in recent]
