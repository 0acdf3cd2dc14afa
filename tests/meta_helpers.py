"""What the tests of `functional_optim.meta` share: finite differences, comparisons of trees, and memory."""

import itertools
import json
import weakref

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from functional_optim.meta.packing import pack


def close(found, expected, *, rtol, atol, equal_nan=False):
    """Two trees of tensors or numbers, leaf by leaf."""
    if isinstance(expected, float):
        expected = torch.tensor(expected, dtype=torch.float64)
    ours, theirs = pack(found)[0], pack(expected)[0]
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan)


def every_number(tensors, whole):
    """Directions in a list of tensors: along each () tensor after the first `whole` ones, and one through all of those."""
    generator = torch.Generator().manual_seed(3)
    together = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in tensors[:whole]]
    yield [*together, *(torch.zeros_like(x) for x in tensors[whole:])]
    for i in range(whole, len(tensors)):
        yield [torch.ones_like(x) if i == j else torch.zeros_like(x) for j, x in enumerate(tensors)]


def difference_quotient(function, tensors, direction, step=2e-4):
    """The slope along a direction, from four values of the function, and what rounding may have done to it.

    The five-point formula: its error is of order step⁴; rounding of 1e-16 per operation, some thousand of them, over the step.
    """

    def at(distance):
        with torch.no_grad():
            return float(function([x + distance * d for x, d in zip(tensors, direction, strict=True)]))

    near, far = at(step) - at(-step), at(2 * step) - at(-2 * step)
    return (8 * near - far) / (12 * step), 1e-14 * abs(at(0.0)) / step


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that come into being while it is on, as long as they are alive."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.peak = weakref.WeakSet(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor) and x.untyped_storage() not in self.known:
                storage = x.untyped_storage()
                self.known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _freed(self, nbytes):
        self.now -= nbytes


def peak_bytes(function):
    """The most bytes that tensors made by a call took at one time."""
    with _Live() as live:
        function()
    return live.peak


def peak_bytes_in_code(function, path):
    """As `peak_bytes`, with what compiled code makes, which no mode sees: torch's profiler does, by a file at `path`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    seen.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    sizes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return max(itertools.accumulate(sizes))
