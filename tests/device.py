"""What optimizers do on a GPU: `make device`, or `python tests/device.py [seconds]`, within eight minutes.

Prints tables in Markdown: times beside torch's optimizers; what was read back to the host, and whether a step can be captured
in a CUDA graph; and the transforms of the tests' table, each way of stepping beside the rules themselves on the host in float64.
What there was no time for, or what failed, is said. Without a GPU it says so.
"""

import contextlib
import copy
import statistics
import sys
import time
import warnings

import torch

SECONDS = 450.0
NO_GPU = "There is no GPU here, so nothing was run on one."

# Sums are taken in another order there, and a few functions differ in the last places; three steps multiply that.
TOLERANCE = 1e-8


class Clock:
    """How much time is left of a number of seconds."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def is_over(self):
        return time.monotonic() > self.end


def main(seconds=SECONDS):
    """Run everything; the exit code."""
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 0
    device = torch.device("cuda")
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    print(f"# {torch.cuda.get_device_name(device)}, compute capability {capability}, torch {torch.__version__}\n")
    return report(device, Clock(seconds))


def report(device, clock, models=("tiny", "resnet50", "gpt2"), cases=None):
    """Print the tables; 1 if something failed, else 0."""
    warnings.simplefilter("ignore")
    failures = []
    print("| time of a step, ours / torch's | " + " | ".join(models) + " |\n|---|" + "--:|" * len(models))
    for name, pair in pairs().items():
        row = [tried(failures, f"{name}, {model}", ratio, device, model, pair) for model in models]
        print(f"| {name} | " + " | ".join(row) + " |", flush=True)
    print("\n| host's time of a step, µs | ours | torch's |\n|---|--:|--:|")
    for name, pair in pairs().items():
        times = [tried(failures, name, host_time, device, contestant) for contestant in pair]
        print(f"| {name} | {times[0]} | {times[1]} |", flush=True)
    print("\n| | |\n|---|---|")
    for name, check in CHECKS.items():
        print(f"| {name} | {tried(failures, name, check, device)} |", flush=True)
    compare_table(device, clock, failures, cases)
    print("\n".join(["", f"{len(failures)} failures", *(f"- {failure}" for failure in failures)]))
    return int(bool(failures))


def tried(failures, name, function, *args, **kwargs):
    """What a function says, or that it failed."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        failures.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return "failed"


def pairs():
    """What is timed: ours and torch's, each with whether gradients are clipped before its step."""
    import functional_optim as fo
    from functional_optim.adapters import SGD, AdamW, OptimizerAdapter

    def clipped(params, **how):
        return OptimizerAdapter(params, fo.chain(fo.clip_by_global_norm(), fo.adamw()), **how)

    fused, eager = (lambda p: torch.optim.AdamW(p, fused=True)), (lambda p: torch.optim.AdamW(p, foreach=True))
    momentum = {"lr": 0.1, "momentum": 0.9, "fused": True}
    return {
        "AdamW, fused": ((lambda p: AdamW(p, fused=True), False), (fused, False)),
        "AdamW, eager / foreach": ((AdamW, False), (eager, False)),
        "SGD with momentum, fused": ((lambda p: SGD(p, **momentum), False), (lambda p: torch.optim.SGD(p, **momentum), False)),
        "clipping + AdamW, fused": ((lambda p: clipped(p, fused=True), False), (fused, True)),
        "clipping + AdamW, eager / foreach": ((clipped, False), (eager, True)),
    }


def stepping(device, model, make, clips=False):
    """A function that takes a step of an optimizer that has taken some."""
    from shapes import MODELS

    params = [torch.nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in MODELS[model]]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = make(params)

    def step():
        if clips:
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    for _ in range(3):
        step()
    return step


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(device, step, count):
    wait(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    wait(device)
    return (time.perf_counter() - start) / count


def ratio(device, model, pair, rounds=15):
    """The median of ratios of neighbours, contestants taking turns."""
    mine, other = (stepping(device, model, *contestant) for contestant in pair)
    count = max(1, int(0.02 / seconds_of(device, other, 3)))
    return f"{statistics.median(seconds_of(device, mine, count) / seconds_of(device, other, count) for _ in range(rounds)):.2f}"


def host_time(device, contestant, count=20):
    """What the host does until it has launched everything, for 52 tensors with little in them."""
    step = stepping(device, "tiny", *contestant)
    times = []
    for _ in range(count):
        wait(device)
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return f"{1e6 * statistics.median(times):.0f}"


@contextlib.contextmanager
def nothing_is_read(device):
    """Raises where the host waits for the device."""
    if device.type != "cuda":
        raise NotImplementedError("only CUDA tells")
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def reads_nothing(**how):
    """That a warm step of several chains reads nothing."""

    def check(device):
        import functional_optim as fo
        from functional_optim.adapters import OptimizerAdapter

        chains = [
            fo.adamw(),
            fo.chain(fo.clip_by_global_norm(), fo.adamw()),
            fo.chain(fo.cautious(fo.scale_by_lion()), fo.scale_by_learning_rate()),
            fo.accumulate(fo.adamw(), every=2),
            fo.scheduled(fo.adamw(), lr=fo.cosine(1e-3, 0.0, 100)),
        ]
        for tx in chains:
            step = stepping(device, "tiny", lambda params, tx=tx: OptimizerAdapter(params, tx, **how))
            with nothing_is_read(device):
                step()
        return f"no, of {len(chains)} chains"

    return check


def replays(device):
    """That a captured step of AdamW(capturable=True), replayed, is as many steps."""
    from functional_optim.adapters import AdamW

    plain = [torch.nn.Parameter(torch.randn(64, 64, device=device)) for _ in range(4)]
    captured = copy.deepcopy(plain)
    for p, q in zip(plain, captured, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    ours = AdamW(captured, lr=torch.tensor(0.01, device=device), capturable=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            ours.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    for _ in range(5):
        graph.replay()
    theirs = AdamW(plain, lr=0.01)
    for _ in range(8):  # Capturing a step runs none.
        theirs.step()
    for p, q in zip(plain, captured, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)
    return "yes, and five replays are five steps"


def scaled(device):
    """That a GradScaler's step over a kernel is the step of true gradients."""
    from functional_optim.adapters import AdamW

    plain = [torch.nn.Parameter(torch.ones(1000, device=device))]
    other = copy.deepcopy(plain)
    plain[0].grad, other[0].grad = torch.full_like(plain[0], 0.5), torch.full_like(plain[0], 0.5 * 2.0**16)
    scaler, optimizer = torch.amp.GradScaler(device.type), AdamW(other, fused=True)
    scaler.scale(torch.ones((), device=device))
    scaler.step(optimizer)
    AdamW(plain, fused=True).step()
    torch.testing.assert_close(other, plain)
    return "yes"


def first_steps(device):
    """The first step, kernels from Triton's files or newly compiled."""
    import functional_optim as fo
    from functional_optim.adapters import OptimizerAdapter

    params = [torch.nn.Parameter(torch.randn(100, device=device))]
    params[0].grad = torch.randn_like(params[0])
    optimizer = OptimizerAdapter(params, fo.chain(fo.scale_by_belief(), fo.clip_by_global_norm(), fo.scale(-0.1)), fused=True)
    wait(device)
    start = time.perf_counter()
    optimizer.step()
    wait(device)
    return f"{time.perf_counter() - start:.1f} s"


CHECKS = {
    "Is anything read in a fused step?": reads_nothing(fused=True),
    "Is anything read in an eager step?": reads_nothing(),
    "Can a capturable step be replayed from a CUDA graph?": replays,
    "Does a GradScaler's step see true gradients?": scaled,
    "A first step of three links, fused": first_steps,
}


def compare_table(device, clock, failures, cases=None):
    """Every transform of the table, in every way, against the host's numbers."""
    from cases import TABLE

    names = list(TABLE) if cases is None else cases
    ways = {"fused": {"fused": True}, "eager": {}, "capturable": {"capturable": True}}
    right, left_out = dict.fromkeys(ways, 0), []
    for name in names:
        if clock.is_over():
            left_out.append(name)
            continue
        for way, how in ways.items():
            right[way] += tried(failures, f"{name}, {way}", is_the_hosts, device, name, **how) == "right"
    print(f"\n| of {len(names)} transforms of the table | {' | '.join(ways)} |\n|---|{'--:|' * len(ways)}")
    print(f"| the host's numbers in float64, to {TOLERANCE} | {' | '.join(map(str, right.values()))} |")
    if left_out:
        print(f"\nNo time was left for {len(left_out)} of them: {', '.join(left_out)}.")


def is_the_hosts(device, name, *, fused=None, capturable=False, steps=3):
    """Whether the parameters after some steps are those that the rules themselves find on the host."""
    from cases import TABLE, params_for
    from engines import SHAPES, WITH_ROWS, Plain, numbers_of, params_of, set_gradients

    from functional_optim.adapters import OptimizerAdapter

    own = params_for(name)
    shapes = [tuple(p.shape) for p in own.values()] if own else SHAPES if name.startswith("partition") else WITH_ROWS
    generator = torch.Generator().manual_seed(0)
    there = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]
    here = [torch.nn.Parameter(p.detach().to(device, copy=True)) for p in there]
    host = Plain(there, TABLE[name])
    ours = OptimizerAdapter([{"params": here, "capturable": capturable}], TABLE[name], fused=fused)
    for step in range(steps):
        set_gradients(step, there, here)
        for optimizer in (host, ours):
            optimizer.step(**{number: 1 + 1 / (1 + step) for number in numbers_of(optimizer)})
    for p, q in zip(params_of(host), params_of(ours), strict=True):
        torch.testing.assert_close(q.detach().cpu(), p.detach(), rtol=TOLERANCE, atol=TOLERANCE)
    return "right"


if __name__ == "__main__":
    sys.path += [f"{sys.path[0]}/benchmarks"]
    sys.exit(main(*map(float, sys.argv[1:])))
