"""How it is measured: contestants take turns in one process, so that whatever else the machine does hits all of them.

The order is drawn anew every round: nobody always follows the one that has just emptied the cache. Before each turn, outside its
time, the gradients are put back. A ratio is taken within a round; its median and quartiles over the rounds are reported.
"""

import random
import statistics
import time
from dataclasses import dataclass

import torch
from contestants import COPY, Task

WARM_UP = 3


@dataclass(frozen=True)
class Result:
    """Seconds of every turn of every contestant; those of the copy for as many bytes as the task moves."""

    task: Task
    elements: int
    seconds: dict[str, list[float]]
    deviation: dict[str, float]

    def median(self, name):
        return statistics.median(self.seconds[name])

    def rate(self, name):
        """Bytes that an ideal step moves, over the time it took, in GB/s."""
        return self.task.bytes_moved(self.elements) / self.median(name) / 1e9

    def ratio(self, name, other):
        """Quartiles of the time of one over the time of the other in the same round: the lower, the median, the upper."""
        return statistics.quantiles([a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True)])


def measure(stage, task, builders, seconds, *, least=5, most=200):
    """Warm up each contestant, see that it does the task, then let all take turns for about `seconds`."""
    steps, deviation, expected = {}, {}, None
    for name, build in builders.items():
        steps[name] = build()
        reached = _warm_up(stage, name, steps[name])
        expected = expected or reached
        deviation[name] = _deviation(stage, reached, expected)
        del reached
    del expected
    times = take_turns(stage, {**steps, COPY: _copy(stage)}, seconds, least, most)
    copies = task.bytes_moved(stage.elements) / (8 * stage.elements)
    times[COPY] = [copies * t for t in times[COPY]]
    return Result(task, stage.elements, times, deviation)


def _warm_up(stage, name, step):
    """Where the first steps lead, from the start that all have; compilation happens here."""
    stage.reset()
    for _ in range(WARM_UP):
        stage.reset_gradients()
        step()
    reached = [p.detach().clone() for p in stage.params]
    still = sum(torch.equal(p, start) for p, start in zip(reached, stage.start, strict=True))
    if still:
        raise RuntimeError(f"{name} left {still} of {len(reached)} parameters where they were: this is not the task.")
    return reached


def _deviation(stage, reached, expected):
    """The largest distance between two end points, over the longest way of the second."""
    apart = max(float((p - q).abs().max()) for p, q in zip(reached, expected, strict=True))
    way = max(float((q - start).abs().max()) for q, start in zip(expected, stage.start, strict=True))
    return apart / way


def _copy(stage):
    source = torch.ones(stage.elements, device=stage.params[0].device)
    target = torch.ones_like(source)  # Not zeros, which the operating system would only promise.
    return lambda: target.copy_(source)


def take_turns(stage, steps, seconds, least, most):
    """The time of each step in each round: at least `least` rounds, and more while `seconds` last, up to `most`."""
    times, order, rng = {name: [] for name in steps}, list(steps), random.Random(0)
    end = time.perf_counter() + seconds
    while len(times[order[0]]) < least or (len(times[order[0]]) < most and time.perf_counter() < end):
        rng.shuffle(order)
        for name in order:
            stage.reset_gradients()
            _synchronize(stage)
            start = time.perf_counter()
            steps[name]()
            _synchronize(stage)
            times[name].append(time.perf_counter() - start)
    return times


def _synchronize(stage):
    if stage.params[0].device.type != "cpu":
        torch.accelerator.synchronize()
